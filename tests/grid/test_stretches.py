"""Operations that come again are sent by number, and nothing but that is different: values, faults, order, restarts."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import grid
from grid.pointer import _dispatch
from grid.stretches import Stretches
from peer.folders import Folders
from peer.keys import Identity
from peer.lasting import Lasting
from peer.peer import Peer, Settings
from protocol import limits
from protocol.errors import BadRequest, GridError, WorkerLost


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Of each `run` request how it went: "again", "keep", or "operations" (as it comes again over another line)."""
    found: list[str] = []
    original = Lasting.post

    def post(self: Any, op: str, args: Any, *others: Any, first: Any = None, **named: Any) -> Any:
        if op == "run":
            given = first or args
            found.append(next(kind for kind in ("again", "keep", "operations") if kind in given))
        return original(self, op, args, *others, first=first, **named)

    monkeypatch.setattr(Lasting, "post", post)
    yield found


@contextlib.asynccontextmanager
async def _connected(peers: Folders) -> AsyncIterator[grid.Grid]:
    _dispatch._repeated._plans.clear()
    async with grid.connect(folders=peers) as g:
        yield g


class Step:
    """A step of a training: forward, backward, and two parameters changed in place."""

    def __init__(self, inputs: Any, labels: Any, weights: list[Any]) -> None:
        self.inputs = inputs
        self.labels = labels
        self.weights = weights

    def __call__(self, rate: float) -> Any:
        first, second = (weight.requires_grad_() for weight in self.weights)
        loss = functional.cross_entropy((self.inputs @ first).relu() @ second, self.labels)
        gradients = torch.autograd.grad(loss, (first, second))
        with torch.no_grad():
            for weight, gradient in zip((first, second), gradients, strict=True):
                weight.add_(gradient, alpha=-rate)
        return loss.detach()


async def _both(g: grid.Grid) -> tuple[Step, Step]:
    inputs, labels = torch.randn(6, 5), torch.tensor([0, 2, 1, 1, 0, 2])
    weights = [torch.randn(5, 4), torch.randn(4, 3)]
    alice = g["alice"]
    there = Step(await alice.send(inputs), await alice.send(labels), [await alice.send(each) for each in weights])
    return there, Step(inputs, labels, [each.clone() for each in weights])


async def _alike(there: Any, here: Any) -> None:
    """After the same steps at both ends: losses and parameters, bit by bit."""
    for each, other in zip(there.weights, here.weights, strict=True):
        assert torch.equal(await each.detach().fetch(), other.detach())


async def test_steps_of_a_training_are_sent_by_number_and_give_the_same(peers: Folders, sent: list[str]) -> None:
    async with _connected(peers) as g:
        there, here = await _both(g)
        for number in range(12):
            rate = 0.1 / (1 + number)  # floats may vary
            loss = there(rate)
            assert torch.equal(await loss.get(), here(rate))
        await _alike(there, here)
        # A step goes in two parts, and the awaited value is asked for right behind the one that makes it. When these
        # parts are known at the peer depends on when its answers come.
        assert "keep" in sent and sent[-15:] == ["again", "operations", "again"] * 5


async def test_other_shapes_in_between_are_another_stretch(peers: Folders, sent: list[str]) -> None:
    async with _connected(peers) as g:
        alice = g["alice"]
        values = [torch.randn(size) for size in (3, 5)]
        pointers = [await alice.send(value) for value in values]
        for _ in range(6):
            for x, value in zip(pointers, values, strict=True):
                z = x * 0.5 + x.sum()
                assert torch.equal(await z.get(), value * 0.5 + value.sum())
        assert "again" in sent[-2:]


async def test_an_operation_that_fails_in_one_use_fails_alone(peers: Folders, sent: list[str]) -> None:
    async with _connected(peers) as g:
        alice = g["alice"]
        scores = await alice.send(torch.randn(3, 4))
        for number in range(9):
            wrong = number in (5, 7)
            labels = await alice.send(torch.tensor([0, 9 if wrong else 1, 2]))
            half = scores * 0.5
            loss = functional.nll_loss(half, labels)
            lost = loss + 1
            other = scores + float(number)
            assert (await other.get()).shape == (3, 4)
            if wrong:
                with pytest.raises(GridError, match=r"(?i)target"):
                    await lost.get()
                with pytest.raises(GridError, match=r"(?i)target"):
                    await loss.get()
            else:
                assert torch.equal(await lost.get(), await loss.get() + 1)
            assert torch.equal(await half.get(), await scores.fetch() * 0.5)
        assert "again" in sent


