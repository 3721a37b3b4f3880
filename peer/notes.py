"""What arrived here by a move, and whose source has not been heard to have given it up: told again until it answers.

The note of a published object is in the store, made in the transaction that published it; that of a temporary is in
memory, as the temporary is. While there is a note both ends may have the object; the source's answer settles it: it has
given its own up, and ours is the one; or that was changed, and ours is dropped. A source that does not know the ticket
any more is no reason to drop anything: what is here stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from peer import failpoints
from peer.calls import Response
from peer.execution import Execution
from peer.links import Links
from peer.membership import Member
from peer.objects import Objects, show_id
from peer.store.moves import Arrived, Unconfirmed
from peer.store.store import Store
from peer.store.waiting import KeyLocks
from peer.transfers import Transfers
from protocol import limits
from protocol.errors import Changed, Denied, GridError, LinkError, NotFound, StorageError, Unreachable

_TICKET_BYTES: Final = 32
_log = logging.getLogger("peergrid.moves")


@dataclass(frozen=True, slots=True)
class Note:
    """`object` came from the peer `source` by `ticket`, in the state `version`; `is_durable`: the store says so.

    `owner` is its owner here.
    """

    ticket: bytes
    source: str
    object: bytes
    version: bytes
    is_durable: bool
    owner: str

    def arrived(self) -> Arrived:
        """As the store keeps it: all that is to be shown to the source."""
        return Arrived(self.ticket + self.version, self.source)

    @classmethod
    def of(cls, kept: Unconfirmed) -> Note:
        token = kept.token
        return cls(token[:_TICKET_BYTES], kept.source, kept.object, token[_TICKET_BYTES:], True, kept.owner)


class Tries:
    """When to ask a peer again that could not be reached: RECONNECT_TIMEOUT from the first failure on."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._until: float | None = None
        self._wait = limits.RECONNECT_FIRST

    def next_wait(self) -> float | None:
        """How long to wait after one more failure; None: no more."""
        if self._until is None:
            self._until = self._clock() + limits.RECONNECT_TIMEOUT
        wait, self._wait = self._wait, min(2 * self._wait, limits.RECONNECT_MOST)
        return None if self._clock() + wait > self._until else wait


async def ask(links: Links, member: Member, op: str, args: dict[str, Any], timeout: float | None = None) -> Response:
    """Ask another peer once. Only the line's own pings say that it is dead: the answer may wait for a long operation,
    and others use the line too."""
    line = await links.to(member)
    return await line.request(op, args, timeout=timeout)


