"""Secure runs at one peer: what it is asked to take part in, and the sessions that they belong to. No torch here.

The asker sends the same agreement to everybody who takes part (`secure`, SPEC.md 12). The first run of a session makes
a process here, and lines to the others' processes; later ones find them. On everything that processes say to each other
is the digest of the agreement, so that only those compute together who were told the same. Whatever goes wrong anywhere
ends the session everywhere, with the same error: nobody has revealed anything by then, as a share alone says nothing.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

from peer import secrecy
from peer.agreement import Agreement, program_hash
from peer.buffers import Buffer
from peer.calls import Answer, Call
from peer.execution import Execution
from peer.keys import Identity
from peer.leases import LeaseKey
from peer.membership import Member
from peer.objects import Objects, Temporary, check_id
from peer.opening import ROUNDS
from peer.payloads import MemoryPayload
from peer.runs import Run, Runs
from peer.secure_asked import Asked
from peer.secure_faults import told
from peer.secure_inputs import given_here
from peer.secure_joins import Joins
from peer.secure_lines import Frame, Lines
from peer.secure_session import END, Session, check_room
from peer.transport import Socket
from peer.worker.seat import Done, Failed, Seat
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import BadRequest, Cancelled, GridError, PartyFailed
from protocol.handshake import Remote
from protocol.tensors import TensorHeader

_COSTS: Final = ("offline", "online", "rounds", "sent", "dealt")  # numbers that a process says of a run
_ENDED: Final = 256  # sessions that are over, of which it is remembered why


class SecureRuns:
    """The secure runs that this peer takes part in. Gets its parts from the peer that wires it."""

    def __init__(
        self,
        identity: Identity,
        name: str,
        objects: Objects,
        execution: Execution,
        workers: WorkerPool,
        runs: Runs,
        member: Callable[[str], Member | None],
    ) -> None:
        self._id = identity.id
        self._name = name
        self._objects = objects
        self._execution = execution
        self._workers = workers
        self._runs = runs
        self._member = member
        self._lines = Lines(identity, name, self._heard, self._lost, self._is_needed)
        self._joins = Joins(identity, name)
        self._sessions: dict[bytes, Session] = {}
        self._ended: OrderedDict[bytes, GridError] = OrderedDict()
        # Ends of sessions that nobody told this peer of yet: by session and sender.
        self._early: OrderedDict[tuple[bytes, str], Frame] = OrderedDict()

    def line_arrived(self, socket: Socket, remote: Remote) -> None:
        """A line that another peer has dialled, for itself or for its processes. Whom this peer does not know it takes
        no run with (`Session.meet`)."""
        if self._member(remote.id) is None:
            socket.transport.abort()
        elif remote.role == ROUNDS:
            self._joins.arrived(socket, remote)
        else:
            self._lines.arrived(socket, remote)

    # --- requests -----------------------------------------------------------------------------------------

    async def serve(self, call: Call, lease: LeaseKey) -> Answer:
        """Take part in a run; answered when it is over, with this peer's shares of the result where it is a party, or
        what the result is where it receives it. Cancelling ends the session everywhere."""
        asked = await Asked.of(call)
        agreement = asked.agreement
        if agreement.asker != lease[0]:
            raise BadRequest("this agreement is about a run of somebody else's")
        if self._id not in agreement.everybody:
            raise BadRequest(f"{self._name} takes no part in this run")
        if asked.program and agreement.program != program_hash(asked.program, asked.public):
            raise BadRequest("these are not the program and the values that were agreed on")
        opens = call.args.get("opens") is True
        if call.args.get("would") is True:
            return await self._would(agreement, lease, opens=opens)
        session = self._session(agreement, lease, opens=opens)
        if session.agreement is not None:
            raise BadRequest("a session does one run at a time: use another one for what is to run beside it")
        session.agreement, session.used = agreement, time.monotonic()
        try:
            return await self._run(session, asked)
        except Failed as failed:
            try:
                error = await session.failed(failed)
            except asyncio.CancelledError as cancelled:  # while it waits for the last words of others
                session.fail(told(cancelled, agreement.name))
                raise
            session.fail(error)
            raise error from None
        except BaseException as error:
            if session.failure is not None and isinstance(error, asyncio.CancelledError | PartyFailed):
                current = asyncio.current_task()
                if current is None or not current.cancelling():
                    raise session.failure from None
            session.fail(told(error, agreement.name))
            raise
        finally:
            session.agreement, session.used = None, time.monotonic()

    async def _would(self, agreement: Agreement, lease: LeaseKey, *, opens: bool) -> Answer:
        """Whether it would take part in this run, of a session that stands, be it that it hears of it only now: nothing
        begins."""
        if agreement.session in self._sessions or not opens:
            self._session(agreement, lease, opens=False).check_reveal(agreement)
        async with AsyncExitStack() as undo:
            await given_here(agreement, self._id, self._execution, undo)
        return Answer({})

    def drop(self, call: Call) -> Answer:
        """Let go of what a session has kept, or of the session. What is gone already counts as let go. A session of
        which something is asked so, be it nothing, stands on."""
        asker = call.connection.remote.id
        session, ids = self._sessions.get(check_id(call.args.get("session"))), call.args.get("ids")
        if session is not None and session.asker == asker:
            if ids is None:
                session.fail(Cancelled("the session was let go by its asker"))
            elif isinstance(ids, list):
                session.used = time.monotonic()
                session.drop([check_id(id) for id in ids])
        return Answer({})

    def _session(self, agreement: Agreement, lease: LeaseKey, *, opens: bool) -> Session:
        session = self._sessions.get(agreement.session)
        team = agreement.parties, agreement.provider
        if session is not None:
            if session.asker != lease[0] or session.team != team:
                raise BadRequest("this session is another's, or of another team")
            return session
        if not opens or agreement.session in self._ended:
            why = self._ended.get(agreement.session)
            reason = f": {why.message}" if why is not None else ""
            raise PartyFailed(
                f"this secure session is over at {self._name}{reason}",
                peer=why.peer if why is not None else None,
                session="over",
            )
        session = self._sessions[agreement.session] = Session(
            agreement.session, lease, team, (self._id, self._name), self._lines, self._joins, self._member, self._over
        )
        for key in [key for key in self._early if key[0] == session.id and session.knows(key[1])]:
            session.hear(key[1], self._early.pop(key))
        return session

    def _is_needed(self, id: str) -> bool:
        """Whether some session has to do with that peer."""
        return any(session.knows(id) for session in self._sessions.values())

    def _over(self, session: Session) -> None:
        if self._sessions.pop(session.id, None) is not None and session.failure is not None:
            self._ended[session.id] = session.failure
            while len(self._ended) > _ENDED:
                self._ended.popitem(last=False)

    # --- their time ---------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Ends sessions that nobody has asked anything of for long, and lines that nobody waits for. Only parties end
        them: they are asked in every run, while others may have no part in most."""
        now = time.monotonic()
        self._joins.sweep(now)
        for session in list(self._sessions.values()):
            if session.is_party and session.is_idle and now - session.used > limits.SECURE_IDLE:
                session.fail(Cancelled(f"nothing was asked of the session for {limits.SECURE_IDLE:g} s"))

    def lease_over(self, lease: LeaseKey) -> None:
        """Ends the sessions of an asker who is gone."""
        for session in [each for each in self._sessions.values() if each.lease == lease]:
            session.fail(Cancelled("who asked for the session is gone"))

    async def close(self) -> None:
        for session in list(self._sessions.values()):
            session.fail(PartyFailed(f"{self._name} was stopped", peer=self._name))
        await asyncio.sleep(0)  # what was said to the others is on its way
        await self._lines.close()
        await self._joins.close()

    # --- one run ------------------------------------------------------------------------------------------

    async def _run(self, session: Session, asked: Asked) -> Answer:
        agreement = asked.agreement
        async with AsyncExitStack() as undo:
            kept = session.check_reveal(agreement)
            given = await given_here(agreement, self._id, self._execution, undo)
            session.labels |= given.labels
            seat = self._seat(session, agreement)
            run = Run(
                agreement.run,
                agreement.asker,
                "secure",
                agreement.program,
                agreement.name,
                stop=lambda: session.fail(
                    Cancelled(f"{agreement.name} was ended before it was done, by somebody who may")
                ),
                process=lambda: seat.pid,
            )
            self._runs.began(run)
            undo.callback(self._runs.ended, run)
            for provide in given.provided:
                await provide(seat)
            what = asked.told(session, functools.partial(self._lend, seat, undo))
            await self._meet(session, agreement, seat)
            session.say_leave(agreement, given.rules)
            done = await seat.run(what)
            await _while_there(seat, session.keep(agreement, given.rules | kept))
            session.ran(agreement)
            return self._answer(session, agreement, done)

    def _seat(self, session: Session, agreement: Agreement) -> Seat:
        if session.seat is None:
            standing = [each for each in self._sessions.values() if each.seat is not None]
            for idle in check_room(standing, session.asker):  # only now: the request was checked
                idle.fail(Cancelled("the session made room for another"))
            labels = session.labels - {session.asker}
            seat = session.seat = self._workers.seat(session.asker, labels, f"{self._name} in {agreement.name}")
            seat.over.add_done_callback(lambda over: self._seat_over(session, over.result()))
        session.seat.name = f"{self._name} in {agreement.name}"
        return session.seat

    def _seat_over(self, session: Session, failed: Failed) -> None:
        """A process is at its end between two runs: within one its own run says so."""
        if session.agreement is None and session.failure is None:
            who = "" if failed.who is None else session.name_of(failed.who)
            labels = session.labels - {session.asker} if failed.is_own_word else frozenset()
            error = secrecy.told(failed.error, labels)
            session.fail(PartyFailed(f"{who} is gone", peer=who) if failed.is_lost else error)

    async def _meet(self, session: Session, agreement: Agreement, seat: Seat) -> None:
        """Our process has its lines."""
        everybody = agreement.everybody
        ids = [everybody[at] for at in agreement.counterparts(everybody.index(self._id))]
        if session.has_met(ids):
            return
        await _while_there(seat, session.meet(ids, agreement.patience))

    def _lend(self, seat: Seat, undo: AsyncExitStack, header: TensorHeader, data: memoryview) -> bytes:
        """Gives a process what came along with the request; its id there."""
        id = os.urandom(16)
        if len(data) <= limits.INLINE_PAYLOAD:
            seat.provide(id, header, bytes(data))
        else:
            buffer = self._workers.buffers.take(len(data))
            undo.callback(buffer.release)
            buffer.append(data)
            seat.provide(id, header, buffer.share())
        return id

    # --- what comes of it ---------------------------------------------------------------------------------

    def _answer(self, session: Session, agreement: Agreement, done: Done) -> Answer:
        """What it cost; of a party what comes out, and its shares of it, and nothing else that a process says; where
        the result is for this peer, it is here now."""
        shares, is_party = done.shares, self._id in agreement.parties
        result = {name: done.told[name] for name in _COSTS if type(done.told.get(name)) in (int, float)}
        if is_party:
            result["outputs"] = done.told.get("outputs")
        receives = agreement.receives and agreement.reveal == self._id and agreement.reveals
        if receives or not is_party:
            try:
                if receives:
                    self._receive(session, agreement, done.told.get("received"), shares)
            finally:
                if isinstance(shares, Buffer):
                    shares.release()
            return Answer(result)
        if isinstance(shares, bytes):
            return Answer(result, shares)
        return Answer(result, MemoryPayload(shares.view(), shares.release))

    def _receive(self, session: Session, agreement: Agreement, listed: Any, data: bytes | Buffer) -> None:
        """The result becomes temporaries of the asker's that only this peer's own principal may take: it is the one
        that the result is revealed to."""
        view, at = memoryview(data) if isinstance(data, bytes) else data.view(), 0
        revealed = [id for id, is_kept in agreement.outputs if not is_kept]
        if not isinstance(listed, list) or len(listed) != len(revealed):
            raise BadRequest(f"something else came out than the {len(revealed)} values that were to be revealed")
        # What is no tensor comes as nil: the asker has it from the parties.
        pairs = zip(revealed, listed, strict=True)
        headers = {id: TensorHeader(each[0], tuple(each[1])) for id, each in pairs if each is not None}
        if sum(header.nbytes for header in headers.values()) != len(view):
            raise BadRequest("what came out is not as large as it was said to be")
        self._objects.check_new(session.asker, headers)
        now = time.time()
        for id, header in headers.items():
            buffer = self._workers.buffers.take(header.nbytes)
            buffer.append(view[at : at + header.nbytes])
            at += header.nbytes
            made = Temporary(id, session.asker, session.lease, frozenset({self._id}), now, header=header, buffer=buffer)
            made.reveal = (self._id,)
            self._objects.add(made)

    # --- the others ---------------------------------------------------------------------------------------

    def _heard(self, sender: str, frame: Frame) -> None:
        session = self._sessions.get(frame.run)
        if session is not None:
            if session.knows(sender):
                session.hear(sender, frame)
        elif frame.kind == END and frame.run not in self._ended and len(frame.piece) <= limits.WORKER_FAULT:
            self._early[frame.run, sender] = frame._replace(piece=bytes(frame.piece))
            while len(self._early) > limits.SECURE_EARLY:
                self._early.popitem(last=False)

    def _lost(self, id: str, why: str) -> None:
        for session in list(self._sessions.values()):
            session.lost(id, why)


async def _while_there(seat: Seat, work: Coroutine[Any, Any, None]) -> None:
    """Waits for it. Failed: the process is at its end, or comes to it meanwhile."""
    doing = asyncio.ensure_future(work)
    waited: list[asyncio.Future[Any]] = [doing, seat.over]
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
        if seat.over.done():
            raise seat.over.result()
    finally:
        doing.cancel()
