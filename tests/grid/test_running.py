"""What runs can be listed, watched and ended; what it took is told to who may know; small results come along."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

import grid
from compute.program import Body, Input, Node, Program
from grid.executing import Executor
from grid.outbox import Outbox
from grid.pointer import Pointer
from grid.run_results import Looks, Results
from grid.started import Run, profiled
from peer import machine
from peer.calls import Response
from peer.folders import Folders
from peer.keys import Identity
from peer.peer import Peer, Settings
from peer.requests import Requests
from protocol import limits
from protocol.errors import Ambiguous, Cancelled, Denied, LinkError, NotFound, WorkerLost
from protocol.tensors import TensorHeader
from tests.waiting import process_ended, until

ADD, NEG, SUM = "aten.add.Tensor", "aten.neg.default", "aten.sum.default"
LONG = 1_000_000  # iterations that nobody waits for


def loop(count: int, width: int = 4) -> Program:
    """x + count, by one at a time, and how much that is in all."""
    step = Body((Input("i"), Input("x")), (Node(ADD, [{"node": 1}, 1]),), [{"node": 2}])
    nodes = (
        Node("flow.repeat", [{"body": 0}, count, [{"node": 0}], []]),
        Node(SUM, [{"node": 1, "item": 0}]),
    )
    outputs = {"map": {"sum": {"node": 2}, "x": {"node": 1, "item": 0}}}
    return Program((Input("x", "float32", (width,)),), nodes, outputs, (), (step,))


def counting() -> Program:
    """The first input, and one added for each element of the second."""
    step = Body((Input("i"), Input("x")), (Node(ADD, [{"node": 1}, 1]),), [{"node": 2}])
    nodes = (
        Node("aten.sym_size.int", [{"node": 1}, 0]),
        Node("flow.repeat", [{"body": 0}, {"node": 2}, [{"node": 0}], []]),
    )
    return Program((Input("x"), Input("n")), nodes, {"node": 3, "item": 0}, (), (step,))


def simple(operation: str, *more: Any) -> Program:
    return Program((Input("x"),), (Node(operation, [{"node": 0}, *more]),), {"node": 1})


class Asker:
    """Somebody who has programs run at alice."""

    def __init__(self, g: Any) -> None:
        self.g = g
        self.alice = g["alice"]
        self.executor = Executor()

    async def run(self, program: Program, *inputs: Pointer, name: str | None = None) -> Any:
        return await self.executor.run(self.alice, program, [given._handle.id for given in inputs], name=name)

    def start(self, program: Program, *inputs: Pointer, name: str | None = None) -> Run:
        return Run(self.g, self.run(program, *inputs, name=name))

    async def listed(self, count: int = 1) -> list[Any]:
        """What runs, when so many do."""
        found: list[Any] = []
        while len(found) != count:
            found = list(await self.g.running())
        return found

    async def requests(self) -> int:
        """How many were made so far."""
        return int(self.alice.outbox.link.asked)


@contextlib.asynccontextmanager
async def asker(folders: Folders, identity: Identity | None = None) -> AsyncIterator[Asker]:
    async with grid.connect(folders=folders, identity=identity) as g:
        try:
            yield Asker(g)
        finally:
            with contextlib.suppress(LinkError):
                await g["alice"].clear()


@contextlib.asynccontextmanager
async def one_peer(folder: Path, lease_grace: float = limits.LEASE_GRACE) -> AsyncIterator[Peer]:
    """alice in this process, to be looked into."""
    peer = await Peer.start(
        Settings("alice", port=0, folders=Folders.under(folder), lease_grace=lease_grace),
    )
    try:
        yield peer
    finally:
        await peer.close()


# --- listed and watched -----------------------------------------------------------------------------------


async def test_a_loop_is_watched_from_one_iteration_to_another_and_ended(peers: Folders) -> None:
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(4))
        run = me.start(loop(LONG), x, name="count")
        seen: list[int] = []
        async for info in run:
            if info.progress is None:
                continue
            assert (info.name, info.kind, info.principal, info.peer) == ("count", "program", me.g.id, "alice")
            assert info.what == loop(LONG).id and info.process is not None
            assert info.progress.of == LONG and info.progress.nodes == 2
            assert 0 < info.progress.fraction < 1 and "iteration" in str(info.progress)
            seen.append(info.progress.done)
            if len(seen) == 2:
                break
        assert 0 < seen[0] < seen[1] < LONG
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (await (x + 1).get()).tolist() == [1.0] * 4  # the worker is as it was
        assert list(await me.g.running()) == []


async def test_a_run_gives_what_run_gives(peers: Folders) -> None:
    async with asker(peers) as me:
        run = me.start(loop(3), await me.alice.send(torch.zeros(4)))
        made = await run
        assert run.done and (await made["x"].get()).tolist() == [3.0] * 4
        assert [info async for info in run] == [] and list(await run.running()) == []


async def test_others_see_nothing_of_it_and_the_operator_sees_it_all(peers: Folders) -> None:
    async with (
        asker(peers) as operator,
        asker(peers, Identity.generate()) as me,
        grid.connect(folders=peers, identity=Identity.generate()) as stranger,
    ):
        run = me.start(loop(LONG), await me.alice.send(torch.zeros(4)), name="mine")
        (info,) = await me.listed()
        assert [each.name for each in await operator.listed()] == ["mine"]
        assert list(await stranger.running()) == []
        with pytest.raises(NotFound):
            await stranger.cancel(info)
        await operator.g.cancel(info)
        with pytest.raises(Cancelled, match="grid kill"):
            await run


# --- ended ------------------------------------------------------------------------------------------------


async def test_who_awaits_a_run_that_is_ended_hears_so_and_nothing_of_it_stays(peers: Folders) -> None:
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(4))
        kept = len(await me.alice.objects())
        run = me.start(loop(LONG), x)
        (info,) = await me.listed()
        assert (await me.g.cancel(info.id.hex()[:8])).id == info.id
        with pytest.raises(Cancelled):
            await run
        assert len(await me.alice.objects()) == kept
        with pytest.raises(NotFound, match="over"):
            await me.g.cancel(info)


async def test_a_run_that_waits_for_another_ends_at_once(peers: Folders) -> None:
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(4))
        await me.run(loop(3), x)
        first, second = me.start(loop(LONG), x, name="first"), me.start(loop(3), x, name="second")
        found = {info.name: info for info in await me.listed(2)}
        await me.g.cancel(found["second"])
        with pytest.raises(Cancelled):
            await second
        assert [info.name for info in await me.g.running()] == ["first"] and not first.done
        await me.g.cancel(found["first"])
        with pytest.raises(Cancelled):
            await first
        assert (await (await me.run(loop(3), x))["x"].get()).tolist() == [3.0] * 4


async def test_an_id_that_fits_two_is_refused(peers: Folders) -> None:
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(4))
        runs = [me.start(loop(LONG), x) for _ in range(2)]
        listed = await me.g.running()
        while len(listed) < 2:
            listed = await me.g.running()
        with pytest.raises((Ambiguous, NotFound)):
            listed.one("")
        for info in listed:
            await me.g.cancel(info)
        for run in runs:
            with pytest.raises(Cancelled):
                await run


async def test_one_long_operation_is_ended_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STOP_WAIT", 0.05)
    async with one_peer(tmp_path) as peer, asker(peer.settings.folders) as me:
        x = await me.alice.send(torch.randn(2500, 2500))
        await (x[0, 0] + 1).get()
        (worker,) = peer._workers.statistics().workers
        assert worker.pid is not None
        before = machine.cpu_seconds(worker.pid)
        run = me.start(simple("aten.linalg_svdvals.default"), x)
        await until(lambda: (machine.cpu_seconds(worker.pid or 0) or 0.0) > (before or 0.0) + 0.1)
        behind = x[0, 0] + 2
        (info,) = await me.listed()
        await me.g.cancel(info)
        with pytest.raises(Cancelled):
            await run
        with pytest.raises(WorkerLost, match="did not end by itself"):
            await behind.get()
        assert (await (await me.alice.send(torch.ones(2)) + 1).get()).tolist() == [2.0, 2.0]


# --- ends of those who take part --------------------------------------------------------------------------


@pytest.mark.parametrize("is_known", [False, True], ids=["in a task of the peer's", "without one"])
async def test_the_run_of_a_client_that_is_gone_ends_with_its_lease(tmp_path: Path, is_known: bool) -> None:
    async with one_peer(tmp_path, lease_grace=0.2) as peer, asker(peer.settings.folders) as operator:
        g = await grid.connect(folders=peer.settings.folders, identity=Identity.generate())
        me = Asker(g)
        x, few, many = [await me.alice.send(torch.zeros(size)) for size in (4, 3, LONG)]
        if is_known:
            assert (await (await me.run(counting(), x, few)).get()).tolist() == [3.0] * 4
            await (many[0] + 1).get()  # its worker has it
        run = me.start(counting(), x, many)
        await operator.listed()
        assert bool(peer._ledgers.tasks) is not is_known
        await g._links.close()  # without a word
        with pytest.raises(LinkError):
            await run
        await operator.listed(0)
        await until(lambda: peer._objects.count == 0, lambda: peer._objects.count)
        await g.close()


async def test_a_worker_that_is_killed_is_told_and_others_go_on(peers: Folders) -> None:
    async with asker(peers, Identity.generate()) as me, asker(peers, Identity.generate()) as other:
        x, y = await me.alice.send(torch.zeros(4)), await other.alice.send(torch.zeros(4))
        mine, theirs = me.start(loop(LONG), x), other.start(loop(LONG), y)
        await other.listed()
        process = None
        while process is None:
            (info,) = await me.listed()
            process = info.process
        os.kill(process, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            await mine
        assert list(await me.g.running()) == []
        assert len(await other.g.running()) == 1 and not theirs.done
        theirs.cancel()
        with pytest.raises(asyncio.CancelledError):
            await theirs
        assert (await (await me.run(simple(NEG), x)).get()).tolist() == [0.0] * 4  # a new worker has what was sent


async def test_a_peer_that_is_killed_takes_its_runs_along(tmp_path: Path) -> None:
    async with grid.local("alice", folders=Folders.under(tmp_path), patience=0.2) as g:
        me = Asker(g)
        run = me.start(loop(LONG), await me.alice.send(torch.zeros(4)))
        process = None
        while process is None:
            (info,) = await me.listed()
            process = info.process
        await g.stop_peer("alice", kill=True)
        with pytest.raises(LinkError):
            await run
        process_ended(process)
        await g.start_peer("alice")
        assert list(await g.running("alice")) == []


# --- small results ----------------------------------------------------------------------------------------


async def test_a_small_result_comes_along_and_its_value_asks_nothing_more(peers: Folders) -> None:
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(4))
        made = await me.run(loop(3), x)
        asked = await me.requests()
        assert (await made["sum"].fetch()).item() == 12.0
        assert (await made["x"].get()).tolist() == [3.0] * 4
        assert (await made["sum"].get()).item() == 12.0
        assert await me.requests() == asked


async def test_what_was_changed_since_is_asked_for(peers: Folders) -> None:
    async with asker(peers) as me:
        made = (await me.run(loop(3), await me.alice.send(torch.zeros(4))))["x"]
        made.add_(1)
        assert (await made.fetch()).tolist() == [4.0] * 4
        made.view(2, 2).mul_(2)
        await me.g.settle()
        assert (await made.get()).tolist() == [8.0] * 4


async def test_a_large_result_stays_where_it_is(peers: Folders) -> None:
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(limits.SMALL_RESULT))
        before = me.alice.statistics().payload_received
        made = await me.run(loop(3, limits.SMALL_RESULT), x)
        assert me.alice.statistics().payload_received - before == 4  # the sum
        assert (await made["x"].get()).sum() == 3 * limits.SMALL_RESULT


async def test_all_small_results_together_are_bounded(peers: Folders) -> None:
    count, width = limits.FEW_RESULTS, limits.SMALL_RESULT // 4
    program = Program(
        (Input("x"),),
        tuple(Node(ADD, [{"node": 0}, number]) for number in range(count)),
        [{"node": number + 1} for number in range(count)],
    )
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(width))
        before = me.alice.statistics().payload_received
        made = await me.run(program, x)
        assert me.alice.statistics().payload_received - before == limits.SMALL_RESULTS
        for number, each in enumerate(made):
            assert torch.equal(await each.get(), torch.full((width,), float(number)))


async def test_results_that_look_otherwise_than_the_last_time_are_what_they_are(peers: Folders) -> None:
    program = Program((Input("x"),), (Node(ADD, [{"node": 0}, 1]),), {"tuple": [{"node": 1}, {"node": 1}]})
    async with asker(peers) as me:
        for x in (torch.zeros(3), torch.zeros(3), torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64), torch.zeros(3)):
            made = await me.run(program, await me.alice.send(x))
            for each in made:
                assert each.shape == x.shape and each.dtype == x.dtype
                assert torch.equal(await (each * 2).get(), x + x + 2)


async def test_results_that_were_expected_and_never_came_are_not_let_go_of(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[bytes] = []
    async with asker(peers) as me:
        ours = me.alice.outbox
        said, out = [{"dtype": "float32", "shape": [3]}], os.urandom(16)
        gc.collect()  # what other tests have left is none of this one's
        monkeypatch.setattr(Outbox, "release", lambda outbox, id: released.append(id) if outbox is ours else None)
        looks = Looks(said, [TensorHeader("float32", (3,))])
        results = Results(me.alice, [out], None, looks)
        results.expect()
        del results
        gc.collect()
        assert not released
        results = Results(me.alice, [out], None, looks)
        results.expect()
        assert results.read(Response({"results": said}, memoryview(b""), None))[0].shape == (3,)
        del results
        gc.collect()
        assert released == [out]


async def test_of_many_results_only_numbers_come_along(peers: Folders) -> None:
    count = limits.FEW_RESULTS + 1
    nodes = [Node(ADD, [{"node": 0}, number]) for number in range(count - 1)]
    nodes.append(Node("aten.sum.default", [{"node": 0}]))
    program = Program((Input("x"),), tuple(nodes), [{"node": number + 1} for number in range(count)])
    async with asker(peers) as me:
        x = await me.alice.send(torch.ones(100))
        before = me.alice.statistics().payload_received
        made = await me.run(program, x)
        assert me.alice.statistics().payload_received - before == 4, "the sum"
        assert (await made[-1].get()).item() == 100.0
        assert torch.equal(await made[3].get(), torch.full((100,), 4.0))


async def test_a_program_that_is_known_takes_no_task_at_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []

    async def serve(self: Requests, call: Any) -> Any:
        served.append(call.op)
        return await plainly(self, call)

    plainly = Requests.serve
    monkeypatch.setattr(Requests, "serve", serve)
    async with one_peer(tmp_path) as peer, asker(peer.settings.folders) as me:
        x = await me.alice.send(torch.zeros(4))
        await me.run(loop(3), x)
        served.clear()
        for _ in range(3):
            assert (await (await me.run(loop(3), x))["x"].get()).tolist() == [3.0] * 4
        assert "execute" not in served and "release" not in served
        assert peer._objects.count <= 3  # x, and what was made last: what was let go of went with the next run


# --- private data -----------------------------------------------------------------------------------------


async def test_of_private_data_nothing_comes_along_and_nothing_is_told(peers: Folders) -> None:
    async with asker(peers, Identity.generate()) as owner, asker(peers, Identity.generate()) as me:
        x = await owner.alice.send(torch.zeros(4), tags=["#private-x"], private=True)
        theirs = (await me.g.search(f"id:{x.id_at_location}")).one()
        before = me.alice.statistics().payload_received
        made = await me.run(loop(3), theirs)
        assert me.alice.statistics().payload_received == before
        with pytest.raises(Denied):
            await made["x"].get()
        with pytest.raises(Denied, match="report"):
            await profiled(me.run(loop(3), theirs))
        run = me.start(loop(LONG), theirs)
        (info,) = await me.listed()
        await asyncio.sleep(2 * limits.PROGRAM_PROGRESS)
        (info,) = await me.listed()
        assert info.progress is None
        await me.g.cancel(info)
        with pytest.raises(Cancelled):
            await run
        assert (await (await owner.run(loop(3), x))["x"].get()).tolist() == [3.0] * 4  # to its owner it is nothing new


# --- reports ----------------------------------------------------------------------------------------------


async def test_a_report_says_what_each_operation_took(peers: Folders) -> None:
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(4))
        profile = await profiled(me.run(loop(100), x))
        (report,) = profile.reports
        of = {(node.body, node.operation): node for node in report.nodes}
        step, repeat = of[0, ADD], of[None, "flow.repeat"]
        assert (step.runs, repeat.runs, of[None, SUM].runs) == (100, 1, 1)
        assert step.nbytes == 100 * 16 and of[None, SUM].nbytes == 4
        assert 0 < step.seconds < repeat.seconds <= report.seconds
        assert report.peer == "alice" and report.peak >= 32
        assert {node.operation for node in report.slowest()} == {ADD, SUM}
        lines = str(profile).splitlines()
        assert "ran at alice" in lines[0]
        (said,) = (line for line in lines if ADD in line)
        assert "in 100 runs" in said and "1.6 kB" in said
        assert (await profile.result["x"].get()).tolist() == [100.0] * 4


async def test_without_a_wish_there_is_no_report(peers: Folders) -> None:
    async with asker(peers) as me:
        x = await me.alice.send(torch.zeros(4))
        await me.run(loop(3), x)
        assert (await profiled(asyncio.sleep(0))).reports == ()
