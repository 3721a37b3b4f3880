"""Values in and out of a peer: put, fetch, and the direct way from one peer to another.

A move or copy takes three steps: the asker gets a ticket from the holder (`offer`), gives it to the target
(`pull`), and the target collects the value over a connection of its own (`collect`), says when it is safe
(`collected`), and only then does the holder give up its copy. Cut anywhere, at least one of them has the object.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from peer import permissions
from peer.arrivals import Arrival, Pieces
from peer.buffers import Buffer, BufferPool
from peer.calls import Answer, Call, Response
from peer.execution import Execution
from peer.leases import LeaseKey
from peer.links import Links
from peer.membership import Membership
from peer.objects import Held, Objects, Published, Temporary, check_id, part_ids, show_id
from peer.payloads import MemoryPayload, Payload
from peer.store.contents import Contents
from peer.store.store import Store
from peer.tickets import Tickets
from protocol import limits
from protocol.errors import BadRequest, Denied, GridError, NotFound
from protocol.identity import is_peer_id
from protocol.tensors import TensorHeader


class Transfers:
    """Gets its parts from the peer that wires it."""

    def __init__(
        self,
        objects: Objects,
        store: Store,
        buffers: BufferPool,
        execution: Execution,
        tickets: Tickets,
        links: Links,
        membership: Membership,
    ) -> None:
        self._objects = objects
        self._store = store
        self._buffers = buffers
        self._execution = execution
        self._tickets = tickets
        self._links = links
        self._membership = membership

    # --- in -----------------------------------------------------------------------------------------------

    async def receive(self, arrival: Arrival, lease: LeaseKey, source: Call | Response, nbytes: int) -> dict[str, Any]:
        """Take a value in; its record. When it returns, a published one is durable."""
        if arrival.kind == "pointer" and nbytes:
            raise BadRequest("a pointer brings no bytes")
        if arrival.kind == "tensor":
            assert arrival.header is not None
            arrival.header.check_payload(nbytes)
        if arrival.publish:
            return await self._receive_published(arrival, source, nbytes)
        self._objects.check_new(lease[0], [arrival.id])
        temporary = Temporary(arrival.id, lease[0], lease, arrival.labels, time.time(), arrival.header)
        temporary.target = arrival.target
        if arrival.kind == "tensor":
            temporary.buffer = await self._fill(source, nbytes)
        try:
            self._objects.check_new(lease[0], [arrival.id])  # others may have come while the bytes did
        except GridError:
            if temporary.buffer is not None:
                temporary.buffer.release()
            raise
        self._objects.add(temporary)
        return temporary.record()

    async def _fill(self, source: Call | Response, nbytes: int) -> Buffer:
        buffer = self._buffers.take(nbytes)
        try:
            if source.stream is None:
                buffer.append(source.payload)
            else:
                async for chunk in source.stream:
                    buffer.append(chunk)
        except BaseException:
            buffer.release()
            raise
        return buffer

    async def _receive_published(self, arrival: Arrival, source: Call | Response, nbytes: int) -> dict[str, Any]:
        await self._objects.check_publishable(arrival.id, arrival.kind)
        pieces = Pieces(source)
        spec = await pieces.first(arrival.spec_bytes)
        contents = await asyncio.to_thread(arrival.contents, spec)  # checking a large program takes a while
        if contents.nbytes + len(spec) != nbytes:
            raise BadRequest(f"{nbytes} bytes came where {contents.nbytes + len(spec)} are described")
        record = arrival.record(time.time(), contents.nbytes)
        writer = await self._store.writer(contents)
        try:
            async for chunk in pieces.rest():
                await writer.write(chunk)
        except BaseException:
            await writer.abort()
            raise
        await self._store.publish(record, writer)
        self._objects.store_changed(arrival.id)
        return record

    async def publish(self, held: Temporary, tags: tuple[str, ...], description: str | None) -> dict[str, Any]:
        """Make a temporary durable under the same id."""
        await self._objects.check_publishable(held.id, held.kind)
        arrival = Arrival(
            held.id,
            held.kind,
            held.owner,
            held.labels,
            held.header,
            0,
            True,
            tags,
            description or "",
            None,
            held.target,
        )
        if held.target is not None:
            await self._store.publish(arrival.record(held.created, 0), await self._store.writer(arrival.contents(b"")))
        else:
            header, value = await self._execution.snapshot(held)
            arrival = Arrival(
                held.id, "tensor", held.owner, held.labels, header, 0, True, tags, description or "", None
            )
            await self._publish_value(arrival, header, value)
        self._execution.release([held.id])
        self._objects.store_changed(held.id)
        return arrival.record(held.created, 0 if arrival.header is None else arrival.header.nbytes)

    async def _publish_value(self, arrival: Arrival, header: TensorHeader, value: bytes | Buffer) -> None:
        payload = payload_of(value)
        writer = await self._store.writer(Contents.one(header))
        try:
            for offset in range(0, payload.nbytes, limits.CHUNK):
                await writer.write(await payload.read(offset, min(limits.CHUNK, payload.nbytes - offset)))
        except BaseException:
            await writer.abort()
            raise
        finally:
            payload.close()
        await self._store.publish(arrival.record(time.time(), header.nbytes), writer)

    # --- out ----------------------------------------------------------------------------------------------

    async def fetch(self, asker: str, id: bytes, part: str | None) -> Answer:
        """The value of an object, or with `part` "spec" the program of a model or plan."""
        async with self._execution.lane(asker):
            held = await self._objects.find(asker, id)
            if part is not None:
                return _spec(held, part)
            permissions.check_take(asker, held, f"object {show_id(id)}")
            if isinstance(held, Temporary):
                value = self._execution.snapshot(_with_value(held))
        if isinstance(held, Published):
            return await self._stored_value(held)
        header, data = await value
        return Answer(header.to_wire(), payload_of(data))

    async def _stored_value(self, held: Published) -> Answer:
        if held.kind == "pointer":
            raise _is_pointer(held)
        if held.kind in ("model", "plan"):
            spec = held.stored.extra
            payload: Payload = await self._store.payload(held.stored, prefix=spec)
            return Answer({"spec_bytes": len(spec)}, payload)
        tensor = held.tensor
        return Answer(
            tensor.header.to_wire(), await self._store.payload(held.stored, span=(tensor.offset, tensor.nbytes))
        )

    # --- from peer to peer --------------------------------------------------------------------------------

    async def offer(self, asker: str, id: bytes, target: str, is_move: bool) -> dict[str, Any]:
        """Let `target` collect the object; the ticket that it needs."""
        if not is_peer_id(target):
            raise BadRequest("target is the id of a peer")
        held = await self._objects.find(asker, id)
        what = f"object {show_id(id)}"
        permissions.check_take(asker, held, what)
        if isinstance(held, Published) and held.part is not None and is_move:
            raise BadRequest(f"{what} is one tensor of a model: move the model, or copy the tensor")
        if is_move:
            permissions.check_edit(asker, held, what)
        ticket = self._tickets.issue(id, asker, target, is_move, time.monotonic())
        return {"ticket": ticket, "record": held.record()}

    async def pull(self, asker: str, lease: LeaseKey, args: Mapping[str, Any]) -> dict[str, Any]:
        """Collect an object from the peer that offered it to us; its record here."""
        member = self._membership.get(str(args.get("peer")))
        if member is None:
            raise NotFound(f"peer {str(args.get('peer'))[:12]} is not known here: it must join this grid first")
        id, publish = check_id(args.get("id")), bool(args.get("publish"))
        holder = await self._links.to(member, bulk=True)
        answer = await holder.request("collect", {"ticket": args.get("ticket")})
        try:
            if answer.result.get("asker") != asker:
                raise Denied("that transfer was asked for by somebody else")
            record = await self._take_in(answer, id, asker, lease, publish)
        finally:
            if answer.stream is not None:
                answer.stream.abort()
        await holder.request("collected", {"ticket": args.get("ticket")})
        return record

    async def _take_in(self, answer: Response, id: bytes, asker: str, lease: LeaseKey, publish: bool) -> dict[str, Any]:
        theirs = answer.result.get("record")
        if not isinstance(theirs, dict):
            raise BadRequest("the holder did not describe the object")
        keeps = publish and id == theirs.get("id")  # the same object in a new place keeps its owner
        owner = theirs.get("owner") if keeps else asker
        labels = theirs.get("labels")
        if not isinstance(labels, list) or not all(map(is_peer_id, labels)) or not is_peer_id(owner):
            raise BadRequest("the holder's description lacks owner or labels")
        fields = {**theirs, **answer.result, "id": id, "publish": publish}
        if not publish:
            fields["tags"] = []
        nbytes = answer.stream.nbytes if answer.stream is not None else len(answer.payload)
        arrival = Arrival.of(fields, str(owner), frozenset(labels))
        return await self.receive(arrival, lease, answer, nbytes)

    async def collect(self, peer: str, token: object) -> Answer:
        """The target comes for what it was offered."""
        ticket = self._tickets.check(_token(token), peer, time.monotonic())
        answer_to = {"asker": ticket.asker}
        async with self._execution.lane(ticket.asker):
            held = await self._objects.find(ticket.asker, ticket.object)
            permissions.check_take(ticket.asker, held, f"object {show_id(held.id)}")
            if isinstance(held, Temporary) and held.target is None:
                value = self._execution.snapshot(held)
        record = held.record()
        if held.kind == "pointer":
            return Answer({**answer_to, "record": record})
        if isinstance(held, Published):
            answer = await self._stored_value(held)
            return Answer({**answer_to, **answer.result, "record": record}, answer.payload)
        header, data = await value
        return Answer({**answer_to, **header.to_wire(), "record": {**record, **header.to_wire()}}, payload_of(data))

    async def collected(self, peer: str, token: object) -> None:
        """The target has it safely: after a move, ours goes."""
        ticket = self._tickets.check(_token(token), peer, time.monotonic())
        self._tickets.spend(_token(token))
        if ticket.is_move:
            await self.remove(await self._objects.find(ticket.asker, ticket.object))

    async def remove(self, held: Held) -> int:
        """Delete an object; 1 if it was still there."""
        if isinstance(held, Temporary):
            return self._execution.release([held.id])
        removed = await self._store.delete(held.id)
        self._objects.store_changed(held.id)
        self._execution.forget([held.id, *part_ids(held)])
        return int(removed)


def _spec(held: Held, part: str) -> Answer:
    if part != "spec" or held.kind not in ("model", "plan") or not isinstance(held, Published):
        raise BadRequest(f"{show_id(held.id)} is a {held.kind}; only models and plans have a spec")
    spec = held.stored.extra
    return Answer({"spec_bytes": len(spec)}, MemoryPayload(spec))


def _with_value(held: Temporary) -> Temporary:
    if held.target is not None:
        raise _is_pointer(held)
    return held


def _is_pointer(held: Held) -> BadRequest:
    where = held.target.name if held.target is not None else "another peer"
    return BadRequest(f"{show_id(held.id)} points to an object at {where}: fetch it there, or pull it here first")


def payload_of(value: bytes | Buffer) -> Payload:
    """A snapshot's bytes on their way out; gives its buffer back at the end."""
    return MemoryPayload(value) if isinstance(value, bytes) else MemoryPayload(value.view(), value.release)


def _token(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise BadRequest("a ticket is bytes")
    return value
