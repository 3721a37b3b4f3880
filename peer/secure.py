"""Secure runs at one peer: what it is asked to take part in, its process, and the others. No torch here.

The asker sends the same agreement to everybody (`secure`, SPEC.md 10). Each makes its process, greets the others over
its lines with the agreement's digest, and lets the process begin when all have greeted with the same one. From then
on the processes talk (worker/party.py); this passes on what they say. Whatever goes wrong anywhere ends the run
everywhere, with the same error: nobody has revealed anything by then, as a share alone says nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import msgpack

from peer import permissions, secrecy
from peer.agreement import Agreement, program_hash
from peer.buffers import Buffer
from peer.calls import Answer, Call
from peer.execution import Execution
from peer.keys import Identity
from peer.membership import Member
from peer.objects import Published, Temporary, show_id
from peer.payloads import MemoryPayload
from peer.runs import Run, Runs
from peer.secure_lines import Frame, Line, Lines
from peer.spans import StoredSpan, release
from peer.worker.part import Done, Part
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import (
    AlreadyExists,
    BadRequest,
    Cancelled,
    GridError,
    InternalError,
    PartyFailed,
    TooLarge,
)
from protocol.tensors import TensorHeader

HELLO: Final = 128  # kinds of frames beside those of worker/party.py: the agreement's digest
END: Final = 129  # the fault for which the run is over
_MAX_FAULT: Final = limits.WORKER_FAULT


class SecureRuns:
    """The secure runs that this peer takes part in. Gets its parts from the peer that wires it."""

    def __init__(
        self,
        identity: Identity,
        name: str,
        execution: Execution,
        workers: WorkerPool,
        runs: Runs,
        member: Callable[[str], Member | None],
    ) -> None:
        self._id = identity.id
        self._name = name
        self._execution = execution
        self._workers = workers
        self._runs = runs
        self._member = member
        self.lines = Lines(identity, name, self._heard, self._lost)
        self._sessions: dict[bytes, _Session] = {}
        # Greetings of runs that nobody told this peer of yet, and faults that came before: by run and sender.
        self._early: OrderedDict[tuple[bytes, str], Frame] = OrderedDict()

    async def serve(self, call: Call) -> Answer:
        """Take part in a run; answered when it is over, with this peer's shares of the result where it is a party.
        Cancelling ends the run everywhere."""
        asker = call.connection.remote.id
        agreement, program, public, asked = _taken_apart(call.args, await _payload(call))
        if agreement.asker != asker:
            raise BadRequest("this agreement is about a run of somebody else's")
        if self._id not in agreement.everybody:
            raise BadRequest(f"{self._name} takes no part in this run")
        if agreement.program != program_hash(program, public):
            raise BadRequest("these are not the program and the values that were agreed on")
        self._check_room(agreement)
        session = self._sessions[agreement.run] = _Session(agreement, agreement.everybody.index(self._id), self._name)
        try:
            return await self._run(session, program, public, asked)
        except BaseException as error:
            session.end(_told(error, agreement.name))
            raise
        finally:
            self._sessions.pop(agreement.run, None)
            session.close()

    def _check_room(self, agreement: Agreement) -> None:
        if agreement.run in self._sessions:
            raise AlreadyExists(f"the run {show_id(agreement.run)} is under way: ids are random and used once")
        own = sum(session.agreement.asker == agreement.asker for session in self._sessions.values())
        for limit, count in (("SECURE_AT_ONCE", own), ("SECURE_RUNS", len(self._sessions))):
            if count >= getattr(limits, limit):
                raise TooLarge(
                    f"{count} secure runs are under way here: await some of them first", limit=limit, size=count + 1
                )

    async def _run(self, session: _Session, program: bytes, public: bytes, asked: Mapping[str, Any]) -> Answer:
        agreement = session.agreement
        async with AsyncExitStack() as undo:
            held, labels = await self._inputs(session, undo)
            part = session.part = self._workers.part(agreement.asker, labels, f"{self._name} in {agreement.name}")
            undo.callback(part.close)
            part.tell = session.tell
            run = Run(
                agreement.run,
                agreement.asker,
                "secure",
                agreement.program,
                agreement.name,
                stop=lambda: part.fail(
                    Cancelled(f"{agreement.name} was ended before it was done, by somebody who may")
                ),
                process=lambda: part.pid,
            )
            self._runs.began(run)
            undo.callback(self._runs.ended, run)
            for provide in held:
                await provide(part)
            part.start(_what(session, program, public, asked, self._lend(part, undo)))
            greeting = asyncio.ensure_future(self._meet(session))
            undo.callback(greeting.cancel)
            waited: list[asyncio.Future[Any]] = [greeting, part.over]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if greeting.done():
                greeting.result()
                part.begin()
            try:
                done = await asyncio.shield(part.over)
            except GridError as error:
                raise session.named(error, labels if part.is_own_word else frozenset()) from None
            return _answer(done)

    async def _inputs(
        self, session: _Session, undo: AsyncExitStack
    ) -> tuple[list[Callable[[Part], Any]], frozenset[str]]:
        """What gives a process the inputs that are here, and the others whose private data they are."""
        agreement, execution = session.agreement, self._execution
        own = [each for each in agreement.inputs if each.holder == self._id]
        provided: list[Callable[[Part], Any]] = []
        labels: frozenset[str] = frozenset()
        async with execution.lane(agreement.asker):
            held = await execution.inputs(agreement.asker, [each.id for each in own])
            for each in own:
                permissions.check_reveal(agreement.reveal, held[each.id], f"object {show_id(each.id)}")
            takings = {
                id: execution.snapshot(each, in_memory=True)
                for id, each in held.items()
                if isinstance(each, Temporary) and _is_no_pointer(each)
            }
            for taking in takings.values():
                undo.callback(taking.close)
        for id, one in held.items():
            labels |= one.labels - {agreement.asker}
            if isinstance(one, Published):
                provided.append(_stored(execution, one))
                header = one.tensor.header
            else:
                header, value = await takings[id]
                undo.callback(release, value)
                assert not isinstance(value, StoredSpan)
                provided.append(_in_memory(id, header, value))
            if any(each.header != header for each in own if each.id == id):
                raise BadRequest(f"object {show_id(id)} is {header}, not what was agreed on")
        return provided, labels

    def _lend(self, part: Part, undo: AsyncExitStack) -> Lend:
        """Gives a process what came along with the request."""

        def lend(header: TensorHeader, data: memoryview) -> bytes:
            id = os.urandom(16)
            if len(data) <= limits.INLINE_PAYLOAD:
                part.provide(id, header, bytes(data))
            else:
                buffer = self._workers.buffers.take(len(data))
                undo.callback(buffer.release)
                buffer.append(data)
                part.provide(id, header, buffer.share())
            return id

        return lend

    # --- the others ---------------------------------------------------------------------------------------

    async def _meet(self, session: _Session) -> None:
        """Greets all counterparts, and waits until all have greeted. PartyFailed names who does not come."""
        agreement = session.agreement
        await asyncio.gather(*(self._greet(session, index) for index in agreement.counterparts(session.index)))
        missing = [index for index in agreement.counterparts(session.index) if index not in session.greeted]
        try:
            async with asyncio.timeout(agreement.patience):
                while missing := [each for each in missing if each not in session.greeted]:
                    await session.changed()
        except TimeoutError:
            names = ", ".join(session.names[index] for index in missing)
            raise PartyFailed(
                f"{names} did not begin the run within {agreement.patience:g} s", peer=session.names[missing[0]]
            ) from None

    async def _greet(self, session: _Session, index: int) -> None:
        id = session.agreement.everybody[index]
        member = self._member(id)
        if member is None:
            raise PartyFailed(f"{self._name} knows no peer {id[:12]}", peer=id[:12])
        session.names[index] = member.name
        line = await self.lines.to(member, session.agreement.patience)
        session.lines[index] = line
        digest = session.agreement.digest
        line.send(Frame(session.agreement.run, HELLO, 0, len(digest), digest))
        early = self._early.pop((session.agreement.run, id), None)
        if early is not None:
            session.hear(index, early)

    def _heard(self, sender: str, frame: Frame) -> None:
        session = self._sessions.get(frame.run)
        if session is not None:
            index = session.index_of(sender)
            if index is not None and (index in session.lines or frame.kind not in (HELLO, END)):
                session.hear(index, frame)
                return
        if frame.kind in (HELLO, END) and len(frame.piece) <= _MAX_FAULT:
            self._early[frame.run, sender] = frame._replace(piece=bytes(frame.piece))
            while len(self._early) > limits.SECURE_EARLY:
                self._early.popitem(last=False)

    def _lost(self, id: str, why: str) -> None:
        for session in list(self._sessions.values()):
            index = session.index_of(id)
            if index is not None and index in session.lines:
                name = session.names[index]
                session.fail(PartyFailed(f"{name} is gone in the middle of the run: {why}", peer=name))

    async def close(self) -> None:
        await self.lines.close()


class _Session:
    """One run that this peer takes part in."""

    def __init__(self, agreement: Agreement, index: int, name: str) -> None:
        self.agreement = agreement
        self.index = index
        self.names = [id[:12] for id in agreement.everybody]
        self.names[index] = name
        self.lines: dict[int, Line] = {}
        self.greeted: set[int] = set()
        self.part: Part | None = None
        self._failure: GridError | None = None
        self._changes: list[asyncio.Future[None]] = []
        self._indices = {id: at for at, id in enumerate(agreement.everybody)}
        self._is_over = False

    def index_of(self, id: str) -> int | None:
        index = self._indices.get(id)
        return index if index in self.agreement.counterparts(self.index) else None

    async def changed(self) -> None:
        """Until somebody greets, or it fails."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append(change)
        await change

    def hear(self, index: int, frame: Frame) -> None:
        match frame.kind:
            case _ if frame.kind == HELLO:
                if bytes(frame.piece) != self.agreement.digest:
                    name = self.names[index]
                    self.fail(PartyFailed(f"{name} was told of another run under the same id", peer=name))
                self.greeted.add(index)
                changes, self._changes = self._changes, []
                for change in changes:
                    if not change.done():
                        change.set_result(None)
            case _ if frame.kind == END:
                self.fail(_fault_of(frame.piece, self.names[index]))
            case _:
                if self.part is None or index not in self.greeted:
                    name = self.names[index]
                    self.fail(PartyFailed(f"{name} spoke before it had greeted", peer=name))
                else:
                    self.part.hear(index, frame.kind, frame.number, frame.total, bytes(frame.piece))

    def tell(self, to: Sequence[int], kind: int, number: int, total: int, piece: bytes) -> None:
        """What our process says to others."""
        if not 0 <= kind < HELLO or not 0 <= number < 1 << 32 or not 0 <= total < 1 << 63:
            raise ValueError("no such message")
        for index in to:
            self.lines[index].send(Frame(self.agreement.run, kind, number, total, piece))

    def fail(self, error: GridError) -> None:
        """It is over, because of somebody else."""
        self._failure = self._failure or error
        if self.part is not None:
            self.part.fail(error)

    def named(self, error: GridError, labels: frozenset[str]) -> GridError:
        """The error with the name of who is to blame. `labels`: where they are not empty, it is in the words of a
        process that has others' private data, and quotes nothing."""
        index = error.fields.pop("index", None)
        if not isinstance(index, int) or not 0 <= index < len(self.names):
            return secrecy.told(error, labels)
        name = self.names[index]
        if labels:
            return PartyFailed(f"{name} has not sent what is due, or something else", peer=name)
        error.peer, error.message = name, error.message.replace(self.agreement.everybody[index][:12], name)
        return error

    def end(self, error: GridError) -> None:
        """Tells all others that it is over, and why."""
        if self._is_over:
            return
        self._is_over = True
        packed = msgpack.packb(error.to_fault(), default=str)
        if len(packed) > _MAX_FAULT:
            packed = msgpack.packb({"code": error.code, "message": error.message[: limits.MAX_FAULT_TEXT]})
        for line in self.lines.values():
            line.send(Frame(self.agreement.run, END, 0, len(packed), packed))

    def close(self) -> None:
        self._is_over = True


