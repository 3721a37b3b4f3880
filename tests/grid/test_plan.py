"""Plans and stored models over real peers: found by tag, run where the data are."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

import grid
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest
from tests.tags import fresh_tag


class Classifier(nn.Module):
    """A class that no peer has: convolution, batch norm, dropout, a view by batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4 * 3 * 3, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.out(self.drop(x.view(x.size(0), -1)))


@grid.plan
def accuracy(images: torch.Tensor, labels: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return (model(images).argmax(1) == labels).float().mean()


async def test_accuracy_by_tags_alone_moves_the_model_to_the_data_and_no_byte_through_the_asker(
    peers: Folders,
) -> None:
    tag = fresh_tag()
    model, images, labels = Classifier(), torch.randn(500, 1, 8, 8), torch.randint(0, 10, (500,))
    expected = accuracy(images, labels, model.eval())
    async with grid.connect(folders=peers) as g:
        await g["bob"].send(images, tags=[tag, "images"])
        await g["bob"].send(labels, tags=[tag, "labels"])
        await g["alice"].send(model, tags=[tag, "model"], example=images[:2])
    async with grid.connect(folders=peers, identity=Identity.generate()) as asker:
        result = await asker.run(accuracy, images=f"#{tag} #images", labels=f"#{tag} #labels", model=f"#{tag} #model")
        assert isinstance(result, grid.Pointer) and result.location is asker["bob"]
        assert torch.allclose(await result.get(), expected)
        assert sum(traffic.payload_sent + traffic.payload_received for traffic in asker.traffic()) < 20_000


async def test_a_stored_model_is_called_without_its_class(peers: Folders) -> None:
    tag = fresh_tag()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x = torch.randn(7, 4, 4)
    async with grid.connect(folders=peers) as g:
        sent = await g["alice"].send(model, tags=tag)
        assert isinstance(sent, nn.Sequential)
        there = await g["alice"].send(x)
        assert torch.allclose(await sent(there).get(), model(x), atol=1e-6)
        hit = (await g.search(f"#{tag} kind:model")).one()
        assert isinstance(hit, grid.RemoteModel)
        assert torch.allclose(await hit(there).get(), model(x), atol=1e-6)
        local = await hit.fetch()
        assert torch.allclose(local(x), model(x), atol=1e-6)
        assert list(local.state_dict()) == list(model.state_dict())
        moved = await hit.move(g["bob"])
        assert torch.allclose(await moved(await there.move(g["bob"])).get(), model(x), atol=1e-6)
        await moved.delete()
        assert len(await g.search(f"#{tag}")) == 0


async def test_a_private_model_is_used_but_not_taken(peers: Folders) -> None:
    tag = fresh_tag()
    async with (
        grid.connect(folders=peers) as owner,
        grid.connect(folders=peers, identity=Identity.generate()) as other,
    ):
        await owner["alice"].send(nn.Linear(4, 2), tags=tag, private=True)
        hit = (await other.search(f"#{tag}")).one()
        x = await other["alice"].send(torch.randn(3, 4))
        y = hit(x)
        for refused in (hit.fetch(), y.get(), hit.copy(other["bob"]), next(iter(hit.weights.values())).get()):
            with pytest.raises(grid.Denied):
                await refused
        with pytest.raises(grid.NotCollocated, match="private"):
            secret = await owner["bob"].send(torch.randn(3, 4), tags=fresh_tag(), private=True)
            await other.run(lambda m, v: m(v), hit, (await other.search(f"id:{secret.id_at_location}")).one())


async def test_load_inside_a_plan_stands_for_what_the_query_finds(peers: Folders) -> None:
    tag = fresh_tag()

    @grid.plan
    def scaled(factor: float) -> torch.Tensor:
        return grid.load(f"#{tag} #x") * factor

    async with grid.connect(folders=peers) as g:
        await g["carol"].send(torch.arange(3.0), tags=[tag, "x"])
        result = await g.run(scaled, 2.0)
        assert result.location is g["carol"] and torch.equal(await result.get(), torch.tensor([0.0, 2.0, 4.0]))
        with pytest.raises(BadRequest, match="inside"):
            grid.load("#x")


async def test_arguments_are_queries_pointers_tensors_and_structures(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3))
        result = await g.run(
            lambda pair, scale: {"sum": pair[0] + pair[1], "both": (pair[0] * scale, 7)},
            (x, torch.arange(3.0)),
            scale=2,
        )
        assert torch.equal(await result["sum"].get(), torch.tensor([1.0, 2.0, 3.0]))
        product, seven = result["both"]
        assert torch.equal(await product.get(), torch.full((3,), 2.0)) and seven == 7
        with pytest.raises(BadRequest, match="missing"):
            await g.run(accuracy, images=x)
        with pytest.raises(BadRequest, match="nothing is at a peer"):
            await g.run(lambda a: a + 1, torch.ones(2))


