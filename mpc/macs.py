"""Operations with MACs: sums, products, and all that moves elements about, on secrets with tags (authenticated.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import torch

from mpc import field
from mpc.authenticated import Authenticated, Tagged
from mpc.bilinear import Bilinear, Convolve, MatrixProduct, Multiply
from mpc.operations.linear import MOVES, _call, result_type
from mpc.ring import encode
from mpc.rounds import Protocol
from mpc.secret import bits_of
from protocol.errors import OperationNotAllowed


@dataclass(frozen=True, slots=True)
class Checked:
    """A secret with its tag, its fractional bits, and the dtype that it stands for."""

    tagged: Tagged
    bits: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return self.tagged.value.shape

    def map(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> Checked:
        return Checked(Tagged(linear(self.tagged.value), linear(self.tagged.tag)), self.bits, self.dtype)


def operation(own: Authenticated, name: str, named: dict[str, Any]) -> Protocol[Any]:
    """What an operation gives: a Checked, or a list of them. OperationNotAllowed: it is none of sums and products."""
    kind = name.split(".")[1]
    if name in _MOVES:
        return _moved(name, named)
    if kind in ("cat", "stack"):
        return _stack_of(own, name, named)
    if kind in ("to", "_to_copy") and _is_same_kind(named):
        return Checked(named["self"].tagged, named["self"].bits, named["dtype"] or named["self"].dtype)
    if kind == "neg":
        negated: Checked = named["self"]
        return negated.map(field.opposite)
    if kind in ("sum", "cumsum", "trace"):
        return _added_up(name, named)
    if kind == "mean":
        return (yield from _mean(own, name, named))
    if kind in ("add", "sub", "rsub"):
        one, other = (named["other"], named["self"]) if kind == "rsub" else (named["self"], named["other"])
        alpha = named.get("alpha", 1)
        if alpha != 1:
            is_public = not isinstance(other, Checked)
            other = other * alpha if is_public else (yield from _product(own, Multiply(), other, alpha))
        return _sum_of(own, one, other, -1 if "sub" in kind else 1)
    if kind == "mul":
        return (yield from _product(own, Multiply(), named["self"], named["other"]))
    if kind == "square":
        made = yield from _product(own, Multiply(), named["self"], named["self"])
        return Checked(made.tagged, made.bits, torch.int64) if made.dtype == torch.bool else made
    if kind in ("mm", "matmul", "bmm"):
        return (yield from _product(own, MatrixProduct(), named["self"], named.get("mat2", named.get("other"))))
    if kind in ("mv", "dot"):
        return (yield from _vector_product(own, named["self"], named.get("vec", named.get("tensor"))))
    if kind in ("addmm", "linear"):
        x, y = (named["mat1"], named["mat2"]) if kind == "addmm" else (named["input"], _turned(named["weight"]))
        made = yield from _product(own, MatrixProduct(), x, y)
        bias = named["self"] if kind == "addmm" else named.get("bias")
        return made if bias is None else _sum_of(own, made, bias, 1)
    if kind in ("conv2d", "convolution") and not named.get("transposed"):
        return (yield from _convolve(own, named))
    raise OperationNotAllowed(f"{name} has no form with malicious security: sums and products have", operation=name)


_ADD_UP: Final = frozenset("sum sum.dim_IntList cumsum neg trace".split())
_MOVES: Final = frozenset(
    f"aten.{each}" if "." in each else f"aten.{each}.default"
    for each in (*MOVES, "t", "mT", "numpy_T", "adjoint")
    if each not in _ADD_UP
)


def _moved(name: str, named: dict[str, Any]) -> Any:
    """A Checked, or a list of them."""
    source: Checked = named["self"]
    words, tags = (_call(name, {**named, "self": each}) for each in (source.tagged.value, source.tagged.tag))
    if isinstance(words, torch.Tensor):
        return Checked(Tagged(words, tags), source.bits, source.dtype)
    return [Checked(Tagged(*each), source.bits, source.dtype) for each in zip(words, tags, strict=True)]


def _stack_of(own: Authenticated, name: str, named: dict[str, Any]) -> Checked:
    """Of several, some of which all may know."""
    parts = named["tensors"]
    bits = max(each.bits if isinstance(each, Checked) else bits_of(each, own.precision) for each in parts)
    found = [finer(each, bits) if isinstance(each, Checked) else public(own, each, bits) for each in parts]
    words, tags = ([getattr(each.tagged, key) for each in found] for key in ("value", "tag"))
    dtype = reduce(torch.promote_types, (each.dtype for each in parts))
    return Checked(Tagged(*(_call(name, {**named, "tensors": each}) for each in (words, tags))), bits, dtype)


def public(own: Authenticated, value: torch.Tensor, bits: int) -> Checked:
    """What all know, as a secret."""
    zeros = torch.zeros(value.shape, dtype=torch.int64, device=own.device)
    nothing = Checked(Tagged(zeros, zeros), bits, value.dtype)
    return Checked(_plus(own, nothing, _elements(value, bits), 1), bits, value.dtype)


def _is_same_kind(named: dict[str, Any]) -> bool:
    """Whether reals stay reals, and nothing becomes a truth value."""
    dtype = named.get("dtype")
    stays = dtype is None or dtype.is_floating_point or not named["self"].dtype.is_floating_point
    return stays and dtype != torch.bool


def _vector_product(own: Authenticated, x: Any, y: Any) -> Protocol[Checked]:
    """A matrix, or a row, by a vector."""
    column = y.map(lambda share: share.unsqueeze(-1)) if isinstance(y, Checked) else y.unsqueeze(-1)
    rows = 1 if len(x.shape) == 1 else 0
    if rows:
        x = x.map(lambda share: share.unsqueeze(0)) if isinstance(x, Checked) else x.unsqueeze(0)
    made = yield from _product(own, MatrixProduct(), x, column)
    return made.map(lambda share: share.squeeze(-1).squeeze(0) if rows else share.squeeze(-1))


def _turned(value: Any) -> Any:
    return value.map(lambda share: share.mT) if isinstance(value, Checked) else value.mT


def _added_up(name: str, named: dict[str, Any]) -> Checked:
    source: Checked = named["self"]
    given = {key: each for key, each in named.items() if key != "dtype"}
    made = source.map(lambda share: field.summed(share, lambda part: _call(name, {**given, "self": part})))
    return made if source.dtype.is_floating_point else Checked(made.tagged, made.bits, torch.int64)


def _mean(own: Authenticated, name: str, named: dict[str, Any]) -> Protocol[Checked]:
    """By a public count, of which as many digits count as of other numbers, however large it is."""
    added = yield from settled(
        own, _added_up(name.replace("mean.dim", "sum.dim_IntList").replace("mean", "sum"), named)
    )
    count = math.prod(named["self"].shape) // max(1, math.prod(added.shape))
    bits = own.precision + count.bit_length()
    words = torch.tensor(round(2.0**bits / max(1, count)), device=own.device)
    return Checked(added.tagged.by(Multiply(), words), added.bits + bits, added.dtype)


def _sum_of(own: Authenticated, one: Any, other: Any, sign: int) -> Checked:
    dtype = result_type(*map(_stand_in, (one, other)))
    bits = max(each.bits if isinstance(each, Checked) else bits_of(each, own.precision) for each in (one, other))
    if not isinstance(other, Checked):
        return Checked(_plus(own, finer(one, bits), _elements(other, bits), sign), bits, dtype)
    right = finer(other, bits) if sign > 0 else finer(other, bits).map(field.opposite)
    if not isinstance(one, Checked):
        return Checked(_plus(own, right, _elements(one, bits), 1), bits, dtype)
    return Checked(finer(one, bits).tagged + right.tagged, bits, dtype)


def _stand_in(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Checked) else value


def _plus(own: Authenticated, secret: Checked, public: torch.Tensor, sign: int) -> Tagged:
    public = public.to(secret.tagged.value.device)  # in a script, of shapes alone
    shape = (secret.tagged.value + public).shape
    wide = secret.map(lambda share: share.expand(shape))
    return own.plus(wide.tagged, (public if sign > 0 else field.opposite(public)).expand(shape))


def finer(secret: Checked, bits: int) -> Checked:
    moved = secret.map(lambda share: field.turned(share, bits - secret.bits))
    return Checked(moved.tagged, bits, secret.dtype)


def _elements(value: Any, bits: int) -> torch.Tensor:
    return field.from_words(encode(torch.as_tensor(value), bits))


def _product(own: Authenticated, operation: Bilinear, x: Any, y: Any) -> Protocol[Checked]:
    x, y = (yield from settled(own, x)), (yield from settled(own, y))
    dtype = result_type(*map(_stand_in, (x, y)))  # whole numbers times reals are reals
    if isinstance(x, Checked) and isinstance(y, Checked):
        made = yield from own.multiply(operation, x.tagged, y.tagged)
        return Checked(made, x.bits + y.bits, dtype)
    secret, public = (x, y) if isinstance(x, Checked) else (y, x)
    bits = bits_of(public, own.precision)
    words = _elements(public, bits)
    if isinstance(x, Checked):
        made = secret.tagged.by(operation, words)
    else:
        made = Tagged(*(field.apply(operation, words, each) for each in (secret.tagged.value, secret.tagged.tag)))
    return Checked(made, secret.bits + bits, dtype)


def settled(own: Authenticated, value: Any) -> Protocol[Any]:
    if not isinstance(value, Checked) or value.bits <= own.precision:
        return value
    made = yield from own.truncate(value.tagged, value.bits - own.precision)
    return Checked(made, own.precision, value.dtype)


def _convolve(own: Authenticated, named: dict[str, Any]) -> Protocol[Checked]:
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    rank = len(weight.shape) - 2

    def each(key: str, default: int) -> tuple[int, ...]:
        value = named.get(key, default)
        return (value,) * rank if isinstance(value, int) else tuple(value) * (rank if len(value) == 1 else 1)

    operation = Convolve(each("stride", 1), each("padding", 0), each("dilation", 1), named.get("groups", 1))
    made = yield from _product(own, operation, x, weight)
    if bias is None:
        return made
    wide = (-1, *(1,) * rank)
    return _sum_of(own, made, bias.map(lambda t: t.view(wide)) if isinstance(bias, Checked) else bias.view(wide), 1)
