"""`out=`: what an operation gives, written to tensors that are there already.

The operation is queued without `out=`, and what it gives is copied. torch refuses some calls that this would take: it
casts only what some operations give, and does not write to what it still reads. Those are refused here too, in its
words, before anything is queued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils._python_dispatch import _disable_current_modes

from compute.nested import flat, tensors_in, with_tensors
from compute.operations import OPERATIONS
from protocol.errors import BadRequest, NotCollocated, OperationFailed

if TYPE_CHECKING:
    from grid.handle import Handle
    from grid.pointer import Pointer

WRITES_HERE: Final = (
    "a tensor that is here, {shape}, would be changed in place by one that is at {home}: get that one first "
    "(value = await x.get()), or send this one there (y = await g[{home!r}].send(y))"
)
_OVERLAPS: Final = (
    "unsupported operation: some elements of the input tensor and the written-to tensor refer to a single memory "
    "location. Please clone() the tensor before performing the operation."
)
_CATEGORIES: Final[dict[str, set[str]]] = {}
for _operation, _category in OPERATIONS.items():
    _CATEGORIES.setdefault(_operation.split(".")[1], set()).add(_category)

# What torch does with an `out=` of another dtype than the result's, kernel by kernel: its schemas do not say, and its
# meta kernels take more than the others do. What is not here is to be of the very dtype.
_COMPUTED_IN_IT: Final = frozenset("sum nansum prod mean cumsum cumprod linspace logspace".split())
_CASTING: Final = frozenset({"elementwise", "comparison", "special", "transform", "factory", "random"})
_NOT_CAST: Final = frozenset(
    """
    bitwise_not ceil floor trunc frac round complex polar conj_physical frexp heaviside nan_to_num neg sgn sign signbit
    isin isneginf isposinf multinomial
    """.split()
)
_CAST: Final = frozenset(
    """
    cat concat concatenate stack hstack vstack dstack column_stack row_stack _chunk_cat addr cholesky cholesky_inverse
    cholesky_solve geqrf linalg_eig linalg_eigvals linalg_householder_product linalg_lstsq linalg_pinv
    linalg_matrix_rank
    """.split()
)
_AS_NUMBERS: Final = frozenset({"any", "all"})
"""They give truth values, or numbers of one byte."""

# Some kernels read their inputs while they write: torch lets none of these write to a part of what they read.
_READING: Final = frozenset({"elementwise", "comparison", "special", "index", "random"})
_READING_TOO: Final = frozenset("cat stack addr cumsum cumprod logcumsumexp linalg_cross gelu hardshrink".split())


def names_of(function: Any) -> list[str]:
    """The names by which a call says where its results are to be written: out, or values and indices."""
    return [argument.name for argument in function._schema.arguments if argument.is_out]


def without(function: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the operation itself."""
    names = names_of(function)
    return {key: value for key, value in kwargs.items() if key not in names}