class Measured(NamedTuple):
    mean: torch.Tensor
    rows: int


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    @grid.plan
    def measured(self, x: torch.Tensor) -> object:
        return {"one": Measured((x * self.factor).mean(), 3), "number": 1 - 2j, "list": [Measured(x[0], 0)]}


async def test_methods_give_named_tuples_and_complex_numbers(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        found = await g.run(Scaled(2.0).measured, await g["alice"].send(torch.ones(3)))
        assert type(found["one"]) is Measured and found["number"] == 1 - 2j
        values = await g.fetch(found)
        assert values["one"] == Measured(torch.tensor(2.0), 3) and values["list"] == [Measured(torch.tensor(1.0), 0)]


async def test_the_smaller_side_goes_to_the_larger(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        small, large = await g["alice"].send(torch.ones(3, 1)), await g["bob"].send(torch.ones(3, 50_000))
        result = await g.run(lambda a, b: (a * b).sum(), small, large)
        assert result.location is g["bob"] and float(await result.get()) == 150_000


async def test_what_cannot_be_captured_points_at_the_line(peers: Folders) -> None:
    def branches(x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x

    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3))
        with pytest.raises(grid.CannotCapture, match=r"test_plan\.py:\d+.*torch\.where"):
            await g.run(branches, x)


async def test_a_built_plan_is_sent_found_by_tag_and_run(peers: Folders) -> None:
    tag = fresh_tag()

    @grid.plan
    def shifted(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    with pytest.raises(grid.CannotCapture, match="not built"):
        shifted.id  # noqa: B018
    async with grid.connect(folders=peers) as g:
        await shifted.build(torch.zeros(4)).send(g["alice"], tags=tag)
        hit = (await g.search(f"#{tag} kind:plan")).one()
        assert isinstance(hit, grid.RemotePlan) and hit.program.id == shifted.id
        x = await g["bob"].send(torch.ones(4))
        assert torch.equal(await (await g.run(hit, x=x)).get(), torch.full((4,), 2.0))
        moved = await (await hit.tag("moving")).move(g["carol"])
        assert moved.location is g["carol"] and moved.tags == (f"#{tag}", "#moving")
        assert torch.equal(await (await g.run(moved, x)).get(), torch.full((4,), 2.0))
        assert (await moved.fetch()).id == shifted.id
        await moved.delete()


async def test_a_model_whose_input_cannot_be_worked_out_asks_for_an_example(peers: Folders) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return x[:, 3:7] @ table.reshape(4, 11)

    async with grid.connect(folders=peers) as g:
        with pytest.raises(grid.CannotCapture, match="example="):
            await g["alice"].send(Odd(), tags=fresh_tag())
        sent = await g["alice"].send(Odd(), tags=fresh_tag(), example=(torch.zeros(2, 9), torch.zeros(44)))
        assert isinstance(sent, nn.Module)
