"""From peer to peer, at the target: `pull` (SPEC.md, section 10). The holder's side is moves.py.

    described    the holder says what comes; of contents that are here already no byte does
    received     the bytes, over as many connections as it takes; what came is what the holder said
    published    object and note, in one transaction
    confirmed    the holder has given its copy up (notes.py); the note goes

Pulls of one id by one asker come one after the other; those of others go their own way, and whose object is published
first has the id. A pull of the same ticket that comes again (the asker's line broke, or this process was killed) waits
for the one under way, or takes up where that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peer import failpoints
from peer.arrivals import Arrival
from peer.calls import Response
from peer.connection import Connection
from peer.elsewhere import Elsewhere
from peer.leases import LeaseKey
from peer.links import Links
from peer.membership import Member
from peer.moves import MAX_VERSION, TICKET_BYTES
from peer.notes import Note, Notes, Tries, ask
from peer.objects import Objects, check_id, show_id
from peer.resuming import Download
from peer.store.contents import is_content_name
from peer.store.moves import Arrived
from peer.store.store import Store
from peer.store.waiting import KeyLocks, undisturbed
from peer.transfers import Transfers
from protocol.errors import (
    BadRequest,
    Changed,
    Denied,
    GridError,
    LinkError,
    NotFound,
    UnknownPeer,
    Unreachable,
)
from protocol.identity import is_peer_id


@dataclass(frozen=True, slots=True)
class Wish:
    """One pull: `ticket` at the peer `source`, for `asker`; `id` is to be its id here."""

    asker: str
    source: str
    ticket: bytes
    id: bytes
    publish: bool

    @classmethod
    def of(cls, asker: str, args: Mapping[str, Any]) -> Wish:
        source, ticket = args.get("peer"), args.get("ticket")
        if not isinstance(source, str) or not is_peer_id(source):
            raise BadRequest("peer is the id of the holder")
        if not isinstance(ticket, bytes) or len(ticket) != TICKET_BYTES:
            raise BadRequest(f"a ticket is {TICKET_BYTES} bytes")
        return cls(asker, source, ticket, check_id(args.get("id")), bool(args.get("publish")))


@dataclass(slots=True, eq=False)
class _UnderWay:
    """A pull that runs; whoever asks for it waits for it. Nobody left, it is given up unless the object is here."""

    wish: Wish
    task: asyncio.Task[dict[str, Any]] = field(init=False)
    waiting: int = 0
    is_here: bool = False


class Pulls:
    """Gets its parts from the peer that wires it. `member` looks a peer up, wherever it may have moved to; `elsewhere`
    knows who else has what a holder has damaged."""

    def __init__(
        self,
        objects: Objects,
        transfers: Transfers,
        store: Store,
        notes: Notes,
        links: Links,
        member: Callable[[str], Member | None],
        elsewhere: Elsewhere,
    ) -> None:
        self._objects = objects
        self._transfers = transfers
        self._store = store
        self._notes = notes
        self._links = links
        self._member = member
        self._elsewhere = elsewhere
        self._under_way: dict[Wish, _UnderWay] = {}
        self._ids = KeyLocks()
        self._telling: set[asyncio.Task[None]] = set()

    async def pull(self, asker: str, lease: LeaseKey, args: Mapping[str, Any]) -> dict[str, Any]:
        """Collect an object from the peer that offered it to us; its record here. A cancelled asker gives it up, if it
        is not here yet."""
        wish = Wish.of(asker, args)
        running = self._under_way.get(wish)
        if running is None:
            running = self._under_way[wish] = _UnderWay(wish)
            running.task = asyncio.create_task(self._run(running, lease))
            running.task.add_done_callback(lambda _: self._over(wish))
        running.waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            if not running.waiting and not running.is_here:
                running.task.cancel()

    def _over(self, wish: Wish) -> None:
        task = self._under_way.pop(wish).task
        if not task.cancelled():
            task.exception()  # those who waited have it

    async def close(self) -> None:
        """Give up what is under way."""
        tasks: list[asyncio.Task[Any]] = [*self._telling, *(running.task for running in self._under_way.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one pull -----------------------------------------------------------------------------------------

    async def _run(self, running: _UnderWay, lease: LeaseKey) -> dict[str, Any]:
        wish = running.wish
        failpoints.hit("pull:begun")
        # By asker: another's pull of this id, which may take without end, holds up nobody.
        async with self._ids.hold(f"{wish.asker} {wish.id.hex()}"):
            note = self._notes.by(wish.ticket)
            if note is None:
                # An earlier ticket for the same object, of a move that was cut: that comes first.
                with contextlib.suppress(Changed):
                    await self._notes.settled(wish.id, wish.asker)
                note, record = await self._bring(running, lease)
            else:
                record = await self._record(wish)
            running.is_here = True
            if note is not None:
                await self._notes.tell(note)
                failpoints.hit("pull:done")
            return record

    async def _bring(self, running: _UnderWay, lease: LeaseKey) -> tuple[Note | None, dict[str, Any]]:
        """The object, here; and where it was moved, the note of what its holder is still to be told."""
        wish = running.wish
        try:
            answer = await self._described(wish)
        except NotFound as error:
            if not error.fields.get("gone"):
                raise
            with contextlib.suppress(NotFound):
                return None, await self._record(wish)  # an earlier pull has brought it
            raise
        failpoints.hit("pull:described")
        coming = _Coming.of(wish, answer.result)
        try:
            record = await self._receive(wish, lease, coming, answer)
        except BaseException:
            # Cancelled in the middle of publishing, it may be here all the same: the next pull has to know.
            with contextlib.suppress(GridError):
                await undisturbed(self._notes.load())
            self._notes.look_again()
            raise
        running.is_here = True
        if coming.note is not None:
            self._notes.add(coming.note)
        else:
            self._free(wish)
        failpoints.hit("pull:published")
        return coming.note, record

    async def _record(self, wish: Wish) -> dict[str, Any]:
        """That of the object here. NotFound where there is none, or it is another's."""
        held = await self._objects.find(wish.asker, wish.id)
        if held.owner != wish.asker:
            raise NotFound(f"object {show_id(wish.id)} here is another's")
        return held.record()

    # --- the value ----------------------------------------------------------------------------------------

    async def _receive(self, wish: Wish, lease: LeaseKey, coming: _Coming, answer: Response) -> dict[str, Any]:
        arrival, content, arrived = coming.arrival, coming.content, coming.arrived
        if content is not None and arrival.publish and await self._may_have(wish.asker, content):
            record = await self._transfers.receive_held(arrival, content, arrived)
            if record is not None:
                return record
        source, nbytes = await self._source(wish, answer, coming)
        try:
            return await self._transfers.receive(
                arrival, lease, source, nbytes, arrived=arrived, content=content, source_name=self._name(wish)
            )
        finally:
            if isinstance(source, Download):
                source.abort()

    async def _source(self, wish: Wish, answer: Response, coming: _Coming) -> tuple[Response | Download, int]:
        """The bytes that the answer describes, and how many: beside it already, or still to be asked for."""
        if not answer.result.get("nbytes"):
            failpoints.hit("pull:received")
            return answer, len(answer.payload)
        # Others than the holder only for what is compared with its name as a whole, when it is here.
        arrival = coming.arrival
        is_named = arrival.publish and arrival.kind in ("tensor", "model") and coming.content is not None
        download = await Download.begin(
            lambda: self._bulk(wish),
            "collect",
            {"ticket": wish.ticket},
            self._name(wish),
            _passing,
            others=self._elsewhere.of(arrival.header, coming.nbytes, arrival.labels) if is_named else None,
        )
        # Another holder has the same contents, and a version of its own.
        if not download.is_mixed and download.result.get("version") != answer.result.get("version"):
            download.abort()
            raise Changed(f"object {show_id(wish.id)} was changed when its transfer began: ask for it again")
        return download, download.nbytes

    async def _may_have(self, asker: str, content: str) -> bool:
        """Whether contents of that name are here in an object that the asker may take: whoever merely knows the name
        of some contents gets neither them, nor the knowledge that they are here."""
        return any(not set(record["labels"]) - {asker} for record in await self._store.holders(content))

    # --- the holder ---------------------------------------------------------------------------------------

    async def _described(self, wish: Wish) -> Response:
        """What the ticket is for. Asked again while the holder cannot be reached, for RECONNECT_TIMEOUT."""
        tries = Tries()
        while True:
            try:
                answer = await ask(self._links, self._holder(wish), "collect", {"ticket": wish.ticket})
                break
            except LinkError as error:
                wait = tries.next_wait()
                if wait is None:
                    raise Unreachable(
                        f"{self._name(wish)}, which has object {show_id(wish.id)}, cannot be reached from here, so "
                        f"nothing came: {error.message}"
                    ) from None
            await asyncio.sleep(wait)
        if answer.result.get("asker") != wish.asker:
            raise Denied("that transfer was asked for by somebody else")
        return answer

    async def _bulk(self, wish: Wish) -> Connection:
        return await self._links.to(self._holder(wish), bulk=True)

    def _holder(self, wish: Wish) -> Member:
        member = self._member(wish.source)
        if member is None:
            raise UnknownPeer(f"peer {wish.source[:12]} is not known here: it must join this grid first")
        return member

    def _name(self, wish: Wish) -> str:
        member = self._member(wish.source)
        return member.name if member is not None else wish.source[:12]

    def _free(self, wish: Wish) -> None:
        """The holder of a copy need not keep anything for us. It forgets it in any case, later."""

        async def tell() -> None:
            with contextlib.suppress(GridError):
                await ask(self._links, self._holder(wish), "collected", {"ticket": wish.ticket})

        task = asyncio.create_task(tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _passing(done: int, nbytes: int) -> None:
    failpoints.hit("pull:received" if done == nbytes else "pull:receiving")


@dataclass(frozen=True, slots=True)
class _Coming:
    """What the holder says of an object, checked. `note` where it is moved, not copied. `nbytes`: of its tensors."""

    arrival: Arrival
    content: str | None
    note: Note | None
    nbytes: int

    @property
    def arrived(self) -> Arrived | None:
        return self.note.arrived() if self.note is not None and self.note.is_durable else None

    @classmethod
    def of(cls, wish: Wish, told: Mapping[str, Any]) -> _Coming:
        """BadRequest, BadTensor, BadTag."""
        theirs, content, version = told.get("record"), told.get("content"), told.get("version")
        if not isinstance(theirs, dict):
            raise BadRequest("the holder did not describe the object")
        if not isinstance(version, bytes) or not len(version) <= MAX_VERSION:
            raise BadRequest("the holder did not say which version of the object it has")
        labels = theirs.get("labels")
        if not isinstance(labels, list) or not all(map(is_peer_id, labels)):
            raise BadRequest("the holder's description lacks labels")
        fields = {**theirs, **told, "id": wish.id, "publish": wish.publish}
        if not wish.publish:
            fields["tags"] = []
        arrival = Arrival.of(fields, wish.asker, frozenset(labels))
        note = (
            Note(wish.ticket, wish.source, wish.id, version, arrival.publish, wish.asker) if told.get("move") else None
        )
        nbytes = theirs.get("nbytes")
        if type(nbytes) is not int:
            raise BadRequest("the holder's description lacks nbytes")
        return cls(arrival, content if is_content_name(content) else None, note, nbytes)
