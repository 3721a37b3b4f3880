"""Plans, models and modules as objects: stored, found, run by others, and trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import grid
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest
from tests.tags import fresh_tag

# --- plans and models as objects --------------------------------------------------------------------------


async def test_a_stored_plan_is_called_on_pointers_and_gives_pointers(peers: Folders) -> None:
    tag = fresh_tag()

    @grid.plan
    def stats(pair: tuple[torch.Tensor, torch.Tensor], scale: torch.Tensor) -> Any:
        """Two sums, scaled."""
        return {"first": pair[0].sum() * scale, "second": pair[1].sum() * scale}

    async with grid.connect(folders=peers) as g:
        await stats.build((torch.zeros(3), torch.zeros(2)), torch.tensor(0.0)).send(g["alice"], tags=[tag, "plan"])
        await g["bob"].send(torch.ones(2), tags=[tag, "y"])
    async with grid.connect(folders=peers, identity=Identity.generate()) as other:
        hit = (await other.search(f"#{tag} kind:plan")).one()
        assert isinstance(hit, grid.RemotePlan) and hit.record["description"] == "Two sums, scaled."
        x, y = await other["bob"].send(torch.ones(3)), await other["bob"].send(torch.ones(2))
        result = await hit((x, y), 3.0)
        assert result["first"].location is other["bob"]
        assert (float(await result["first"].get()), float(await result["second"].get())) == (9.0, 6.0)
        again = await other.run(f"#{tag} #plan", pair=[x, f"#{tag} #y"], scale=2)
        assert float(await again["second"].get()) == 4
        here = await hit((torch.ones(3), torch.ones(2)), 1.0)
        assert here["first"].location is other["alice"]
        inside = await other.run(lambda x, y, stored: stored((x, y), torch.tensor(2.0))["first"] + 1, x, y, stored=hit)
        assert float(await inside.get()) == 7
        closed = await other.run(lambda x, y: hit((x, y), torch.tensor(1.0))["second"], x, y)
        assert float(await closed.get()) == 2
        copy = await hit.copy(other["carol"])
        assert float(await (await copy((x, y), 1.0))["first"].get()) == 3
        await copy.delete()


async def test_a_stored_plan_says_what_it_takes(peers: Folders) -> None:
    tag = fresh_tag()

    def shifted(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return x + by

    async with grid.connect(folders=peers) as g:
        hit = await grid.plan(shifted).build(torch.zeros(4), torch.tensor(0.0)).send(g["alice"], tags=tag)
        x = await g["bob"].send(torch.ones(4))
        for args, kwargs, said in (
            ((x,), {}, "takes x, by; missing: by"),
            ((x, 1.0, 2.0), {}, "takes x, by; given were x, by, argument 3"),
            ((x,), {"bye": 1.0}, "takes x, by; given were x, bye"),
            ((x, "much"), {}, "cannot be the text 'much'"),
            ((await g["bob"].send(torch.ones(4).long()), 1.0), {}, r"it takes x: float32.*given int64"),
            ((await g["bob"].send(torch.ones(4, 1)), 1.0), {}, r"it takes x: float32.*given float32 \[4, 1\]"),
        ):
            with pytest.raises(BadRequest, match=said):
                await hit(*args, **kwargs)


async def test_a_stored_plan_that_loads_by_tag_loads_when_it_runs(peers: Folders) -> None:
    tag = f"{fresh_tag()}.v1"

    @grid.plan
    def predicted(x: torch.Tensor) -> torch.Tensor:
        return grid.load(f"#{tag} kind:model")(x) + grid.load(f"#{tag} #shift")

    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(model, tags=tag)
        await g["bob"].send(torch.ones(2), tags=[tag, "shift"])
        result = await g.run(predicted, await g["bob"].send(x))
        assert torch.allclose(await result.get(), model(x) + 1, atol=1e-6)
        with pytest.raises(grid.CannotCapture, match=r"g\.build"):
            predicted.build(x)
        hit = await (await g.build(predicted, x)).send(g["carol"], tags=[tag, "loading"])
        assert torch.allclose(await (await hit(x)).get(), model(x) + 1, atol=1e-6)


async def test_a_stored_model_is_run_by_tag_whatever_its_author_called_its_input(peers: Folders) -> None:
    tag, model, x = fresh_tag(), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(60, 8)
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(model, tags=[tag, "model"])
        await g["bob"].send(x, tags=[tag, "images"])
    async with grid.connect(folders=peers, identity=Identity.generate()) as other:
        hit = (await other.search(f"#{tag} kind:model")).one()
        for result in (
            await other.run(hit, images=f"#{tag} #images"),
            await other.run(f"#{tag} kind:model", f"#{tag} #images"),
        ):
            assert result.location is other["bob"]
            assert torch.allclose(await result.get(), model(x), atol=1e-6)
        with pytest.raises(BadRequest, match="the model takes"):
            await other.run(hit, f"#{tag} #images", f"#{tag} #images")
        with pytest.raises(BadRequest, match="finds a tensor, which cannot be run"):
            await other.run(f"#{tag} #images")


async def test_a_module_here_is_run_where_the_data_are(peers: Folders) -> None:
    model, x = nn.Linear(5, 2), torch.randn(3, 5)
    async with grid.connect(folders=peers) as g:
        there = await g["bob"].send(x)
        result = await g.run(model, there)
        assert result.location is g["bob"] and torch.allclose(await result.get(), model(x), atol=1e-6)


# --- modules that a plan trains ---------------------------------------------------------------------------


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


async def test_a_plan_that_trains_a_module_leaves_it_trained_here_or_at_its_peer(peers: Folders) -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    local = nn.Linear(3, 1)
    here, sent = copy.deepcopy(local), copy.deepcopy(local)
    losses = [step(local, optimizer, x, y).item() for optimizer in [torch.optim.Adam(local.parameters())] * 3]
    async with grid.connect(folders=peers) as g:
        xs, ys = await g["bob"].send(x), await g["bob"].send(y)
        there = await g["bob"].send(sent)
        for module in (here, there):
            optimizer = torch.optim.Adam(module.parameters())
            for loss in losses:
                result = await g.run(step, module, optimizer, xs, ys)
                assert result.location is g["bob"] and float(await result.get()) == pytest.approx(loss, abs=1e-5)
        assert isinstance(there.weight, grid.Pointer)
        for trained in (here, await there.get()):
            assert torch.allclose(trained.weight, local.weight, atol=1e-5)  # type: ignore[arg-type]


async def test_a_module_that_a_plan_returns_is_one_at_the_peer(peers: Folders) -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def halved(model: nn.Module, x: torch.Tensor) -> Any:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        return model, model(x)

    async with grid.connect(folders=peers) as g:
        made, result = await g.run(halved, copy.deepcopy(model), await g["bob"].send(x))
        assert isinstance(made, grid.RemoteModule) and made.location is g["bob"]
        assert torch.allclose(await result.get(), model(x) / 2, atol=1e-6)
        assert torch.allclose((await made.get()).weight, model.weight / 2)  # type: ignore[arg-type]


# --- the old demo, in the clear ---------------------------------------------------------------------------


class Hidden(nn.Module):
    """Alice's alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, kernel_size=5, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 12 * 12, 32)
        self.out = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.out(torch.relu(self.hidden(x.flatten(1))))


