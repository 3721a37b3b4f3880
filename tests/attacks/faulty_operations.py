"""Each kind of finding, made on purpose: prints the kinds that the fuzz found. A script, run by test_fuzz.py."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from compute.table import Entry, lookup
from peer.worker import process
from tests.attacks import fuzz
from tests.attacks.fuzz import HEAP, Caller, Finding

_libc = ctypes.CDLL(None)


def _beyond(x: torch.Tensor) -> torch.Tensor:
    """A number behind the tensor."""
    return x.as_strided((), (), 0) if not x.numel() else _at(x.data_ptr() + x.numel() * x.element_size())


def _far_before(x: torch.Tensor) -> torch.Tensor:
    return _at(x.data_ptr() - (1 << 30))


def _near_before(x: torch.Tensor) -> torch.Tensor:
    return _at(x.data_ptr() - 4)


def _at(address: int) -> torch.Tensor:
    return torch.tensor(float(ctypes.c_int.from_address(address).value))


def _for_ever(x: torch.Tensor) -> torch.Tensor:
    while True:
        pass


def _foreign(x: torch.Tensor) -> torch.Tensor:
    return torch._neg_view(x > 0)  # which nobody can take the bytes of


def _uninitialised(x: torch.Tensor) -> torch.Tensor:
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.empty(100)


def _writes(x: torch.Tensor) -> torch.Tensor:
    return x.add_(1)


class _Faulty(Caller):
    """Calls `function` on an argument of 100 numbers that ends at a page which must not be touched."""

    def arguments(self, entry: Entry, number: int, slack: int = 0) -> Any:
        self._arena.reset(slack)
        return [self._arena.place(torch.ones(100), at_end=True)], {}


def kinds(function: Callable[[torch.Tensor], torch.Tensor]) -> list[str]:
    overload = _Overload(function)
    entry = dataclasses.replace(lookup("aten.neg.default"), overload=overload, kernel=overload)
    fuzz._entries = lambda names: iter([entry])
    fuzz.Caller = _Faulty  # type: ignore[misc]
    found: list[Finding] = []
    fuzz.fuzz(["aten.neg.default"], 1, 1, True, found.append)
    return [finding.kind for finding in found]


class _Overload:
    """Behaves on meta tensors, which is how sizes and dtypes are found out."""

    _schema = torch.ops.aten.neg.default._schema

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._function = function

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        behaves = torch.ops.aten.neg if x.is_meta and self._function is not _foreign else self._function
        return behaves(x)


def main() -> None:
    if os.environ.get("GLIBC_TUNABLES") != HEAP:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.attacks.faulty_operations"],
            {**os.environ, "GLIBC_TUNABLES": HEAP},
        )
    process.warm()
    for function in (_beyond, _far_before, _for_ever, _foreign, _near_before, _uninitialised, _writes):
        print(*kinds(function), flush=True)


if __name__ == "__main__":
    main()
