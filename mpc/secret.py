"""A secret tensor as one party has it: its share, and how the words are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mpc.arithmetic import Fixed
from mpc.comparison import truncate
from mpc.magnitude import Leading
from mpc.party import Party
from mpc.ring import encode
from mpc.rounds import Protocol


@dataclass(frozen=True, slots=True)
class Secret:
    """This party's share of a tensor that no party knows.

    Attributes:
        share: int64 words; the sum over all parties is the value.
        bits: fractional bits of the words. 0 for integers and truth values; twice the precision after a product, until
            something needs it to be less: truncation waits, because it often goes along with a comparison.
        dtype: of the tensor that it stands for.
        fixed: its masked form, where that was opened once for all products that it will be a factor of.
        above: of a relu's result: 1 where it is above zero, for its gradient.
        rows: of a place that was found as such: [..., count], 1 at the place and 0 elsewhere.
        root: of a square root: what it was taken from, in digits, for what is divided by it.
        fine: how many of the bits, below those of the run's precision, count: of what is far smaller than a real's last
            digit, as squares of gradients are. They are kept.
    """

    share: torch.Tensor
    bits: int
    dtype: torch.dtype
    fixed: Fixed | None = None
    above: Secret | None = None
    rows: Secret | None = None
    root: Digits | None = None
    fine: int = 0

    @property
    def shape(self) -> torch.Size:
        return self.share.shape

    @property
    def is_real(self) -> bool:
        return self.dtype.is_floating_point

    def of(self, share: torch.Tensor) -> Secret:
        """The same kind of value, with another share."""
        return Secret(share, self.bits, self.dtype)

    @property
    def mT(self) -> Secret:  # as torch has it
        return replace(
            self,
            share=self.share.mT,
            fixed=None if self.fixed is None else self.fixed.mT,
            above=None,
            rows=None,
            root=None,
        )


@dataclass(frozen=True, slots=True)
class Digits:
    """A positive x as z * 16^k, in flat shares.

    Attributes:
        first: the leading digit.
        place: 16 to the number of digits above it, ready to be a factor.
        z: with four fractional bits for each digit.
    """

    first: Leading
    place: Fixed
    z: torch.Tensor


def known(party: Party, value: torch.Tensor, bits: int, like: Secret) -> Secret:
    """What all parties know, as a secret: the first has it, the others have nothing. It lies where `like` does."""
    words = encode(value, bits).to(like.share.device)
    return Secret(words if party.is_first else torch.zeros_like(words), bits, value.dtype)


def rescaled(secret: Secret, bits: int) -> Secret:
    """The same value with more fractional bits. No round."""
    assert bits >= secret.bits
    if bits == secret.bits:
        return secret
    # Not `replace`: these are other words than those that were fixed.
    return Secret(secret.share << (bits - secret.bits), bits, secret.dtype)


def real(party: Party, secret: Secret) -> Secret:
    """What may be a whole number as a real, with a run's fractional bits at least. No round."""
    if secret.is_real and secret.bits >= party.precision:
        return secret
    dtype = secret.dtype if secret.is_real else torch.get_default_dtype()
    return replace(rescaled(secret, max(secret.bits, party.precision)), dtype=dtype)


def aligned(secrets: Sequence[Secret]) -> list[Secret]:
    """All with the most fractional bits that one of them has."""
    bits = max(secret.bits for secret in secrets)
    return [rescaled(secret, bits) for secret in secrets]


def settled(party: Party, secret: Secret, bits: int | None = None) -> Protocol[Secret]:
    """The same value with at most `bits` fractional bits (else those of the run's precision): to within 2^-bits. One
    round, or none."""
    bits = party.precision if bits is None else bits
    if secret.bits <= bits:
        return secret
    share = yield from truncate(party, secret.share, secret.bits - bits)
    return Secret(share, bits, secret.dtype)


def bits_of(values: Any, most: int) -> int:
    """How many fractional bits a public number or tensor is given, at most so many. Of a tensor the dtype alone
    decides, so that who has only its shape finds the same."""
    if isinstance(values, bool | int):
        return 0
    if isinstance(values, float):
        return next((bits for bits in range(most) if (values * (1 << bits)).is_integer()), most)
    return most if values.is_floating_point() else 0
