"""Loops with MACs: right results, the script that they take, and nothing at all where a bit is flipped in any round."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import grid
from compute.capture import capture
from mpc import lowering
from mpc.checked import Hidden, hide, shown, whole
from mpc.lowering import lower
from mpc.masks import fresh_seed
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Opening, Protocol
from mpc.script import Loop, Script, script_of
from mpc.secret import Secret
from mpc.together import run_together
from protocol.errors import PartyFailed


@pytest.fixture(autouse=True)
def all_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short they are."""
    monkeypatch.setattr(lowering, "ROOM", 0)


Changed = Callable[[int, int, Opening], Opening]


class Checked:
    """A plan as it runs with MACs, on inputs that are all secret."""

    def __init__(self, plan: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> None:
        captured = capture(plan, inputs)
        flat = {**inputs, **captured.constants}
        self._values = [flat[name] for name in captured.inputs if name not in captured.constants]
        secret = [name not in captured.constants for name in captured.inputs]
        self.lowered = lower(captured.program, [flat[name] for name in captured.inputs], secret)
        self._hidden = [
            Hidden(tuple(each.shape), PRECISION * each.is_floating_point(), each.dtype) for each in self._values
        ]
        self._holder, self._asker = fresh_seed(), fresh_seed()
        self._told = [hide(each, self._hidden[at].bits, self._holder, at) for at, each in enumerate(self._values)]
        self.outcomes: dict[int, Any] = {}

    def _whole(self, party: Party, told: Callable[[int], torch.Tensor]) -> Protocol[Any]:
        def seed(at: int) -> bytes:
            return self._holder if at < len(self._values) else self._asker

        return whole(party, self.lowered.program, self._hidden, self.lowered.public, told, seed)

    def script(self, count: int) -> Script:
        return script_of(lambda party: self._whole(party, lambda at: self._told[at].to("meta")), count)

    def run(self, count: int = 2, changed: Changed = lambda rank, number, opening: opening) -> Any:
        """What it cost; None where it ended before its end."""

        def one(party: Party) -> Protocol[None]:
            run, answer, number = self._whole(party, self._told.__getitem__), None, 0
            try:
                while True:
                    opening: Opening = run.send(answer)  # type: ignore[arg-type]  # None begins it
                    answer = yield changed(party.rank, number, opening)
                    number += 1
            except StopIteration as done:
                self.outcomes[party.rank] = done.value
            except PartyFailed as error:
                self.outcomes[party.rank] = error

        with contextlib.suppress(AssertionError):  # some wait for a message that nobody sends
            return run_together(one, [()] * count)[1]
        return None

    def result(self) -> Any:
        leaves, form = pytree.tree_flatten(self.outcomes[0], is_leaf=lambda each: isinstance(each, Secret))
        made = [
            shown(each.share, each.bits, each.dtype, self._asker, len(self._values) + at)
            for at, each in enumerate(leaves)
        ]
        return pytree.tree_unflatten(made, form)


_X = torch.linspace(-1, 1, 12).view(4, 3)
_Y = torch.linspace(2, -2, 4)
_W = torch.tensor([0.5, -0.25, 0.75])


def _trained(x: torch.Tensor, y: torch.Tensor) -> Any:
    """Gradient descent: the weights are public before the first step."""

    def step(number: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return w - 0.1 * x.T @ (x @ w - y)

    return grid.repeat(5, step, torch.zeros(3))


def _rows(x: torch.Tensor, w: torch.Tensor) -> Any:
    def step(carried: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made = carried * row * 0.5 + w
        return made, made * made + row.sum()

    return grid.scan(step, w, x, reverse=True)


def _in_loops(x: torch.Tensor, w: torch.Tensor) -> Any:
    def epoch(number: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        def batch(w: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return w - 0.1 * row * (row * w).sum() + 0.01 * number, row

        return grid.scan(batch, w, x)[0]

    return grid.repeat(3, epoch, w)


def _wholes(n: torch.Tensor) -> Any:
    return grid.repeat(4, lambda number, n: n * 2 - number, n)


LOOPS: dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor]]] = {
    "trained": (_trained, {"x": _X, "y": _Y}),
    "rows": (_rows, {"x": _X, "w": _W}),
    "in loops": (_in_loops, {"x": _X, "w": _W}),
    "whole numbers": (_wholes, {"n": torch.tensor([3, -5])}),
}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("plan, inputs", LOOPS.values(), ids=LOOPS.keys())
def test_a_loop_gives_what_it_gives_in_the_clear(
    plan: Callable[..., Any], inputs: dict[str, torch.Tensor], count: int
) -> None:
    checked = Checked(plan, inputs)
    ledger = checked.run(count)
    for got, want in zip(pytree.tree_leaves(checked.result()), pytree.tree_leaves(plan(**inputs)), strict=True):
        assert got.dtype == want.dtype and torch.allclose(got.double(), want.double(), atol=1e-3)
    script = checked.script(count)
    assert any(isinstance(part, Loop) for part in script.parts) or plan is _wholes  # which opens nothing
    assert (script.rounds, script.nbytes, script.dealt) == (ledger.rounds, ledger.nbytes, ledger.dealt)


def test_a_bit_that_is_flipped_in_any_round_of_any_iteration_leaves_nobody_with_anything() -> None:
    checked = Checked(_rows, {"x": _X, "w": _W})
    for at in range(checked.run().rounds):

        def changed(rank: int, number: int, opening: Opening, at: int = at) -> Opening:
            if rank != 1 or number != at:
                return opening
            flipped = [each.clone() for each in (*opening.sums, *opening.xors)]
            for each in flipped:
                each.view(-1)[-1] ^= 4
            return Opening(flipped[: len(opening.sums)], flipped[len(opening.sums) :])

        checked.outcomes.clear()
        checked.run(changed=changed)
        assert checked.outcomes
        assert all(isinstance(each, PartyFailed) for each in checked.outcomes.values()), at


def test_a_cheat_is_found_at_the_end_of_its_iteration() -> None:
    """So what parties remember of what they opened is bounded by one iteration, however many there are."""
    checked, rounds = Checked(_trained, {"x": _X, "y": _Y}), [0]
    whole_run = checked.run().rounds

    def changed(rank: int, number: int, opening: Opening) -> Opening:
        rounds[0] = max(rounds[0], number + 1)
        return Opening([each ^ 4 for each in opening.sums], opening.xors) if number == 0 and rank else opening

    checked.outcomes.clear()
    checked.run(changed=changed)
    assert all(isinstance(each, PartyFailed) for each in checked.outcomes.values())
    assert rounds[0] <= whole_run / 4


# --- operations that move elements about --------------------------------------------------------------------

SQUARE = torch.linspace(-2, 2, 9).view(3, 3)
MOVED: dict[str, Callable[[torch.Tensor], Any]] = {
    "T": lambda x: x.T @ x,
    "mT": lambda x: x.mT * x,
    "flip": lambda x: x.flip(0) * x,
    "split": lambda x: [each * each for each in x.split([1, 2])],
    "unbind": lambda x: [each.sum() for each in x.unbind(1)],
    "cat": lambda x: torch.cat([x * x, torch.ones(1, 3), x]),
    "stack": lambda x: torch.stack([x, x * 0.5]),
    "alpha": lambda x: torch.add(x, x * x, alpha=3) - torch.sub(x, torch.ones(3), alpha=0.25),
    "mv": lambda x: x @ x[0] + torch.mv(x, torch.arange(3.0)),
    "dot": lambda x: x[0] @ x[1],
    "scalar": lambda x: (x.sum() * x.mean()) * x[0, 0],
    "means": lambda x: [(x * x).mean(0), (x.repeat(300, 1) * 100).mean()],
    "cumsum": lambda x: x.cumsum(1) * x.trace(),
    "double": lambda x: x.double() * x,
}


@pytest.mark.parametrize("plan", MOVED.values(), ids=MOVED.keys())
def test_what_moves_elements_about_has_macs(plan: Callable[[torch.Tensor], Any]) -> None:
    checked = Checked(plan, {"x": SQUARE})
    ledger = checked.run()
    for got, want in zip(pytree.tree_leaves(checked.result()), pytree.tree_leaves(plan(SQUARE)), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and torch.allclose(got, want, atol=2e-3)
    script = checked.script(2)
    assert (script.rounds, script.nbytes, script.dealt) == (ledger.rounds, ledger.nbytes, ledger.dealt)
