"""Values on their way out that may be asked for again from the middle (SPEC.md, 10: `offset` and `token`).

The token of a published object is made from the name of its contents, and nothing has to be kept: it is good after a
restart, and for nothing else than these contents. The value of a temporary may change or go at any time, so the
snapshot that is being fetched is kept under a random token: until the asker says that it has all, or for
RESUME_TIMEOUT after the last line that took from it. A principal's snapshots are bounded in number and bytes: beyond
that, values are sent without a token, and cannot be resumed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from peer.buffers import Buffer
from peer.calls import Answer
from peer.hashing import hash_of, unpack_hashes
from peer.payloads import Payload, Resumed, Wrapped, hashes_of
from peer.spans import StoredSpan, Value, memory_of, payload_of
from protocol import codec, limits
from protocol.errors import BadRequest, Changed

SNAPSHOT_TOKEN: Final = 16  # bytes; a published object's token has more
_PUBLISHED_TOKEN: Final = 32
_REMEMBERED: Final = 256  # values of which the hashes of the first blocks are remembered


@dataclass(frozen=True, slots=True)
class Position:
    """Where the asker wants a value to begin. `offset` None: it will not ask again, so nothing is kept for it."""

    offset: int | None = None
    token: bytes | None = None

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Position:
        """From the arguments of fetch or collect; BadRequest."""
        offset, token = offset_of(args), args.get("token")
        if token is not None and not isinstance(token, bytes):
            raise BadRequest("token is the bytes that the first answer gave")
        if offset and token is None:
            raise BadRequest("an offset needs the token of the first answer")
        return cls(offset, token)

    @property
    def is_snapshot(self) -> bool:
        """Whether it names a snapshot that is kept here, and no object."""
        return self.token is not None and len(self.token) == SNAPSHOT_TOKEN


def offset_of(args: Mapping[str, Any]) -> int | None:
    """Where in a value a request begins; None where it is not among its arguments. BadRequest."""
    offset = args.get("offset")
    if offset is not None and (type(offset) is not int or not 0 <= offset < limits.MAX_TENSOR or offset % limits.BLOCK):
        raise BadRequest(f"offset is a multiple of {limits.BLOCK}")
    return offset


def token_of(content: str, spec: bytes, begin: int, nbytes: int) -> bytes:
    """The token for these bytes of the published contents of that name, after that spec (of a model or plan)."""
    return blake2b(f"{content} {begin} {nbytes} ".encode() + spec, digest_size=_PUBLISHED_TOKEN).digest()


@dataclass(slots=True, eq=False)
class _Snapshot:
    """A temporary's value as it was when it was asked for. `expires` is set while nobody takes from it."""

    asker: str
    result: dict[str, Any]
    value: Buffer | StoredSpan
    takers: int = 0
    expires: float = 0.0


