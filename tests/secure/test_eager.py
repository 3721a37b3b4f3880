"""Secret tensors at real peers, run after run: what stands between runs, and what does not end it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import grid
from compute.capture import capture
from grid import secure_forecast
from grid.client import Grid
from grid.secret.tensor import SecretTensor
from grid.secure_results import SecureCost
from peer.folders import Folders
from peer.keys import Identity
from protocol import limits
from protocol.errors import BadRequest, Denied, NotCollocated, NotFound, OperationNotAllowed, TooLarge
from tests.secure.teams import CLOSE, TEAM, sharing


@grid.plan
def _affine(x: Any, w: Any, b: Any) -> Any:
    y = x @ w + b
    return {"y": y, "best": y.argmax(1), "shape": x.shape[0]}


@grid.plan
def _doubled(x: Any) -> Any:
    return x * 2


@grid.plan
def _singular(x: Any) -> Any:
    return torch.linalg.svd(x)[1]


@grid.plan
def _rooted(x: Any) -> Any:
    return x.long()


@grid.plan
def _trained(model: Any, opt: Any, x: Any, y: Any) -> Any:
    opt.zero_grad()
    loss = functional.mse_loss(model(x), y)
    loss.backward()
    opt.step()
    return loss


def costs_of(g: Grid) -> list[SecureCost]:
    """What each secure run of this grid cost, from now on."""
    noted: list[SecureCost] = []
    run: Any = g.sessions.run

    async def noting(*args: Any, **kwargs: Any) -> Any:
        ran = await run(*args, **kwargs)
        noted.append(ran.cost)
        return ran

    g.sessions.run = noting  # type: ignore[method-assign]
    return noted


def near(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=CLOSE, rtol=CLOSE)


# --- what was trained -------------------------------------------------------------------------------------


async def test_weights_that_were_trained_on_shares_are_opened_once_for_all_inferences(team: Folders) -> None:
    async with sharing(team) as (g, share):
        torch.manual_seed(0)
        costs = costs_of(g)
        model, x, y = nn.Linear(40, 5), torch.randn(8, 40), torch.randint(0, 5, (8,))
        net = await share(model)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        given = await share(x)
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(net(given), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            await net
        trained = await net.get()
        spent = []
        for _ in range(4):
            one = torch.randn(1, 40)
            costs.clear()
            with torch.no_grad():
                near(await net(share(one)).get(), trained(one))
            (cost,) = costs
            spent.append((cost.online.rounds, cost.online.nbytes))
        # From the second use on: a row under its mask, and the seed of what is revealed.
        assert spent[1] == spent[2] == spent[3] == (1, 2 * (8 * 40 + 16))
        assert spent[0] == (spent[1][0] + 1, spent[1][1] + 2 * 8 * 40 * 5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
async def test_what_was_written_to_between_share_and_its_use_is_no_other_value(team: Folders, mode: Any) -> None:
    async with sharing(team) as (g, share):
        sent = await g["alice"].send(torch.ones(3))
        with mode():
            for write in (lambda x: x.add_(1), lambda x: x.data.add_(1), lambda x: x.detach()[1:].zero_()):
                x = sent + 1
                s = share(x)
                write(x)
                with pytest.raises(BadRequest, match="changed in place after share"):
                    await s.get()
            near(await share(x).get(), await x.fetch())


# --- what does not end a session --------------------------------------------------------------------------


async def _stands(session: Any, s: SecretTensor, x: torch.Tensor) -> None:
    assert session.failure is None
    near(await (s * 2).get(), x * 2)
    assert s._value().source.shares.session is session  # type: ignore[union-attr]


async def test_what_is_refused_leaves_all_other_secrets_where_they_are(team: Folders) -> None:
    """Its class is what the peer, or torch, said."""
    async with sharing(team, Identity.generate()) as (owner, _), sharing(team, Identity.generate()) as (g, share):
        x = torch.randn(5)
        await owner["dave"].send(x, tags=["#e-hidden"], private=True)
        gone = await g["dave"].send(x)
        s = await share(x)
        session = s._value().source.shares.session
        hidden = share((await g.search("#e-hidden")).one())
        with pytest.raises(Denied, match="is private"):
            await (hidden + s).get()  # by who has it: it was not shared yet
        await (hidden + s)
        with pytest.raises(Denied, match="is private"):
            await (hidden + s).get()  # by the parties
        lost = share(gone)
        await gone.delete()
        with pytest.raises(NotFound):
            await (lost * s).get()
        await _stands(session, s, x)
        for plan, error in ((_singular, OperationNotAllowed), (_rooted, BadRequest)):
            with pytest.raises(error):
                await g.run(plan, x=s.reshape(5, 1))
        await _stands(session, s, x)


async def test_a_run_that_no_peer_would_take_part_in_leaves_all_secrets_where_they_are(
    team: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(team) as (_, share):
        x = torch.randn(5)
        s = await share(x)
        session = s._value().source.shares.session
        many = [share(torch.tensor(float(at))) for at in range(7)]
        with monkeypatch.context() as patched:
            patched.setattr(limits, "SECURE_INPUTS", 6)
            with pytest.raises(BadRequest, match="more than 6 inputs"):
                await torch.stack(many).get()
            patched.setattr(limits, "SECURE_REQUEST", 4_096)
            with pytest.raises(TooLarge, match="asked for in") as refused:
                await (share(torch.zeros(1_000)) * s[0])
            assert refused.value.fields["allowed"] == 4_096
        await _stands(session, s, x)
        near(await torch.stack(many).get(), torch.arange(7.0))


async def test_squares_that_were_shared_without_their_digits_are_refused_and_nothing_is_lost(team: Folders) -> None:
    def moved(g: Any, v: Any) -> Any:
        return g / ((v * 0.5 + g * g * 0.5).sqrt() + 1e-8)

    async with sharing(team) as (_, share):
        g, v = 1e-3 * torch.randn(4), torch.full((4,), 3e-7)
        step, squares = share(g), share(v)
        near(await moved(step, squares).get(), moved(g, v))  # given for this
        kept, session = await share(v), (await step)._value().source.shares.session
        with pytest.raises(BadRequest, match="too small"):
            await moved(step, kept).get()
        await _stands(session, step, g)


# --- as arguments of plans --------------------------------------------------------------------------------


async def test_secrets_are_arguments_of_plans_beside_pointers_queries_and_tensors(team: Folders) -> None:
    async with sharing(team) as (g, share):
        x, w, b = torch.randn(4, 3), torch.randn(3, 2), torch.randn(2)
        await g["alice"].send(w, tags=["#e-w"])
        s, pointer = share(x) * 2, await g["dave"].send(b)
        foreseen = await g.explain(_affine, x=s, w="#e-w", b=pointer)
        assert foreseen.parties == ("alice", "bob") and dict(foreseen.holders)["x"] == "alice, bob"
        result = await g.run(_affine, x=s, w="#e-w", b=pointer)
        near(result.value["y"], (2 * x) @ w + b)
        assert torch.equal(result.value["best"], ((2 * x) @ w + b).argmax(1))
        assert result.value["shape"] == 4
        kept = await g.run(_affine, x=s, w="#e-w", b=b, keep=True)
        y, best = kept.value["y"], kept.value["best"]
        assert isinstance(y, SecretTensor) and isinstance(best, SecretTensor) and best.dtype == torch.int64
        near(await (y * s.sum()).get(), ((2 * x) @ w + b) * (2 * x).sum())  # the same team's
        again = await g.run(_affine, x=y.t()[:, :3].t(), w=torch.eye(2), b=[b][0])
        near(again.value["y"], ((2 * x) @ w + b)[:3] + b)
        there = await g.run(_affine, x=s, w="#e-w", b=pointer, reveal_to="bob")
        assert there.value["y"].location is g["bob"]
        explained = await g.explain(_affine, x=s, w="#e-w", b=b, keep=True)
        again = await g.run(_affine, x=s, w="#e-w", b=b, keep=True)
        assert (explained.rounds, explained.nbytes) == (again.cost.online.rounds, again.cost.online.nbytes)
        assert explained.learns == "nobody"


async def test_stored_plans_and_models_are_called_on_secrets_and_give_secrets(team: Folders) -> None:
    async with sharing(team) as (g, share):
        model, x, b = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3), torch.randn(2)
        w = torch.randn(3, 2)
        await g["dave"].send(model, tags=["#e-model"])
        await (await g.build(_affine, x=x, w=w, b=b)).send(g["carol"], tags=["#e-plan"])
        await g["alice"].send(w, tags=["#e-w2"])
        s = share(x)
        with torch.no_grad():
            scores = (await g.search("#e-model")).one()(s)
            assert isinstance(scores, SecretTensor)
            near(await scores.get(), model(x))
            near((await g.run("#e-model", s)).value, model(x))
        made = await (await g.search("#e-plan")).one()(s, "#e-w2", b=b)
        assert isinstance(made["y"], SecretTensor)
        near(await made["y"].get(), x @ w + b)
        near((await g.run("#e-plan", s, w="#e-w2", b=b)).value["y"], x @ w + b)


async def test_what_a_plan_changes_in_a_secret_module_stays_secret(team: Folders) -> None:
    async with sharing(team) as (g, share):
        torch.manual_seed(1)
        model, x, y = nn.Linear(3, 2), torch.randn(6, 3), torch.randn(6, 2)
        net = await share(model)
        both = [(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)), (model, None)]
        plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            loss = (await g.run(_trained, model=both[0][0], opt=both[0][1], x=x, y=share(y))).value
            near(loss, _trained(model, plain, x, y).detach())
        assert all(isinstance(each, SecretTensor) for each in net.parameters())
        kept = [each for state in both[0][1].state.values() for each in state.values()]  # type: ignore[union-attr]
        assert kept and all(isinstance(each, SecretTensor) for each in kept)
        near((await net.get()).weight, model.weight)


async def test_what_was_revealed_is_computed_with_as_if_it_was_not(team: Folders) -> None:
    """A product that was told is kept with all its fractional bits: who deals has to take it so, too."""
    async with sharing(team) as (_, share):
        a, b = torch.tensor([1.5, -2.25, 0.3]), torch.tensor([2.0, 0.5, -1.7])
        s, r = share(a), share(b)
        product = s * r
        near(await product.get(), a * b)
        near(await ((product * 4.0) * r).get(), a * b * 4 * b)


async def test_which_team_runs_a_plan_on_secrets(team: Folders) -> None:
    async with sharing(team) as (g, share):
        s = share(torch.ones(2))
        other = grid.share(torch.ones(2), g["bob"], g["alice"], provider=g["carol"])
        near((await g.run(_doubled, s, **TEAM, precision=16)).value, torch.full((2,), 2.0))
        others: list[dict[str, Any]] = [{**TEAM, "parties": ["bob", "alice"]}, {"precision": 20}]
        for told in (*others, {**TEAM, "provider": "dave"}):
            with pytest.raises(NotCollocated, match="Leave out parties"):
                await g.run(_doubled, s, **told)
        with pytest.raises(NotCollocated, match="same parties"):
            await g.run(_affine, s, other, s)
        with pytest.raises(BadRequest, match="no MACs"):
            await g.run(_doubled, s, checked=True, **TEAM)
        with pytest.raises(BadRequest, match="not both"):
            await g.run(_doubled, s, keep=True, reveal_to="bob")
        kept = (await g.run(_doubled, torch.ones(2), keep=True, **TEAM)).value  # of no secrets
        near(await (kept + s).get(), torch.full((2,), 3.0))


async def test_what_a_function_closes_over_is_shared_by_who_has_it(team: Folders) -> None:
    async with sharing(team) as (g, share):
        x, y = torch.randn(3), torch.randn(3)
        secret, pointer = share(x), await g["dave"].send(y)

        def both(z: Any) -> Any:
            return secret * z + pointer

        near((await g.run(both, z=y, **TEAM)).value, x * y + y)
        near((await g.run(both, share(y))).value, x * y + y)


# --- lowered once -----------------------------------------------------------------------------------------


async def test_a_plan_with_public_values_is_lowered_once_for_the_same_values(
    team: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(team) as (g, _):
        lowered: list[Any] = []
        lower = secure_forecast.lower
        monkeypatch.setattr(secure_forecast, "lower", lambda *given: lowered.append(given) or lower(*given))
        w = torch.randn(3, 2000)  # too large to be written into the program

        def scored(x: Any) -> Any:
            return x @ w

        for at in range(3):
            x = torch.randn(2, 3)
            near((await g.run(scored, x=x, **TEAM)).value, x @ w)
            assert len(lowered) == (1 if at < 2 else 2)
            if at == 1:
                w = w * 2


@pytest.mark.parametrize("name", ["rrelu", "lstm", "dropout"])
async def test_what_draws_random_numbers_is_lowered_each_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"rrelu": nn.RReLU(), "lstm": nn.LSTM(3, 2, 2, dropout=0.5), "dropout": nn.Dropout()}[name]
    program, x = capture(lambda x: model(x), {"x": torch.ones(4, 3)}), torch.ones(4, 3)
    inputs = [x if key == "x" else program.constants[key] for key in program.inputs]
    made: list[Any] = []
    monkeypatch.setattr(secure_forecast, "lower", lambda *given: made.append(given))
    for _ in range(2):
        await secure_forecast.lowered_once(program.program, inputs, [each is x for each in inputs], 16)
    assert len(made) == 2
