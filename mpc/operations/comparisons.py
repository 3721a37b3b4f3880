"""Comparisons, and what is made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from mpc import bits
from mpc.comparison import Masked, as_numbers, mask, negative_bits, zero_bits
from mpc.operations.linear import add, as_number
from mpc.party import Party
from mpc.ring import largest
from mpc.rounds import Protocol, together
from mpc.secret import Secret, known, real, settled
from mpc.table import Arguments, secure
from protocol.errors import BadRequest


def flat(share: torch.Tensor) -> torch.Tensor:
    """[n] for the bits: a multiple of bits.GROUP elements."""
    flat = share.reshape(-1)
    missing = -flat.shape[0] % bits.GROUP
    return functional.pad(flat, (0, missing)) if missing else flat


def negative(party: Party, x: Secret) -> Protocol[Secret]:
    """1 where x < 0, else 0. Four rounds."""
    masked = yield from mask(party, flat(x.share))
    packed = yield from negative_bits(party, masked)
    bit, _ = yield from as_numbers(party, packed)
    return Secret(bit[: x.share.numel()].view(x.shape), 0, torch.bool)


def zero(party: Party, x: Secret) -> Protocol[Secret]:
    """1 where x == 0, else 0. Four rounds."""
    masked = yield from mask(party, flat(x.share))
    packed = yield from zero_bits(party, masked)
    bit, _ = yield from as_numbers(party, packed)
    return Secret(bit[: x.share.numel()].view(x.shape), 0, torch.bool)


def opposite(party: Party, bit: Secret) -> Secret:
    """1 - bit."""
    return bit.of(1 - bit.share if party.is_first else -bit.share)


@secure("lt.Tensor", "lt.Scalar", "gt.Tensor", "gt.Scalar", "le.Tensor", "le.Scalar", "ge.Tensor", "ge.Scalar")
def order(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    one, other = arguments["self"], arguments["other"]
    kind = name.split(".")[1]
    if kind in ("gt", "le"):
        one, other = other, one
    below = yield from negative(party, add(party, "aten.sub.Tensor", {"self": one, "other": other}))
    return below if kind in ("lt", "gt") else opposite(party, below)


@secure("eq.Tensor", "eq.Scalar", "ne.Tensor", "ne.Scalar")
def equal(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    other = arguments["other"]
    if isinstance(other, float) and math.isinf(other):
        never = torch.full(arguments["self"].shape, ".ne." in name, dtype=torch.bool)
        return known(party, never, 0, arguments["self"])
    difference = add(party, "aten.sub.Tensor", dict(arguments))
    same = yield from zero(party, difference)
    return opposite(party, same) if ".ne." in name else same


@secure("relu")
def relu(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """x where it is above zero, else 0. Four rounds, exact; a product is truncated on the way."""
    x: Secret = arguments["self"]
    shift = max(x.bits - party.precision, 0)
    masked = yield from mask(party, flat(-x.share), shift)
    packed = yield from negative_bits(party, masked)
    bit, below = yield from as_numbers(party, packed, masked)
    assert below is not None
    count = x.share.numel()
    above = Secret(bit[:count].view(x.shape), 0, torch.bool)
    return Secret(-below[:count].view(x.shape), x.bits - shift, x.dtype, above=above)


def signs_and_parts(party: Party, x: Secret) -> Protocol[tuple[Secret, Secret]]:
    """1 where x < 0, and x itself there, 0 elsewhere; no scale changes. Four rounds."""
    masked = yield from mask(party, flat(x.share))
    packed = yield from negative_bits(party, masked)
    bit, below = yield from as_numbers(party, packed, masked)
    assert below is not None
    count = x.share.numel()
    return Secret(bit[:count].view(x.shape), 0, torch.bool), x.of(below[:count].view(x.shape))


@secure("abs")
def absolute(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x: Secret = arguments["self"]
    _, below = yield from signs_and_parts(party, x)
    return x.of(x.share - 2 * below.share)


@secure("sign", "sgn")
def sign(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """-1, 0 or 1: two comparisons side by side."""
    x: Secret = arguments["self"]
    below, above = yield from together(negative(party, x), negative(party, x.of(-x.share)))
    return Secret(above.share - below.share, 0, x.dtype)


@secure("leaky_relu")
def leaky_relu(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x = yield from settled(party, arguments["self"])
    _, below = yield from signs_and_parts(party, x)
    slope = arguments.get("negative_slope", 0.01)
    bits = party.precision
    words = round((1 - slope) * (1 << bits))
    return Secret((x.share << bits) - below.share * words, x.bits + bits, x.dtype)


@secure("clamp", "hardtanh", "clamp_min", "clamp_max", "relu6")
def clamp(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Between two bounds that all parties know; both comparisons share one opening. Four rounds."""
    x: Secret = arguments["self"]
    given = _bounds(name, arguments)
    if x.is_real or (name.startswith("aten.clamp") and any(isinstance(each, float) for each in given)):
        x = real(party, x)
    else:
        x = replace(x, dtype=as_number(x))
        given = _as_it_is(x, given[0]), _as_it_is(x, given[1])
    low, high = _within(name, x, *given)
    if low is not None and high is not None and low >= high:  # the upper bound is the last word
        return known(party, torch.full(x.shape, high, dtype=x.dtype), x.bits, x)
    masked = yield from mask(party, flat(x.share))
    parts = []
    for bound, sign_of in ((low, 1), (high, -1)):
        if bound is not None:
            parts.append(_beyond(party, x, masked, round(float(bound) * (1 << x.bits)), sign_of))
    made = yield from together(*parts)
    return x.of(x.share + sum(made))


def _as_it_is(x: Secret, bound: float | None) -> int | None:
    """A bound as torch takes it, in the dtype of these whole numbers."""
    return None if bound is None else int(torch.tensor(bound).to(x.dtype))


def _bounds(name: str, arguments: Arguments) -> tuple[Any, Any]:
    if "relu6" in name:
        return 0, 6
    if "hardtanh" in name:
        return arguments.get("min_val", -1), arguments.get("max_val", 1)
    return arguments.get("min"), arguments.get("max")


def _within(name: str, x: Secret, low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """The bounds without those that no secret is beyond."""
    most = largest(x.bits)
    if any(bound is not None and math.isnan(bound) for bound in (low, high)):
        raise BadRequest(f"{name}: a bound is not a number")
    if (low is not None and low >= most) or (high is not None and high <= -most):
        raise BadRequest(f"{name}: all would be {low if high is None else high}, and secrets are below {most:g}")
    return None if low is None or low <= -most else low, None if high is None or high >= most else high


def _beyond(party: Party, x: Secret, masked: Masked, bound: int, direction: int) -> Protocol[torch.Tensor]:
    """What has to be added to x where it is below the bound (direction 1), or above (-1)."""
    gap = replace(masked, c=masked.c - bound)  # of x - bound = (c - bound) - r
    packed = yield from negative_bits(party, gap)
    _, below = yield from as_numbers(party, packed, gap)
    assert below is not None
    if direction > 0:
        change = -below
    else:
        whole = gap.c - gap.r if party.is_first else -gap.r
        change = -(whole - below)
    return change[: x.share.numel()].view(x.shape)
