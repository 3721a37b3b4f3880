"""The behaviours of PySyft 0.2 that are kept, by their numbers (docs/differences.md says what became of the others)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import grid
from grid.local_grid import Processes
from peer.folders import Folders
from peer.keys import Identity
from protocol import errors
from protocol.errors import AlreadyExists, BadRequest
from tests.faults import FaultProxy

DIFFERENCES = Path(__file__).parents[2] / "docs" / "differences.md"


@pytest.fixture
def hooked() -> Iterator[None]:
    grid.hook()
    yield
    grid.unhook()


def mine(peers: Folders) -> grid.opening.Opening[grid.Grid]:
    """A client of its own key: it sees nobody else's temporaries."""
    return grid.connect(folders=peers, identity=Identity.generate())


async def count(*at: grid.RemotePeer) -> list[int]:
    return [len(await peer.objects()) for peer in at]


def test_each_behaviour_is_tested_or_explained() -> None:
    tested = {int(number) for name in globals() for number in re.findall(r"_(\d\d)(?=_)", name)}
    explained = {int(number) for number in re.findall(r"^\| (\d+) \|", DIFFERENCES.read_text(), re.MULTILINE)}
    assert tested | explained >= set(range(1, 35))


def test_every_name_that_is_said_to_be_there_now_is_there(hooked: None) -> None:
    homes = {
        "grid": [grid],
        "g": [grid.Grid],
        "bob": [grid.RemotePeer],
        "x": [grid.Pointer, grid.MultiPointer],
        "p": [grid.Pointer, grid.MultiPointer],
        "loss": [grid.Pointer],
        "model": [nn.Module, grid.RemoteModule],
        "hits": [grid.Hits],
        "errors": [errors],
    }
    rows = [line.split(" | ") for line in DIFFERENCES.read_text().splitlines() if line.startswith("| ")]
    now = " ".join(cell for row in rows for cell in row[1:])
    named = {(home, name) for home, name in re.findall(r"(?<![\w/])(\w+)\.([a-zA-Z]\w*)", now) if home in homes}
    named |= {("errors", name) for name in re.findall(r"protocol\.errors\.(\w+)", now)}
    assert len(named) > 30
    assert [(home, name) for home, name in sorted(named) if not any(hasattr(kind, name) for kind in homes[home])] == []


async def test_01_send_and_get_go_round_and_a_chain_is_taken_back_step_by_step(hooked: None, peers: Folders) -> None:
    async with mine(peers) as g:
        alice, bob = g["alice"], g["bob"]
        value = torch.tensor([1.0, 2.0])
        x = await value.send(bob)
        x = await x.get()
        assert torch.equal(x, value)
        x = await value.send(bob).send(alice)
        x = await x.get()
        x = await x.get()
        assert torch.equal(x, value) and await count(alice, bob) == [0, 0]


async def test_02_in_place_forms_keep_identity_and_id(hooked: None, peers: Folders) -> None:
    async with mine(peers) as g:
        x = torch.tensor([1.0, 2.0])
        same, python_id = x, id(x)
        await x.send_(g["bob"])
        where = x.id_at_location
        x += 1
        assert x is same and id(x) == python_id and x.id_at_location == where
        await x.get_()
        assert x is same and torch.equal(x, torch.tensor([2.0, 3.0])) and await count(g["bob"]) == [0]


async def test_03_sending_again_deletes_nothing(peers: Folders) -> None:
    async with mine(peers) as g:
        value = torch.tensor([1.0, 2.0])
        first = await g["bob"].send(value)
        first = second = await g["bob"].send(value)
        assert await count(g["bob"]) == [1] and torch.equal(await first.fetch(), value)
        third = await g["bob"].send(value)
        del third
        assert torch.equal(await second.get(), value)


async def test_04_an_object_goes_with_its_last_pointer_unless_it_is_published(peers: Folders) -> None:
    async with mine(peers) as g:
        x, kept = await g["bob"].send(torch.ones(2)), await g["bob"].send(torch.ones(2), tags="behaviour-four")
        y = x.detach()
        del x
        assert await count(g["bob"]) == [2]
        del y, kept
        (left,) = await g["bob"].objects()
        assert left["tags"] == ["behaviour-four"]
        await g["bob"].clear()


