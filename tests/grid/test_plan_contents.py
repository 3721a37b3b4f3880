"""Programs that name inputs by their contents: bound at peers, brought where they are not, told nobody who guesses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import grid
from compute.program import Program
from compute.values import header_of, tensor_bytes
from grid.client import Grid
from grid.ids import fresh_id
from grid.remote import RemotePeer
from peer.elsewhere import TensorName
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, Denied, NotFound


def name_of(tensor: torch.Tensor) -> str:
    name = TensorName(header_of(tensor))
    name.update(tensor_bytes(tensor))
    return name.value


def naming(content: str, shape: tuple[int, ...]) -> Program:
    """x + w, where w has these contents."""
    program = grid.plan(lambda x, w: x + w).build(torch.zeros(shape), torch.zeros(shape), dynamic=False).program
    x, w = program.inputs
    return Program((x, replace(w, content=content)), program.nodes, program.outputs)


async def asked(
    peer: RemotePeer, program: Program, inputs: list[bytes], contents: Mapping[str, bytes] | None = None
) -> bytes:
    """The id of the result of `execute`, as PROGRAM.md has it."""
    out = fresh_id()
    args: dict[str, Any] = {"program": program.id, "inputs": inputs, "outs": [out]}
    if contents is not None:
        args["contents"] = dict(contents)
    await peer.request("execute", args, program.to_bytes())
    return out


@pytest.mark.parametrize("count", [2_000, 100_000], ids=["inline", "blob"])
async def test_a_peer_binds_what_it_has_published_and_says_what_it_lacks(peers: Folders, count: int) -> None:
    value = torch.randn(count)
    program = naming(name_of(value), (count,))
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        x = await alice.send(torch.ones(count))
        with pytest.raises(NotFound) as caught:
            await asked(alice, program, [x._handle.id])
        assert caught.value.fields["content"] == name_of(value)
        async with grid.connect(folders=peers, identity=Identity.generate()) as other:
            stored = await other["alice"].send(value, tags="#named-contents")
            for _ in range(2):  # the second is served at once
                out = await asked(alice, program, [x._handle.id])
                got = (await alice.request("describe", {"id": out}))["record"]
                assert got["shape"] == [count]
            await stored.delete()
        with pytest.raises(NotFound):
            await asked(alice, program, [x._handle.id])


async def test_private_contents_of_others_are_not_confirmed_by_a_guess(peers: Folders) -> None:
    value = torch.randn(5_000)
    program = naming(name_of(value), (5_000,))
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as other:
        await other["alice"].send(value, tags="#secret-contents", private=True)
        x = await g["alice"].send(torch.ones(5_000))
        absent = naming("0f" * 32, (5_000,))
        said = []
        for each in (program, absent):
            with pytest.raises(NotFound) as caught:
                await asked(g["alice"], each, [x._handle.id])
            said.append(caught.value.message.replace(str(caught.value.fields["content"]), ""))
        assert said[0] == said[1]
        # Nor by a temporary that is derived from them.
        hit = (await g.search("#secret-contents")).one()
        derived = hit + 0
        await g.settle()
        with pytest.raises(Denied):
            await asked(g["alice"], program, [x._handle.id], {name_of(value): derived._handle.id})
        mine = await other["alice"].send(torch.ones(5_000))
        await asked(other["alice"], program, [mine._handle.id])


async def test_what_is_brought_for_a_run_is_compared_with_its_name(peers: Folders) -> None:
    value = torch.randn(5_000)
    program = naming(name_of(value), (5_000,))
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        x, right, wrong = [await alice.send(each) for each in (torch.ones(5_000), value, value + 1)]
        await asked(alice, program, [x._handle.id], {name_of(value): right._handle.id})
        with pytest.raises(BadRequest, match="the program names"):
            await asked(alice, program, [x._handle.id], {name_of(value): wrong._handle.id})
        right += 1
        await g.settle()
        with pytest.raises(BadRequest, match="the program names"):
            await asked(alice, program, [x._handle.id], {name_of(value): right._handle.id})
        with pytest.raises(BadRequest, match="takes 1 inputs"):
            await asked(alice, program, [x._handle.id, right._handle.id])


def _plan(table: torch.Tensor) -> grid.Plan:
    @grid.plan
    def looked_up(x: torch.Tensor) -> torch.Tensor:
        return table[x].sum(1)

    return looked_up.build(torch.tensor([1, 2, 3]))


async def test_a_stored_plan_runs_where_its_constants_are_or_brings_them(peers: Folders) -> None:
    tag, rows = f"t{os.urandom(4).hex()}", torch.tensor([5, 7, 150, 3])
    table = torch.randn(200, 50, generator=torch.Generator().manual_seed(1))  # another than other tests leave there
    want = table[rows].sum(1)
    async with grid.connect(folders=peers) as g:
        stored = await _plan(table).send(g["alice"], tags=tag)
        (constant,) = [hit for hit in await g.search(f"name:{name_of(table)}") if hit.location.name == "alice"]
        there = await constant.copy(g["bob"])
        await constant.untag(*constant.tags)  # no tag or name is needed
        async with grid.connect(folders=peers, identity=Identity.generate()) as other:
            hit = (await other.search(f"#{tag}")).one()
            near, far = await other["bob"].send(rows), await other["carol"].send(rows)
            told = await other.explain(hit, near)
            assert (told.peer, told.moves) == ("bob", ())
            # Small rows go to where the large constant is; where they may not, it comes to them.
            told = await other.explain(hit, far)
            assert (told.peer in ("alice", "bob"), [move.what for move in told.moves]) == (True, ["x"])
            private = await other["carol"].send(rows, private=True)
            for x in (near, far):
                assert torch.allclose(await (await other.run(hit, x)).get(), want, atol=1e-5)
            del private
        assert len(await g.search(f"#{tag}")) == 1
        await there.delete()
        await stored.delete()


async def test_constants_come_to_private_data_and_are_compared_there(peers: Folders) -> None:
    tag, table, rows = f"t{os.urandom(4).hex()}", torch.randn(200, 50), torch.tensor([5, 7, 150, 3])
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as other:
        await _plan(table).send(g["alice"], tags=tag)
        await other["carol"].send(rows, tags=f"{tag} rows", private=True)
        hit = (await g.search(f"#{tag} kind:plan")).one()
        x = (await g.search(f"#{tag} #rows")).one()
        told = await g.explain(hit, x)
        assert told.peer == "carol" and [move.what for move in told.moves] == ["a constant of the plan"]
        result = await g.run(hit, x)
        assert result.location.name == "carol" and torch.allclose(
            await (await _of_owner(other, result)).fetch(), table[rows].sum(1), atol=1e-5
        )


async def _of_owner(owner: Grid, result: Any) -> Any:
    await result.tag(f"#out{result.id_at_location[:8]}")
    return (await owner.search(f"#out{result.id_at_location[:8]}")).one()


async def test_a_plan_with_constants_and_loads_is_a_function_in_another(peers: Folders) -> None:
    tag, table, rows = f"t{os.urandom(4).hex()}", torch.randn(200, 50), torch.tensor([5, 7, 150, 3])
    async with grid.connect(folders=peers) as g:
        scale = await g["bob"].send(torch.tensor([2.0]), tags=f"{tag} scale")

        @grid.plan
        def inner(x: torch.Tensor) -> torch.Tensor:
            return table[x].sum(1) * grid.load(f"#{tag} #scale")

        built = await g.build(inner, torch.tensor([1, 2, 3]))
        await built.send(g["alice"], tags=f"{tag} inner")

        def outer(x: torch.Tensor, inner: Any) -> torch.Tensor:
            return inner(x) + 1

        result = await g.run(outer, await g["carol"].send(rows), f"#{tag} #inner")
        assert torch.allclose(await result.get(), table[rows].sum(1) * 2 + 1, atol=1e-5)
        await scale.delete()