def into(kind: type[Pointer], function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the call of an operation with `out=` gives. `kind` is the class of pointers; one is among the arguments.

    Raises:
        NotCollocated: an `out=` is here.
        BadRequest: one is of another size than the result; empty ones take its size, as torch's do.
        OperationFailed: one that torch does not take: of another dtype, or in the memory of an input.
    """
    named, others = [kwargs[name] for name in names_of(function)], without(function, kwargs)
    outs = flat(named)
    _check_there(kind, outs, [*args, *others.values()])
    if function._opname in _COMPUTED_IN_IT and others.get("dtype") is None:
        others["dtype"] = outs[0].dtype
    plain = getattr(getattr(torch.ops, function.namespace), function._opname)
    given = [tensor for tensor in tensors_in([*args, *others.values()]) if isinstance(tensor, kind)]
    _check_memory(function, outs, given)
    foreseen = _foreseen(plain, args, others)
    if foreseen is not None:
        _check_results(function, outs, foreseen)
    made = flat([plain(*args, **others)])
    if foreseen is None:
        _check_results(function, outs, made)
    written = [write(out, result) for out, result in zip(outs, made, strict=True)]
    if isinstance(named[0], list | tuple):
        return None  # as torch, of lists
    return written[0] if len(named) == 1 else tuple(written)


def like_factory(function: Any, kwargs: Mapping[str, Any], out: torch.Tensor) -> tuple[str, dict[str, Any]] | None:
    """What makes a tensor from nothing and writes it to `out`, as what gives such a tensor; None for all else."""
    overload = function._overloadname.removesuffix("out").rstrip("_") or "default"
    if function._opname == "arange" and overload == "start":
        overload = "start_step"
    name = f"{function.namespace}.{function._opname}.{overload}"
    if name not in OPERATIONS:
        return None
    return name, {"dtype": out.dtype, **kwargs}


def write(out: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """`out` with these values, which are where it is."""
    if out.shape == made.shape:
        return out.copy_(made)
    _check_shape(out, made)
    out.data = made.to(out.dtype)  # as torch, which gives an empty one the size of the result
    return out


# --- what torch does not take ---------------------------------------------------------------------------------


def _check_there(kind: type[Pointer], outs: Sequence[torch.Tensor], given: Sequence[Any]) -> None:
    home = next(tensor._handle.home.name for tensor in tensors_in([*given, *outs]) if isinstance(tensor, kind))
    for out in outs:
        if not isinstance(out, kind):
            raise NotCollocated(WRITES_HERE.format(shape=list(out.shape), home=home))


def _check_results(function: Any, outs: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
    if len(outs) != len(results):
        raise BadRequest(f"out= has {len(outs)} tensors, and the operation gives {len(results)}")
    for out, result in zip(outs, results, strict=True):
        _check_shape(out, result)
        _check_dtype(function, out.dtype, result.dtype, len(outs))


def _check_shape(out: torch.Tensor, result: torch.Tensor) -> None:
    if out.numel() and out.shape != result.shape:
        raise BadRequest(f"out= is of shape {list(out.shape)}, and the result of {list(result.shape)}: leave out= away")


def _check_dtype(function: Any, out: torch.dtype, result: torch.dtype, count: int) -> None:
    if out == result:
        return
    name = function._opname
    is_cast = count == 1 and not _CASTING.isdisjoint(_CATEGORIES.get(name, ())) and name not in _NOT_CAST
    if not is_cast and name not in _CAST and not (name in _AS_NUMBERS and out == torch.uint8):
        text = f"Expected out tensor to have dtype {_spoken(result)}, but got {_spoken(out)} instead"
        text += ": leave out= away, and cast what it gives"
    elif not torch.can_cast(result, out):
        text = f"result type {_spoken(result)} can't be cast to the desired output type {_spoken(out)}"
    else:
        return
    raise OperationFailed(text, operation=_full(function), type="RuntimeError")


def _check_memory(function: Any, outs: Sequence[Any], given: Sequence[Any]) -> None:
    name = function._opname
    if name not in _READING_TOO and _READING.isdisjoint(_CATEGORIES.get(name, ())):
        return
    for out in outs:
        if any(_overlaps(out, tensor) for tensor in given):
            raise OperationFailed(_OVERLAPS, operation=_full(function), type="RuntimeError")


def _overlaps(out: Any, other: Any) -> bool:
    """Whether they share memory and are not the same, as far as torch looks: at tensors without gaps."""
    if not _have_one_memory(out._handle, other._handle) or not (_is_dense(out) and _is_dense(other)):
        return False
    (begin, end), (low, high) = _extent(out), _extent(other)
    if (begin, end) == (low, high):
        return tuple(out.stride()) != tuple(other.stride())
    return begin < high and low < end


def _have_one_memory(one: Handle, other: Handle) -> bool:
    return one is other or (one.memory is not None and one.memory is other.memory)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether it has elements, each at a place of its own, with no gaps between them."""
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != step:
            return False
        step *= size
    return step > 0


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The first byte in its memory, and the one after the last, of a tensor without gaps."""
    begin = int(tensor.storage_offset()) * tensor.itemsize
    return begin, begin + tensor.numel() * tensor.itemsize


def _foreseen(plain: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor] | None:
    """Shapes and dtypes of the results; None where torch cannot tell, as it hangs on the data, or refuses the call."""
    named = {key: with_tensors(value, _meta) for key, value in kwargs.items() if key != "generator"}
    try:
        with _disable_current_modes():
            return tensors_in([plain(*with_tensors(list(args), _meta), **named)])
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
        return None


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _spoken(dtype: torch.dtype) -> str:
    """As torch's errors name it: Float, Long."""
    return torch.empty(0, dtype=dtype).type().split(".")[1].removesuffix("Tensor")


def _full(function: Any) -> str:
    return f"{function.namespace}.{function._opname}.{function._overloadname}"