async def test_05_a_move_leaves_the_source_and_keeps_the_id(peers: Folders) -> None:
    async with mine(peers) as g:
        alice, bob = g["alice"], g["bob"]
        x = await bob.send(torch.tensor([1.0, 2.0]))
        moved = await x.move(alice)
        assert moved.id_at_location == x.id_at_location and await count(alice, bob) == [1, 0]
        assert await moved.move(alice) is moved and await count(alice) == [1]
        assert torch.equal(await moved.get(), torch.tensor([1.0, 2.0])) and await count(alice, bob) == [0, 0]


async def test_06_the_shape_of_a_result_is_known(peers: Folders) -> None:
    async with mine(peers) as g:
        x = await g["bob"].send(torch.zeros(5, 3))
        assert x.shape == (5, 3) and (x.T @ x).shape == (3, 3) and x[1:, :2].flatten().shape == (8,)
        assert (await (x == 0)[:2].nonzero()).shape == (6, 2)


async def test_07_operations_with_several_results_give_several_pointers(peers: Folders) -> None:
    async with mine(peers) as g:
        value = torch.tensor([[1.0, 5.0], [4.0, 2.0]])
        x = await g["bob"].send(value)
        top, where = torch.max(x, 1)
        assert torch.equal(await top.get(), value.max(1).values) and torch.equal(
            await where.get(), value.max(1).indices
        )
        assert [(await part.get()).tolist() for part in x.split(1)] == [[[1.0, 5.0]], [[4.0, 2.0]]]


async def test_08_item_on_a_pointer_raises(peers: Folders) -> None:
    async with mine(peers) as g:
        x = await g["bob"].send(torch.tensor(1.0))
        with pytest.raises(grid.NeedsAwait, match="await"):
            x.item()
        assert (await x.get()).item() == 1.0


async def test_09_an_operation_on_a_chain_makes_one_object_at_each_hop(peers: Folders) -> None:
    async with mine(peers) as g:
        hops = [g["alice"], g["bob"], g["carol"]]
        end = await g["carol"].send(torch.ones(2))
        chain = await (await end.send(g["bob"])).send(g["alice"])
        assert await count(*hops) == [1, 1, 1]
        doubled = chain * 2
        assert torch.equal(await (await (await doubled.get()).get()).fetch(), torch.full((2,), 2.0))
        doubled = chain * 3
        assert await count(*hops) == [2, 2, 2]
        del doubled
        assert await count(*hops) == [1, 1, 1]


async def test_10_11_what_a_pointer_or_a_chain_names_is_rounded_and_shared_where_it_is(
    hooked: None, peers: Folders
) -> None:
    async with mine(peers) as g:
        alice, bob, carol = g["alice"], g["bob"], g["carol"]
        value = torch.tensor([1.5, -2.25])
        pointer = await value.send(bob)
        chain = await pointer.send(alice)
        before = await count(alice, bob, carol)
        for each in (pointer, chain):
            s = await each.fix_prec().share(alice, bob, crypto_provider=carol)
            assert isinstance(s, grid.SecretTensor)
            got = await (s + s).get().float_prec()
            torch.testing.assert_close(got, 2 * value, atol=1e-3, rtol=1e-3)
        assert await count(alice, bob, carol) == before
        assert torch.equal(await pointer.fetch(), value)  # not in place


async def test_12_pointers_are_combined_and_their_values_summed(peers: Folders) -> None:
    async with mine(peers) as g:
        a = await g["bob"].send(torch.tensor([1, 2, 3]))
        b = await g["alice"].send(torch.tensor([4, 5, 6]))
        assert [value.tolist() for value in await grid.combine(a, b).fetch()] == [[1, 2, 3], [4, 5, 6]]
        assert (await grid.combine(a, b).get(sum_results=True)).tolist() == [5, 7, 9]
        assert await count(g["alice"], g["bob"]) == [0, 0]


async def test_13_in_place_operations_leave_no_objects_behind(peers: Folders) -> None:
    async with mine(peers) as g:
        x, y = await g["bob"].send(torch.tensor([1, 2, 3])), await g["bob"].send(torch.tensor([1, 1, 1]))
        for _ in range(3):
            x += y
            x.mul_(2)
        assert (await x.fetch()).tolist() == [22, 30, 38] and await count(g["bob"]) == [2]