class Notes:
    """Gets its parts from the peer that wires it. `member` looks a peer up, wherever it may have moved to.

    `start` it when the store is open: from then on it sees to what is left; `close` it at the end.
    """

    def __init__(
        self,
        objects: Objects,
        execution: Execution,
        transfers: Transfers,
        store: Store,
        links: Links,
        member: Callable[[str], Member | None],
    ) -> None:
        self._objects = objects
        self._execution = execution
        self._transfers = transfers
        self._store = store
        self._links = links
        self._member = member
        self._notes: dict[bytes, Note] = {}  # by ticket
        self._telling = KeyLocks()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.load()
        self._news.set()
        self._task = asyncio.create_task(self._keep_telling())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def load(self) -> None:
        """Take in what the store has noted."""
        for kept in await self._store.moves.unconfirmed():
            note = Note.of(kept)
            self._notes.setdefault(note.ticket, note)

    # --- notes --------------------------------------------------------------------------------------------

    def add(self, note: Note) -> None:
        """It is here. (The store has it already, where it is durable.)"""
        self._notes[note.ticket] = note

    def by(self, ticket: bytes) -> Note | None:
        return self._notes.get(ticket)

    def about(self, object: bytes) -> list[Note]:
        return [note for note in self._notes.values() if note.object == object]

    def look_again(self) -> None:
        """Something may have become durable that nobody could add: a publication was cancelled midway."""
        self._news.set()

    async def settled(self, object: bytes, owner: str) -> None:
        """Return when nothing is open about how this object, of this owner, came here. Changed if it is gone for that;
        Unreachable."""
        for note in self.about(object):
            if note.owner != owner:
                continue  # that was another object under this id: its source may keep others waiting for ever
            if not await self.tell(note):
                raise Unreachable(
                    f"object {show_id(object)} came from {self._name(note.source)}, which cannot be reached to confirm "
                    "that it gave its own copy up: try again when it is back, or copy the object",
                    peer=self._name(note.source),
                )

    # --- telling ------------------------------------------------------------------------------------------

    async def tell(self, note: Note) -> bool:
        """Tell the source, again and again, that it is safe here. True once it has answered that its own is gone (or
        that it does not know); False if it could not be reached in time, and it will be told later.

        Raises:
            Changed: it keeps the object, as that was changed meanwhile; ours is gone.
        """
        tries = Tries()
        try:
            while not await self._tell_once(note):
                wait = tries.next_wait()
                if wait is None:
                    return False
                await asyncio.sleep(wait)
            return True
        finally:
            if note.ticket in self._notes:
                self._news.set()

    async def _tell_once(self, note: Note) -> bool:
        async with self._telling.hold(f"{note.object.hex()} {note.source}"):
            if note.ticket not in self._notes:
                return True
            try:
                await self._say(note)
            except Changed as error:
                with self._kept_if_the_disk_refuses(note):
                    await self._drop(note)
                raise error.again() from None
            except (NotFound, Denied) as error:
                _log.warning(
                    "%s does not know of the move of %s: it stays here (%s)",
                    self._name(note.source),
                    show_id(note.object),
                    error.message,
                )
            except LinkError:
                return False
            except GridError as error:
                _log.warning("%s could not let go of %s yet: %s", self._name(note.source), show_id(note.object), error)
                return False
            failpoints.hit("pull:confirmed")
            with self._kept_if_the_disk_refuses(note):
                await self._settle(note)
            return True

    @contextlib.contextmanager
    def _kept_if_the_disk_refuses(self, note: Note) -> Iterator[None]:
        """The source has answered; if that cannot be noted now, it is asked again."""
        try:
            yield
        except StorageError as error:
            _log.warning("what became of the move of %s could not be noted yet: %s", show_id(note.object), error)

    async def _say(self, note: Note) -> None:
        member = self._member(note.source)
        if member is None:
            raise Unreachable(f"peer {note.source[:12]} is not known here")
        said = {"ticket": note.ticket, "version": note.version}
        # Others wait to be told meanwhile; a try that was too short is followed by the next.
        await ask(self._links, member, "collected", said, timeout=limits.STALL_TIMEOUT)

    async def _forget(self, *notes: Note) -> None:
        for note in notes:
            if note.is_durable:
                await self._store.moves.confirmed(note.arrived().token)
            self._notes.pop(note.ticket, None)

    async def _settle(self, note: Note) -> None:
        """The source has given the object up: whatever other ticket brought it from there is settled with that."""
        await self._forget(*self._others(note), note)

    async def _drop(self, note: Note) -> None:
        """The source keeps the object: ours goes, whatever other ticket brought it too."""
        await self._forget(*self._others(note))
        if note.is_durable:
            held = await self._objects.published(note.object)
            await self._store.moves.drop(note.arrived().token, note.object)
            self._transfers.forget(held, note.object)
        else:
            held_here = self._objects.temporary(note.object)
            if held_here is not None and held_here.owner == note.owner:
                self._execution.release([note.object])
        self._notes.pop(note.ticket, None)

    def _others(self, note: Note) -> list[Note]:
        return [other for other in self.about(note.object) if other is not note and other.source == note.source]

    async def _keep_telling(self) -> None:
        wait = limits.RECONNECT_FIRST
        while True:
            if not self._notes:
                await self._news.wait()
            if self._news.is_set():
                self._news.clear()
                wait = limits.RECONNECT_FIRST
            try:
                await self.load()
                await self._tell_all()
            except GridError as error:  # of the store
                _log.warning("moves wait for their confirmation: %s", error)
            if self._notes:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._news.wait()
                wait = min(2 * wait, limits.CONFIRM_MOST)

    async def _tell_all(self) -> None:
        silent: set[str] = set()
        for note in list(self._notes.values()):
            if note.source in silent:
                continue
            try:
                if not await self._tell_once(note):
                    silent.add(note.source)
            except Changed as error:
                _log.warning("the move of %s is undone: %s", show_id(note.object), error.message)

    def _name(self, id: str) -> str:
        member = self._member(id)
        return member.name if member is not None else id[:12]
