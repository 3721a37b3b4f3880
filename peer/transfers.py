"""Values in and out of a peer: put, fetch, publish, remove. The way from peer to peer is in moves.py."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from peer import permissions
from peer.arrivals import Arrival, Pieces
from peer.buffers import Buffer, BufferPool
from peer.calls import Answer, Call, Response
from peer.execution import Execution
from peer.leases import LeaseKey
from peer.objects import Held, Objects, Published, Temporary, part_ids, show_id
from peer.payloads import MemoryPayload, Payload
from peer.store.contents import Contents
from peer.store.store import Store
from protocol import limits
from protocol.errors import BadRequest, GridError
from protocol.tensors import TensorHeader


class Transfers:
    """Gets its parts from the peer that wires it."""

    def __init__(
        self,
        objects: Objects,
        store: Store,
        buffers: BufferPool,
        execution: Execution,
    ) -> None:
        self._objects = objects
        self._store = store
        self._buffers = buffers
        self._execution = execution

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
            return await self.stored_value(held)
        header, data = await value
        return Answer(header.to_wire(), payload_of(data))

    async def stored_value(self, held: Published) -> Answer:
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

    # --- away ---------------------------------------------------------------------------------------------

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
