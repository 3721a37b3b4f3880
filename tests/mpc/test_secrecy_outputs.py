"""Who is given an output's shares learns the output: also if it has dealt, and knows every mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpc.arithmetic import Triple
from mpc.correlations import Correlation, Dealt
from mpc.fresh import freshly
from mpc.operations import SECURE
from mpc.party import Party
from mpc.rounds import Protocol
from mpc.script import script_of
from mpc.secret import Secret
from mpc.together import run_together, shares_of
from tests.mpc.test_secrecy import odds_of

_X, _Y = torch.arange(256) * 1000 - 77, torch.full((256,), 12345)


def _product(party: Party, x: torch.Tensor, y: torch.Tensor) -> Protocol[Any]:
    arguments = {"self": Secret(x, 0, torch.int64), "other": Secret(y, 0, torch.int64)}
    return (yield from SECURE["aten.mul.Tensor"](party, "aten.mul.Tensor", arguments))


def _seen_by_the_dealer(is_fresh: bool) -> tuple[list[torch.Tensor], list[Dealt]]:
    """The shares of x * y, and the triple's."""
    dealt: list[Dealt] = []

    def protocol(party: Party, *shares: torch.Tensor) -> Protocol[Any]:
        supply = party.supply

        def note(number: int, correlation: Correlation) -> Dealt:
            made = supply(number, correlation)
            if isinstance(correlation, Triple):
                dealt.append(made)
            return made

        party.supply = note
        run = _product(party, *shares)
        return (yield from freshly(party, run) if is_fresh else run)

    results, _ = run_together(protocol, list(zip(shares_of(_X, 2), shares_of(_Y, 2), strict=True)))
    return [each.share for each in results], dealt


def _left(shares: list[torch.Tensor], dealt: list[Dealt]) -> torch.Tensor:
    """The second party's share less what a dealer that guesses x and y takes it for: epsilon b + a delta + c."""
    a, b = (dealt[0].free[at] + dealt[1].free[at] for at in range(2))
    own_a, own_b = dealt[1].free
    return shares[1] - ((_X - a) * own_b + own_a * (_Y - b) + dealt[1].derived[0])


def test_a_dealer_that_is_given_the_shares_could_test_what_it_guesses_without_fresh_ones() -> None:
    assert (_left(*_seen_by_the_dealer(False)) == 0).all()


def test_fresh_shares_say_nothing_even_to_the_dealer() -> None:
    shares, dealt = _seen_by_the_dealer(True)
    assert torch.equal(shares[0] + shares[1], _X * _Y)
    assert odds_of(_left(shares, dealt).view(torch.uint8)) > 1e-10


@pytest.mark.parametrize("count", [2, 3, 5])
def test_fresh_shares_add_up_and_take_no_round(count: int) -> None:
    def protocol(party: Party, *shares: torch.Tensor) -> Protocol[Any]:
        return (yield from freshly(party, _both(party, *shares)))

    def _both(party: Party, *shares: torch.Tensor) -> Protocol[Any]:
        made = yield from _product(party, *shares)
        return {"a": [made, 7], "b": (made,)}

    results, ledger = run_together(protocol, list(zip(shares_of(_X, count), shares_of(_Y, count), strict=True)))
    for one in ([each["a"][0].share for each in results], [each["b"][0].share for each in results]):
        assert torch.equal(torch.stack(one).sum(0), _X * _Y)
    assert all(each["a"][1] == 7 for each in results)
    meta = [torch.empty(256, dtype=torch.int64, device="meta")] * 2
    script = script_of(lambda party: protocol(party, *meta), count)
    assert (script.rounds, script.nbytes) == (ledger.rounds, ledger.nbytes) == (1, 2 * 8 * 256 + 16)
