"""Jails: source of a principal's, run where the data are, in a process of its own for each (docs/decisions/0013).

What comes out is derived from everything that went in. Where private data of others went in, nothing that their values
could shape is told: a *rehearsal*, with zeros in their place, says beforehand what the results will be like; the run
itself gives exactly such results, under all labels, or fails without a word.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from peer import permissions, secrecy
from peer.buffers import Buffer
from peer.execution import Execution
from peer.jail_rules import JailRules
from peer.leases import LeaseKey
from peer.objects import Held, Objects, Published, Temporary, check_id, show_id
from peer.runs import Run, Runs
from peer.spans import StoredSpan, release
from peer.taking import Taking
from peer.worker.job import Job, Made, Outcome, check_inputs
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import BadRequest, Cancelled, Denied, GridError, JailFailed
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader


@dataclass(frozen=True, slots=True)
class Asked:
    """A jail as it was asked for (SPEC.md, `jail`): what is shipped comes beside it."""

    inputs: list[bytes]
    run: bytes
    name: str

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Asked:
        """BadRequest for what is no such request."""
        inputs, run, name = args.get("inputs"), args.get("run"), args.get("name")
        if not isinstance(inputs, list):
            raise BadRequest("inputs is a list of object ids")
        if not (isinstance(name, str) and 0 < len(name) <= limits.MAX_OBJECT_NAME and name.isprintable()):
            raise BadRequest(f"the name of a jail is up to {limits.MAX_OBJECT_NAME} characters that can be printed")
        return cls([check_id(id) for id in inputs], os.urandom(16) if run is None else check_id(run), name)


@dataclass(frozen=True, slots=True)
class Results:
    """What a jail came to: its results' ids and headers, the packed structure around them, and what it printed."""

    ids: tuple[bytes, ...]
    headers: tuple[TensorHeader, ...]
    structure: bytes
    printed: bytes

    def to_wire(self) -> dict[str, Any]:
        results = [[id, header.dtype, list(header.shape)] for id, header in zip(self.ids, self.headers, strict=True)]
        return {"results": results, "structure": self.structure}


@dataclass(slots=True)
class _Turn:
    """How many jails of one principal run and wait."""

    running: asyncio.Semaphore
    waiting: int = 0


