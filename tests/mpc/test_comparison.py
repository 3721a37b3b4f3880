"""Truncation, signs and choice on shares: exact for all values, for two parties and more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpc import bits
from mpc.comparison import as_numbers, mask, negative_bits, shifted, truncate, zero_bits
from mpc.party import Party
from mpc.rounds import Protocol
from mpc.together import run_together, shares_of

_EDGES = [0, 1, -1, 2, -2, 1 << 16, -(1 << 16), (1 << 61) - 1, -(1 << 61), (1 << 62) - 1, -(1 << 62) + 1]
_EXTREMES = [(1 << 63) - 1, -(1 << 63), -(1 << 63) + 1, 1 << 62, -(1 << 62)]

parties = pytest.mark.parametrize("count", [2, 3, 5])


def _words(low: int, high: int, *, edges: list[int], size: int = 512) -> torch.Tensor:
    words = torch.randint(low, high, (size,), dtype=torch.int64)
    words[: len(edges)] = torch.tensor(edges)
    return words


def _run(protocol: Any, words: torch.Tensor, count: int, *rest: Any) -> tuple[list[torch.Tensor], Any]:
    """The sums of the parties' results, and the ledger."""
    results, ledger = run_together(protocol, [(share,) for share in shares_of(words, count)], *rest)
    if isinstance(results[0], tuple):
        return [sum(parts[1:], parts[0]) for parts in zip(*results, strict=True)], ledger
    return [sum(results[1:], results[0])], ledger


@parties
@pytest.mark.parametrize("shift", [1, 16, 32, 40])
def test_truncation_is_off_by_less_than_one_unit_for_all_values_below_2_to_62(count: int, shift: int) -> None:
    words = _words(-(1 << 62) + 1, 1 << 62, edges=_EDGES)
    (got,), ledger = _run(lambda party, x: truncate(party, x, shift), words, count)
    assert ((got - (words >> shift)) >= 0).all() and ((got - (words >> shift)) <= 1).all()
    assert (ledger.rounds, ledger.nbytes) == (1, 8 * len(words))


def _sign_and_choice(party: Party, x: torch.Tensor, shift: int) -> Protocol[tuple[torch.Tensor, torch.Tensor]]:
    masked = yield from mask(party, x, shift)
    packed = yield from negative_bits(party, masked)
    bit, chosen = yield from as_numbers(party, packed, masked)
    assert chosen is not None
    return bit, chosen


@parties
def test_the_sign_of_every_word_is_right(count: int) -> None:
    words = _words(-(1 << 63), (1 << 63) - 1, edges=[*_EDGES, *_EXTREMES])
    (bit, chosen), ledger = _run(_sign_and_choice, words, count, 0)
    assert torch.equal(bit, (words < 0).to(torch.int64))
    assert torch.equal(chosen, torch.where(words < 0, words, 0))
    assert ledger.rounds == 4
    assert ledger.nbytes / len(words) < 27


@parties
def test_a_choice_truncates_on_its_way(count: int) -> None:
    words = _words(-(1 << 61), 1 << 61, edges=_EDGES[:7])
    (bit, chosen), ledger = _run(_sign_and_choice, words, count, 16)
    assert torch.equal(bit, (words < 0).to(torch.int64))
    gap = chosen - torch.where(words < 0, words >> 16, 0)
    assert ((gap == 0) | (gap == 1)).all()
    assert ledger.rounds == 4


@parties
def test_zero_is_told_from_everything_else(count: int) -> None:
    def protocol(party: Party, x: torch.Tensor) -> Protocol[torch.Tensor]:
        masked = yield from mask(party, x)
        packed = yield from zero_bits(party, masked)
        bit, _ = yield from as_numbers(party, packed)
        return bit

    words = torch.cat([_words(-2, 3, edges=[]), torch.tensor([1 << at for at in range(63)] + [-(1 << 63)])])
    (got,), ledger = _run(protocol, words, count)
    assert torch.equal(got, (words == 0).to(torch.int64))
    assert ledger.rounds == 4


def test_shifting_takes_no_round() -> None:
    def protocol(party: Party, x: torch.Tensor) -> Protocol[torch.Tensor]:
        masked = yield from mask(party, x, 8, has_bits=False)
        return shifted(party, masked)

    _, ledger = _run(protocol, torch.arange(8), 2)
    assert ledger.rounds == 1


def test_bits_come_back_in_their_order() -> None:
    wanted = torch.randint(0, 2, (256,))
    assert torch.equal(bits.unpack(bits.pack(wanted)), wanted)
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (64,)).numpy()
    assert (bits.to_lanes(bits.to_lanes(words)) == words).all()
    for place in range(64):
        a, b, c = place // 16, place // 4 % 4, place % 4
        moved = bits.to_lanes(torch.tensor([1 << place if place < 63 else -(1 << 63)]).numpy()).item()
        assert moved & ((1 << 64) - 1) == 1 << (16 * c + 4 * b + a)
