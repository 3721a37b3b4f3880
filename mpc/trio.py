"""What one of three parties knows of a value that they share without a dealer: two of three pieces.

A mask is m = m0 + m1 + m2 (or by XOR), where party i knows m(i) and m(i + 1): replicated shares, drawn from seeds that
pairs of parties have in common, so that free words take no message at all. A product of two of them is a local sum of
three products and a share of zero (Araki, Furukawa, Lindell, Nof, Ohara, CCS 2016); shared anew by one opening under a
fresh mask, it can be a factor again.

Adversary: semi-honest, one of the three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from mpc.correlations import SUM, XOR, Words
from mpc.masks import Masks
from mpc.rounds import Opening, Protocol

PARTIES: Final = 3


@dataclass(frozen=True, slots=True)
class Pieces:
    """What one party knows of a value: the piece of its own number and the next one's; of three."""

    own: torch.Tensor
    next: torch.Tensor

    def map(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> Pieces:
        return Pieces(linear(self.own), linear(self.next))

    def __xor__(self, other: Pieces) -> Pieces:
        return Pieces(self.own ^ other.own, self.next ^ other.next)

    def __add__(self, other: Pieces) -> Pieces:
        return Pieces(self.own + other.own, self.next + other.next)

    def __getitem__(self, at: int) -> Pieces:
        return Pieces(self.own[at], self.next[at])


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Trio:
    """One party's two streams of one number: all parties draw the same things in the same order."""

    def __init__(self, rank: int, seeds: tuple[bytes, bytes], number: int) -> None:
        self.rank = rank
        self._streams = [Masks(seed, number) for seed in seeds]

    def draw(self, words: Words) -> Pieces:
        return Pieces(*(stream.draw(words.shape, words.dtype) for stream in self._streams))

    def zero(self, like: torch.Tensor, sharing: str) -> torch.Tensor:
        """A share of 0; what each party has is uniform to each other one."""
        one, other = (stream.draw(tuple(like.shape), like.dtype) for stream in self._streams)
        return one - other if sharing == SUM else one ^ other

    def share(self, pieces: Pieces, sharing: str) -> torch.Tensor:
        """One of three shares, fresh."""
        fresh = self.zero(pieces.own, sharing)
        return pieces.own + fresh if sharing == SUM else pieces.own ^ fresh

    def times(self, x: Pieces, y: Pieces, product: Product) -> torch.Tensor:
        """A share by addition of product(x, y), which is bilinear."""
        made = product(x.own, y.own) + product(x.own, y.next) + product(x.next, y.own)
        return made + self.zero(made, SUM)

    def both(self, x: Pieces, y: Pieces) -> torch.Tensor:
        """A share by XOR of x AND y."""
        made = (x.own & y.own) ^ (x.own & y.next) ^ (x.next & y.own)
        return made ^ self.zero(made, XOR)

    def pieces(self, share: torch.Tensor, sharing: str) -> Protocol[Pieces]:
        """A value that is shared by three, in pieces again. One round: it is opened under a fresh mask."""
        mask = self.draw(Words(tuple(share.shape), share.dtype))
        if sharing == XOR:
            opened = (yield Opening(xors=[share ^ mask.own])).xors[0]
            return mask ^ self.public(opened)
        opened = (yield Opening(sums=[share + mask.own])).sums[0]
        return mask.map(torch.neg) + self.public(opened)

    def public(self, value: torch.Tensor) -> Pieces:
        """What all know: the first piece, which parties 0 and 2 have."""
        return self.piece(0, value, value)

    def piece(self, which: int, own: torch.Tensor, following: torch.Tensor) -> Pieces:
        """A value that is one piece, the others 0: `own` where it is this party's own, `following` where the next."""
        nothing = torch.zeros_like(own)
        is_next = (self.rank + 1) % PARTIES == which
        return Pieces(own if self.rank == which else nothing, following if is_next else nothing)

    def known_to_first(self, value: torch.Tensor, sharing: str) -> torch.Tensor:
        """A share of what the first party computed alone; the others' values are of no account."""
        fresh = self.zero(value, sharing)
        if self.rank:
            return fresh
        return value + fresh if sharing == SUM else value ^ fresh