async def test_what_is_derived_from_private_data_is_private(tmp_path: Path, sent: list[str]) -> None:
    async with _peer_here(tmp_path) as (peer, g, ann):
        alice = g["alice"]
        secret, plain = await alice.send(torch.ones(3), private=True), await alice.send(torch.ones(3))
        for x in (plain, plain, plain, plain, secret, secret, plain):
            y = x * 2.0
            z = y + x
            assert (await z.fetch()).tolist() == [3, 3, 3]
            made = peer._objects.temporary(z._handle.id)
            assert made is not None and made.labels == ({ann.id} if x is secret else set())
        assert "again" in sent


async def test_random_numbers_are_those_of_the_seed(peers: Folders, sent: list[str]) -> None:
    async with _connected(peers) as g:
        alice = g["alice"]
        x = await alice.send(torch.ones(50))

        async def draw() -> list[torch.Tensor]:
            alice.manual_seed(3)
            drawn = []
            for _ in range(6):
                y = torch.rand_like(x)
                drawn.append(await (y + 1).get())
            return drawn

        first, second = await draw(), await draw()
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        torch.manual_seed(3)
        assert all(torch.equal(one, torch.rand_like(torch.ones(50)) + 1) for one in first)
        assert "again" in sent


async def test_over_a_new_line_the_operations_go_themselves(peers: Folders, sent: list[str]) -> None:
    async with _connected(peers) as g:
        alice = g["alice"]
        x = await alice.send(torch.arange(4.0))

        async def use() -> str:
            y = x + 1
            assert (await (y * 2).get()).tolist() == [2, 4, 6, 8]
            return sent[-1]

        assert [await use() for _ in range(5)][-1] == "again"
        connection = alice.outbox.link.connection
        assert connection is not None
        z = (x + 1) * 2  # by number, over the line that breaks now
        alice.outbox._send()
        connection._socket.transport.abort()
        assert (await z.get()).tolist() == [2, 4, 6, 8]
        assert alice.outbox.link.connection is not connection
        assert await use() != "again"
        assert [await use() for _ in range(3)][-1] == "again"


@contextlib.asynccontextmanager
async def _peer_here(folder: Path) -> AsyncIterator[tuple[Peer, grid.Grid, Identity]]:
    """A peer in this process, so that its parts can be found, and a client of it."""
    ann = Identity.generate()
    peer = await Peer.start(Settings("alice", port=0, folders=Folders.under(folder)))
    try:
        async with grid.connect(peer.url, identity=ann, folders=Folders.under(folder / "client")) as g:
            yield peer, g, ann
    finally:
        await peer.close()


async def test_a_worker_that_dies_in_between_learns_anew(tmp_path: Path, sent: list[str]) -> None:
    async with _peer_here(tmp_path) as (peer, g, ann):
        x = await g["alice"].send(torch.arange(4.0))
        for _ in range(2):
            for _ in range(6):
                y = x + 1.0
                assert (await (y * 2.0).get()).tolist() == [2, 4, 6, 8]
            assert sent[-1] == "again"
            worker = peer._workers.find((ann.id, frozenset()))
            assert worker is not None and worker.pid is not None and worker._taught
            kept = y + 1.0
            await kept.fetch()
            os.kill(worker.pid, signal.SIGKILL)
            await worker.lost
            with pytest.raises(WorkerLost):
                await (kept + 1.0).get()


async def test_what_is_being_published_is_not_written_by_a_stretch(tmp_path: Path, sent: list[str]) -> None:
    async with _peer_here(tmp_path) as (peer, g, _):
        x = await g["alice"].send(torch.zeros(4))
        for number in range(6):
            x.add_(1.0)
            assert (await (x * 1.0).get()).tolist() == [number + 1] * 4
        assert sent[-1] == "again"
        held = peer._objects.temporary(x._handle.id)
        assert held is not None
        held.is_being_published = True
        x.add_(1.0)
        z = x * 1.0
        await g["alice"].outbox.settle()
        assert sent[-1] == "again"
        with pytest.raises(BadRequest, match="published"):
            await x.fetch()
        del z