class Exports:
    """What one peer keeps of the values that are being fetched from it. `sweep` now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._snapshots: OrderedDict[bytes, _Snapshot] = OrderedDict()
        self._hashes: OrderedDict[bytes, list[int]] = OrderedDict()

    @property
    def count(self) -> int:
        """How many snapshots are kept."""
        return len(self._snapshots)

    # --- snapshots ----------------------------------------------------------------------------------------

    async def snapshot(self, asker: str, result: dict[str, Any], value: Value, at: Position) -> Answer:
        """The answer with a temporary's value, whose reference it takes over; kept where the asker may come again."""
        if isinstance(value, bytes) or at.offset is None or value.nbytes <= limits.INLINE_PAYLOAD:
            return Answer(result, payload_of(value))
        if not self._has_room(asker, memory_of(value)):
            return Answer(result, payload_of(value))
        token = os.urandom(SNAPSHOT_TOKEN)
        kept = self._snapshots[token] = _Snapshot(asker, result, value)
        return Answer({**result, "token": token}, self._payload(kept))

    async def rest(self, asker: str, at: Position) -> Answer:
        """The rest of a snapshot that is kept here. Changed where it is not any more."""
        kept = self._snapshots.get(at.token or b"")
        if kept is None or kept.asker != asker:
            raise Changed(
                f"what was being fetched is not kept any more (it is for {limits.RESUME_TIMEOUT:g} s after the line "
                "broke): fetch it again"
            )
        assert at.token is not None
        return Answer({**kept.result, "token": at.token}, await self.resumed(self._payload(kept), at))

    def fetched(self, asker: str, token: object) -> None:
        """The asker has all of it, or wants no more."""
        kept = self._snapshots.get(token) if isinstance(token, bytes) else None
        if kept is not None and kept.asker == asker:
            self._drop(token)  # type: ignore[arg-type]  # it was found

    def _payload(self, kept: _Snapshot) -> Payload:
        value = kept.value.acquire()
        kept.takers += 1

        def on_close() -> None:
            value.release()
            kept.takers -= 1
            kept.expires = self._clock() + limits.RESUME_TIMEOUT

        return payload_of(value, on_close)

    def _has_room(self, asker: str, nbytes: int) -> bool:
        """Whether one more snapshot may be kept; those that nobody takes from give way."""
        own = [token for token, kept in self._snapshots.items() if kept.asker == asker]
        total = nbytes + sum(memory_of(self._snapshots[token].value) for token in own)
        count = len(own) + 1
        for token in own:
            if count <= limits.MAX_PARTIALS and total <= limits.PARTIAL_BYTES:
                break
            if not self._snapshots[token].takers:
                count, total = count - 1, total - memory_of(self._snapshots[token].value)
                self._drop(token)
        return count <= limits.MAX_PARTIALS and total <= limits.PARTIAL_BYTES

    def sweep(self) -> None:
        """Let go of what nobody came back for."""
        now = self._clock()
        for token in [t for t, kept in self._snapshots.items() if not kept.takers and kept.expires <= now]:
            self._drop(token)

    def close(self) -> None:
        for token in list(self._snapshots):
            self._drop(token)

    def _drop(self, token: bytes) -> None:
        self._hashes.pop(token, None)
        self._snapshots.pop(token).value.release()

    # --- the rest of a value ------------------------------------------------------------------------------

    async def resumed(self, payload: Payload, at: Position, blocks: bytes | None = None) -> Payload:
        """The payload from `at` on, which has a token. `blocks` are the hashes of its blocks, where they are known.

        Takes the payload over.
        """
        assert at.token is not None
        offset = at.offset or 0
        try:
            if offset and offset >= payload.nbytes:
                raise BadRequest(f"offset {offset} of a value of {payload.nbytes} bytes")
            if blocks is not None:
                known = list(unpack_hashes(blocks))
            elif (hashes := hashes_of(payload)) is not None:
                known = list(hashes)
            else:
                known = self._known(at.token)
                payload = _Noting(payload, known)
            if not offset:
                return payload
            await _fill(known, payload, offset)
            return Resumed(payload, offset, known[: offset // limits.BLOCK])
        except BaseException:
            payload.close()
            raise

    def _known(self, token: bytes) -> list[int]:
        """The hashes of the first blocks of that value, as far as they were ever made here."""
        known = self._hashes.setdefault(token, [])
        self._hashes.move_to_end(token)
        while len(self._hashes) > _REMEMBERED:
            self._hashes.popitem(last=False)
        return known


async def _fill(known: list[int], payload: Payload, offset: int) -> None:
    """Add the hashes up to `offset`. What a cancelled call has made stays."""
    while len(known) * limits.BLOCK < offset:
        at = len(known)
        block = await payload.read(at * limits.BLOCK, limits.BLOCK)
        if len(known) == at:  # reading may have noted it
            known.append(hash_of(block))
        await asyncio.sleep(0)


class _Noting(Wrapped):
    """A payload whose hashes are not known yet: they are noted as it is read, for its sending and for the next time."""

    def __init__(self, payload: Payload, known: list[int]) -> None:
        super().__init__(payload)
        self._known = known
        self.hashes = known

    async def read(self, offset: int, size: int) -> codec.Buffer:
        return self._noted(offset, await super().read(offset, size))

    def now(self, offset: int, size: int) -> codec.Buffer | None:
        data = super().now(offset, size)
        return None if data is None else self._noted(offset, data)

    def _noted(self, offset: int, data: codec.Buffer) -> codec.Buffer:
        if offset == len(self._known) * limits.BLOCK and len(data) == min(limits.BLOCK, self.nbytes - offset):
            self._known.append(hash_of(data))
        return data