# --- what came --------------------------------------------------------------------------------------------


async def _payload(call: Call) -> bytes:
    if call.nbytes > limits.SECURE_REQUEST:
        raise TooLarge(
            f"a secure run that is asked for in {call.nbytes} bytes: send what is large to a peer first",
            limit="SECURE_REQUEST",
            size=call.nbytes,
            allowed=limits.SECURE_REQUEST,
        )
    return bytes(call.payload) if call.stream is None else b"".join([bytes(c) async for c in call.stream])


def _taken_apart(args: Mapping[str, Any], payload: bytes) -> tuple[Agreement, bytes, bytes, Mapping[str, Any]]:
    """Agreement, program, public values, and this party's shares of what the asker has."""
    sizes = args.get("sizes")
    if not isinstance(sizes, list) or len(sizes) != 4 or not all(type(n) is int and n >= 0 for n in sizes):
        raise BadRequest("sizes are four counts of bytes: agreement, program, public values, shares")
    if sum(sizes) != len(payload):
        raise BadRequest(f"{len(payload)} bytes came where {sum(sizes)} were announced")
    parts, at = [], 0
    for size in sizes:
        parts.append(payload[at : at + size])
        at += size
    seed = args.get("seed", b"")
    if not isinstance(seed, bytes) or len(seed) not in (0, 16):
        raise BadRequest("seed is 16 bytes")
    agreement = Agreement.of(parts[0])
    shares, at = {}, 0
    if parts[3]:
        for number, each in enumerate(agreement.inputs):
            if not each.holder:
                nbytes = each.header.numel * 8
                shares[number] = parts[3][at : at + nbytes]
                at += nbytes
        if at != len(parts[3]):
            raise BadRequest("the asker's shares are not as large as its inputs")
    return agreement, parts[1], parts[2], {"seed": seed, "shares": shares}


