"""Lowering and scripts that were found before: both follow from the program, the shapes, and what is public.

Pure functions of these, so that who asks again is answered at once; what was used last is kept, a few of each, and
nothing that is large. A program that draws something public while it is lowered (a dropout's mask) is lowered anew
each time.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

import torch

from compute.program import Program
from compute.values import tensor_bytes
from mpc import lowering
from mpc.lowering import Lowered
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Protocol
from mpc.script import Script, script_of
from mpc.secret import Secret

_MOST: Final = 64
"""Of each so many: plans that one process works with in turns."""
_LARGE: Final = 4 << 20
"""Bytes of public tensors beside a program: with more it is not kept."""

T = TypeVar("T")


class _Recent(Generic[T]):
    """The values that were used last. For any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


_LOWERED: Final[_Recent[Lowered]] = _Recent(_MOST)
_SCRIPTS: Final[_Recent[Script]] = _Recent(_MOST)


def lower(
    program: Program, inputs: Sequence[torch.Tensor], secret: Sequence[bool], precision: int = PRECISION
) -> Lowered:
    """As lowering.lower."""
    public = sum(each.nbytes for each, is_secret in zip(inputs, secret, strict=True) if not is_secret)
    if public > _LARGE:
        return lowering.lower(program, inputs, secret, precision)
    looks = tuple(
        (_look(each), "" if is_secret else _content(each)) for each, is_secret in zip(inputs, secret, strict=True)
    )
    key = program.id, looks, tuple(secret), precision
    found = _LOWERED.get(key)
    if found is None:
        before = torch.get_rng_state()
        found = lowering.lower(program, inputs, secret, precision)
        small = sum(each.nbytes for each in found.public) <= _LARGE
        if small and torch.equal(before, torch.get_rng_state()):
            _LOWERED.put(key, found)
    return found


def script(
    purpose: Hashable,
    lowered: Lowered,
    secrets: Sequence[Secret],
    protocol: Callable[[Party], Protocol[Any]],
    count: int,
) -> Script:
    """As script_of(protocol, count, lowered.precision), for a protocol that runs the lowered program.

    Args:
        purpose: what the protocol does beside (fresh shares, say): the same purpose is the same protocol.
        secrets: on the meta device: the program's inputs.
    """
    known = tuple((_look(each), _content(each)) for each in lowered.public)
    shapes = tuple(
        (_look(each.share), each.bits, each.dtype, each.fixed and (each.fixed.number, each.fixed.is_transposed))
        for each in secrets
    )
    key = purpose, lowered.program.id, lowered.precision, known, shapes, count
    found = _SCRIPTS.get(key)
    if found is None:
        found = script_of(protocol, count, lowered.precision)
        _SCRIPTS.put(key, found)
    return found


def _look(tensor: torch.Tensor) -> Hashable:
    return tuple(tensor.shape), tensor.dtype


def _content(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor_bytes(tensor.detach())).digest()
