"""Programs: whole computations as one request, in the worker that their inputs lead to (execution.py)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from peer import named, permissions, secrecy
from peer.batches import Batch
from peer.elsewhere import check_content
from peer.execution import Execution
from peer.leases import LeaseKey
from peer.objects import Held, Objects, Temporary, check_id
from peer.runs import Progress, Run, Runs
from peer.worker.remote import Made, Worker
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import BadRequest, Cancelled, Denied, GridError
from protocol.ids import ID_BYTES

Then = Callable[[Made | GridError], None]
"""Is told, once, what a run came to."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A run as it was asked for (SPEC.md, `execute`).

    Attributes:
        program: the id of the program.
        inputs, outs: ids of what goes in, and of what comes out.
        run: the id of the run itself.
        release: ids of temporaries that are to be let go of before it runs.
        name: what people call it.
        is_reported: whether it is wanted what each node took.
        contents: by content name, temporaries of the asker's that have the contents which the program names (named.py).
    """

    program: str
    inputs: list[bytes]
    outs: list[bytes]
    run: bytes
    release: list[bytes]
    name: str | None
    is_reported: bool
    contents: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Asked:
        """BadRequest for what is no such request."""
        program, name = args.get("program"), args.get("name")
        if not isinstance(program, str) or len(program) != 64 or not _HEX.issuperset(program):
            raise BadRequest("program is the 64 hex digits of its SHA-256")
        if name is not None and not (
            isinstance(name, str) and 0 < len(name) <= limits.MAX_OBJECT_NAME and name.isprintable()
        ):
            raise BadRequest(f"the name of a run is up to {limits.MAX_OBJECT_NAME} characters that can be printed")
        run = args.get("run")
        return cls(
            program,
            _ids(args.get("inputs")),
            _ids(args.get("outs")),
            os.urandom(16) if run is None else check_id(run),
            _ids(args["release"]) if "release" in args else [],
            name,
            args.get("report") is True,
            _contents(args["contents"]) if "contents" in args else {},
        )


_HEX = frozenset("0123456789abcdef")


def _ids(value: object) -> list[bytes]:
    if not isinstance(value, list):
        raise BadRequest("inputs, outs and release are lists of object ids")
    for id in value:
        if type(id) is not bytes or len(id) != ID_BYTES:
            check_id(id)  # says what it is to be
    return value


def _contents(value: object) -> dict[str, bytes]:
    if not isinstance(value, dict) or len(value) > limits.MAX_NODES:
        raise BadRequest("contents are a map of content names to object ids")
    return {check_content(name): check_id(id) for name, id in value.items()}


class Programs:
    """Runs the programs that principals ask for. Gets its parts from the peer that wires it."""

    def __init__(self, objects: Objects, workers: WorkerPool, execution: Execution, runs: Runs) -> None:
        self._objects = objects
        self._workers = workers
        self._execution = execution
        self._runs = runs
        self._known = secrecy.KnownPrograms()

    async def execute(self, asker: str, lease: LeaseKey, asked: Asked, code: bytes | None) -> Made:
        """Run a program on these inputs; what it gives. NotFound asks for the code. Cancelling ends the run."""
        execution = self._execution
        done: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        async with execution.lane(asker):
            known = await self._known.known(asked.program, code)
            if known.named:
                inputs = await named.bound(execution, self._objects, asker, known.named, asked.inputs, asked.contents)
                asked = replace(asked, inputs=inputs)
            held = await execution.inputs(asker, asked.inputs)
            labels = permissions.derived(held.values())
            worker = execution.worker(asker, labels)
            _check_public(asked, known, worker)
            self._objects.check_new(asker, asked.outs)
            batch = Batch([])
            await execution.bring_all(asker, held.values(), worker, batch)
            running = self._begin(asker, lease, asked, code, known, held.values(), labels, worker, partial(_tell, done))
            worker.drop(batch.lent)
        try:
            return await done
        except asyncio.CancelledError:
            running.give_up()
            raise

    def execute_at_once(
        self, asker: str, lease_of: Callable[[], LeaseKey], asked: Asked, then: Then
    ) -> Callable[[], None] | None:
        """`execute` without a task, for a program that is known where all its inputs are already. What gives the run
        up; None where it is not so, or might fail before it runs: then nothing was done.
        """
        execution, known = self._execution, self._known.at_hand(asked.program)
        workers = self._workers
        if known is None or execution.is_at_work(asker) or (workers.has_shares and workers.is_overdrawn(asker)):
            return None
        if known.named:
            inputs = named.at_hand(self._objects, asker, known.named, asked.inputs)
            if inputs is None:
                return None
            asked = replace(asked, inputs=inputs)
        held = self._objects.all_at_hand(asker, asked.inputs)
        if held is None:
            return None
        labels = permissions.derived(held)
        worker = workers.find((asker, labels - {asker}))
        if worker is None or worker.channel.is_full or not worker.knows(bytes.fromhex(asked.program)):
            return None
        for each in held:
            if not worker.holds(each.id):
                return None
            if type(each) is Temporary and (each.worker is not worker or (known.writes and each.is_being_published)):
                return None
        try:
            _check_public(asked, known, worker)
            self._objects.check_new(asker, asked.outs)
        except GridError:
            return None
        return self._begin(asker, lease_of(), asked, None, known, held, labels, worker, then).give_up

    def _begin(
        self,
        asker: str,
        lease: LeaseKey,
        asked: Asked,
        code: bytes | None,
        known: secrecy.KnownProgram,
        held: Iterable[Held],
        labels: frozenset[str],
        worker: Worker,
        then: Then,
    ) -> _Running:
        """The worker has everything: it is asked, and the books are kept."""
        execution = self._execution
        running = _Running(execution, self._objects, self._runs, asker, asked, worker, then)
        self._runs.began(running.run)
        dropped, elsewhere = self._unwanted(asker, asked, worker) if asked.release else ([], [])
        try:
            running.number = worker.run_program(
                running,
                bytes.fromhex(asked.program),
                code,
                asked.inputs,
                asked.outs,
                # Of what is private to others nothing leaves it but by somebody's leave.
                told=None if worker.key.labels else running.settled,
                is_reported=asked.is_reported,
                dropped=dropped,
            )
        except GridError:
            self._runs.ended(running.run)
            raise
        for id in dropped:
            self._objects.remove(id)
        if elsewhere:
            execution.release(elsewhere)
        if known.writes:
            worker.writes += 1
            for each in held:
                # It may be one that the program writes. Of a lent one only the copy is changed, which is gone.
                if isinstance(each, Temporary) and each.worker is worker:
                    each.labels |= labels
        running.made = execution.results.register(asker, lease, asked.outs, labels, worker)
        if worker.is_lost:
            running.let_go()
        return running

    def _unwanted(self, asker: str, asked: Asked, worker: Worker) -> tuple[list[bytes], list[bytes]]:
        """What is not wanted any more: what the run's worker has, for it to let go of first, and what others have."""
        there: list[bytes] = []
        elsewhere: list[bytes] = []
        for id in set(asked.release).difference(asked.inputs):
            temporary = self._objects.temporary(id)
            if temporary is not None and temporary.owner == asker:
                (there if temporary.worker is worker else elsewhere).append(id)
        return there, elsewhere


