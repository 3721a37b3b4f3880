"""Loops stay loops on shares: their bodies are lowered once and run in each iteration, as in the clear."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import grid
from mpc import lowering, replicated
from mpc.dealer import Dealer, Supply
from mpc.interpreter import run
from mpc.party import Party
from mpc.ring import PRECISION, encode
from mpc.rounds import Protocol
from mpc.secret import Secret
from mpc.together import run_together, shares_of
from protocol.errors import BadRequest, GridError, OperationNotAllowed
from tests.mpc.shares import OnShares, lowered
from tests.mpc.test_listed_operations import check


@pytest.fixture(autouse=True)
def all_stay(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However short they are; on one thread, because tensors are small."""
    monkeypatch.setattr(lowering, "ROOM", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _operations(made: OnShares) -> list[str]:
    return [node.operation for node in made.lowered.program.nodes]


_X = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))


def _scanned(x: torch.Tensor) -> Any:
    def step(carried: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        carried = torch.tanh(carried + row)
        return carried, carried * 2

    return grid.scan(step, torch.zeros(5), x, reverse=True)


def _delayed(x: torch.Tensor) -> Any:
    """What is a secret only after some iterations, and given out before."""

    def step(carried: tuple[torch.Tensor, ...], row: torch.Tensor) -> Any:
        one, two, count = carried
        return (row, one, count + 1), two * count

    return grid.scan(step, (torch.zeros(5), torch.ones(5), torch.tensor(1.0)), x)


def _nested(x: torch.Tensor) -> Any:
    return grid.repeat(3, lambda i, a: grid.repeat(4, lambda j, b: b * 0.5 + x[0] * j, a) + i, torch.zeros(5))


def _branching(x: torch.Tensor) -> Any:
    return grid.repeat(
        5, lambda i, a: grid.cond(i % 2 == 0, lambda b: b + x[0], lambda b: b - x[1], (a,)), torch.zeros(5)
    )


def _window(x: torch.Tensor) -> Any:
    """What all know is carried, and written to through views."""

    def step(i: torch.Tensor, carried: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        total, window = carried
        window = torch.roll(window, 1)
        window[0] = i.float()
        window[1:].view(-1)[1] += 1
        return total + x[0] * window.mean(), window

    return grid.repeat(5, step, (torch.zeros(5), torch.zeros(3)))


_LOOPS: dict[str, Callable[[torch.Tensor], Any]] = {
    "scan": _scanned,
    "map": lambda x: grid.map(lambda row: (row * row.sum()).relu(), x),
    "the index": lambda x: grid.repeat(5, lambda i, a: a + x[0] * i + i, torch.zeros(5)),
    "nothing public": lambda x: grid.repeat(5, lambda i, a: (a * 0.5).relu() + x[1], x[0]),
    "secret later": _delayed,
    "loops in a loop": _nested,
    "a branch by the index": _branching,
    "views of what is public": _window,
    "what is public": lambda x: grid.scan(lambda c, row: (c + 1, row.sum() * c), torch.tensor(0.0), x),
    "truth values": lambda x: grid.scan(lambda c, row: (c | (row > 1), (row > c).long()), torch.zeros(5).bool(), x),
}


@pytest.mark.parametrize("name", list(_LOOPS))
def test_a_loop_gives_what_it_gives_in_the_clear(name: str) -> None:
    made, want = lowered(_LOOPS[name], {"x": _X}), _LOOPS[name](_X)
    assert {"flow.scan", "flow.repeat"} & set(_operations(made))
    for count, has_dealer in ((2, True), (5, True), (3, False)):
        check(made.result(count, has_dealer=has_dealer), want)


def test_short_ones_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "ROOM", 2_000)
    assert not {"flow.scan", "flow.repeat"} & set(_operations(lowered(_scanned, {"x": _X})))


def test_masks_of_dropout_are_drawn_in_each_iteration() -> None:
    def dropped(x: torch.Tensor) -> Any:
        return grid.scan(lambda c, row: (c + functional.dropout(row, 0.5), c), torch.zeros(400), x)

    made = lowered(dropped, {"x": torch.ones(8, 400)})
    assert "flow.scan" in _operations(made)
    total = made.result()[0].round() / 2  # of eight draws each
    assert len(total.unique()) > 4 and 3.5 < float(total.mean()) < 4.5


# --- training -----------------------------------------------------------------------------------------------


def _epoch(optimizer_of: Callable[[Any], torch.optim.Optimizer], steps: int) -> Callable[..., Any]:
    def epoch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        optimizer = optimizer_of(model.parameters())

        def step(i: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
            rows = torch.arange(4) + i * 4
            optimizer.zero_grad()
            loss = functional.mse_loss(model(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss.detach()

        return grid.repeat(steps, step, torch.zeros(())), model

    return epoch


_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD with momentum": lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9),
    "Adam": lambda given: torch.optim.Adam(given, lr=0.01),
    "RMSprop": lambda given: torch.optim.RMSprop(given, lr=0.003),
}


@pytest.mark.parametrize("name", list(_OPTIMIZERS))
def test_an_epoch_is_one_step_in_a_loop(name: str) -> None:
    torch.manual_seed(5)
    inputs = {"model": nn.Linear(5, 1), "x": torch.randn(48, 5), "y": torch.randn(48, 1)}
    train, trained = _epoch(_OPTIMIZERS[name], 12), copy.deepcopy(inputs["model"])
    made = lowered(train, inputs)
    assert _operations(made).count("flow.scan") == 1
    assert len(made.lowered.program.nodes) < 100
    loss, _ = train(trained, inputs["x"], inputs["y"])
    got = made.result()
    assert abs(float(got["result"][0] - loss)) < 12 * 5e-4  # the sum of twelve losses
    for key, want in trained.state_dict().items():
        assert torch.allclose(got["state"][f"model.{key}"], want, atol=1e-3)


# --- what a loop takes --------------------------------------------------------------------------------------


def _long(count: int) -> OnShares:
    def loop(x: torch.Tensor, w: torch.Tensor) -> Any:
        return grid.scan(lambda c, row: ((c * 0.5 + row @ w).relu(), c.sum()), torch.zeros(5), x)

    generator = torch.Generator().manual_seed(7)
    return lowered(loop, {"x": torch.randn(count, 5, generator=generator), "w": torch.randn(5, 5, generator=generator)})


@pytest.mark.parametrize("count", [2, 3])
def test_a_script_tells_what_a_run_takes(count: int) -> None:
    made = _long(40)
    script = made.script(count)
    assert len(script.correlations) < 40
    _, ledger = run_together(_protocol(made), _given(made, count))
    assert (script.rounds, script.nbytes, script.dealt) == (ledger.rounds, ledger.nbytes, ledger.dealt)


def test_a_script_does_not_grow_with_the_loop() -> None:
    short, long = _long(40).script(), _long(4_000).script()
    assert len(long.correlations) == len(short.correlations)
    assert long.rounds > 90 * short.rounds


def test_a_dealer_deals_for_every_iteration_and_keeps_no_more_than_one() -> None:
    made = _long(30)
    script = made.script(2)
    dealer = Dealer(script, 2)
    corrections = iter(b"".join(bytes(each) for each in dealer.corrections()))

    def read(nbytes: int) -> bytes:
        return bytes(next(corrections) for _ in range(nbytes))

    supplies = [Supply(dealer.seeds[0]), Supply(dealer.seeds[1], read)]

    def protocol(party: Party, *given: Any) -> Protocol[Any]:
        return (yield from _protocol(made)(Party(party.rank, 2, supplies[party.rank]), *given))

    results, _ = run_together(protocol, _given(made, 2))
    shares = torch.stack([each[0].share for each in results]).sum(0)
    assert torch.allclose(shares.double() / (1 << PRECISION), made.result()[0].double(), atol=1e-3)
    assert next(corrections, None) is None


def test_three_alone_make_no_more_at_once_than_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _long(30)
    script = made.script(3)
    whole = [len(group) for group in replicated.groups(script)]
    monkeypatch.setattr(replicated, "AT_ONCE", 1)
    parts = [len(group) for group in replicated.groups(script)]
    assert len(whole) == 1 and len(parts) >= 30 and sum(parts) == sum(whole)
    check(made.result(3, has_dealer=False), made.result())


def _protocol(made: OnShares) -> Callable[..., Protocol[Any]]:
    def protocol(party: Party, *given: Any) -> Protocol[Any]:
        return (yield from run(party, made.lowered.program, [*given, *made.lowered.public]))

    return protocol


def _given(made: OnShares, count: int) -> list[list[Secret]]:
    parties: list[list[Secret]] = [[] for _ in range(count)]
    for value in made.values:
        for party, share in zip(parties, shares_of(encode(value), count), strict=True):
            party.append(Secret(share, PRECISION, value.dtype))
    return parties


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_secret_does_not_decide_how_often_a_loop_runs() -> None:
    def halved(x: torch.Tensor) -> Any:
        return grid.while_loop(lambda a: a.abs().max() > 0.1, lambda a: (a / 2,), (x,))

    with pytest.raises(GridError, match="how often a loop runs would tell what is secret") as raised:
        lowered(halved, {"x": _X})
    assert isinstance(raised.value, BadRequest) and "flow.while" in raised.value.message


def test_what_has_no_form_is_named_inside_a_loop() -> None:
    with pytest.raises(OperationNotAllowed, match="i0e"):
        lowered(lambda x: grid.repeat(4, lambda i, a: torch.special.i0e(a), x), {"x": _X})