async def test_14_iterating_and_slicing_count_right(peers: Folders) -> None:
    async with mine(peers) as g:
        bob = g["bob"]
        x = await bob.send(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
        assert await count(bob) == [1]
        row = x[0]
        assert await count(bob) == [2]
        del row
        assert await count(bob) == [1]
        rows = list(x)
        assert await count(bob) == [4] and (await rows[2].fetch()).tolist() == [7, 8, 9]
        del rows
        assert await count(bob) == [1]


async def test_15_gradients_are_right_and_travel_with_get_and_send(peers: Folders) -> None:
    async with mine(peers) as g:
        here = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        x = await g["bob"].send(here.detach().clone().requires_grad_())
        (x**3).sum().backward()
        (here**3).sum().backward()
        assert isinstance(x.grad, grid.Pointer)
        torch.testing.assert_close(await x.grad.fetch(), here.grad)
        back = await x.get()
        assert back.requires_grad
        torch.testing.assert_close(back.grad, here.grad)
        again = await g["alice"].send(back)
        torch.testing.assert_close(await again.grad.fetch(), here.grad)
        torch.testing.assert_close((await (await again.move(g["bob"])).get()).grad, here.grad)


async def test_15_a_part_of_what_requires_a_gradient_is_sent_without_a_warning(peers: Folders) -> None:
    async with mine(peers) as g:
        rows = torch.arange(4.0, requires_grad=True)
        part = await g["bob"].send(rows[:2])  # warnings are errors here
        assert not part.requires_grad and torch.equal(await part.get(), torch.tensor([0.0, 1.0]))


async def test_16_gradients_return_to_the_origin_of_what_was_moved(peers: Folders) -> None:
    async with mine(peers) as g:
        x = await g["alice"].send(torch.tensor([1.0, 2.0], requires_grad=True))
        hidden = x * 3
        there = await hidden.move(g["bob"])
        (there**2).sum().backward()
        assert x.grad.location is g["alice"] and torch.equal(await x.grad.fetch(), torch.tensor([18.0, 36.0]))


async def test_18_remote_get_pulls_the_data_one_hop(peers: Folders) -> None:
    async with mine(peers) as g:
        alice, bob = g["alice"], g["bob"]
        chain = await (await alice.send(torch.tensor([1.0]))).send(bob)
        assert await count(alice, bob) == [1, 1]
        assert await chain.remote_get() is chain
        assert await count(alice, bob) == [0, 1] and torch.equal(await chain.fetch(), torch.tensor([1.0]))
        with pytest.raises(BadRequest, match="nothing to pull"):
            await chain.remote_get()


async def test_19_remote_send_makes_a_pointer_a_chain(peers: Folders) -> None:
    async with mine(peers) as g:
        alice, bob = g["alice"], g["bob"]
        x = await bob.send(torch.tensor([1.0, 2.0]))
        assert await x.remote_send(alice) is x
        assert x.location is bob and await count(alice, bob) == [1, 1]
        inner = await x.get()
        assert inner.location is alice and torch.equal(await inner.get(), torch.tensor([1.0, 2.0]))
        stays = await bob.send(torch.tensor([1.0]))
        with pytest.raises(BadRequest, match="at bob already"):
            await stays.remote_send(bob)
        assert torch.equal(await stays.get(), torch.tensor([1.0]))


async def test_20_a_convolutional_model_runs_there_and_comes_back_plain(peers: Folders) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(3, 1, 4, 4)
    async with mine(peers) as g:
        there = await g["bob"].send(net)
        out = there(await g["bob"].send(x))
        assert isinstance(out, grid.Pointer)
        torch.testing.assert_close((await out.get()).detach(), net(x).detach(), rtol=1e-3, atol=1e-4)
        back = await there.get()
        assert all(type(each) is nn.Parameter for each in back.parameters())
        assert all(type(each) is torch.Tensor for each in back.buffers())
        torch.testing.assert_close(back[1].running_mean, net[1].running_mean, rtol=1e-3, atol=1e-4)


async def test_21_tensors_that_are_not_together_are_named_wherever_they_are(peers: Folders) -> None:
    async with mine(peers) as g:
        here = torch.ones(2)
        x, y = await g["alice"].send(here), await g["bob"].send(here)
        for first, second, named in ((x, y, "bob"), (y, x, "bob"), (x, here, "alice"), (here, x, "alice")):
            with pytest.raises(grid.NotCollocated, match=named) as caught:
                first + second
            assert "await" in str(caught.value)


async def test_22_a_missing_object_is_not_found(peers: Folders) -> None:
    async with mine(peers) as g:
        x = await g["bob"].send(torch.ones(2))
        await g["bob"].clear()
        with pytest.raises(grid.NotFound):
            await x.get()


async def test_23_a_get_that_is_not_permitted_is_denied_and_changes_nothing(peers: Folders) -> None:
    async with mine(peers) as g, mine(peers) as other:
        x = await g["bob"].send(torch.ones(2), tags="behaviour-23", private=True)
        hit = (await other.search("#behaviour-23")).one()
        for ask in (hit.get, hit.fetch, (hit + 1).get):
            with pytest.raises(grid.Denied):
                await ask()
        assert torch.equal(await x.get(), torch.ones(2))
        await g["bob"].clear()


async def test_24_search_counts_what_has_all_the_tags(peers: Folders) -> None:
    async with mine(peers) as g:
        bob = g["bob"]
        x = await bob.send(torch.ones(2), tags=["b24", "b24-one"], description="some numbers")
        y = await bob.send(torch.ones(2), tags=["b24", "b24-two"])

        async def found(query: str) -> int:
            return len(await g.search(query))

        counts = [
            await found(query) for query in ("#b24", "#b24-one", "#b24 #b24-two", "#b24-one #b24-two", "#b24-no #b24")
        ]
        assert counts == [2, 1, 1, 0, 0]
        await x.untag("b24-one")
        await x.tag("b24-two")
        assert [await found("#b24-one"), await found("#b24 #b24-two"), await found(f"id:{x.id_at_location}")] == [
            0,
            2,
            1,
        ]
        await y.delete()
        assert [await found("#b24"), await found("#b24 some numbers")] == [1, 1]
        await bob.clear()


async def test_25_over_a_slow_line_results_come_late_and_whole(folders: Folders) -> None:
    """Latency is the network's: here of a proxy on the way."""
    processes = Processes(folders)
    await processes.start("alice")
    try:
        async with FaultProxy(processes["alice"].url) as proxy, grid.connect(proxy.url, folders=folders) as g:
            x: torch.Tensor = await g["alice"].send(torch.zeros(2))
            proxy.up.latency = 0.2
            began = asyncio.get_running_loop().time()
            for _ in range(50):
                x = x + 1  # one request, and one wait, for all of them
            assert torch.equal(await x.get(), torch.full((2,), 50.0))
            assert asyncio.get_running_loop().time() - began >= 0.2
    finally:
        await processes.close()


async def test_26_a_worker_asks_another_for_an_object_without_the_client(peers: Folders) -> None:
    async with mine(peers) as g:
        alice, bob = g["alice"], g["bob"]
        value = torch.randn(200, 200)
        chain = await (await alice.send(value)).send(bob)
        before = {peer.name: peer.statistics() for peer in (alice, bob)}
        await chain.remote_get()
        for peer in (alice, bob):
            now = peer.statistics()
            assert (now.payload_sent, now.payload_received) == (
                before[peer.name].payload_sent, before[peer.name].payload_received,
            )  # fmt: skip
        assert torch.equal(await chain.get(), value)


async def test_27_a_function_runs_at_the_worker_as_a_plan(peers: Folders) -> None:
    @grid.plan
    def bias(x: torch.Tensor) -> torch.Tensor:
        return x.abs() + 1000

    async with mine(peers) as g:
        x = await g["bob"].send(torch.tensor([1.0, -2.0]))
        result = await g.run(bias, x)
        assert result.location is g["bob"] and torch.equal(await result.get(), torch.tensor([1001.0, 1002.0]))
        bias.build(torch.ones(2))
        await bias.send(g["bob"], tags=["#behaviour-27"])
        found = (await g.search("#behaviour-27")).one()
        assert torch.equal(await (await g.run(found, x)).get(), torch.tensor([1001.0, 1002.0]))
        await found.delete()


async def test_28_operations_outside_the_list_are_refused_and_the_session_goes_on(peers: Folders) -> None:
    async with mine(peers) as g:
        x = await g["bob"].send(torch.tensor([-1.0, 2.0]))
        assert torch.equal(await torch.relu(x).get(), torch.tensor([0.0, 2.0]))
        with pytest.raises(grid.OperationNotAllowed, match="aten"):
            torch.ops.aten._nested_view_from_buffer.default(x, x, x, x)
        fault = await g["bob"].request("run", {"operations": [["os.system", ["true"], {}, []]]})
        assert fault["results"][0]["code"] == "operation_not_allowed"
        assert torch.equal(await x.get(), torch.tensor([-1.0, 2.0]))


async def test_29_one_name_is_one_peer(peers: Folders, folders: Folders) -> None:
    async with mine(peers) as g, grid.connect(folders=peers) as other:
        bob = g["bob"]
        assert g["bob"] is bob and g[bob.id] is bob and other["bob"].id == bob.id
        await bob.send(torch.ones(2), tags="behaviour-29")
        assert len(await other.search("#behaviour-29 peer:bob")) == 1
        await bob.clear()
    with pytest.raises(AlreadyExists):
        async with grid.local("bob", "bob", folders=folders):
            pass


async def test_30_an_unknown_worker_is_an_error_that_lists_the_known_ones(peers: Folders) -> None:
    async with mine(peers) as g:
        with pytest.raises(grid.UnknownPeer, match="alice, bob, carol"):
            g["the_unknown_worker"]


async def test_31_operations_work_over_websockets(peers: Folders) -> None:
    async with mine(peers) as g:
        assert g["bob"].member.urls[0].startswith("ws://")
        async with grid.connect(g["bob"].member.urls[0], folders=peers) as through_bob:
            x = await through_bob["bob"].send(torch.ones(10, 10))
            assert torch.equal(await (x + x).get(), torch.full((10, 10), 2.0))


async def test_32_searching_twice_finds_the_same(peers: Folders) -> None:
    async with mine(peers) as g:
        await g["bob"].send(torch.ones(2), tags="behaviour-32")
        first = (await g.search("#behaviour-32")).one()
        where = first.id_at_location
        assert first.owner == g.id and first.location is g["bob"]
        assert torch.equal(await first.get(), torch.ones(2))
        del first
        again = (await g.search("#behaviour-32")).one()
        assert again.id_at_location == where and torch.equal(await again.get(), torch.ones(2))
        await again.delete()


async def test_33_objects_are_counted_listed_and_cleared(peers: Folders) -> None:
    async with mine(peers) as g, mine(peers) as other:
        bob = g["bob"]
        assert await bob.objects() == []
        x = await bob.send(torch.tensor([1, 2, 3]))
        y = x + 1
        await bob.send(torch.ones(2, 2), tags=["b33"])
        theirs = await other["bob"].send(torch.ones(9))
        listed = await bob.objects()
        assert [(each["id"].hex(), each["published"]) for each in listed[:2]] == [
            (y.id_at_location, False), (x.id_at_location, False),
        ]  # fmt: skip
        assert (listed[1]["shape"], listed[1]["dtype"], listed[1]["peer"]) == ([3], "int64", "bob")
        assert (listed[2]["tags"], listed[2]["shape"], len(listed)) == (["b33"], [2, 2], 3)
        assert await bob.clear() == 3 and await bob.objects() == []
        assert torch.equal(await theirs.get(), torch.ones(9))


async def test_34_after_a_close_what_was_published_is_there(peers: Folders) -> None:
    me = Identity.generate()
    async with grid.connect(folders=peers, identity=me) as g:
        await g["bob"].send(torch.ones(2), tags="behaviour-34")
        temporary = await g["bob"].send(torch.ones(2))
    async with grid.connect(folders=peers, identity=me) as g:
        assert torch.equal(await (await g.search("#behaviour-34")).one().get(), torch.ones(2))
        with pytest.raises(grid.GridError):
            await temporary.get()
        await g["bob"].clear()


async def test_objects_of_a_long_list_are_cut_and_counted(peers: Folders) -> None:
    async with mine(peers) as g:
        held = [await g["bob"].send(torch.ones(1)) for _ in range(3)]
        await g["bob"].send(torch.ones(1), tags="b-long")
        for limit in (1, 2, 3):
            answer = await g["bob"].request("mine", {"limit": limit})
            assert (answer["temporaries"], answer["truncated"]) == (3, True)
        assert (await g["bob"].request("mine", {"limit": 4}))["truncated"] is False
        for wrong in (0, -1, "x", True):
            with pytest.raises(BadRequest, match="positive"):
                await g["bob"].request("mine", {"limit": wrong})
        del held
        await g["bob"].clear()