class _Running:
    """Hears from the worker (as its `Asker`) what became of a run."""

    __slots__ = (
        *("_execution", "_is_given_up", "_is_settled", "_objects", "_runs", "_then", "_worker"),
        *("made", "number", "run"),
    )

    def __init__(
        self,
        execution: Execution,
        objects: Objects,
        runs: Runs,
        asker: str,
        asked: Asked,
        worker: Worker,
        then: Then,
    ) -> None:
        self._execution = execution
        self._objects = objects
        self._runs = runs
        self._worker = worker
        self._then = then
        self._is_given_up = False
        self._is_settled = False
        self.number = 0
        self.made: list[Temporary] = []
        self.run = Run(
            asked.run,
            asker,
            "program",
            asked.program,
            asked.name,
            stop=self._stop,
            progress=self._progress,
            process=lambda: worker.pid,
        )

    def give_up(self) -> None:
        """Nobody wants the results any more."""
        self._is_given_up = True
        self._stop()

    def _stop(self) -> None:
        self._worker.stop(self.number)

    def _progress(self) -> Progress | None:
        # How many iterations there are may depend on the data.
        far = None if self._worker.key.labels else self._worker.far(self.number)
        return None if far is None else Progress(*far)

    # --- as an Asker --------------------------------------------------------------------------------------

    def done(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def set_exception(self, error: GridError) -> None:
        self._over()
        if self._is_settled:
            return  # the results have become this error: that is what their users are told
        self.let_go()
        self._then(_ENDED.again() if self.run.is_stopped else secrecy.told(error, self._worker.key.labels))

    def settled(self, made: Made) -> None:
        """What is to be told is known, though the run is not at its end."""
        self._tell(made)
        self._is_settled = True

    def set_result(self, made: Made | None) -> None:
        self._over()
        if made is not None:
            self._tell(made)

    def _tell(self, made: Made) -> None:
        for temporary, header in zip(self.made, made.headers, strict=True):
            temporary.header = header
        if self._is_given_up:
            self.let_go()
        self._then(made)

    def _over(self) -> None:
        self._runs.ended(self.run)

    def let_go(self) -> None:
        """There will be no results."""
        self._execution.release([each.id for each in self.made if self._objects.temporary(each.id) is each])


_ENDED: Final = Cancelled("the run was ended before it was done, by somebody who may: with 'grid kill', or cancel()")


def _tell(done: asyncio.Future[Made], heard: Made | GridError) -> None:
    if done.done():
        return
    if isinstance(heard, GridError):
        done.set_exception(heard)
    else:
        done.set_result(heard)


def _check_public(asked: Asked, known: secrecy.KnownProgram, worker: Worker) -> None:
    """Denied where what is told besides values would tell them."""
    if worker.key.labels:
        known.check_shapes_are_public()
        if asked.is_reported:
            raise Denied(
                "a report would tell of private data: how long a node took, and what memory, may depend on them. Run "
                "the program without, or ask their owner for the report",
                owners=sorted(worker.key.labels),
            )


def answer_of(made: Made) -> tuple[dict[str, Any], bytes]:
    """The answer to `execute`: the headers of all results, the values of those that came along, and the report."""
    headers, small, payload = [], [], []
    for number, (header, value) in enumerate(zip(made.headers, made.values, strict=True)):
        headers.append(header.to_wire())
        if value is not None:
            small.append(number)
            payload.append(value)
    result: dict[str, Any] = {"results": headers}
    if small:
        result["values"] = small
    if made.report is not None:
        payload.append(made.report)
        result["report"] = len(made.report)
    return result, b"".join(payload)
