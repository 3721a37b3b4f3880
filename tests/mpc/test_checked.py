"""Runs with MACs for somebody who is no party: right results, and nothing at all where anybody lies to anybody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from compute.capture import capture
from mpc.authenticated import private_mask
from mpc.checked import Hidden, hide, shown, whole
from mpc.lowering import Lowered, lower
from mpc.masks import fresh_seed
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Opening, Protocol
from mpc.script import script_of
from mpc.secret import Secret
from mpc.together import run_together
from protocol.errors import BadRequest, PartyFailed

_X, _Y = torch.linspace(-3, 3, 12).view(3, 4), torch.linspace(1, -2, 8).view(4, 2)


def _plan(x: torch.Tensor, y: torch.Tensor) -> Any:
    z = x @ y
    return {"z": z * z + 0.5 * z, "more": [z.sum(0), 7]}


@pytest.mark.parametrize(
    "plan",
    [
        lambda x: x * x + 3,
        lambda x: 3 - x * x,
        lambda x: x * x - torch.arange(4.0),
        lambda x: torch.ones(3, 1) + x @ torch.ones(4, 1),
        lambda x: torch.nn.functional.linear(x, torch.ones(2, 4), torch.tensor([1.0, -2.0])),
        lambda x: torch.rsub(x, x * 2 + 1, alpha=0.5),
    ],
)
def test_what_all_know_is_added(plan: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """At the parties, and in the script that the dealer finds on shapes alone."""
    _same(plan, _X)


@pytest.mark.parametrize(
    "plan",
    [
        lambda x: x * 0.5,
        lambda x: x * x,
        lambda x: x.square() + 1,
        lambda x: x.sum(0, dtype=torch.float64),
    ],
)
def test_whole_numbers_times_reals_are_reals(plan: Callable[[torch.Tensor], torch.Tensor]) -> None:
    _same(plan, torch.tensor([[3, -5], [0, 1]]))


def test_the_square_of_a_truth_value_is_a_whole_number() -> None:
    _same(lambda x: x.square(), torch.tensor([True, False]))


def _same(plan: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    bits = PRECISION if x.is_floating_point() else 0
    lowered = lower(capture(plan, {"x": x}).program, [x], [True])
    hidden, holder, asker = Hidden(tuple(x.shape), bits, x.dtype), fresh_seed(), fresh_seed()
    masked = hide(x, bits, holder, 0)

    def run(party: Party, told: torch.Tensor) -> Protocol[Any]:
        return whole(party, lowered.program, [hidden], lowered.public, lambda at: told, [holder, asker].__getitem__)

    made, ledger = run_together(lambda party: run(party, masked), [(), ()])
    got = shown(made[0].share, made[0].bits, made[0].dtype, asker, 1)
    assert got.dtype == plan(x).dtype and torch.allclose(got, plan(x), atol=2e-3)
    script = script_of(lambda party: run(party, masked.to("meta")), 2)
    assert (script.rounds, script.nbytes, script.dealt) == (ledger.rounds, ledger.nbytes, ledger.dealt)


_LOWERED: Lowered = lower(capture(_plan, {"x": _X, "y": _Y}).program, [_X, _Y], [True, True])
_INPUTS = [Hidden(tuple(each.shape), PRECISION, each.dtype) for each in (_X, _Y)]


class Run:
    """One run by `count` parties. What anybody says to a party may be `changed`."""

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.holders, self.asker = fresh_seed(), fresh_seed()
        self.outcomes: dict[int, Any] = {}
        self.changed: Callable[[int, int, Opening], Opening] = lambda rank, number, opening: opening
        self.told = [
            [hide(each, PRECISION, self.holders, at) for at, each in enumerate((_X, _Y))] for _ in range(count)
        ]

    def _seed(self, at: int) -> bytes:
        return self.holders if at < len(_INPUTS) else self.asker

    def _party(self, party: Party) -> Protocol[None]:
        told = self.told[party.rank]
        run = whole(party, _LOWERED.program, _INPUTS, _LOWERED.public, told.__getitem__, self._seed)
        answer, number = None, 0
        try:
            while True:
                opening: Opening = run.send(answer)  # type: ignore[arg-type]  # None begins it
                answer = yield self.changed(party.rank, number, opening)
                number += 1
        except StopIteration as done:
            self.outcomes[party.rank] = done.value
        except PartyFailed as error:
            self.outcomes[party.rank] = error

    def parties(self) -> Any:
        """Runs; what it cost, or None where it ended before its end."""
        with contextlib.suppress(AssertionError):  # some wait for a message that nobody sends
            return run_together(self._party, [()] * self.count)[1]
        return None

    def result(self) -> Any:
        """What the asker makes of what the first party tells it."""

        def opened(secret: Secret, at: int) -> torch.Tensor:
            return shown(secret.share, secret.bits, secret.dtype, self.asker, len(_INPUTS) + at)

        made = self.outcomes[0]
        return {"more": [opened(made["more"][0], 0), made["more"][1]], "z": opened(made["z"], 1)}


@pytest.mark.parametrize("count", [2, 3])
def test_the_asker_has_what_the_plan_gives(count: int) -> None:
    run = Run(count)
    run.parties()
    got, want = run.result(), _plan(_X, _Y)
    assert torch.allclose(got["z"], want["z"], atol=2e-3) and torch.allclose(got["more"][0], want["more"][0], atol=1e-3)
    assert got["more"][1] == 7
    for rank in range(1, count):  # all tell the same, which the asker compares
        assert torch.equal(run.outcomes[rank]["z"].share, run.outcomes[0]["z"].share)


def test_parties_see_neither_inputs_nor_outputs() -> None:
    """What they are told and what they open is under masks that they do not know: it is another each time."""
    seen = []
    for _ in range(2):
        run = Run()
        run.parties()
        seen.append([*run.told[0], run.outcomes[0]["z"].share])
    for one, other in zip(*seen, strict=True):
        assert bool((one != other).all())


def test_its_script_says_what_it_takes() -> None:
    def meta(at: int) -> torch.Tensor:
        return torch.empty(_INPUTS[at].shape, dtype=torch.int64, device="meta")

    script = script_of(lambda party: whole(party, _LOWERED.program, _INPUTS, _LOWERED.public, meta), 3)
    ledger = Run(3).parties()
    assert (script.rounds, script.nbytes, script.dealt) == (ledger.rounds, ledger.nbytes, ledger.dealt)


def _flipped(values: Sequence[torch.Tensor], bit: int) -> list[torch.Tensor]:
    made = [each.clone() for each in values]
    for each in made:
        each.view(-1)[-1] ^= 1 << (bit % (8 * each.element_size() - 1))
    return made


def _rounds() -> int:
    return int(Run().parties().rounds)


@pytest.mark.parametrize("at", range(_rounds()))
def test_one_flipped_bit_in_any_round_and_nobody_has_anything(at: int) -> None:
    run = Run()

    def changed(rank: int, number: int, opening: Opening) -> Opening:
        if rank == 1 and number == at:
            return Opening(_flipped(opening.sums, 7 * at), _flipped(opening.xors, 7 * at))
        return opening

    run.changed = changed
    run.parties()
    assert run.outcomes
    assert all(isinstance(each, PartyFailed) and "without a result" in each.message for each in run.outcomes.values())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_holder_that_tells_parties_different_things_is_found_out(rank: int) -> None:
    run = Run()
    run.told[rank][1] = _flipped([run.told[rank][1]], 20)[0]
    run.parties()
    assert run.outcomes and all(isinstance(each, PartyFailed) for each in run.outcomes.values())


def test_a_holder_that_tells_all_the_same_has_that_input() -> None:
    run = Run()
    other = hide(_Y + 1, PRECISION, run.holders, 1)
    for told in run.told:
        told[1] = other
    run.parties()
    assert torch.allclose(run.result()["z"], _plan(_X, _Y + 1)["z"], atol=2e-3)


def test_a_cheat_sees_nothing_of_the_result_opened() -> None:
    """The result is opened when all else was checked: the asker, who may be with the cheat, knows its mask."""

    def opened(cheats: bool) -> list[Any]:
        run, seen = Run(), []

        def changed(rank: int, number: int, opening: Opening) -> Opening:
            seen.append([tuple(each.shape) for each in opening.sums])
            return Opening(_flipped(opening.sums, 3)) if cheats and rank == 1 and number == 0 else opening

        run.changed = changed
        run.parties()
        return seen

    result = [(2,), (3, 2)]
    assert result in opened(cheats=False) and result not in opened(cheats=True)


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(BadRequest, match="runs with MACs hold smaller ones"):
        hide(torch.tensor([2.0**43]), PRECISION, bytes(16), 0)
    assert hide(torch.tensor([2.0**42]), PRECISION, bytes(16), 0).shape == (1,)
    assert private_mask(bytes(16), 0, (3,)).shape == (3,)
