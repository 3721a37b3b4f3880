"""What the asker of a secure run has itself, as each of those who take part is told it; and the results of one that is
checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compute.values import tensor_bytes
from mpc.checked import hide, shown
from mpc.masks import Masks, fresh_seed
from mpc.ring import encode

Told = tuple[bytes, bytes | None]
"""The shares that come along with a request, and the seed."""


@dataclass(frozen=True, slots=True)
class Own:
    """An input that the asker has: its number, its fractional bits."""

    at: int
    tensor: torch.Tensor
    bits: int


class Shared:
    """As additive shares: the first party gets its shares in full, all others draw theirs from a seed."""

    def __init__(self, own: Sequence[Own], parties: int) -> None:
        self._seeds = [fresh_seed() for _ in range(parties - 1)]
        pieces = []
        for each in own:
            words = encode(each.tensor.detach(), each.bits)
            for seed in self._seeds:
                words = words - Masks(seed, each.at).draw(tuple(words.shape), torch.int64)
            pieces.append(bytes(tensor_bytes(words)))
        self._shares = b"".join(pieces)

    def told(self, rank: int, is_provider: bool) -> Told:
        """What the one of this place among all who take part is told."""
        if rank == 0:
            return self._shares, None
        return b"", self._seeds[rank - 1] if rank <= len(self._seeds) else None


class Masked:
    """Under masks (mpc/checked.py) of a seed that the provider alone is told: all parties are told the same. Results
    come back under masks of that seed."""

    def __init__(self, own: Sequence[Own], parties: int, inputs: int) -> None:
        self._seed = fresh_seed()
        self._parties, self._inputs = parties, inputs
        masked = [hide(each.tensor.detach(), each.bits, self._seed, each.at) for each in own]
        self._elements = b"".join(bytes(tensor_bytes(each)) for each in masked)

    def told(self, rank: int, is_provider: bool) -> Told:
        """As Shared.told."""
        return (self._elements, None) if rank < self._parties else (b"", self._seed if is_provider else None)

    def shown(self, masked: torch.Tensor, bits: int, dtype: torch.dtype, at: int) -> torch.Tensor:
        """The value of secret output number `at`."""
        return shown(masked, bits, dtype, self._seed, self._inputs + at)
