"""Values in and out of a peer: put, fetch, remove. Tags on a temporary: publications.py. From peer to peer: moves.py
and pulls.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from peer import permissions
from peer.arrivals import Arrival
from peer.buffers import BufferPool
from peer.calls import Answer, Call
from peer.execution import Execution
from peer.exports import Exports, Position, token_of
from peer.intake import Intake, PublishedIntake, Source, TemporaryIntake
from peer.leases import LeaseKey
from peer.objects import Damaged, Held, Objects, Published, Temporary, part_ids, show_id
from peer.payloads import MemoryPayload, Payload, Watched
from peer.publications import Publications
from peer.store.store import Arrived, Store
from peer.uploads import Uploads
from protocol import limits
from protocol.errors import BadRequest, Changed, Corrupt, Denied, NotFound

_START: Final = Position()


class Transfers:
    """Gets its parts from the peer that wires it."""

    def __init__(
        self,
        objects: Objects,
        store: Store,
        buffers: BufferPool,
        execution: Execution,
        exports: Exports,
        uploads: Uploads,
    ) -> None:
        self._objects = objects
        self._store = store
        self._buffers = buffers
        self._execution = execution
        self._exports = exports
        self._uploads = uploads
        self.publications = Publications(objects, store, execution)

    # --- in -----------------------------------------------------------------------------------------------

    async def receive(
        self,
        arrival: Arrival,
        lease: LeaseKey,
        source: Source,
        nbytes: int,
        *,
        arrived: Arrived | None = None,
        content: str | None = None,
        source_name: str = "",
    ) -> dict[str, Any]:
        """Take a value in; its record. When it returns, a published one is durable.

        Args:
            arrived: of a published object that was moved here: noted in the same transaction (Store.publish).
            content: the name that the contents of a published object must have; Corrupt, and nothing is kept, where
                they have another, which is put down to `source_name`.
        """
        intake = await self._begin(arrival, lease, nbytes)
        try:
            await intake.take(source)
            if content is not None and await intake.content() not in (None, content):
                raise Corrupt(
                    f"what {source_name or 'the source'} sent of object {show_id(arrival.id)} is not what it says that "
                    "it has: ask again, or another peer that has it",
                    peer=source_name or None,
                )
            return await intake.finish(arrived)
        except BaseException:
            await intake.abort()
            raise

    async def receive_held(self, arrival: Arrival, content: str, arrived: Arrived | None) -> dict[str, Any] | None:
        """Publish an object whose contents, of that name, are here already; None where they have to be sent.

        See Store.publish_held for who may ask for it.
        """
        if arrival.spec_bytes or arrival.kind == "pointer":
            return None
        await self._objects.check_publishable(arrival.id, arrival.kind)
        contents = arrival.contents(b"")
        record = arrival.record(time.time(), contents.nbytes)
        if not await self._store.publish_held(record, content, contents, arrived=arrived):
            return None
        self._objects.store_changed(arrival.id)
        return record

    async def put(self, arrival: Arrival, lease: LeaseKey, call: Call, offset: int) -> dict[str, Any]:
        """The same from a client that may come back when its line breaks (uploads.py)."""
        return await self._uploads.put(
            lease[0], arrival, offset, call, lambda nbytes: self._begin(arrival, lease, nbytes)
        )

    async def resume(self, asker: str, arrival: Arrival) -> dict[str, Any]:
        """How much of a broken put is here: {"offset"}, or the {"record"} where that is all."""
        known = await self._uploads.resume(asker, arrival)
        if known != {"offset": 0}:
            return known
        try:
            record = (await self._objects.find(asker, arrival.id)).record()
        except NotFound:
            return known
        return {"record": record} if arrival.describes(record) else known

    async def _begin(self, arrival: Arrival, lease: LeaseKey, nbytes: int) -> Intake:
        """Something that takes so many bytes in, once they are known to be what was described."""
        if arrival.kind == "pointer" and nbytes:
            raise BadRequest("a pointer brings no bytes")
        if arrival.kind == "tensor":
            assert arrival.header is not None
            arrival.header.check_payload(nbytes)
        if not arrival.publish:
            return TemporaryIntake(arrival, lease, nbytes, self._objects, self._buffers)
        await self._objects.check_publishable(arrival.id, arrival.kind)
        return PublishedIntake(arrival, nbytes, self._objects, self._store)

    # --- out ----------------------------------------------------------------------------------------------

    async def fetch(self, asker: str, id: bytes, part: str | None, at: Position) -> Answer:
        """The value of an object, or with `part` "spec" the program of a model or plan; from `at` on.

        Changed where the object is another one by now than that of the token.
        """
        if at.is_snapshot:
            return await self._exports.rest(asker, at)
        async with self._execution.lane(asker):
            held = await self._objects.find(asker, id)
            if part is not None:
                return await self._spec(held, part, at)
            permissions.check_take(asker, held, f"object {show_id(id)}")
            if isinstance(held, Temporary):
                if at.token is not None:
                    raise _changed()
                value = self._execution.snapshot(_with_value(held))
        if isinstance(held, Published):
            return await self.stored_value(asker, held, at)
        header, data = await value
        return await self._exports.snapshot(asker, header.to_wire(), data, at)

    def token(self, asker: str, held: Held) -> bytes | None:
        """What names a published value, at every holder of it; None where the asker may not have the value."""
        if not isinstance(held, Published) or held.kind == "pointer":
            return None
        try:
            permissions.check_take(asker, held, "")
        except Denied:
            return None
        return _token(held)

    def fetched(self, asker: str, token: object) -> None:
        """The asker will not ask for any of this again."""
        self._exports.fetched(asker, token)

    async def stored_value(self, asker: str, held: Published, at: Position = _START) -> Answer:
        """The answer for `asker` with a published object's value, from `at` on; Changed where `at` names another value.
        With the token that names it, where it goes as a stream and the asker may come again."""
        if held.kind == "pointer":
            raise _is_pointer(held)
        if held.kind in ("model", "plan"):
            spec = held.stored.extra
            payload: Payload = await self._store.payload(held.stored, prefix=spec, asker=asker)
            told: dict[str, Any] = {"spec_bytes": len(spec)}
            if held.stored.blob is not None:
                told["content"] = held.stored.blob
            return await self._from(Answer(told, payload), _token(held), at, None)
        tensor = held.tensor
        payload = await self._store.payload(held.stored, span=(tensor.offset, tensor.nbytes), asker=asker)
        about = tensor.header.to_wire()
        if held.part is None and held.stored.blob is not None:
            about["content"] = held.stored.blob
        return await self._from(Answer(about, payload), _token(held), at, blocks_of(held))

    async def _spec(self, held: Held, part: str, at: Position) -> Answer:
        if part != "spec" or held.kind not in ("model", "plan") or not isinstance(held, Published):
            raise BadRequest(f"{show_id(held.id)} is a {held.kind}; only models and plans have a spec")
        spec = held.stored.extra
        answer = Answer({"spec_bytes": len(spec)}, MemoryPayload(spec))
        return await self._from(answer, token_of("", spec, 0, 0), at, None)

    async def _from(self, answer: Answer, token: bytes, at: Position, blocks: bytes | None) -> Answer:
        payload = answer.payload
        assert payload is not None and not isinstance(payload, bytes)
        if at.token not in (None, token):
            payload.close()
            raise _changed()
        if at.offset is None or payload.nbytes <= limits.INLINE_PAYLOAD:
            return answer
        rest = await self._exports.resumed(payload, Position(at.offset, token), blocks)
        return Answer({**answer.result, "token": token}, rest)

    async def resumed(
        self,
        answer: Answer,
        version: bytes,
        args: Mapping[str, Any],
        on_close: Callable[[], None],
        blocks: bytes | None = None,
    ) -> Answer:
        """The answer to `collect`: with `offset` among the arguments the value from there on, under `version` as its
        token; without it only a value that rides beside its answer, and else `nbytes`, how much there is to ask for.

        `on_close` is called once: when the payload is closed, or now where none goes along. `blocks` are the hashes of
        the value's blocks, where they are known. Changed where the arguments name another value.
        """
        payload = answer.payload
        if payload is None or isinstance(payload, bytes):
            on_close()
            return answer
        watched = Watched(payload, on_close)
        try:
            at = Position.of(args)
        except BadRequest:
            watched.close()
            raise
        if at.offset is None and watched.nbytes > limits.INLINE_PAYLOAD:
            watched.close()
            return Answer({**answer.result, "nbytes": watched.nbytes})
        return await self._from(Answer(answer.result, watched), version, at, blocks)

    # --- away ---------------------------------------------------------------------------------------------

    async def remove(self, held: Held | Damaged) -> int:
        """Delete an object; 1 if it was still there. A published one's file may take longer: see Store.settled."""
        if isinstance(held, Temporary):
            return self._execution.release([held.id])
        removed = await self._store.delete(held.id, is_hurried=True)
        self.forget(held if isinstance(held, Published) else None, held.id)
        return int(removed)

    def forget(self, held: Published | None, id: bytes) -> None:
        """The published object of this id is gone from the store, `held` as it was, if that is known."""
        self._objects.store_changed(id)
        self._execution.forget([id, *(part_ids(held) if held is not None else ())])


def blocks_of(held: Published) -> bytes | None:
    """The hashes of its value's blocks, where the value is just the store's payload."""
    is_whole = held.kind == "tensor" and held.part is None
    return held.stored.blocks or None if is_whole else None


def _token(held: Published) -> bytes:
    stored = held.stored
    if held.kind != "tensor":
        return token_of(stored.content, stored.extra, 0, stored.contents.nbytes)
    return token_of(stored.content, b"", held.tensor.offset, held.tensor.nbytes)


def _changed() -> Changed:
    return Changed("the object is not any more what it was when this began: fetch it again")


def _with_value(held: Temporary) -> Temporary:
    if held.target is not None:
        raise _is_pointer(held)
    return held


def _is_pointer(held: Held) -> BadRequest:
    where = held.target.name if held.target is not None else "another peer"
    return BadRequest(f"{show_id(held.id)} points to an object at {where}: fetch it there, or pull it here first")
