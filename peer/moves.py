"""From peer to peer, at the holder: `offer`, `collect`, `collected` (SPEC.md, section 10). The target: pulls.py.

The asker gets a ticket from the holder, gives it to the target, and the target collects the value over a connection of
its own, as often as it takes. When it is safe there it says `collected`, with the version that it got; the holder then
gives its own copy up, if that is still this version, or else says `changed`, and the target drops what it took.

The ticket of a published object is in the store before the asker has it, so that a transfer goes on when its holder was
restarted. That of a move is marked as done in the transaction that deletes the object: cut or killed anywhere, after
recovery one of the two has it. Steps and failures, one by one: docs/decisions/0007-moves.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import msgpack

from peer import failpoints, permissions
from peer.calls import Answer
from peer.execution import Execution
from peer.exports import Exports, Position
from peer.objects import Held, Objects, Published, Temporary, show_id
from peer.payloads import Watched
from peer.spans import payload_of
from peer.store.store import Store
from peer.taken import Taken, is_as_taken, let_go, take
from peer.tickets import Ticket, Tickets
from peer.transfers import Transfers
from protocol import limits
from protocol.errors import BadRequest, Changed, GridError, NotFound, StorageError
from protocol.identity import is_peer_id

TICKET_BYTES: Final = 32
MAX_VERSION: Final = 32  # bytes
_BATCH: Final = 1_000  # offers that one transaction withdraws
_SWEEP: Final = 3_600.0  # seconds between two looks for offers in the store that are weeks old


class Moves:
    """Gets its parts from the peer that wires it. `settled` waits until nothing is open about how an object of this
    owner came here.

    Call `sweep` now and then, and `close` at the end.
    """

    def __init__(
        self,
        own: str,
        objects: Objects,
        execution: Execution,
        transfers: Transfers,
        exports: Exports,
        store: Store,
        settled: Callable[[bytes, str], Awaitable[None]],
    ) -> None:
        self._own = own  # our peer id
        self._objects = objects
        self._execution = execution
        self._transfers = transfers
        self._exports = exports
        self._store = store
        self._settled = settled
        self._tickets = Tickets(lambda: os.urandom(TICKET_BYTES), self._let_go)
        self._lapsed: dict[bytes, None] = {}  # tickets of no more use that are in the store still: oldest first
        self._next_sweep = time.monotonic() + _SWEEP

    # --- offer --------------------------------------------------------------------------------------------

    async def offer(self, asker: str, id: bytes, target: str, is_move: bool) -> dict[str, Any]:
        """Let `target` collect the object; the ticket that it needs, durable where the object is."""
        if not is_peer_id(target):
            raise BadRequest("target is the id of a peer")
        held = await self._objects.find(asker, id)
        self._check_may(asker, held, is_move)
        if is_move and target == self._own:
            raise BadRequest(f"object {show_id(id)} is here: there is nothing to move")
        is_durable = isinstance(held, Published)
        if is_move and is_durable:
            # Else the peer that it came from, asked later on to let go of it, might by then be the only one to have it.
            await self._settled(id, held.owner)
        ticket = self._tickets.issue(id, asker, target, is_move, time.monotonic(), is_durable=is_durable)
        if is_durable:
            try:
                with self._in_use(ticket):
                    until = time.time() + (limits.MOVE_KEPT if is_move else limits.COPY_KEPT)
                    await self._store.moves.offer(ticket.token, id, asker, target, until, is_move=is_move)
            except BaseException:
                self._tickets.spend(ticket.token)
                raise
            failpoints.hit("offer:kept")
        return {"ticket": ticket.token, "record": held.record()}

    def _check_may(self, asker: str, held: Held, is_move: bool) -> None:
        what = f"object {show_id(held.id)}"
        permissions.check_take(asker, held, what)
        if is_move:
            permissions.check_edit(asker, held, what)
            if isinstance(held, Published) and held.part is not None:
                raise BadRequest(f"{what} is one tensor of a model: move the model, or copy the tensor")

    # --- collect ------------------------------------------------------------------------------------------

    async def collect(self, peer: str, args: Mapping[str, Any]) -> Answer:
        """The target comes for what it was offered: with `offset` for the bytes from there on, without it for what
        there is to come, and for a value that rides beside its answer."""
        ticket = await self._presented(args.get("ticket"), peer)
        if ticket.is_refused:
            raise _changed(ticket.object)
        if ticket.is_given_up:
            raise NotFound("this transfer is over: its target has the object", gone=True)
        with self._in_use(ticket):  # a temporary may be long in the making
            return await self._collected_by(ticket, Position.of(args))

    async def _collected_by(self, ticket: Ticket, at: Position) -> Answer:
        failpoints.hit("collect:asked")
        try:
            held = await self._objects.find(ticket.asker, ticket.object)
        except NotFound as error:
            error.fields["gone"] = True  # perhaps to this very target, by another ticket
            raise
        self._check_may(ticket.asker, held, ticket.is_move)
        coming = self._published(ticket, held, at) if isinstance(held, Published) else self._temporary(ticket, held, at)
        answer, version = await coming
        ticket.was_collected = True
        told = {**answer.result, "asker": ticket.asker, "move": ticket.is_move, "version": version}
        payload = answer.payload
        if payload is None or isinstance(payload, bytes):
            return Answer(told, payload)
        if at.offset is None and payload.nbytes > limits.INLINE_PAYLOAD:
            told["nbytes"] = payload.nbytes
            payload.close()
            return Answer(told)
        return Answer(told, Watched(payload, self._used(ticket)))

    @contextlib.contextmanager
    def _in_use(self, ticket: Ticket) -> Iterator[None]:
        over = self._used(ticket)
        try:
            yield
        finally:
            over()

    def _used(self, ticket: Ticket) -> Callable[[], None]:
        """Keeps the ticket from lapsing until what is returned is called."""
        ticket.takers += 1

        def over() -> None:
            ticket.takers -= 1
            self._tickets.used(ticket, time.monotonic())

        return over

    async def _published(self, ticket: Ticket, held: Published, at: Position) -> tuple[Answer, bytes]:
        record = held.record()
        version = version_of(record) if ticket.is_move else b""
        if held.kind == "pointer":
            return Answer({"record": record}), version
        answer = await self._transfers.stored_value(ticket.asker, held, at)
        about: dict[str, Any] = {"record": record}
        if held.part is None and held.stored.blob is not None:
            about["content"] = held.stored.blob
        return Answer({**answer.result, **about}, answer.payload), version

    async def _temporary(self, ticket: Ticket, held: Temporary, at: Position) -> tuple[Answer, bytes]:
        taken = await self._taken(ticket, held)
        if taken.header is None:
            return Answer({"record": held.record()}), taken.version
        if at.token not in (None, taken.version):
            raise _changed(held.id)
        value, told = taken.value, taken.header.to_wire()
        whole = payload_of(value if isinstance(value, bytes) else value.acquire())
        payload = await self._exports.resumed(whole, Position(at.offset, taken.version))
        record = {**held.record(), **told, "nbytes": taken.header.nbytes}
        return Answer({**told, "record": record, "token": taken.version}, payload), taken.version

    async def _taken(self, ticket: Ticket, held: Temporary) -> Taken:
        """The value that this ticket is for, as it was when it was first asked for."""
        if ticket.value is None:
            ticket.value = asyncio.ensure_future(take(self._execution, ticket.asker, held))
        taking: asyncio.Future[Taken] = ticket.value
        try:
            taken = await asyncio.shield(taking)
        except GridError:
            if ticket.value is taking:
                ticket.value = None
            raise
        if taken.held is not held:
            raise _changed(held.id)
        return taken

    # --- collected ----------------------------------------------------------------------------------------

    async def collected(self, peer: str, args: Mapping[str, Any]) -> None:
        """The target has it safely. After a move, ours goes; Changed where ours is not what it got: then it stays.

        Said again, it is acknowledged again.
        """
        ticket = await self._presented(args.get("ticket"), peer)
        with self._in_use(ticket):
            await self._end(ticket, args.get("version"))

    async def _end(self, ticket: Ticket, version: object) -> None:
        failpoints.hit("collected:asked")
        if not ticket.is_move:
            self._tickets.given_up(ticket, time.monotonic())
        elif not ticket.is_given_up:
            if not isinstance(version, bytes):
                raise BadRequest("version is what collect answered")
            if ticket.is_refused:
                raise _changed(ticket.object)
            try:
                await (self._give_up_published if ticket.is_durable else self._give_up_temporary)(ticket, version)
            except Changed:
                ticket.is_refused = True  # for good: the target drops what it has
                raise
            self._tickets.given_up(ticket, time.monotonic())
            failpoints.hit("collected:given-up")

    async def _give_up_published(self, ticket: Ticket, version: bytes) -> None:
        held = await self._objects.published(ticket.object)
        is_given_up = await self._store.moves.give_up(
            ticket.token, ticket.object, lambda record: version_of(record) == version
        )
        if not is_given_up:
            raise _changed(ticket.object) if held is not None else _gone(ticket.object)
        self._transfers.forget(held, ticket.object)

    async def _give_up_temporary(self, ticket: Ticket, version: bytes) -> None:
        taken = ticket.value.result() if ticket.value is not None and ticket.value.done() else None
        if taken is None or taken.version != version:
            raise _changed(ticket.object)
        async with self._execution.lane(ticket.asker):
            held = self._objects.temporary(ticket.object)
            if held is None:
                raise _gone(ticket.object)
            if held is not taken.held or not await is_as_taken(self._execution, taken):
                raise _changed(ticket.object)
            self._execution.release([ticket.object])

    # --- tickets ------------------------------------------------------------------------------------------

    async def _presented(self, token: object, peer: str) -> Ticket:
        """The ticket that the other end shows. NotFound, Denied."""
        if not isinstance(token, bytes) or len(token) != TICKET_BYTES:
            raise BadRequest(f"a ticket is {TICKET_BYTES} bytes")
        ticket = self._tickets.find(token)
        if ticket is None and token not in self._lapsed:  # those are about to be withdrawn: stale, whatever is there
            ticket = await self._restored(token)
        return self._tickets.check(ticket, peer, time.monotonic())

    async def _restored(self, token: bytes) -> Ticket | None:
        """From the store: one that this process has not seen yet, or has forgotten."""
        offered = await self._store.moves.find(token)
        if offered is None:
            return None
        known = self._tickets.find(token)  # another call may have been faster
        return known or self._tickets.restore(token, offered, time.monotonic())

    def _let_go(self, ticket: Ticket) -> None:
        """Nobody will come with it: what was kept for that goes."""
        taking, ticket.value = ticket.value, None
        if taking is not None:
            taking.add_done_callback(let_go)
        if ticket.is_durable and not (ticket.is_move and ticket.was_collected):
            self._lapsed[ticket.token] = None  # else its target may have the object by it, and still say so

    async def sweep(self) -> None:
        """Forget what is stale, with the memory that it holds."""
        self._tickets.sweep(time.monotonic())
        with contextlib.suppress(StorageError):  # the next start sweeps the store as well
            while batch := list(itertools.islice(self._lapsed, _BATCH)):
                await self._store.moves.withdraw(*batch)
                for token in batch:
                    del self._lapsed[token]
            if time.monotonic() > self._next_sweep:
                self._next_sweep = time.monotonic() + _SWEEP
                await self._store.moves.sweep()

    def close(self) -> None:
        self._tickets.close()


def version_of(record: Mapping[str, Any]) -> bytes:
    """What tells one state of a published object from another: its contents cannot change, its record can, and one
    that was deleted and made again has another time of making."""
    told = [record["id"], record["created"], *(record[name] for name in _TOLD)]
    return hashlib.blake2b(msgpack.packb(told), digest_size=16).digest()


_TOLD: Final = ("kind", "owner", "name", "description", "tags", "dtype", "shape", "nbytes", "labels")


def _changed(id: bytes) -> Changed:
    return Changed(
        f"object {show_id(id)} was changed while it was being moved: it stays where it is, as it is now; move it again"
    )


def _gone(id: bytes) -> Changed:
    return Changed(
        f"object {show_id(id)} was deleted, or moved to another peer, while it was being moved to this one: "
        "search for it to see where it is"
    )
