"""Honest calls of the operations of the table, to be made dishonest: a few for each, kept in honest_calls.jsonl.

They came from torch's own samples (OpInfo), run forward and backward while a mode wrote down what reached ATen; only
what the calls look like is kept. `python -m tests.attacks.calls` collects them anew, for operations that have none
(all: --afresh).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compute.dtypes import DTYPE_OF, MEMORY_FORMAT_NAME, MEMORY_FORMAT_OF, NAME_OF
from compute.interpreter import execute
from compute.operations import OPERATIONS
from compute.table import Entry, lookup
from protocol.errors import GridError
from tests.attacks import calls_by_hand

FILE: Final = Path(__file__).with_name("honest_calls.jsonl")
MOST_ELEMENTS: Final = 2_048  # of all tensors of a call
MOST_VALUES: Final = 64  # integers of a tensor that are kept as they are: indices, lengths, pivots
EACH: Final = 3  # calls kept for an entry

Call = tuple[list[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Shown:
    """A tensor as an honest call had it; `values` where they matter."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    values: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Shown:
        whole = not tensor.dtype.is_floating_point and not tensor.dtype.is_complex
        values = None
        if whole and tensor.numel() <= MOST_VALUES:
            values = tuple(int(value) for value in tensor.reshape(-1).tolist())
        return cls(tensor.dtype, tuple(tensor.shape), values)


def load() -> dict[str, list[Call]]:
    """The honest calls of each operation, tensors as Shown."""
    found: dict[str, list[Call]] = {}
    for line in FILE.read_text().splitlines():
        name, args, kwargs = json.loads(line)
        call = [_decoded(value) for value in args], {key: _decoded(value) for key, value in kwargs.items()}
        found.setdefault(name, []).append(call)
    return found


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tensor": [dtype, shape, values]}:
            return Shown(DTYPE_OF[dtype], tuple(shape), None if values is None else tuple(values))
        case {"dtype": name}:
            return DTYPE_OF[name]
        case {"memory_format": name}:
            return MEMORY_FORMAT_OF[name]
        case {"complex": [real, imaginary]}:
            return complex(real, imaginary)
    raise ValueError(value)


def _encoded(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        shown = Shown.of(value)
        return {"tensor": [NAME_OF[shown.dtype], shown.shape, shown.values]}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, torch.dtype):
        return {"dtype": NAME_OF[value]}
    if isinstance(value, torch.memory_format):
        return {"memory_format": MEMORY_FORMAT_NAME[value]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(value)


# --- collecting -------------------------------------------------------------------------------------------


class _Collector:
    """Keeps the first few small calls of each operation that differ in their forms."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, str]] = {}

    def note(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        kept = self.kept.setdefault(name, {})
        if name not in OPERATIONS or len(kept) >= EACH or _elements([*args, *kwargs.values()]) > MOST_ELEMENTS:
            return
        kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "layout", "pin_memory")}
        with suppress(TypeError, KeyError, ValueError, RuntimeError):
            line = json.dumps([name, _encoded(args), _encoded_map(kwargs)])
            kept.setdefault(_form([*args, *kwargs.values()]), line)


def _encoded_map(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: _encoded(value) for key, value in kwargs.items() if value is not None}


def _form(values: Sequence[Any]) -> str:
    return repr([(v.dtype, v.dim(), 0 in v.shape) if isinstance(v, torch.Tensor) else type(v) for v in values])


def _elements(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    return sum(map(_elements, value)) if isinstance(value, list | tuple) else 0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    def __init__(self, collector: _Collector) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._collector = collector

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._collector.note(str(function), args, kwargs or {})
        return function(*args, **(kwargs or {}))


def _samples() -> Iterator[tuple[Any, Any]]:
    from torch.testing._internal.common_methods_invocations import op_db

    for info in op_db:
        dtypes = [each for each in (torch.float32, torch.int64, torch.bool, torch.complex64) if each in info.dtypes]
        for dtype in dtypes[:2]:
            with suppress(Exception):
                made = info.sample_inputs("cpu", dtype, requires_grad=dtype.is_floating_point)
                for _, sample in zip(range(12), made, strict=False):
                    yield info, sample


def _run(collector: _Collector, function: Callable[..., Any], sample: Any) -> None:
    with suppress(Exception), _Watch(collector):
        value = function(sample.input, *sample.args, **sample.kwargs)
        tensors = [value] if isinstance(value, torch.Tensor) else [v for v in value if isinstance(v, torch.Tensor)]
        total = sum(tensor.sum() for tensor in tensors if tensor.requires_grad)
        if isinstance(total, torch.Tensor):
            total.backward()  # type: ignore[no-untyped-call]


def _try(collector: _Collector, entry: Entry, sample: Any) -> None:
    """A composite operation falls apart before a mode sees it: its samples are tried as they are."""
    args = [sample.input, *sample.args]
    with suppress(GridError):
        detached = [arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args]
        execute(entry, detached, sample.kwargs)
        collector.note(entry.name, args, sample.kwargs)


def collect() -> dict[str, dict[str, str]]:
    """Lines for FILE, by operation and form."""
    collector = _Collector()
    named: dict[str, list[Entry]] = {}
    for name in OPERATIONS:
        with suppress(GridError):
            named.setdefault(name.split(".")[1], []).append(lookup(name))
    for info, sample in _samples():
        for function in (info.op, info.method_variant, info.inplace_variant):
            if function is not None:
                _run(collector, function, sample)
        aliases = [alias.name for alias in info.aliases]
        for base in {name.rsplit(".", 1)[-1] for name in (info.name, info.aten_name or info.name, *aliases)}:
            for entry in [*named.get(base, []), *named.get(base + "_", [])]:
                if len(collector.kept.get(entry.name, ())) < EACH:
                    _try(collector, entry, sample)
    for name, args, kwargs in calls_by_hand.calls():
        collector.note("aten." + name, args, kwargs)
    return collector.kept


def main() -> None:
    parser = argparse.ArgumentParser(description="Collect honest calls for the fuzz of the table.")
    parser.add_argument("--afresh", action="store_true", help="forget those that are there")
    warnings.simplefilter("ignore")
    known: dict[str, list[str]] = {}
    if FILE.exists() and not parser.parse_args().afresh:
        for line in FILE.read_text().splitlines():
            known.setdefault(json.loads(line)[0], []).append(line)
    for name, lines in collect().items():
        known.setdefault(name, [*lines.values()])
    FILE.write_text("".join(line + "\n" for name in OPERATIONS for line in known.get(name, ())))
    missing = [name for name in OPERATIONS if not known.get(name)]
    print(f"{len(OPERATIONS) - len(missing)} of {len(OPERATIONS)}; none for: {' '.join(missing)}")


if __name__ == "__main__":
    main()
