"""How large the results of an operation will be, known before it runs: the operation runs on meta tensors first.

Meta tensors have shapes and no data, so what would need a terabyte costs microseconds here. Answers are remembered by
signature (operation, shapes, strides, dtypes, and those scalars on which shapes depend): a call seen before costs a
few microseconds. Operations whose result depends on data have a bound from their inputs instead (compute/bounds.py).
"""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from compute.bounds import BOUNDS, Result
from compute.corrections import CORRECTIONS
from compute.cost import ALLOWED, NOTHING, Cost, base_name, check_possible, cost, named
from compute.layer_guards import differentiable
from compute.lazy import bits_of, with_bits
from compute.shape_guards import SHAPE_GUARDS
from compute.table import Entry, lookup
from protocol import limits
from protocol.errors import GridError, OperationFailed, OperationNotAllowed, TooLarge
from protocol.sizes import beyond


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an operation will give and take.

    Attributes:
        results: one for each value that it returns, in order; None where it returns none (a gradient not asked for).
        nbytes: new memory for the results; results that share memory with an argument cost nothing.
        largest: the largest single tensor on the way, results included.
        is_exact: False for a bound: the results depend on data, `results` is empty, and `nbytes` is the most it can be.
        cost: the work that it is, at least.
    """

    results: tuple[Result | None, ...]
    nbytes: int
    largest: int
    is_exact: bool = True
    cost: Cost = NOTHING


def infer(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Estimate:
    """The estimate for this call, from metadata alone; arguments as `Entry.bind` returned them.

    Works for tensors of any kind that have shape, stride and dtype, tensor subclasses among them.

    Raises:
        BadRequest: shapes that the operation's kernel would not check itself (compute/shape_guards.py).
        OperationFailed: the operation refuses these arguments.
        TooLarge: more tensors, or more dimensions, than any result may have, or more work than any peer does at once.
    """
    key = _signature(entry, args, kwargs)
    try:
        found = _seen.get(key)
    except TypeError:  # sizes that are open, as while a plan is captured: what it gives is known when it runs
        return _OPEN
    if found is not None:
        _seen.move_to_end(key)
        return found
    estimate = _estimate(entry, args, kwargs)
    _seen[key] = estimate
    if len(_seen) > limits.MAX_ESTIMATES:
        _seen.popitem(last=False)
    return estimate


def check_size(
    entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any], allowed: int = limits.MAX_RESULT
) -> Estimate:
    """`infer`; TooLarge where the results, or one tensor on the way to them, would take more than `allowed` bytes, or
    more memory or time than is left to this process (compute/cost.py)."""
    estimate = infer(entry, args, kwargs)
    size = estimate.largest
    if size > allowed:
        sentence = "{operation} would give {what} of {size:bytes}; at most {allowed:bytes}"
        what = _shapes(estimate) or "a result"
        raise beyond("MAX_RESULT", size, sentence, allowed=allowed, operation=entry.name, what=what)
    check_allowed(entry.name, estimate)
    return estimate


def check_allowed(operation: str, estimate: Estimate) -> None:
    """TooLarge where it would take more memory or time than is left to this process."""
    size = estimate.largest
    if size and size + ALLOWED.held > ALLOWED.memory:
        ALLOWED.check_memory(operation, size)
    if estimate.cost.seconds > ALLOWED.seconds:
        ALLOWED.check_seconds(operation, estimate.cost)


_seen: Final[OrderedDict[tuple[Any, ...], Estimate]] = OrderedDict()
_OPEN: Final = Estimate((), 0, 0)


@functools.cache
def hangs_on_floats(name: str) -> bool:
    """Whether what the checks of an operation find out may be another thing for other values of its floats. Elsewhere
    these are left out of what calls are known by, so that a learning rate that changes every step does not miss.

    They shape the results of factories (arange, linspace) and, as lists, of others (the factors by which an image
    grows); and guards and bounds look at some (a scale by which a kernel would read beside the image).
    """
    try:
        entry = lookup(name)
    except OperationNotAllowed:
        return False  # there is nothing to find out
    kinds = [parameter.kind for parameter in entry.parameters if _MAY_BE_FLOAT & set(_WORD.findall(parameter.kind))]
    is_looked_at = name in SHAPE_GUARDS or name in BOUNDS
    return entry.category == "factory" or any(is_looked_at or "List[" in kind for kind in kinds)


_WORD: Final = re.compile(r"\w+")
_MAY_BE_FLOAT: Final = frozenset({"float", "number"})


def _signature(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    keep = hangs_on_floats(entry.name)
    key: list[Any] = [entry.name, torch.get_default_dtype()]
    for value in args:
        key.append(_key(value, keep))
    if kwargs:
        for name in sorted(kwargs):
            key.append(name)
            key.append(_key(kwargs[name], keep))
    return tuple(key)


def _key(value: Any, keep: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride(), value.is_conj(), value.is_neg()
    kind = type(value)
    if kind is float or kind is complex:
        return (kind, value) if keep else kind
    if kind is list or kind is tuple:
        return tuple([_key(item, keep) for item in value])
    # 1, 1.0 and True are equal and hash alike, but give other dtypes.
    return (kind, value)


def _estimate(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Estimate:
    guard, bound = SHAPE_GUARDS.get(entry.name), BOUNDS.get(entry.name)
    if entry.category == "backward":
        guarded(entry.name, differentiable, entry.named(args, kwargs))
    if guard is not None or bound is not None:
        call = entry.named(args, kwargs)
        if guard is not None:
            guarded(entry.name, guard, call)
        found = guarded(entry.name, bound, call) if bound is not None else None
        if found is not None:
            return _bounded(entry, call, found)
    with _disable_current_modes():  # but no torch.no_grad, which a trace that is under way would write down
        return _on_meta(entry, [_meta(value) for value in args], {name: _meta(kwargs[name]) for name in kwargs})


def _bounded(entry: Entry, call: Mapping[str, Any], found: int | tuple[Result, ...]) -> Estimate:
    is_exact = not isinstance(found, int)
    results = found if isinstance(found, tuple) else ()
    nbytes = found if isinstance(found, int) else sum(result.nbytes for result in found)
    work = cost(base_name(entry.overload._schema), call, nbytes // 8)
    check_possible(entry.name, work)
    return Estimate(results, nbytes, nbytes, is_exact, work)


def _meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        bits = bits_of(value)
        return with_bits(made, bits) if bits else made
    if isinstance(value, list | tuple):
        return [_meta(item) for item in value]
    return value


def _on_meta(entry: Entry, args: list[Any], kwargs: dict[str, Any]) -> Estimate:
    if "device" in entry._by_name:
        kwargs["device"] = "meta"
    given = {storage: number for number, storage in enumerate(_storages([*args, *kwargs.values()]))}
    watcher = _Watcher(entry.name, given)
    try:
        with watcher:
            value = entry.overload(*args, **kwargs)
    except GridError:
        raise
    except Exception as error:
        if "overflow" in str(error):  # torch counts elements and bytes in 64 bits
            what = "a result of 2**63 bytes and more; at most {allowed:bytes}"
            raise _too_large(entry.name, what, "MAX_TENSOR", limits.MAX_ID) from None
        raise failed(entry.name, error) from None
    tensors = list(value) if isinstance(value, list | tuple) else [value]
    is_absolute = entry.name == _AT_AN_OFFSET and entry.named(args, kwargs)["storage_offset"] is not None
    made = tuple(_result(entry.name, tensor, given, is_absolute) for tensor in tensors)
    results = _asked_for(entry, args, kwargs, made)
    rule = CORRECTIONS.get(entry.name)
    if rule is not None:
        results = rule(entry.named(args, kwargs), results)
    fresh = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in tensors
        if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given
    }
    nbytes = sum(fresh.values())
    check_possible(entry.name, watcher.cost)
    return Estimate(results, nbytes, max(watcher.largest, nbytes), cost=watcher.cost)


def _asked_for(
    entry: Entry, args: list[Any], kwargs: dict[str, Any], results: tuple[Result | None, ...]
) -> tuple[Result | None, ...]:
    """Without the gradients that `output_mask` does not ask for: meta kernels give some of them all the same."""
    if "output_mask" not in entry._by_name or entry.name in _GIVES_ALL:
        return results
    mask = entry.named(args, kwargs)["output_mask"]
    if not isinstance(mask, list | tuple) or len(mask) != len(results):
        return results
    return tuple(result if wanted else None for result, wanted in zip(results, mask, strict=True))


_GIVES_ALL: Final = frozenset({"aten.grid_sampler_2d_backward.default", "aten.grid_sampler_3d_backward.default"})
"""Kernels that give the gradient of the grid whether it is asked for or not. Their meta forms are as they are."""

_AT_AN_OFFSET: Final = "aten.as_strided.default"
"""The one view that says from the beginning of the memory where it begins, and not from where its argument does."""


def _storages(values: Sequence[Any]) -> list[int]:
    """Those of the tensors among these, and in lists of them, in order."""
    found: list[int] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value.untyped_storage()._cdata)
        elif isinstance(value, list):
            found += _storages(value)
    return found


def _result(operation: str, value: Any, given: Mapping[int, int], is_absolute: bool) -> Result | None:
    if not isinstance(value, torch.Tensor):
        return None
    if value.dim() > limits.MAX_NDIM:
        raise _too_large(operation, "a result of {size} dimensions; at most {allowed}", "MAX_NDIM", value.dim())
    if any(size < 0 for size in value.shape):  # torch.zeros(()).expand(0, -1) has one
        raise OperationFailed(f"a result of the shape {list(value.shape)}", operation=operation, type="RuntimeError")
    extent = value.numel() * value.element_size()
    if extent > limits.MAX_TENSOR:  # a view costs nothing itself, but what reads all of it would never end
        raise _too_large(operation, "a result of {size:bytes}; at most {allowed:bytes}", "MAX_TENSOR", extent)
    of = given.get(value.untyped_storage()._cdata)
    shape, offset = tuple(value.shape), int(value.storage_offset())
    return Result(value.dtype, shape, value.stride(), offset, of, is_absolute, bits_of(value))


def _too_large(operation: str, what: str, limit: str, size: int) -> TooLarge:
    return beyond(limit, size, "{operation} would be " + what, operation=operation)


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes the largest tensor that a composite operation makes on its way (matmul of an expanded tensor copies it),
    and adds up what its kernels cost."""

    def __init__(self, operation: str, given: Collection[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0
        self.cost = NOTHING
        self._operation = operation
        self._given = given
        self._kernels = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._kernels += 1
        if self._kernels > limits.MAX_KERNELS:  # diff(x, n=10**6) is a million subtractions, even of shapes alone
            what = "more steps than one operation may have; at most {allowed}"
            raise _too_large(self._operation, what, "MAX_KERNELS", self._kernels)
        value = function(*args, **kwargs)
        given, fresh = _storages(args), 0
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given:
                    fresh += tensor.numel()
                if storage.nbytes() > self.largest and storage._cdata not in self._given:
                    self.largest = storage.nbytes()
        schema = function._schema
        if fresh or schema.is_mutable:  # else it only looks at what is there in another way
            self.cost = self.cost.plus(cost(base_name(schema), named(schema, args, kwargs), fresh))
        return value


def guarded(operation: str, check: Callable[[Mapping[str, Any]], Any], call: Mapping[str, Any]) -> Any:
    """The answer of a guard or bound. One that breaks on strange arguments has refused them."""
    try:
        return check(call)
    except GridError as error:
        error.operation = operation
        raise
    except Exception as error:
        raise failed(operation, error) from None


def failed(operation: str, error: Exception) -> OperationFailed:
    """A foreign error as ours: the first lines of what torch said, and its type; never a traceback."""
    text = str(error).split("\nException raised from", 1)[0].strip() or type(error).__name__
    return OperationFailed(text[: limits.MAX_FAULT_TEXT], operation=operation, type=type(error).__name__)


def _shapes(estimate: Estimate) -> str:
    shapes = [f"{result.dtype} {list(result.shape)}".removeprefix("torch.") for result in estimate.results if result]
    return ", ".join(shapes[:3]) + (f" and {len(shapes) - 3} more" if len(shapes) > 3 else "")
