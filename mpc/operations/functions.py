"""Functions of one secret, element by element. Each says its error and the domain that it holds on.

Saturating functions (sigmoid, tanh, erf) are a series inside [-T, T], where two signs from one opening say whether a
value lies outside. The coefficients are least-squares fits, reweighted towards the smallest largest error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

from mpc.bilinear import Multiply
from mpc.comparison import Masked, as_numbers, mask, negative_bits
from mpc.operations.comparisons import flat
from mpc.operations.linear import add
from mpc.operations.products import product
from mpc.party import Party
from mpc.rounds import Protocol, together
from mpc.secret import Secret, rescaled, settled
from mpc.table import Arguments, secure
from mpc.waves import LOWEST, Series, cos_sin, exp, series


def below(party: Party, x: Secret, *bounds: float) -> Protocol[list[Secret]]:
    """For each bound 1 where x < bound, else 0. Four rounds; all bounds share the opening of x."""
    x = rescaled(x, max(x.bits, party.precision))
    masked = yield from mask(party, flat(x.share))
    moved = [replace(masked, c=masked.c - round(bound * (1 << x.bits))) for bound in bounds]
    return (yield from together(*(_negative(party, each, x) for each in moved)))


def _negative(party: Party, masked: Masked, x: Secret) -> Protocol[Secret]:
    packed = yield from negative_bits(party, masked)
    bit, _ = yield from as_numbers(party, packed)
    return Secret(bit[: x.share.numel()].view(x.shape), 0, torch.bool)


def _times(party: Party, one: Secret, other: Secret) -> Protocol[Secret]:
    return (yield from product(party, Multiply(), one, other, other.dtype))


@secure("sin", "cos")
def circle(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Error below 5e-5 for |x| < 2^28. Two rounds."""
    x = yield from settled(party, arguments["self"])
    cosine, sine = yield from cos_sin(party, x)
    return (yield from settled(party, sine if ".sin." in name else cosine))


@secure("exp")
def exponential(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Error below 3e-5 of the larger of 1 and the value for x < 14; 0 below -15. Five rounds."""
    x = yield from settled(party, arguments["self"])
    (is_small,), value = yield from together(below(party, x, LOWEST + 1), _settled_exp(party, x))
    kept = add(party, "aten.rsub.Scalar", {"self": is_small, "other": 1})
    return (yield from _times(party, kept, value))


_LOG_OF_2: Final = 0.6931471805599453
_ROOT_OF_2: Final = 1.4142135623730951


@secure("exp2")
def power_of_two(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """2^x, as exp. One round more."""
    x: Secret = arguments["self"]
    moved = yield from product(party, Multiply(), x, _LOG_OF_2, x.dtype)
    return (yield from exponential(party, name, {"self": moved}))


@secure("erfc")
def rest_of_erf(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """1 - erf x, as erf."""
    made = yield from erf(party, name, arguments)
    return add(party, "aten.rsub.Scalar", {"self": made, "other": 1})


@secure("expm1")
def less_one(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """e^x - 1, as exp."""
    made = yield from exponential(party, name, arguments)
    return add(party, "aten.sub.Scalar", {"self": made, "other": 1})


def _settled_exp(party: Party, x: Secret) -> Protocol[Secret]:
    return (yield from settled(party, (yield from exp(party, x))))


@dataclass(frozen=True, slots=True)
class Saturating:
    """An odd function that is `limit` above `bound`, -limit below -bound, and `inside` in between."""

    bound: float
    limit: float
    inside: Series


def _odd(bound: float, *sines: float) -> Series:
    return Series(4 * bound, tuple(range(1, 2 * len(sines), 2)), sines)


# 1 / (1 + e^-x) - 1 / 2 on [-10, 10] to within 2.4e-5, and 4.6e-5 outside. tanh x is twice that of 2 x.
_SIGMOID: Final = (
    *(0.611506409, 0.150763847, 0.05367681, 0.019874611, 0.007406626, 0.002755663, 0.001030873),
    *(0.000380788, 0.00014515, 6.0134e-05),
)
SIGMOID: Final = Saturating(10.0, 0.5, _odd(10.0, *_SIGMOID))
TANH: Final = Saturating(5.0, 1.0, _odd(5.0, *(2 * each for each in _SIGMOID)))
# erf x on [-4, 4] to within 1.1e-6.
ERF: Final = Saturating(
    4.0,
    1.0,
    _odd(4.0, 1.225086354, 0.299984012, 0.097130293, 0.027503288, 0.006229468, 0.001090343, 0.000144988, 1.4565e-05),
)


def saturating(party: Party, function: Saturating, x: Secret) -> Protocol[Secret]:
    """Its values. Five rounds."""
    x = yield from settled(party, x)
    (low, not_high), inside = yield from together(
        below(party, x, -function.bound, function.bound), _settled_series(party, x, function.inside)
    )
    between = not_high.of(not_high.share - low.share)
    middle = yield from _times(party, between, inside)
    # limit * (1 - not_high - low): 1 above, -1 below, 0 between.
    ends = low.of((1 if party.is_first else 0) - not_high.share - low.share)
    limit = round(function.limit * (1 << middle.bits))
    return middle.of(middle.share + ends.share * limit)


def _settled_series(party: Party, x: Secret, wanted: Series) -> Protocol[Secret]:
    (made,) = yield from series(party, x, wanted)
    return (yield from settled(party, made))


@secure("sigmoid")
def sigmoid(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Error below 1e-4 for all x. Five rounds."""
    half = yield from saturating(party, SIGMOID, arguments["self"])
    return add(party, "aten.add.Tensor", {"self": half, "other": 0.5})


@secure("tanh")
def tanh(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Error below 2e-4 for all x. Five rounds."""
    return (yield from saturating(party, TANH, arguments["self"]))


@secure("erf")
def erf(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Error below 1e-4 for all x. Five rounds."""
    return (yield from saturating(party, ERF, arguments["self"]))


@secure("silu")
def silu(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """x sigmoid(x). Error below 1e-4 |x|. Six rounds."""
    factor = yield from sigmoid(party, name, arguments)
    return (yield from _times(party, factor, arguments["self"]))


@secure("gelu")
def gelu(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """x (1 + erf(x / sqrt 2)) / 2, also where torch's approximation by tanh is asked for. Error below 1e-4 |x|."""
    x = yield from settled(party, arguments["self"])
    # The same series, of a period that is longer by the root.
    wide = Saturating(ERF.bound * _ROOT_OF_2, ERF.limit, replace(ERF.inside, period=ERF.inside.period * _ROOT_OF_2))
    factor = yield from saturating(party, wide, x)
    factor = add(party, "aten.add.Tensor", {"self": factor, "other": 1})
    twice = yield from _times(party, factor, x)
    return Secret(twice.share, twice.bits + 1, twice.dtype)