Lend = Callable[[TensorHeader, memoryview], bytes]
"""Gives a process a tensor; its id there."""


def _what(session: _Session, program: bytes, public: bytes, asked: Mapping[str, Any], lend: Lend) -> dict[str, Any]:
    """For the process (worker/party.py, Part); public values and shares are provided on the way."""
    agreement = session.agreement
    ids, at = [], 0
    for header in agreement.public:
        ids.append(lend(header, memoryview(public)[at : at + header.nbytes]))
        at += header.nbytes
    if at != len(public):
        raise BadRequest("the public values are not as large as was agreed on")
    places = {id: index for index, id in enumerate(agreement.everybody)}
    return {
        "index": session.index,
        "names": [id[:12] for id in agreement.everybody],
        "parties": len(agreement.parties),
        "dealer": places[agreement.provider],
        "inputs": [
            [places[each.holder] if each.holder else None, each.id, each.header.dtype, list(each.header.shape)]
            for each in agreement.inputs
        ],
        "public": ids,
        "program": program,
        "patience": agreement.patience,
        "seed": asked["seed"],
        "shares": [
            [number, lend(TensorHeader("int64", agreement.inputs[number].header.shape), memoryview(share))]
            for number, share in asked["shares"].items()
        ],
    }


def _is_no_pointer(held: Temporary) -> bool:
    if held.target is not None:
        raise BadRequest(f"{show_id(held.id)} points to an object at {held.target.name}: name that one")
    return True


def _stored(execution: Execution, held: Published) -> Callable[[Part], Any]:
    return lambda part: execution.bring_published(held, part)


def _in_memory(id: bytes, header: Any, value: bytes | Buffer) -> Callable[[Part], Any]:
    async def provide(part: Part) -> None:
        part.provide(id, header, value if isinstance(value, bytes) else value.share())

    return provide


# --- what goes out ----------------------------------------------------------------------------------------


def _answer(done: Done) -> Answer:
    """What it cost, what comes out, and our shares of it."""
    result, shares = dict(done.told), done.shares
    if isinstance(shares, bytes):
        return Answer(result, shares)
    return Answer(result, MemoryPayload(shares.view(), shares.release))


def _fault_of(piece: Any, name: str) -> GridError:
    try:
        return GridError.from_fault(msgpack.unpackb(bytes(piece), raw=False))
    except Exception:  # whatever it says
        return PartyFailed(f"{name} ended the run, and gave no reason that makes sense", peer=name)


def _told(error: BaseException, name: str) -> GridError:
    """The error as all others hear of it."""
    if isinstance(error, GridError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Cancelled(f"{name} was given up by who had asked for it")
    return InternalError(f"{name} met a defect")
