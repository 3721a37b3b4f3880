"""Loops in loops, of random forms: the dealer's script deals to each iteration what it takes, also of masks that were
fixed outside of it, and what lowering makes of them gives what they give in the clear."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import grid
from mpc import lowering
from mpc.arithmetic import Fixed, fix, multiply, multiply_fixed
from mpc.bilinear import Multiply
from mpc.dealer import Dealer, Supply
from mpc.masks import fresh_seed
from mpc.party import Party
from mpc.replicated import prepare
from mpc.rounds import Protocol
from mpc.script import Script, script_of
from mpc.together import run_together, shares_of
from tests.mpc.shares import lowered

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = torch.tensor([3, -5, 1 << 40])

Form = list[Any]
"""What a loop does, one after the other: a number of iterations with what is done in them, or a word."""


def _form(chance: random.Random, depth: int = 0) -> Form:
    made: Form = [
        (chance.randrange(1, 4), _form(chance, depth + 1))
        if depth < 3 and chance.random() < 0.5
        else chance.choice(_DO)
        for _ in range(chance.randrange(1, 5))
    ]
    return made if depth else ["fix", *made, "use"]


_DO = ["fix", "use first", "use", "square", "multiply"]


def _runs(party: Party, form: Form, x: torch.Tensor, masks: list[Fixed]) -> Protocol[torch.Tensor]:
    masks = list(masks)
    for each in form:
        match each:
            case (times, inner):
                for _ in party.iterations(times, lambda: None):
                    yield from party.between()
                    x = yield from _runs(party, inner, x, masks)
                yield from party.between()
            case "fix":
                masks.append((yield from fix(party, x)))
            case "use" | "use first":
                mask = masks[0 if each == "use first" else -1]
                x = yield from multiply_fixed(party, Multiply(), x, mask)
            case "square":
                x = yield from multiply(party, Multiply(), x, x)
            case _:
                x = x * 7
    return x


def _clear(form: Form, x: torch.Tensor, fixed: list[torch.Tensor]) -> torch.Tensor:
    fixed = list(fixed)
    for each in form:
        match each:
            case (times, inner):
                for _ in range(times):
                    x = _clear(inner, x, fixed)
            case "fix":
                fixed.append(x)
            case "use" | "use first":
                x = x * fixed[0 if each == "use first" else -1]
            case "square":
                x = x * x
            case _:
                x = x * 7
    return x


def dealt(script: Script, protocol: Callable[..., Protocol[Any]], count: int) -> Callable[..., Protocol[Any]]:
    """The protocol with what a dealer deals of this script, as it travels."""
    dealer = Dealer(script, count)
    corrections = b"".join(map(bytes, dealer.corrections()))
    assert len(corrections) == script.dealt
    at = 0

    def read(nbytes: int) -> bytes:
        nonlocal at
        at += nbytes
        assert at <= len(corrections)
        return corrections[at - nbytes : at]

    def whole(party: Party, *rest: Any) -> Protocol[Any]:
        supply = Supply(dealer.seeds[party.rank], read if party.rank == count - 1 else None)
        made = yield from protocol(Party(party.rank, count, supply, party.precision), *rest)
        assert party.rank < count - 1 or at == len(corrections)
        return made

    return whole


def _alone(script: Script, protocol: Callable[..., Protocol[Any]]) -> Callable[..., Protocol[Any]]:
    common = [fresh_seed() for _ in range(3)]

    def whole(party: Party, *rest: Any) -> Protocol[Any]:
        supply = yield from prepare(party.rank, (common[party.rank], common[(party.rank + 1) % 3]), script)
        return (yield from protocol(Party(party.rank, 3, supply, party.precision), *rest))

    return whole


@pytest.mark.parametrize("seed", range(60))
def test_masks_are_dealt_to_every_iteration_that_uses_them(seed: int) -> None:
    form = _form(random.Random(seed))

    def protocol(party: Party, x: torch.Tensor) -> Protocol[torch.Tensor]:
        return _runs(party, form, x, [])

    for count, has_dealer in ((2, True), (3, True), (3, False)):
        script = script_of(lambda party: protocol(party, WORDS.to("meta")), count)
        whole = dealt(script, protocol, count) if has_dealer else _alone(script, protocol)
        made, _ = run_together(whole, [(share,) for share in shares_of(WORDS, count)])
        assert torch.equal(sum(made), _clear(form, WORDS, [])), form  # type: ignore[arg-type]


def test_some_of_these_use_masks_of_outside() -> None:
    """Else they would show nothing."""
    crossing = 0
    for seed in range(60):
        form = _form(random.Random(seed))
        crossing += bool(script_of(lambda party, form=form: _runs(party, form, WORDS.to("meta"), []), 2).crossing())
    assert crossing > 10


# --- programs ---------------------------------------------------------------------------------------------


def _placed(x: torch.Tensor, w: torch.Tensor) -> Any:
    """A place that is found outside of a loop and converted, to what it is already, in it."""
    place = (x + w).argmax()
    return grid.repeat(3, lambda number, c: c * 0.5 + w[place], x)


def _nested(x: torch.Tensor, w: torch.Tensor) -> Any:
    root = (w * w + 0.3).sqrt()

    def outer(number: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        own = (c * c + 0.3).sqrt()
        made = grid.repeat(3, lambda inner, d: torch.tanh(d) * 0.5 + 0.1 * d / own + 0.1 * inner * number, c)
        return made + 0.1 * x / root

    return grid.repeat(3, outer, x) / root


@pytest.mark.parametrize("plan", [_placed, _nested])
def test_programs_of_loops_in_loops(plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "ROOM", 0)
    inputs = {"x": torch.tensor([0.5, -1.0, 0.25]), "w": torch.tensor([1.5, 0.5, -0.75])}
    made = lowered(plan, inputs)
    for got in (made.result(2), made.result(3, has_dealer=False)):
        assert torch.allclose(got, plan(**inputs), atol=1e-3)
