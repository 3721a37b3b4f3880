"""Multi-pointers: one tensor for objects at several peers. Operations run at each, results come from each."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import grid
from peer.folders import Folders
from protocol.errors import BadRequest, LinkError


async def at_both(g: grid.Grid, first: torch.Tensor, second: torch.Tensor) -> grid.MultiPointer:
    return grid.combine(await g["alice"].send(first), await g["bob"].send(second))


async def test_operations_run_at_each_peer_and_get_gives_a_list_or_the_sum(peers: Folders) -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, a, b)
        assert isinstance(m, torch.Tensor) and isinstance(m, grid.MultiPointer)
        assert (m.shape, m.dtype, len(m), m.dim(), m.size(1)) == ((3, 4), torch.float32, 3, 2, 4)
        assert m.location == (g["alice"], g["bob"]) and [child.location.name for child in m.children] == [
            "alice",
            "bob",
        ]
        z = (m @ m.T).relu().sum(0) * 2 - 1
        here = [(x @ x.T).relu().sum(0) * 2 - 1 for x in (a, b)]
        for value, expected in zip(await z.fetch(), here, strict=True):
            torch.testing.assert_close(value, expected)
        torch.testing.assert_close(await z.fetch(sum_results=True), here[0] + here[1])
        torch.testing.assert_close(await z.get(sum_results=True), here[0] + here[1])
        with pytest.raises(BadRequest, match="get\\(\\) took it"):
            await z.get()


async def test_forms_of_torch_run_at_each_peer(peers: Folders) -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    forms = [
        lambda x: x[1:, ::2],
        lambda x: x[0],
        lambda x: torch.cat([x, x], dim=1),
        lambda x: torch.stack((x, x * 2)),
        lambda x: x.max(1).values,
        lambda x: x.split(2)[1],
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: torch.einsum("ij,kj->ik", x, x),
        lambda x: list(x)[3],
        lambda x: 1 - x,
        lambda x: (x == x).sum(),
        lambda x: torch.zeros_like(x) + x.new_ones(3),
        lambda x: nn.functional.layer_norm(x, (3,)),
        lambda x: x.to(torch.float64).mT,
        lambda x: torch.func.grad(lambda w: (w**3).sum())(x),
        lambda x: torch.vmap(lambda row: row.softmax(0))(x),
        lambda x: copy.deepcopy(x),
    ]
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, a, b)
        for form in forms:
            for value, expected in zip(await form(m).get(), (form(a), form(b)), strict=True):
                torch.testing.assert_close(value, expected)


async def test_in_place_operations_change_what_is_at_each_peer(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        p, q = await g["alice"].send(torch.zeros(3)), await g["bob"].send(torch.ones(3))
        m = before = grid.combine(p, q)
        m += 1
        m[0] = 9
        m[1:].mul_(2)
        assert m is before
        assert torch.equal(await p.fetch(), torch.tensor([9.0, 2.0, 2.0]))
        assert torch.equal(await q.fetch(), torch.tensor([9.0, 4.0, 4.0]))


async def test_two_meet_peer_by_peer_not_by_position(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, torch.tensor([1.0]), torch.tensor([10.0]))
        other = grid.combine(await g["bob"].send(torch.tensor([20.0])), await g["alice"].send(torch.tensor([2.0])))
        assert await (m + other).get() == [torch.tensor([3.0]), torch.tensor([30.0])]
        assert await (other + m).get() == [torch.tensor([30.0]), torch.tensor([3.0])]


async def test_gradients_are_those_of_each_peer(peers: Folders) -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, a.clone().requires_grad_(), b.clone().requires_grad_())
        seen = []
        handle = m.register_hook(lambda grad: seen.append(grad.location.name))
        assert m.requires_grad and m.is_leaf and m.grad is None
        (m**2).sum().backward()
        assert sorted(seen) == ["alice", "bob"]
        assert [torch.equal(x, y) for x, y in zip(await m.grad.fetch(), (2 * a, 2 * b), strict=True)] == [True, True]
        assert torch.equal(await m.children[1].grad.fetch(), 2 * b)
        handle.remove()
        (gradient,) = torch.autograd.grad((m**3).sum(), [m])
        assert torch.allclose((await gradient.get())[0], 3 * a**2) and len(seen) == 2
        m.grad = None
        assert [child.grad for child in m.children] == [None, None]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
async def test_a_module_at_two_peers_trains_at_each_as_it_would_alone(peers: Folders, make: type) -> None:
    here = [nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)) for _ in range(2)]
    data, targets = [torch.randn(6, 3), torch.randn(5, 3)], [torch.randn(6, 1), torch.randn(5, 1)]
    async with grid.connect(folders=peers) as g:
        net = grid.combine(await g["alice"].send(here[0]), await g["bob"].send(here[1]))
        assert isinstance(net, nn.Sequential) and isinstance(net[0].weight, nn.Parameter)
        x, y = await at_both(g, *data), await at_both(g, *targets)
        optimizer = make(net.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            mse_loss(net(x), y).backward()
            optimizer.step()
        for module, rows, target in zip(here, data, targets, strict=True):
            alone = make(module.parameters(), lr=0.05)
            for _ in range(3):
                alone.zero_grad()
                mse_loss(module(rows), target).backward()
                alone.step()
        assert net.at(g["bob"])[0].weight is net[0].weight.children[1]
        summed = await net.fetch(sum_results=True)
        torch.testing.assert_close(summed[3].weight, here[0][3].weight + here[1][3].weight, rtol=1e-3, atol=1e-4)
        for back, module in zip(await net.get(), here, strict=True):
            assert type(back) is nn.Sequential
            for name, value in module.state_dict().items():
                torch.testing.assert_close(back.state_dict()[name], value, rtol=1e-3, atol=1e-4)


async def test_what_is_not_the_same_everywhere_is_said_for_each_peer(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, torch.ones(3, 2), torch.ones(5, 2))
        with pytest.raises(BadRequest, match=r"\[3, 2\] at alice, \[5, 2\] at bob"):
            _ = m.shape
        with pytest.raises(BadRequest, match="3 at alice, 5 at bob"):
            list(m)
        assert m.size(1) == 2 and torch.equal(await m.sum().get(sum_results=True), torch.tensor(16.0))
        with pytest.raises(BadRequest, match="have no sum"):
            await m.get(sum_results=True)
        assert [len(value) for value in await m.get()] == [3, 5]


async def test_what_cannot_meet_is_refused_before_anything_is_changed(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        p, q, r = [await g[name].send(torch.ones(2)) for name in ("alice", "bob", "carol")]
        m = grid.combine(p, q)
        for wrong, match in (
            (lambda: m.add_(p), "at alice alone"),
            (lambda: m.add_(grid.combine(p, r)), "at alice, bob, the other at alice, carol"),
            (lambda: m.add_(grid.combine(p)), "same peers"),
            (lambda: m.add_(torch.ones(2)), "send"),
            (lambda: m.at(g["carol"]), "nothing at carol"),
        ):
            with pytest.raises(grid.NotCollocated, match=match):
                wrong()
        for wrong, match in (
            (lambda: grid.combine(), "nothing to combine"),
            (lambda: grid.combine(p, p + 1), "two of these are at alice"),
            (lambda: grid.combine(p, torch.ones(2)), "send it to a peer first"),
            (lambda: pickle.dumps(m), "pickled"),
        ):
            with pytest.raises(BadRequest, match=match):
                wrong()
        with pytest.raises(BadRequest, match="is at alice, bob already"):
            await g["carol"].send(m)
        for ask in (bool, float, lambda m: m[0].item(), lambda m: m.tolist(), lambda m: m.numpy(), lambda m: 1 in m):
            with pytest.raises(grid.NeedsAwait, match="await"):
                ask(m)
        assert torch.equal(await (m + 1.0).get(sum_results=True), torch.full((2,), 4.0))
        assert grid.combine(m, [r]).location == (g["alice"], g["bob"], g["carol"])
        assert "MultiPointer(Pointer(alice:" in repr(m) and f"{m}" == repr(m) and {m: 1}[m] == 1


async def test_of_get_the_peer_that_failed_is_named_and_the_others_keep_theirs(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        p, q, r = [await g[name].send(torch.ones(2)) for name in ("alice", "bob", "carol")]
        m = grid.combine(p, q, r)
        await g["bob"].delete([q._handle.id])
        with pytest.raises(grid.NotFound, match=r"1 of 3 peers: bob: no object .*`children`") as caught:
            await m.get()
        assert caught.value.peer == "bob"
        assert torch.equal(await grid.combine(p, r).fetch(sum_results=True), torch.full((2,), 2.0))
        await g["carol"].delete([r._handle.id])
        with pytest.raises(grid.NotFound, match=r"2 of 3 peers: bob: .*; carol: ") as caught:
            await m.get()
        assert caught.value.peer == "bob, carol"
        assert torch.equal(await p.get(), torch.ones(2))


async def test_a_peer_that_was_killed_takes_nothing_of_the_others_along() -> None:
    async with grid.local("alice", "bob", patience=0.1) as g:
        m = await at_both(g, torch.ones(2), torch.ones(2))
        await g.stop_peer("bob", kill=True)
        with pytest.raises(LinkError, match="1 of 2 peers: bob:") as caught:
            await m.get()
        assert caught.value.peer == "bob"
        assert torch.equal(await m.at(g["alice"]).get(), torch.ones(2))


async def test_an_operation_that_fails_at_one_peer_names_it(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, torch.ones(3), torch.ones(4))
        other = await at_both(g, torch.ones(3), torch.ones(5))
        with pytest.raises(grid.OperationFailed) as caught:
            m + other
        assert caught.value.peer == "bob"
        index = await at_both(g, torch.tensor([0]), torch.tensor([99]))
        with pytest.raises(grid.GridError, match=r"1 of 2 peers: bob:.*out of bounds"):
            await m.gather(0, index).get()


async def test_all_can_be_moved_to_one_peer_and_be_put_together_there(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
        received = g.statistics()
        copied = await m.copy(g["carol"])
        moved = await m.move(g["carol"])
        assert {p.location.name for p in (*copied, *moved)} == {"carol"} and m.children == tuple(moved)
        carried = {id: after.payload_received for id, after in g.statistics().items()}
        assert carried == {id: received[id].payload_received if id in received else 0 for id in carried}
        assert torch.equal(await ((moved[0] + moved[1]) / 2).get(), torch.tensor([2.0, 4.0]))
        with pytest.raises(BadRequest, match="at one peer now"):
            m + 1


async def test_a_move_that_fails_for_one_loses_none(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        p, q = await g["alice"].send(torch.ones(2)), await g["bob"].send(torch.ones(2))
        m = grid.combine(p, q)
        await g["bob"].delete([q._handle.id])
        with pytest.raises(grid.NotFound, match=r"1 of 2 peers: bob.*the others are at carol now"):
            await m.move(g["carol"])
        del p
        assert torch.equal(await m.children[0].get(), torch.ones(2)) and m.children[0].location is g["carol"]


async def test_tags_descriptions_and_deletion_are_of_each(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, torch.ones(2), torch.ones(3))
        await m.tag("multi-test", "both")
        await m.describe("at two peers")
        await m.untag("both")
        hits = await g.search("#multi-test two")
        assert sorted(hits.by_peer) == ["alice", "bob"] and hits[0].tags == ("#multi-test",)
        found = grid.combine(hits)
        assert torch.equal(await found.sum().get(sum_results=True), torch.tensor(5.0))
        await found.delete()
        assert len(await g.search("#multi-test")) == 0


async def test_a_pointer_sent_to_two_peers_is_a_chain_at_each(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([1.0, 2.0]))
        m = await x.send(g["bob"], g["carol"])
        assert isinstance(m, grid.MultiPointer) and m.location == (g["bob"], g["carol"])
        doubled = await (m * 2).get()
        assert [p.location.name for p in doubled] == ["alice", "alice"]
        assert torch.equal(await doubled[1].get(), torch.tensor([2.0, 4.0]))
        assert await m.get() == [x, x] or all(each is x for each in await m.get())
        with pytest.raises(BadRequest, match="two of these"):
            await x.send(g["bob"], g["bob"])


async def test_shapes_that_depend_on_the_data_are_awaited(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        m = await at_both(g, torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-1.0, -1.0, 3.0]))
        rows = await m[m > 0]
        assert [value.tolist() for value in await rows.fetch()] == [[1.0, 2.0], [3.0]]
        assert [value.tolist() for value in await m.nonzero().get()] == [[[0], [1], [2]], [[0], [1], [2]]]


async def test_a_plan_runs_for_each_peer(peers: Folders) -> None:
    @grid.plan
    def centred(x: torch.Tensor, by: float) -> torch.Tensor:
        return (x - x.mean(0)) * by

    a, b = torch.randn(3, 2), torch.randn(5, 2)
    async with grid.connect(folders=peers) as g:
        result = await g.run(centred, await at_both(g, a, b), by=2.0)
        assert result.location == (g["alice"], g["bob"])
        for value, x in zip(await result.get(), (a, b), strict=True):
            torch.testing.assert_close(value, (x - x.mean(0)) * 2)


async def test_layers_with_states_and_schedules_run_at_each_peer(peers: Folders) -> None:
    net, x = nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
    async with grid.connect(folders=peers) as g:
        there = grid.combine(await g["alice"].send(net), await g["bob"].send(net))
        out, (hidden, _) = there(await at_both(g, x, -x))
        torch.testing.assert_close((await out.fetch())[0], net(x)[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close((await hidden.fetch())[1], net(-x)[1][0], rtol=1e-3, atol=1e-4)
        optimizer = torch.optim.AdamW(there.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        out.sum().backward()
        total = nn.utils.clip_grad_norm_(there.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        assert total.shape == () and len(await total.get()) == 2
        there.double()
        there.load_state_dict(there.state_dict())
        assert there.weight_ih_l0.dtype == torch.float64
        first, second = await there.fetch()
        assert type(second) is nn.LSTM and (first.weight_hh_l0 - net.weight_hh_l0).abs().max() > 0.01