async def test_labels_of_the_first_images_come_back_by_tags_alone() -> None:
    images, model = torch.randn(200, 1, 28, 28), Hidden().eval()
    expected = model(images[:100]).argmax(1)

    @grid.plan
    def first_labels(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
        return model(images[:100]).argmax(1)

    async with grid.local("alice", "bob") as g:
        await g["bob"].send(images, tags="#mnist #images")
        await g["alice"].send(model, tags="#mnist #classifier", example=images[:2])
        async with grid.connect(folders=g.folders, identity=Identity.generate()) as asker:
            result = await asker.run(first_labels, images="#mnist #images", model="#mnist #classifier")
            assert result.location is asker["bob"] and torch.equal(await result.get(), expected)
            carried = sum(each.payload_sent + each.payload_received for each in asker.traffic())
            assert carried < 20_000  # the model's program, and a hundred labels: no image, no weight


async def test_a_stored_plan_takes_its_large_constants_along(peers: Folders) -> None:
    tag, table = fresh_tag(), torch.randn(200, 50)

    @grid.plan
    def looked_up(x: torch.Tensor) -> torch.Tensor:
        return table[x].sum(1)

    async with grid.connect(folders=peers) as g:
        for _ in range(2):
            stored = await looked_up.build(torch.tensor([1, 2, 3])).send(g["alice"], tags=[tag, "looked"])
        await stored.untag("looked")
    async with grid.connect(folders=peers, identity=Identity.generate()) as other:
        x = await other["bob"].send(torch.tensor([5, 7, 150, 3]))
        assert (await other.explain(f"#{tag} #looked", x)).found[-1].nbytes == 40_000
        (result,) = (await other.map(f"#{tag} #looked", x)).values()
        assert torch.allclose(await result.get(), table[[5, 7, 150, 3]].sum(1), atol=1e-5)


# --- what a stored plan is --------------------------------------------------------------------------------


async def test_a_stored_plan_has_the_size_of_its_program_and_names_what_it_lacks(peers: Folders) -> None:
    tag, model = fresh_tag(), nn.Linear(4, 2)

    def scores(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
        return model(x)

    async with grid.connect(folders=peers) as g:
        plan = grid.plan(scores).build(torch.zeros(3, 4), model)
        stored = await plan.send(g["alice"], tags=[tag])
        assert stored.record["nbytes"] == len(plan.program.to_bytes())
        assert (await g.search(f"#{tag}")).one().record["nbytes"] == stored.record["nbytes"]
        copy = await stored.copy(g["bob"])
        assert copy.record["nbytes"] == stored.record["nbytes"]
        x = await g["alice"].send(torch.ones(3, 4))
        with pytest.raises(BadRequest, match=r"takes x, model \(of 2 tensors\); missing: model$"):
            await stored(x)
        with pytest.raises(
            BadRequest, match=r"; model was given in other parts.*: model.weight, model.bias, model.0.weight"
        ):
            await stored(x, nn.Sequential(model))
        assert (await stored(x, model)).shape == (3, 2)
        for hit in await g.search(f"#{tag}"):
            await hit.delete()


async def test_numbers_that_a_stored_plan_computes_come_as_tensors(peers: Folders) -> None:
    tag = fresh_tag()

    def sizes(x: torch.Tensor) -> dict[str, Any]:
        return {"rows": x.shape[0], "mean": x.mean(0), "half": x.shape[0] / 2, "fixed": [1.5, (x.shape[1], "text")]}

    async with grid.connect(folders=peers) as g:
        stored = await grid.plan(sizes).build(torch.zeros(7, 3)).send(g["alice"], tags=[tag])
        result = await stored(await g["bob"].send(torch.ones(9, 5)))
        rows, half, columns = [await each.get() for each in (result["rows"], result["half"], result["fixed"][1][0])]
        assert (rows.item(), half.item(), columns.item()) == (9, 4.5, 5)
        assert (rows.dtype, half.dtype) == (torch.int64, torch.float64)
        assert result["fixed"][0] == 1.5 and result["fixed"][1][1] == "text"
        assert (await result["mean"].get()).tolist() == [1.0] * 5
        await stored.delete()


async def test_a_stored_model_called_on_what_is_elsewhere_says_what_brings_them_together(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(nn.Linear(4, 2), tags=[tag])
        model, x = (await g.search(f"#{tag}")).one(), await g["bob"].send(torch.ones(3, 4))
        await model.load()
        with pytest.raises(grid.NotCollocated, match=r"await model\(x\), or g\.run\(model, x\)"):
            model(x).sum()
        assert (await g.run(model, x)).shape == (3, 2)
        await model.delete()
