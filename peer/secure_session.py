"""One secure session at one peer: its process, the lines to the others, what was kept and under which rules, its end.

A session stands from its first run until its asker lets it go, the asker's lease is over, nothing was asked of it for
long, or anything fails: then it ends everywhere, with the same error. No torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from peer import permissions, secrecy
from peer.agreement import HEARSAY, KEPT, Agreement
from peer.leases import LeaseKey
from peer.membership import Member
from peer.secure_faults import fault_of, packed_fault
from peer.secure_joins import Joins, given_away
from peer.secure_lines import Frame, Line, Lines
from peer.secure_rules import Rules, leave_of, packed_leave
from peer.worker.seat import Failed, Seat
from protocol import limits
from protocol.errors import AlreadyExists, GridError, NotFound, PartyFailed
from protocol.sizes import beyond, check_limit

HELLO: Final = 128  # kinds of frames on the lines between peers: we read no more on the line that you have dialled
END: Final = 129  # the fault for which the session is over
LEAVE: Final = 130  # to whom may be revealed what derives from private inputs that are kept
_AHEAD: Final = 4  # rules of so many runs may come before they are asked for


@dataclass(slots=True)
class _Counterpart:
    """Another who takes part, as far as this peer has to do with it."""

    name: str
    line: Line | None = None
    has_greeted: bool = False
    is_joined: bool = False  # our process has its line
    joining: asyncio.Task[None] | None = None
    leaves: dict[bytes, dict[int, Rules]] = field(default_factory=dict)  # by run's digest, of its inputs


class Session:
    """See the module's docstring. `over` is told once, when it is at its end."""

    def __init__(
        self,
        id: bytes,
        lease: LeaseKey,
        team: tuple[tuple[str, ...], str],
        own: tuple[str, str],
        lines: Lines,
        joins: Joins,
        member: Callable[[str], Member | None],
        over: Callable[[Session], None],
    ) -> None:
        self.id = id
        self.lease = lease
        self.asker = lease[0]
        self.team = team
        self.own_id, self._name = own
        self._lines, self._joins, self._member = lines, joins, member
        self._over = over
        self.seat: Seat | None = None
        self.labels: frozenset[str] = frozenset()  # of all private data that its process ever had
        self.kept: dict[bytes, Rules] = {}
        self._stays: set[bytes] = set()  # what the parties keep, as far as this peer was told: it may be none of them
        self.has_stock = False  # something was dealt ahead
        self.agreement: Agreement | None = None  # the run that is under way
        self.used = time.monotonic()
        self.failure: GridError | None = None
        self._others: dict[str, _Counterpart] = {}
        self._changes: list[asyncio.Future[None]] = []

    @property
    def is_idle(self) -> bool:
        """Whether it does nothing, and nothing would be lost with it, here or at the parties."""
        return self.agreement is None and not self.kept and not self._stays and not self.has_stock

    @property
    def is_party(self) -> bool:
        return self.own_id in self.team[0]

    def ran(self, agreement: Agreement) -> None:
        """Notes what stands since this run, which is done."""
        self._stays.update(agreement.new_ids)
        self.has_stock |= bool(agreement.ahead)

    # --- the others ---------------------------------------------------------------------------------------

    def name_of(self, id: str) -> str:
        if id == self.own_id:
            return self._name
        return self._others[id].name if id in self._others else id[:12]

    def _full_name(self, id: str) -> str:
        """As its card says, though we have not met."""
        member = self._member(id)
        return self.name_of(id) if member is None else member.name

    def knows(self, id: str) -> bool:
        """Whether that peer has to do with this session."""
        return id in self._others or id in self.team[0] or id == self.team[1]

    def has_met(self, ids: Iterable[str]) -> bool:
        """Whether the process has lines to all of these."""
        return all(id in self._others and self._others[id].is_joined for id in ids)

    async def meet(self, ids: Iterable[str], patience: float) -> None:
        """The process has lines to all of these. PartyFailed names who does not come."""
        new = [id for id in ids if id not in self._others or not self._others[id].is_joined]
        if not new:
            return
        for id in new:
            member = self._member(id)
            if member is None:
                raise PartyFailed(f"{self._name} finds no peer {id[:12]} in the grid now", peer=id[:12])
            other = self._others.setdefault(id, _Counterpart(member.name))
            if other.joining is None:
                other.joining = asyncio.get_running_loop().create_task(self._join(id, member, other, patience))
        tasks = [task for id in new if (task := self._others[id].joining) is not None]
        try:
            async with asyncio.timeout(patience):
                await asyncio.gather(*tasks)
        except TimeoutError:
            names = [self._others[id].name for id in new if not self._others[id].is_joined]
            raise PartyFailed(
                f"{', '.join(names)} did not begin the run within {patience:g} s", peer=names[0]
            ) from None

    async def _join(self, id: str, member: Member, other: _Counterpart, patience: float) -> None:
        is_dialler = self.own_id < id
        if is_dialler:
            other.line = await self._lines.to(member, patience)
            socket = await self._joins.dialled(member, self.id)
        else:
            socket = await self._joins.arrived_for(id, self.id)
        try:
            if not is_dialler:
                other.line = await self._lines.to(member, patience)
                self._say(other.line, HELLO, b"")
            while not other.has_greeted and is_dialler:
                await self._changed()
            fd = given_away(socket)
        finally:
            socket.transport.abort()
        try:
            if self.seat is not None and self.failure is None:
                self.seat.line(id, fd, is_dialler=is_dialler)
                other.is_joined = True
        finally:
            os.close(fd)

    async def _changed(self) -> None:
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append(change)
        await change

    def _wake(self) -> None:
        changes, self._changes = self._changes, []
        for change in changes:
            if not change.done():
                change.set_result(None)

    def _say(self, line: Line, kind: int, data: bytes) -> None:
        line.send(Frame(self.id, kind, 0, len(data), data))

    def hear(self, id: str, frame: Frame) -> None:
        """A frame of another peer about this session."""
        other = self._others.setdefault(id, _Counterpart(id[:12]))
        if frame.kind == HELLO:
            other.has_greeted = True
            self._wake()
        elif frame.kind == END:
            self._end_of(fault_of(frame.piece, self._full_name(id)))
        elif frame.kind == LEAVE and len(other.leaves) < _AHEAD:
            try:
                digest, rules = leave_of(frame.piece)
                other.leaves[digest] = rules
            except ValueError:
                self.fail(PartyFailed(f"{other.name} said what makes no sense", peer=other.name))
            self._wake()
        else:
            self.fail(PartyFailed(f"{other.name} said what is not due", peer=other.name))

    def _end_of(self, error: GridError) -> None:
        """Another has ended it. Where it is our process that is said to be gone, our own word of that comes first, if
        it comes soon: it says how."""
        if error.fields.get(HEARSAY) == self._name and self.seat is not None and not self.seat.over.done():
            asyncio.get_running_loop().call_later(limits.SECURE_OWN_WORD, self.fail, error)
        else:
            self.fail(error)

    def lost(self, id: str, why: str) -> None:
        """A line between the peers is gone; that on which this session is need not be it."""
        other = self._others.get(id)
        if other is not None and other.line is not None and other.line.is_closed:
            self.fail(PartyFailed(f"{other.name} is gone in the middle of the run: {why}", peer=other.name))

    # --- what is kept, and to whom it may be revealed -----------------------------------------------------

    def check_reveal(self, agreement: Agreement) -> dict[int, Rules]:
        """At a party: the rules of the kept shares that the run uses, by input, as they are now: what is dropped while
        it is under way is used all the same. Denied where they derive from what may not be revealed to whom the result
        goes. NotFound where nothing was kept under an id, AlreadyExists where something is and should be."""
        found: dict[int, Rules] = {}
        if self.own_id not in agreement.parties:
            return found
        if any(id in self.kept for id in agreement.new_ids):
            raise AlreadyExists("shares are kept under this id already: ids are random and used once")
        for at, each in enumerate(agreement.inputs):
            if each.holder != KEPT:
                continue
            rules = self.kept.get(each.id)
            if rules is None:
                raise NotFound("shares that this run needs were let go, or never kept")
            if agreement.reveals:
                for rule in rules:
                    permissions.check_reveal(agreement.reveal, rule, "what these shares derive from")
            found[at] = rules
        return found

    def say_leave(self, agreement: Agreement, rules: dict[int, Rules]) -> None:
        """Tells the parties to whom our private inputs may be revealed, where something of them stays."""
        if not agreement.keeps or not any(each.peer == self.own_id for each in agreement.inputs):
            return
        packed = packed_leave(agreement.digest, rules)
        for id in agreement.parties:
            line = self._others[id].line if id != self.own_id else None
            if line is not None:
                self._say(line, LEAVE, packed)

    async def keep(self, agreement: Agreement, known: dict[int, Rules]) -> None:
        """Notes under which rules the shares stand that this run has kept. `known`: those of our own inputs and of
        kept shares, by input, from when the run began."""
        if not agreement.keeps or self.own_id not in agreement.parties:
            return
        holders = {each.peer for each in agreement.inputs if each.peer} - {self.own_id}
        try:
            async with asyncio.timeout(agreement.patience):
                while any(agreement.digest not in self._others[id].leaves for id in holders):
                    await self._changed()
        except TimeoutError:
            raise PartyFailed("a holder of inputs has not said to whom they may be revealed") from None
        told = dict(known)
        for id in holders:
            leaves = self._others[id].leaves.pop(agreement.digest)
            told |= {at: rules for at, rules in leaves.items() if _holder(agreement, at) == id}
        of_all: Rules = frozenset()
        for at, each in enumerate(agreement.inputs):
            if each.holder and at not in told:
                raise PartyFailed("nobody has said to whom an input may be revealed of which shares stay: run it anew")
            rules = told.get(at, frozenset())  # the asker's own are nobody else's
            of_all |= rules
            if each.keep:
                self.kept[each.keep] = rules
        sentence = "a result that derives from {size} private objects cannot be kept: reveal some on the way"
        check_limit("SECURE_RULES", len(of_all), sentence)
        self.kept.update((id, of_all) for id, is_kept in agreement.outputs if is_kept)

    def drop(self, ids: list[bytes]) -> None:
        """Kept shares that nobody needs any more."""
        for id in ids:
            self.kept.pop(id, None)
            self._stays.discard(id)
        if self.seat is not None and self.failure is None:
            self.seat.drop(ids)

    # --- its end ------------------------------------------------------------------------------------------

    def fail(self, error: GridError) -> None:
        """It is over, everywhere."""
        if self.failure is not None:
            return
        self.failure = error
        self._wake()
        packed = packed_fault(error)
        for other in self._others.values():
            if other.line is not None:
                self._say(other.line, END, packed)
            if other.joining is not None:
                other.joining.cancel()
        if self.seat is not None:
            self.seat.end(error)
        self._joins.forget(self.id)
        self._over(self)

    async def failed(self, failed: Failed) -> GridError:
        """The error for which our process has ended, with the name of who is to blame; where that is one whose line
        ended, it is what is heard of it."""
        if self.failure is not None and not failed.is_own_word:
            return self.failure
        if failed.is_lost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.SECURE_LAST_WORDS):
                    while self.failure is None:
                        await self._changed()
            if self.failure is not None:
                return self.failure
        error, labels = failed.error, self.labels - {self.asker} if failed.is_own_word else frozenset()
        if failed.who is None or failed.who not in self._others:
            return secrecy.told(error, labels)
        name = self._others[failed.who].name
        if labels or failed.is_lost:
            what = (
                "is gone in the middle of the run" if failed.is_lost else "has not sent what is due, or something else"
            )
            return PartyFailed(f"{name} {what}", peer=name)
        error.peer, error.message = name, error.message.replace(failed.who[:12], name)
        return error


def _holder(agreement: Agreement, at: int) -> str:
    return agreement.inputs[at].peer if 0 <= at < len(agreement.inputs) else ""


def check_room(sessions: Iterable[Session], asker: str) -> list[Session]:
    """Sessions that nobody uses, which are to end for one of this asker: its own first, of those the one that was used
    first. TooLarge: there is room for no other, and none of them is idle."""
    all_of_them = list(sessions)
    own = [session for session in all_of_them if session.asker == asker]
    over: list[Session] = []
    for limit, found in (("SECURE_AT_ONCE", own), ("SECURE_SESSIONS", all_of_them)):
        allowed = getattr(limits, limit)
        if len(found) - len(over) < allowed:
            continue
        idle = sorted((each for each in found if each.is_idle), key=lambda each: (each.asker != asker, each.used))
        if not idle:
            sentence = "{count} secure sessions are under way here: await some runs first, or let go of shares"
            raise beyond(limit, len(found) + 1, sentence, count=len(found))
        over.append(idle[0])
    return over