class Jails:
    """Runs the jails that principals ask for. Gets its parts from the peer that wires it."""

    def __init__(
        self, objects: Objects, workers: WorkerPool, execution: Execution, runs: Runs, rules: JailRules, peer_name: str
    ) -> None:
        self._objects = objects
        self._workers = workers
        self._execution = execution
        self._runs = runs
        self._rules = rules
        self._peer_name = peer_name
        self._all = asyncio.Semaphore(limits.JAILS)
        self._turns: dict[str, _Turn] = {}

    def allowed(self, asker: str) -> dict[str, Any] | None:
        """What a jail of this principal may take here; None: none of them run."""
        return self._rules.told(asker)

    async def run(self, asker: str, lease: LeaseKey, asked: Asked, work: bytes) -> Results:
        """Run it; what it gave. Cancelling ends it.

        Raises:
            Denied: its owner runs no jails for this principal; or what would come out tells private values.
            JailFailed, BadJail, TooLarge: what its code came to.
            Cancelled: somebody who may has ended it.
        """
        self._rules.check(asker, self._peer_name)
        check_inputs(asked.inputs, work)
        running: list[Job] = []
        task = asyncio.ensure_future(self._in_turn(asker, lease, asked, work, running))
        run = Run(
            asked.run,
            asker,
            "jail",
            hashlib.sha256(work).hexdigest(),
            asked.name,
            stop=task.cancel,
            process=lambda: running[-1].pid if running else None,
        )
        try:
            self._runs.began(run)
        except GridError:
            task.cancel()
            raise
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if run.is_stopped and current is not None and not current.cancelling():
                raise Cancelled(f"{asked.name} was ended before it was done, by somebody who may") from None
            raise
        finally:
            task.cancel()
            self._runs.ended(run)

    async def _in_turn(self, asker: str, lease: LeaseKey, asked: Asked, work: bytes, running: list[Job]) -> Results:
        turn = self._turns.setdefault(asker, _Turn(asyncio.Semaphore(limits.JAILS_AT_ONCE)))
        sentence = "{allowed} jails of yours wait already: await some of them first"
        check_limit("JAILS_WAITING", turn.waiting + 1, sentence)
        turn.waiting += 1
        try:
            async with turn.running, self._all:
                return await self._run(asker, lease, asked, work, running)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop(asker, None)

    async def _run(self, asker: str, lease: LeaseKey, asked: Asked, work: bytes, running: list[Job]) -> Results:
        execution = self._execution
        async with AsyncExitStack() as undo:
            async with execution.lane(asker):
                held = await execution.inputs(asker, asked.inputs)
                self._workers.check_share(asker)
                takings = {id: self._taking(each) for id, each in held.items() if isinstance(each, Temporary)}
                for taking in takings.values():
                    undo.callback(taking.close)
            labels = permissions.derived(held.values())
            given = _Given(held, {}, labels - {asker})
            for id, taking in takings.items():
                given.values[id] = value = await taking
                undo.callback(release, value[1])
            outcome = await self._made(asker, asked, work, given, running)
        assert isinstance(outcome.result, Made)
        return self._registered(asker, lease, outcome.result, labels, outcome.printed)

    def _taking(self, held: Temporary) -> Taking:
        if held.target is not None:
            raise BadRequest(
                f"{show_id(held.id)} points to an object at {held.target.name}: use that one, or pull it here with "
                "remote_get()"
            )
        return self._execution.snapshot(held, in_memory=True)

    async def _made(self, asker: str, asked: Asked, work: bytes, given: _Given, running: list[Job]) -> Outcome:
        """What it gave, without anything that may not be told. Raises what it failed with."""
        if not given.hidden:
            outcome = await self._once(asker, asked, work, given, running)
            if isinstance(outcome.result, GridError):
                raise _with_printed(outcome.result, outcome.printed)
            return outcome
        rehearsed = await self._once(asker, asked, work, given, running, is_rehearsal=True)
        if isinstance(rehearsed.result, GridError):
            raise _in_rehearsal(rehearsed)
        _drop(rehearsed.result)
        outcome = await self._once(asker, asked, work, given, running)
        if isinstance(outcome.result, GridError):
            raise _untold(outcome.result, asked, given.hidden)
        made, expected = outcome.result, rehearsed.result
        if (made.structure, made.headers) != (expected.structure, expected.headers):
            _drop(made)
            raise Denied(
                f"what {asked.name} gives has another form than on zeros: it depends on values of private data, and "
                "would tell them. Give tensors of a form that depends on shapes alone"
            )
        return replace(outcome, printed=b"")

    async def _once(
        self,
        asker: str,
        asked: Asked,
        work: bytes,
        given: _Given,
        running: list[Job],
        *,
        is_rehearsal: bool = False,
    ) -> Outcome:
        """One process: on what it was given, or with zeros for what is private to others."""
        job = self._workers.jail(asker, given.hidden, asked.name)
        running[:] = [job]
        try:
            for id, held in given.held.items():
                if is_rehearsal and held.labels - {asker}:
                    job.blank(id, given.header(id))
                elif isinstance(held, Published):
                    await self._execution.bring_published(held, job)
                else:
                    header, value = given.values[id]
                    assert not isinstance(value, StoredSpan)  # it was wanted in memory
                    job.provide(id, header, value if isinstance(value, bytes) else value.share())
            job.start(work, asked.inputs, numbers=bool(given.hidden))
            return await job.outcome(self._workers.buffers)
        finally:
            job.close()

    def _registered(self, asker: str, lease: LeaseKey, made: Made, labels: frozenset[str], printed: bytes) -> Results:
        ids = [os.urandom(16) for _ in made.headers]
        try:
            self._objects.check_new(asker, ids)
        except GridError:
            _drop(made)
            raise
        now = time.time()
        for id, header, buffer in zip(ids, made.headers, made.buffers, strict=True):
            self._objects.add(Temporary(id, asker, lease, labels, now, header=header, buffer=buffer))
        return Results(tuple(ids), made.headers, made.structure, printed)


@dataclass(frozen=True, slots=True)
class _Given:
    """What goes in: objects by id, values of those that are temporaries, and the others whose private data they are."""

    held: Mapping[bytes, Held]
    values: dict[bytes, tuple[TensorHeader, bytes | Buffer | StoredSpan]]
    hidden: frozenset[str]

    def header(self, id: bytes) -> TensorHeader:
        held = self.held[id]
        return held.tensor.header if isinstance(held, Published) else self.values[id][0]


def _drop(made: Made) -> None:
    for buffer in made.buffers:
        buffer.release()


def _with_printed(error: GridError, printed: bytes) -> GridError:
    if printed:
        error.fields["printed"] = printed[-limits.JAIL_TRACEBACK :].decode(errors="replace")
    return error


def _in_rehearsal(outcome: Outcome) -> GridError:
    error = outcome.result
    assert isinstance(error, GridError)
    error.message = (
        f"{error.message} (in the rehearsal on zeros in the place of private data, which says what the results will be "
        "like)"
    )
    return _with_printed(error, outcome.printed)


def _untold(error: GridError, asked: Asked, hidden: frozenset[str]) -> GridError:
    """Of a run on private data not even how it ended is told: a signal, a limit, a line are answers to a question."""
    plain = secrecy.told(JailFailed(""), hidden)
    plain.message = f"{asked.name} failed; what it says of private data is not shown. On zeros it does not fail"
    return plain
