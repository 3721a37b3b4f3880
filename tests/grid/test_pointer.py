"""Pointers over real peers: values, operations, errors."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest
import torch
from torch import nn

import grid
from peer.folders import Folders
from protocol.errors import BadRequest, BadTensor


async def test_send_and_get_give_the_value_back_for_every_dtype(peers: Folders) -> None:
    values = [
        torch.tensor([True, False]),
        torch.arange(5, dtype=torch.uint8),
        torch.randn(3, 4).to(torch.bfloat16),
        torch.randn(2, 2).to(torch.float16),
        torch.randn(3, dtype=torch.complex64),
        torch.tensor(3.5),
        torch.zeros(0, 3),
        torch.arange(12).reshape(3, 4).t(),
        torch.randn(70_000),
    ]
    async with grid.connect(folders=peers) as g:
        for value in values:
            back = await (await g["alice"].send(value)).get()
            assert back.dtype == value.dtype and torch.equal(back, value)


async def test_a_pointer_is_a_tensor_with_shape_and_dtype(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.zeros(2, 3))
        assert isinstance(x, torch.Tensor)
        assert (x.shape, x.dtype, x.location) == (torch.Size([2, 3]), torch.float32, g["alice"])
        assert len(x.id_at_location) == 32 and x.owner == g.id and x.tags == ()


async def test_operations_run_at_the_peer_and_equal_local_ones(peers: Folders) -> None:
    a, b = torch.randn(4, 5), torch.randn(5, 3)
    async with grid.connect(folders=peers) as g:
        x, y = await g["alice"].send(a), await g["alice"].send(b)
        z = (x @ y).relu().sum(0) * 2 - 1
        assert isinstance(z, grid.Pointer) and z.location is g["alice"]
        assert torch.allclose(await z.get(), (a @ b).relu().sum(0) * 2 - 1)
        top, index = x.max(1)
        assert torch.equal(await top.get(), a.max(1).values) and torch.equal(await index.get(), a.max(1).indices)
        assert torch.equal(await x[1:3, ::2].fetch(), a[1:3, ::2])
        assert [list(part.shape) for part in y.split(2)] == [[2, 3], [2, 3], [1, 3]]


async def test_in_place_operations_change_the_object_and_its_views(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.zeros(3))
        row = x[1:]
        row.add_(5)
        x += 1
        x[0] = 9
        assert torch.equal(await x.get(), torch.tensor([9.0, 6.0, 6.0]))


async def test_get_takes_a_temporary_away_and_fetch_does_not(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2))
        await x.fetch()
        await x.get()
        with pytest.raises(BadRequest, match="get\\(\\) took it"):
            await x.get()
        with pytest.raises(BadRequest, match="get\\(\\) took it"):
            x + 1


async def held(g: grid.Grid, id: bytes) -> bool:
    """Whether carol has it still."""
    try:
        return bool(await g["carol"].describe_object(id))
    except grid.NotFound:
        return False


async def test_a_pointer_that_dies_takes_its_temporary_along(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["carol"].send(torch.ones(2))
        y = x + 1
        await y.fetch()
        ids = [x._handle.id, y._handle.id]
        assert [await held(g, id) for id in ids] == [True, True]
        del x, y
        await asyncio.sleep(0)
        assert [await held(g, id) for id in ids] == [False, False]


async def test_a_failure_surfaces_where_its_result_is_awaited_and_the_connection_goes_on(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([1, 2, 3]))
        far = x.gather(0, x + 5)
        later = far.sum() + 1
        with pytest.raises(grid.GridError, match="out of bounds") as caught:
            await later.get()
        assert caught.value.peer == "alice" and caught.value.operation == "aten.gather.default"
        assert torch.equal(await (x + 1).get(), torch.tensor([2, 3, 4]))


async def test_a_wrong_shape_fails_at_once_and_here(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x, y = await g["alice"].send(torch.ones(3)), await g["alice"].send(torch.ones(4))
        with pytest.raises(grid.OperationFailed, match="broadcast"):
            x + y
        assert torch.equal(await x.get(), torch.ones(3))


async def test_tensors_at_different_peers_name_both_and_the_move_to_make(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x, y = await g["alice"].send(torch.ones(3)), await g["bob"].send(torch.ones(3))
        with pytest.raises(grid.NotCollocated) as caught:
            x + y
        text = str(caught.value)
        assert x.id_at_location[:12] in text and y.id_at_location[:12] in text
        assert "alice" in text and "bob" in text and "await y.move(g['alice'])" in text
        with pytest.raises(grid.NotCollocated, match="send"):
            x + torch.ones(3)


async def test_plain_values_need_an_await(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor(3.0))
        for ask in (bool, float, int, lambda p: p.item(), lambda p: p.tolist(), lambda p: p.numpy(), lambda p: 3 in p):
            with pytest.raises(grid.NeedsAwait, match="await"):
                ask(x)
        with pytest.raises(grid.NeedsAwait):
            x.reshape(1).nonzero().size(0)
        with pytest.raises(BadRequest, match="pickled"):
            pickle.dumps(x)
        assert "Pointer(alice:" in repr(x) and "Pointer(alice:" in f"{x}"


async def test_move_goes_directly_and_copy_leaves_the_original(peers: Folders) -> None:
    value = torch.randn(300, 300)
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(value)
        sent = sum(traffic.payload_sent for traffic in g.traffic())
        there = await x.copy(g["bob"])
        moved = await x.move(g["bob"])
        assert sum(traffic.payload_sent + traffic.payload_received for traffic in g.traffic()) == sent
        assert torch.equal(await there.get(), value) and torch.equal(await moved.fetch(), value)
        assert moved.location is g["bob"] and await moved.move(g["bob"]) is moved
        with pytest.raises(BadRequest, match="moved to bob"):
            await x.fetch()


async def test_a_chain_gives_back_what_it_points_to_and_operations_run_where_the_data_are(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([1.0, 2.0]))
        chain = await x.send(g["bob"])
        assert chain.location is g["bob"] and chain.shape == x.shape
        doubled = chain + chain
        assert doubled.location is g["bob"]
        assert torch.equal(await (await doubled.get()).get(), torch.tensor([2.0, 4.0]))
        far = await chain.send(g["carol"])
        assert await far.get() is chain
        assert await chain.get() is x


async def test_remote_get_has_the_holder_pull_the_data(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([1.0, 2.0]))
        chain = await x.send(g["bob"])
        pulled = await chain.remote_get()
        assert pulled is chain and chain.location is g["bob"]
        assert torch.equal(await (chain * 2).get(), torch.tensor([2.0, 4.0]))
        with pytest.raises(BadRequest, match="nothing to pull"):
            await chain.remote_get()


async def test_training_at_a_peer_equals_training_here(peers: Folders) -> None:
    torch.manual_seed(0)
    here = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10)
    )
    images, labels = torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
    reference = copy.deepcopy(here)
    async with grid.connect(folders=peers) as g:
        there = await g["bob"].send(here)
        assert isinstance(there, nn.Sequential) and all(isinstance(p, grid.Pointer) for p in there.parameters())
        _train(reference, images, labels)
        loss = _train(there, await g["bob"].send(images), await g["bob"].send(labels))
        assert isinstance(loss, grid.Pointer)
        back = await there.get()
        assert type(back) is nn.Sequential
        for name, value in reference.state_dict().items():
            assert torch.allclose(back.state_dict()[name], value, atol=1e-5), name


def _train(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    return loss


async def test_a_tensor_that_cannot_travel_is_refused_before_anything_is_sent(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        with pytest.raises(BadTensor, match="to_dense"):
            await g["alice"].send(torch.eye(3).to_sparse())
        with pytest.raises(BadRequest, match="as_tensor"):
            await g["alice"].send([1, 2, 3])  # type: ignore[call-overload]


async def test_operations_outside_the_table_are_refused_by_name(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.randn(4))
        with pytest.raises(grid.OperationNotAllowed, match="aten"):
            torch.ops.aten._nested_view_from_buffer.default(x, x, x, x)


async def test_thousands_of_operations_leave_in_a_few_requests(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x: torch.Tensor = await g["alice"].send(torch.zeros(8))
        for _ in range(3_000):
            x = x + 1
        assert torch.equal(await x.get(), torch.full((8,), 3_000.0))


async def test_data_can_be_set_and_a_module_converts_its_dtype(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3))
        x.data = x.clone() * 2
        assert torch.equal(await x.fetch(), torch.full((3,), 2.0))
        with pytest.raises(grid.NotCollocated):
            x.data = torch.zeros(3)
        linear = (await g["alice"].send(nn.Linear(3, 2))).double()
        back = await linear.fetch()
        assert back.weight.dtype == torch.float64


async def test_gradients_that_nobody_asked_for_are_not_made(peers: Folders) -> None:
    norm, x = nn.InstanceNorm1d(4, affine=True, track_running_stats=True), torch.randn(2, 4, 5)
    reference = copy.deepcopy(norm)
    reference(x).square().sum().backward()
    async with grid.connect(folders=peers) as g:
        there = await g["alice"].send(norm)
        there(await g["alice"].send(x)).square().sum().backward()
        assert reference.weight.grad is not None
        assert torch.allclose(await there.weight.grad.fetch(), reference.weight.grad, atol=1e-4)
