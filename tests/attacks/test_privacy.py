"""Ways to a private value that somebody who may only compute on it might try. Each ends in Denied, or in nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from torch import nn

import grid
from compute.program import Input, Node, Program
from grid.ids import fresh_id
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import AlreadyExists, BadProgram, BadRequest, Denied, GridError
from tests.tags import fresh_tag

SECRET = torch.tensor([3.5, 1.25, 7.0])
COUNTS = torch.tensor([5, 4, 7])


class Scene:
    """An owner with a private tensor of floats and one of integers at the victim, and eve, who found them."""

    def __init__(self, owner: grid.Grid, eve: grid.Grid) -> None:
        self.owner, self.eve = owner, eve
        self.at = eve["victim"]
        self.secret: Any = None
        self.counts: Any = None

    async def run(self, *operations: list[Any]) -> list[Any]:
        return list((await self.at.request("run", {"operations": list(operations)}))["results"])

    async def temporary(self, value: torch.Tensor) -> tuple[grid.Pointer, bytes]:
        pointer = await self.at.send(value)
        return pointer, pointer._handle.id


@asynccontextmanager
async def scene(victim: Folders) -> AsyncIterator[Scene]:
    tag = fresh_tag()
    async with (
        grid.connect(folders=victim, identity=Identity.generate()) as owner,
        grid.connect(folders=victim, identity=Identity.generate()) as eve,
    ):
        kept = [
            await owner["victim"].send(SECRET, tags=[tag, "floats"], private=True),
            await owner["victim"].send(COUNTS, tags=[tag, "ints"], private=True),
        ]
        made = Scene(owner, eve)
        made.secret = (await eve.search(f"#{tag} #floats")).one()
        made.counts = (await eve.search(f"#{tag} #ints")).one()
        yield made
        for pointer in kept:
            await pointer.delete()


async def _not_the_secret(pointer: grid.Pointer) -> None:
    """Either the value is denied, or it is not what was private."""
    try:
        value = await pointer.fetch()
    except Denied:
        return
    assert not any(float(each) in SECRET.tolist() for each in value.reshape(-1)), value


async def test_an_alias_that_a_plan_makes(victim: Folders) -> None:
    async with scene(victim) as s:
        for plan in (lambda x, p: (x.view(3), p + 1), lambda x, p: (x, p + 1)):
            x, _ = await s.temporary(torch.zeros(3))
            view, _ = await s.eve.run(plan, x, s.secret)
            view.copy_(s.secret)
            await _not_the_secret(view)
            await _not_the_secret(x)


@pytest.mark.parametrize("name", ["view_as", "expand_as", "reshape_as", "type_as", "to.other"])
async def test_an_alias_that_an_operation_on_both_makes(victim: Folders, name: str) -> None:
    async with scene(victim) as s:
        x, x_id = await s.temporary(torch.zeros(3))
        out, p = fresh_id(), s.secret._handle.id
        full = f"aten.{name}" if "." in name else f"aten.{name}.default"
        await s.run([full, [x_id, p], {}, [out]], ["aten.copy_.default", [out, p], {}, []])
        await _not_the_secret(x)


async def test_the_argument_that_is_written_named_by_keyword(victim: Folders) -> None:
    async with scene(victim) as s:
        x, x_id = await s.temporary(torch.zeros(3))
        _, y_id = await s.temporary(torch.zeros(3))
        p = s.secret._handle.id
        results = await s.run(
            ["aten.add_.Tensor", [y_id, p], {}, []],
            ["aten.add_.Tensor", [], {"self": x_id, "other": p}, []],
        )
        assert results[1]["code"] == BadRequest.code
        await _not_the_secret(x)


async def test_an_error_that_quotes_values(victim: Folders) -> None:
    async with scene(victim) as s:
        _, x_id = await s.temporary(torch.zeros(2))
        (fault,) = await s.run(["aten.gather.default", [x_id, 0, s.counts._handle.id], {}, [fresh_id()]])
        assert fault["code"] and "index" not in fault["message"] and not fault["fields"]
        far = (await s.temporary(torch.zeros(2)))[0].gather(0, s.counts)
        with pytest.raises(GridError) as caught:
            await far.get()
        assert "index" not in caught.value.message

        def gathered(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
            return x.gather(0, i)

        with pytest.raises(GridError) as caught:
            await s.eve.run(gathered, (await s.temporary(torch.zeros(2)))[0], s.counts)
        assert "index" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("aten.repeat_interleave.Tensor", []),
        ("aten.nonzero.default", []),
        ("aten._unique2.default", []),
        ("aten.bincount.default", []),
        ("aten.one_hot.default", []),
        ("aten.masked_select.default", ["mask"]),
        ("aten.index.Tensor", [["mask"]]),
    ],
)
async def test_a_shape_that_tells_values(victim: Folders, name: str, more: list[Any]) -> None:
    async with scene(victim) as s:
        p, mask, out = s.counts._handle.id, fresh_id(), fresh_id()
        given = [[mask] if each == ["mask"] else mask for each in more]
        results = await s.run(
            ["aten.gt.Scalar", [p, 4], {}, [mask]],
            [name, [p, *given], {}, [out]],
        )
        assert results[1]["code"] == Denied.code
        with pytest.raises(Denied):
            await s.at.describe_object(out)


async def test_private_rows_are_indexed_by_plain_numbers(victim: Folders) -> None:
    """What is denied above is not denied to honest work."""
    async with scene(victim) as s:
        index, _ = await s.temporary(torch.tensor([2, 0]))
        rows = s.secret[index]
        assert rows.shape == (2,)
        with pytest.raises(Denied):
            await rows.get()


async def test_an_owner_computes_on_private_data_as_on_any_other(victim: Folders) -> None:
    async with scene(victim) as s:
        mine = (await s.owner.search(f"id:{s.secret.id_at_location}")).one()
        x = await s.owner["victim"].send(torch.zeros(3))
        view = x[:2]
        view.copy_(mine[:2])
        x.add_(1)
        assert torch.equal(await x.get(), torch.tensor([4.5, 2.25, 1.0]))
        assert torch.equal(await view.get(), torch.tensor([4.5, 2.25]))


async def test_a_public_network_trains_on_private_data_and_stays_with_their_owner(victim: Folders) -> None:
    async with scene(victim) as s:
        torch.manual_seed(0)
        net = await s.at.send(nn.Linear(3, 1))
        steps = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            steps.zero_grad()
            loss = (net(s.secret.reshape(1, 3)) - 1).square().mean()
            loss.backward()
            steps.step()
        for parameter in net.parameters():
            with pytest.raises(Denied):
                await parameter.fetch()  # type: ignore[attr-defined]
        with pytest.raises(Denied):
            await loss.get()


async def test_a_tensor_under_the_id_of_a_models_part(victim: Folders) -> None:
    async with scene(victim) as s:
        tag = fresh_tag()
        model = await s.owner["victim"].send(nn.Linear(3, 1), tags=tag)
        found = (await s.eve.search(f"#{tag}")).one()
        part = found._handle.id[:-2] + b"\0\1"
        fields = {"kind": "tensor", "tags": ["mine"], "dtype": "float32", "shape": [1, 3]}
        with pytest.raises(AlreadyExists):
            await s.at.put(part, fields, [bytes(12)])
        x = await s.at.send(torch.ones(1, 3))
        await s.at.put(part, {**fields, "tags": []}, [bytes(12)])  # a temporary: seen by eve alone
        theirs = (await s.owner.search(f"#{tag}")).one()
        assert torch.allclose(
            await theirs(await s.owner["victim"].send(torch.ones(1, 3))).get(),
            await model(await s.owner["victim"].send(torch.ones(1, 3))).get(),
        )
        del x
        await theirs.delete()


async def test_garbage_that_is_published_as_a_plan(victim: Folders) -> None:
    async with scene(victim) as s:
        with pytest.raises(BadProgram):
            await s.at.put(fresh_id(), {"kind": "plan", "tags": ["x"], "spec_bytes": 6}, [b"\x83abcde"])


async def test_a_broken_chain_breaks_no_search(victim: Folders) -> None:
    async with scene(victim) as s:
        tag = fresh_tag()
        x = await s.owner["victim"].send(torch.ones(2))
        chain = await x.send(s.owner["victim"], tags=tag)
        good = await s.owner["victim"].send(torch.ones(2), tags=tag)
        hits = await s.eve.search(f"#{tag}")
        assert [hit.id_at_location for hit in hits] == [good.id_at_location] and len(hits.unreachable) == 1
        await x.delete()
        assert len(await s.owner.search(f"#{tag}")) == 1
        await chain.delete()
        await good.delete()


async def test_a_client_that_introduces_itself_as_a_peer(victim: Folders) -> None:
    async with scene(victim) as s:
        for name in ("victim", "bob"):
            record = {"id": s.eve.id, "name": name, "urls": ["ws://127.0.0.1:9"]}
            with pytest.raises(BadRequest, match="does not answer"):
                await s.at.request("introduce", {"peer": record})
        assert [info.name for info in await s.owner.refresh()] == ["victim"]


async def test_an_id_that_is_used_again_while_its_first_operation_is_under_way(victim: Folders) -> None:
    """The first one's header, int64, must not become that of the second, a private mask."""
    async with scene(victim) as s:
        p, again = s.counts._handle.id, fresh_id()
        slow, _ = await s.temporary(torch.rand(1000, 1000))
        one, mixed = fresh_id(), fresh_id()
        whole, few = await s.temporary(torch.arange(256))
        await s.run(["aten.sum.default", [p], {}, [one]], ["aten.add.Tensor", [slow._handle.id, one], {}, [mixed]])
        busy = [["aten.mm.default", [mixed, mixed], {}, [fresh_id()]] for _ in range(10)]
        under_way = [
            asyncio.create_task(
                s.at.request(
                    "run",
                    {"operations": [*busy, ["aten.mul.Scalar", [p, 0], {}, [again]]], "release": [again]},
                )
            )
        ]
        await asyncio.sleep(0)  # each task sends its request before the next is made
        element = fresh_id()
        under_way.append(
            asyncio.create_task(
                s.at.request(
                    "run",
                    {
                        "operations": [
                            *[["aten.mm.default", [mixed, mixed], {}, [fresh_id()]] for _ in range(20)],
                            ["aten.select.int", [p, 0, 0], {}, [element]],
                            ["aten.lt.Tensor", [few, element], {}, [again]],
                        ]
                    },
                )
            )
        )
        await asyncio.sleep(0)
        await under_way[0]
        out = fresh_id()
        (fault,) = await s.run(["aten.index.Tensor", [few, [again]], {}, [out]])
        assert fault["code"] == Denied.code
        await under_way[1]
        del slow, whole


