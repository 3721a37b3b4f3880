"""Normalisation of rows: (x - mean) / root of (variance + eps).

A variance of 0.01 has 650 units of 2^-16, and its rounding alone would move the result by more than it may: so variance
and mean keep 28 fractional bits, and x - mean is brought to the size of the quotient before it is rounded.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from mpc.arithmetic import multiply
from mpc.bilinear import Multiply
from mpc.magnitude import digits_of
from mpc.operations.quotients import VALUE_BITS, digits_of_words, of_size, powers, rsqrt_of, series_of_z
from mpc.party import Party
from mpc.ring import MAGNITUDE
from mpc.rounds import Protocol, together
from mpc.secret import Digits, Secret, real, rescaled, settled
from mpc.table import Arguments, secure
from protocol.errors import BadRequest

_BITS: Final = 28  # fractional bits of mean and variance
_LARGEST: Final = 18  # variances are below 2^18
_OF_MEAN: Final = 20  # bits of the number by which sums become means
_OF_VARIANCE: Final = MAGNITUDE - 1 - _BITS - _LARGEST


@secure("native_layer_norm")
def normalised(party: Party, name: str, arguments: Arguments) -> Protocol[tuple[Secret, Secret, Secret]]:
    """Rows of mean 0 and variance 1, the means, and 1 / root of each variance and eps: to within 1e-3 of the larger
    of 1 and the result (with eps >= 1e-5), for rows of n elements with |mean| * n < 2^25, variance * n < 2^28 and
    variance < 2^18 (with p > 16 fractional bits 2^(41 - p) and 2^(60 - 2p)). Weight and bias come after it
    (plainer.py). Sixteen rounds, and one before where x is a product."""
    x, count = real(party, arguments["input"]), math.prod(arguments["normalized_shape"])
    if count == 0:
        raise BadRequest(f"{name}: rows of no elements have no mean", operation=name)
    if not 0 <= arguments["eps"] < 1 << (_LARGEST - 1):
        raise BadRequest(f"{name}: eps is from 0 to 2^{_LARGEST - 1}, not {arguments['eps']}", operation=name)
    dims = list(range(x.share.dim() - len(arguments["normalized_shape"]), x.share.dim()))
    x = rescaled((yield from settled(party, x)), party.precision)
    sums = _over(x.share.sum(dims, keepdim=True), party.precision, count, _OF_MEAN)
    centre, mean = yield from together(settled(party, sums, _BITS), settled(party, sums))
    rest = x.share - rescaled(mean, party.precision).share
    squares = (yield from multiply(party, Multiply(), rest, rest)).sum(dims, keepdim=True)
    # What is cut off a sum is the less of a mean the more there are.
    kept = party.precision + max(0, _BITS - party.precision - (count.bit_length() - 1))
    total = yield from settled(party, Secret(squares, 2 * party.precision, torch.float64), kept)
    variance = yield from settled(party, _over(total.share, total.bits, count, _OF_VARIANCE), _BITS)
    words = rescaled(variance, _BITS).share
    if party.is_first:
        words = words + round(arguments["eps"] * (1 << _BITS))
    root = yield from digits_of_words(party, words, digits_of(_BITS, _LARGEST))
    fine = Secret(rescaled(x, _BITS).share - rescaled(centre, _BITS).share, _BITS, x.dtype)
    made, scale = yield from _over_root(party, fine, root, words.shape)
    return _as(made, x), _as(mean, x), _as(scale, x)


def _over(sums: torch.Tensor, bits: int, count: int, more: int) -> Secret:
    """The mean of so many, of their sum: one multiplication by a number of at most `more` + 1 bits."""
    shift = more + (count - 1).bit_length()
    return Secret(sums * round((1 << shift) / count), bits + shift, torch.float64)


def _over_root(party: Party, x: Secret, root: Digits, shape: torch.Size) -> Protocol[tuple[Secret, Secret]]:
    """x / root of y, and 1 / root of y. Four rounds."""
    count, (wanted, power) = shape.numel(), rsqrt_of(_BITS)
    numbers, moved = powers(root.first.digits, power)
    scale = root.first.chosen(numbers)
    size, value = yield from together(
        of_size(party, x, scale[:count].view(shape), moved, _BITS),
        series_of_z(party, root, wanted, VALUE_BITS),
    )
    out, one = yield from together(
        multiply(party, Multiply(), size.share, value[:count].view(shape)), multiply(party, Multiply(), value, scale)
    )
    out, one = yield from together(
        settled(party, Secret(out, size.bits + VALUE_BITS, torch.float64)),
        settled(party, Secret(one[:count].view(shape), moved + VALUE_BITS, torch.float64)),
    )
    return out, one


def _as(made: Secret, x: Secret) -> Secret:
    return Secret(made.share, made.bits, x.dtype)