async def test_forged_uses_are_refused_and_do_nothing(tmp_path: Path) -> None:
    async with _peer_here(tmp_path) as (peer, g, _):
        alice = g["alice"]
        x, (y, z, other) = await alice.send(torch.arange(3.0)), [os.urandom(16) for _ in range(3)]
        assert (await (x + 1.0).get()).tolist() == [1, 2, 3]  # there is a worker, and x is in it
        line = alice.outbox.link.connection
        assert line is not None
        step = ["aten.mul.Tensor", [x._handle.id, 2.0], {}, [y]]

        async def run(**args: Any) -> dict[str, Any]:
            return (await line.request("run", args)).result

        given = {"given": x._handle.id, "floats": [2.0]}
        with pytest.raises(BadRequest, match="no stretch"):
            await run(again=0, outs=y, **given)
        assert (await run(operations=[step], keep=0))["kept"] is True
        before = peer._objects.count
        for forged in (
            {"again": 1, "outs": z, **given},
            {"again": "0", "outs": z, **given},
            {"again": 0, "outs": z[:-1], **given},
            {"again": 0, "outs": b"", **given},
            {"again": 0, "outs": z + other, **given},
            {"again": 0, "outs": z, "given": x._handle.id, "floats": []},
            {"again": 0, "outs": z, "given": x._handle.id, "floats": [2]},
            {"again": 0, "outs": z, "given": bytes(1 << 14), "floats": [2.0]},
        ):
            with pytest.raises(BadRequest):
                await run(**forged)
        assert peer._objects.count == before
        # An id that is nobody's, and one that is taken, fail as they do in operations.
        for wrong in ({"again": 0, "outs": z, "given": other, "floats": [2.0]}, {"again": 0, "outs": y, **given}):
            (fault,) = (await run(**wrong))["results"]
            assert fault["code"] in ("not_found", "already_exists")
        assert "kept" not in await run(operations=[], keep=-1)
        assert "kept" not in await run(operations=[], keep=1 << 60)
        response = await line.request("run", {"again": 0, "outs": other, "fetch": other, **given})
        assert bytes(response.payload) == torch.tensor([0.0, 2.0, 4.0]).numpy().tobytes()
        await line.request("release", {"ids": [y, z, other]})


async def test_what_a_request_makes_and_lets_go_of_leaves_nothing(tmp_path: Path) -> None:
    async with _peer_here(tmp_path) as (peer, g, _):
        x = await g["alice"].send(torch.arange(3.0))
        before = peer._objects.count
        for _ in range(6):
            y = ((x + 1) * 2 - x) / 2
            assert (await y.get()).tolist() == [1, 1.5, 2]
            assert peer._objects.count <= before + 2, "y, and the one before"
            (worker,) = peer._execution._alive
            assert len(worker._held) <= before + 2
        del y


async def test_another_client_has_other_stretches(tmp_path: Path) -> None:
    async with _peer_here(tmp_path) as (peer, g, _):
        alice = g["alice"]
        x, y = await alice.send(torch.arange(3.0)), os.urandom(16)
        line = alice.outbox.link.connection
        assert line is not None
        operation = ["aten.mul.Tensor", [x._handle.id, 2.0], {}, [y]]
        await line.request("run", {"operations": [operation], "keep": 0})
        use = {"again": 0, "given": x._handle.id, "outs": os.urandom(16), "floats": [2.0]}
        async with grid.connect(peer.url, folders=Folders.under(tmp_path / "other")) as h:
            await h["alice"].status()
            theirs = h["alice"].outbox.link.connection
            assert theirs is not None
            with pytest.raises(BadRequest, match="no stretch"):
                await theirs.request("run", use)
        assert (await line.request("run", use)).result == {"results": []}
        await line.request("release", {"ids": [y, use["outs"]]})


def test_pieces_beyond_what_is_kept_do_not_drive_each_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STRETCHES", 4)
    stretches, line, plans = Stretches(), object(), [object() for _ in range(6)]

    def ask(plan: object) -> str:
        id = bytes(16)
        found = stretches.shorter([([None, None, None, [id]], 10, (), (plan, [bytes(15) + b"1"], []))], line)
        if found is None:
            return "operations"
        args, kept = found
        if kept is not None:
            kept.heard({"kept": True})
        return "again" if "again" in args else "keep"

    for _ in range(2):
        for plan in plans:
            ask(plan)
    assert [ask(plan) for plan in plans].count("again") == 4


def test_a_piece_is_not_used_before_the_peer_says_that_it_keeps_it() -> None:
    stretches, line = Stretches(), object()
    piece: Any = [([None, None, None, []], 10, (), (object(), [bytes(16)], [0.5]))]
    assert stretches.shorter(piece, line) is None
    found = stretches.shorter(piece, line)
    assert found is not None and found[0]["keep"] == 0 and found[1] is not None
    assert stretches.shorter(piece, line) is None
    found[1].heard({"results": []})
    assert stretches.shorter(piece, line) is None
    found[1].heard({"results": [], "kept": True})
    found = stretches.shorter(piece, line)
    assert found is not None and found[0] == {"again": 0, "given": bytes(16), "outs": b"", "floats": [0.5]}
    assert stretches.shorter(piece, object()) is None
