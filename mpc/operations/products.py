"""Products: of secrets by triples, of secrets with public values by each party alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch

from mpc.arithmetic import multiply, multiply_fixed
from mpc.bilinear import Bilinear, Convolve, MatrixProduct, Multiply, spread, turned
from mpc.operations.linear import add, as_number, as_secrets, result_type
from mpc.party import Party
from mpc.ring import encode
from mpc.rounds import Protocol, together
from mpc.secret import Secret, aligned, bits_of, real, settled
from mpc.table import Arguments, secure
from protocol.errors import BadRequest


def product(party: Party, operation: Bilinear, x: Any, y: Any, dtype: torch.dtype) -> Protocol[Secret]:
    """operation(x, y), of which at least one is secret. One round for the product of two secrets, and one before where
    a factor is still a product itself and the other one is no truth value."""
    if isinstance(x, Secret) and isinstance(y, Secret):
        if torch.bool not in (x.dtype, y.dtype):
            x, y = yield from together(settled(party, x), settled(party, y))
        if y.fixed is not None:
            share = yield from multiply_fixed(party, operation, x.share, y.fixed)
            return Secret(share, x.bits + y.bits, dtype)
        share = yield from multiply(party, operation, x.share, y.share)
        return Secret(share, x.bits + y.bits, dtype)
    factor, secret = (y, x) if isinstance(x, Secret) else (x, y)
    moved = math.frexp(factor)[1] - 1 if isinstance(factor, int | float) and _is_power(factor) else 0
    if 0 < moved <= secret.fine:
        return Secret(secret.share, secret.bits - moved, dtype, fine=secret.fine - moved)
    bits = _factor_bits(factor, party.precision)
    if bits and not dtype.is_floating_point:
        raise BadRequest(f"whole numbers times {_said(factor)} are none: compute with x.float()")
    if bits:
        secret = yield from settled(party, secret)
    words = encode(torch.as_tensor(factor, dtype=torch.float64 if isinstance(factor, float) else None), bits)
    words = words.to(secret.share.device)
    share = operation(secret.share, words) if isinstance(x, Secret) else operation(words, secret.share)
    made = Secret(share, secret.bits + bits, dtype, fine=-moved if moved <= -_TINY else 0)
    # With more bits than this little would be left for what it is added to.
    return (yield from settled(party, made)) if made.bits > party.precision + _FEW else made


def _said(factor: Any) -> str:
    return f"{factor:g}" if isinstance(factor, float) else "reals"


def _factor_bits(value: Any, precision: int) -> int:
    """Fractional bits of a public factor. A small number gets more of them, because its digits count and not their
    place: 1 / 784 in units of 2^-16 would be half a percent off. Its word stays below 2^17, so that the product's is as
    large as with a factor of 1."""
    if isinstance(value, float) and 0 < abs(value) < 0.5:
        return bits_of(value, min(precision - math.frexp(value)[1], _MOST))
    return bits_of(value, precision)


def _is_power(value: float) -> bool:
    """Whether it is a power of two, so that only the point moves."""
    return math.frexp(value)[0] == 0.5


_TINY: Final = 8  # binary digits: what is made smaller by so many has digits below a real's last
_FEW: Final = 24
_MOST: Final = 40


@secure("mul.Tensor", "mul.Scalar")
def mul(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x, y = arguments["self"], arguments["other"]
    return (yield from product(party, Multiply(), x, y, result_type(x, y)))


@secure("square")
def square(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x = arguments["self"]
    return (yield from product(party, Multiply(), x, x, as_number(x)))


@secure("mm", "bmm", "matmul", "mv", "dot")
def matmul(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x, y = (
        arguments["self"],
        arguments.get("mat2", arguments.get("other", arguments.get("vec", arguments.get("tensor")))),
    )
    return (yield from product(party, MatrixProduct(), x, y, x.dtype))


@secure("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Tensor", "rsub.Scalar")
def sum_of_two(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """self + alpha * other, or less it; rsub: other - alpha * self. No round, but for one where alpha is no whole
    number and what it multiplies is a product."""
    alpha = arguments.get("alpha", 1)
    if isinstance(alpha, int):
        return add(party, name, arguments)
    which = "self" if name.startswith("aten.rsub") else "other"
    scaled = yield from _times(party, arguments[which], alpha)
    return add(party, name, {"self": arguments["self"], "other": arguments["other"], which: scaled})


@secure("addmm", "baddbmm", "addmv")
def addmm(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """beta * self + alpha * a matrix product. One round; one more where alpha or beta is not a whole number."""
    one = arguments.get("mat1", arguments.get("batch1", arguments.get("mat")))
    other = arguments.get("mat2", arguments.get("batch2", arguments.get("vec")))
    made, term = yield from together(
        _scaled_product(party, one, other, arguments.get("alpha", 1)),
        _times(party, arguments["self"], arguments.get("beta", 1)),
    )
    return _plus(party, made, term)


def _scaled_product(party: Party, one: Any, other: Any, alpha: float) -> Protocol[Any]:
    made = yield from product(party, MatrixProduct(), one, other, one.dtype)
    return (yield from _times(party, made, alpha))


def _times(party: Party, value: Any, factor: float) -> Protocol[Any]:
    if factor == 1:
        return value
    if not isinstance(value, Secret):
        return value * factor
    return (yield from product(party, Multiply(), value, factor, value.dtype))


@secure("linear")
def linear(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x, weight = arguments["input"], arguments["weight"]
    made = yield from product(party, MatrixProduct(), x, weight.mT, x.dtype)
    return _plus(party, made, arguments.get("bias"))


@secure("conv1d", "conv2d", "conv3d", "convolution")
def convolve(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    rank = len(weight.shape) - 2
    if len(x.shape) == rank + 1:  # one image alone
        made = yield from convolve(party, name, {**arguments, "input": on(x, lambda t: t.unsqueeze(0))})
        return made.of(made.share.squeeze(0))
    defaults = {"stride": 1, "padding": 0, "dilation": 1}
    stride, padding, dilation = (as_sizes(arguments.get(key, default), rank) for key, default in defaults.items())
    groups = arguments.get("groups", 1)
    if arguments.get("transposed"):
        kernel, extra = tuple(weight.shape[2:]), as_sizes(arguments.get("output_padding", 0), rank)
        x = on(x, partial(spread, stride=stride, padding=padding, dilation=dilation, kernel=kernel, extra=extra))
        weight = on(weight, partial(turned, groups=groups))
        stride, padding = (1,) * rank, (0,) * rank
    made = yield from product(party, Convolve(stride, padding, dilation, groups), x, weight, x.dtype)
    if bias is None:
        return made
    return _plus(party, made, on(bias, lambda t: t.view(-1, *(1,) * rank)))


def on(value: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """What moves elements about, on a secret or on what all know."""
    return value.of(move(value.share)) if isinstance(value, Secret) else move(value)


def _plus(party: Party, made: Secret, bias: Any) -> Secret:
    if bias is None:
        return made
    terms = aligned(as_secrets(party, [made, bias]))
    return Secret(terms[0].share + terms[1].share, terms[0].bits, made.dtype)


@secure("mean", "mean.dim")
def mean(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x: Secret = arguments["self"]
    dims = _dims(x, arguments)
    share = x.share.sum(dims, keepdim=arguments.get("keepdim", False))
    return (yield from product(party, Multiply(), x.of(share), 1.0 / _count(name, x, share, dims), x.dtype))


def _dims(x: Secret, arguments: Arguments) -> list[int]:
    """Those that are reduced: none named is all of them."""
    dims = arguments.get("dim")
    return [dims] if isinstance(dims, int) else list(dims or range(x.share.dim()))


def _count(name: str, x: Secret, reduced: torch.Tensor, dims: Sequence[int], correction: float = 0) -> float:
    """How many elements make one of the result, less a correction. BadRequest: none do, so that it would be NaN."""
    count = math.prod(x.shape[dim] for dim in dims) - correction if x.shape else 1 - correction
    if count > 0 or not reduced.numel():
        return count if count > 0 else 1
    raise BadRequest(f"{name}: of so few elements ({tuple(x.shape)}) it is not a number", operation=name)


@secure("var.correction", "var", "var.dim", "var_mean.correction")
def var(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
    """The mean of the squares of what is left after the mean; three rounds."""
    x = real(party, arguments["self"])
    dims = _dims(x, arguments)
    keep = arguments.get("keepdim", False)
    count = _count(name, x, x.share.sum(dims), dims, _correction(arguments))
    centre = yield from mean(party, name, {"self": x, "dim": dims, "keepdim": True})
    centre, x = yield from together(settled(party, centre), settled(party, x))
    rest = x.of(x.share - centre.share)
    squares = yield from product(party, Multiply(), rest, rest, x.dtype)
    total = squares.share.sum(dims, keepdim=keep)
    squares = yield from settled(party, squares.of(total))
    made = yield from product(party, Multiply(), squares, 1.0 / count, x.dtype)
    if "var_mean" not in name:
        return made
    return made, centre if keep else centre.of(centre.share.reshape(made.shape))


def _correction(arguments: Arguments) -> int | float:
    if "unbiased" in arguments:
        return int(arguments["unbiased"])
    correction = arguments.get("correction")
    return 1 if correction is None else float(correction)


def as_sizes(value: Any, rank: int) -> tuple[int, ...]:
    """One number for each dimension."""
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * rank if len(value) == 1 else tuple(value)