COPIES = Program((Input("y"), Input("p")), (Node("aten.copy_.default", [{"node": 0}, {"node": 1}]),), [{"node": 2}])


async def test_a_program_that_writes_what_it_was_lent_changes_nothing_of_the_askers(victim: Folders) -> None:
    async with scene(victim) as s:
        y, y_id = await s.temporary(torch.zeros(3))
        outs = [fresh_id()]
        args = {"program": COPIES.id, "inputs": [y_id, s.secret._handle.id], "outs": outs}
        await s.at.request("execute", args, COPIES.to_bytes())
        assert torch.equal(await y.fetch(), torch.zeros(3))
        with pytest.raises(Denied):
            await s.at.request("fetch", {"id": outs[0]})


async def test_a_program_that_writes_its_input_gives_that_the_labels(victim: Folders) -> None:
    async with scene(victim) as s:
        mine = (await s.owner.search(f"id:{s.secret.id_at_location}")).one()
        at = s.owner["victim"]
        y = await at.send(torch.zeros(3))
        outs = [fresh_id()]
        args = {"program": COPIES.id, "inputs": [y._handle.id, mine._handle.id], "outs": outs}
        await at.request("execute", args, COPIES.to_bytes())
        tag = fresh_tag()
        await y.tag(tag)
        with pytest.raises(Denied):
            await (await s.eve.search(f"#{tag}")).one().fetch()
        await y.delete()


async def test_what_shares_memory_with_what_private_data_changed_is_not_read_as_if_nothing_were(
    victim: Folders,
) -> None:
    async with scene(victim) as s:
        for change in (lambda x, row: row.add_(s.secret), lambda x, row: x.add_(s.secret)):
            x = await s.at.send(torch.zeros(2, 3))
            row, other, before = x[0], x[1], x + 1
            change(x, row)
            for use in (x, row, other, x * 2, row * 2, other * 2):
                with pytest.raises((Denied, BadRequest)):
                    await use.fetch()
            with pytest.raises(BadRequest, match="clone"):
                await (other * 2).fetch()
            assert torch.equal(await before.fetch(), torch.ones(2, 3))


async def test_a_value_wanted_and_let_go_in_one_request_is_given(victim: Folders) -> None:
    async with scene(victim) as s:
        x, x_id = await s.temporary(torch.arange(3))
        answer = await (await s.at.outbox.flush()).request("run", {"operations": [], "fetch": x_id, "release": [x_id]})
        assert bytes(answer.payload) == torch.arange(3).numpy().tobytes()
        x._handle.give_up("released above")
