"""Bytes on their way out: where a Reply's or Request's payload is read from, chunk by chunk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

from protocol import limits
from protocol.codec import Buffer
from protocol.errors import Corrupt, StorageError


class Payload(Protocol):
    """`nbytes` bytes that can be read in pieces. `close` is called once, when nobody reads any more."""

    @property
    def nbytes(self) -> int: ...

    async def read(self, offset: int, size: int) -> Buffer:
        """`size` bytes from `offset` on; both within the payload."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class AtHand(Protocol):
    """A payload that can be read without waiting, at least in parts."""

    def now(self, offset: int, size: int) -> Buffer | None:
        """As `read`; None where that has to be waited for."""
        ...


def hashes_of(payload: Payload) -> Sequence[int] | None:
    """The hashes of the payload's blocks, where they are known: each by the time that its block has been read."""
    hashes: Sequence[int] | None = getattr(payload, "hashes", None)
    return hashes


def preceding_of(payload: Payload) -> Sequence[int]:
    """The hashes of the blocks before, of a payload that begins in the middle of a value."""
    preceding: Sequence[int] = getattr(payload, "preceding", ())
    return preceding


class Wrapped:
    """A payload that is another one, and more: a subclass says what."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._now = payload.now if isinstance(payload, AtHand) else None
        self.hashes = hashes_of(payload)
        self.preceding = preceding_of(payload)

    @property
    def nbytes(self) -> int:
        return self._payload.nbytes

    async def read(self, offset: int, size: int) -> Buffer:
        return await self._payload.read(offset, size)

    def now(self, offset: int, size: int) -> Buffer | None:
        return None if self._now is None else self._now(offset, size)

    def close(self) -> None:
        self._payload.close()


class Watched(Wrapped):
    """A payload, and who wants to hear when it has been closed, once."""

    def __init__(self, payload: Payload, on_close: Callable[[], None]) -> None:
        super().__init__(payload)
        self._on_close: Callable[[], None] | None = on_close

    def close(self) -> None:
        super().close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


class MemoryPayload:
    """Bytes that are in memory already. They must not change until `close`.

    `hashes` are those of its blocks, where they are known: they are then sent as they are, so that the receiver checks
    what it gets against what once came here.
    """

    def __init__(
        self, data: Buffer, on_close: Callable[[], None] | None = None, hashes: Sequence[int] | None = None
    ) -> None:
        self._view = memoryview(data).cast("B")
        self._on_close = on_close
        self.hashes = hashes if hashes is not None and len(hashes) == -(-len(self._view) // limits.BLOCK) else None

    @property
    def nbytes(self) -> int:
        return len(self._view)

    async def read(self, offset: int, size: int) -> Buffer:
        return self.now(offset, size)

    def now(self, offset: int, size: int) -> Buffer:
        return self._view[offset : offset + size]

    def close(self) -> None:
        self._view.release()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


class JoinedPayload:
    """Several pieces of memory, one after the other, without joining them. They must not change until `close`.

    `progress` is called with the bytes read so far and the bytes in all.
    """

    def __init__(self, pieces: Sequence[Buffer], progress: Callable[[int, int], None] | None = None) -> None:
        self._progress = progress
        self._pieces = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        self._ends = list(accumulate(len(piece) for piece in self._pieces))

    @property
    def nbytes(self) -> int:
        return self._ends[-1] if self._ends else 0

    async def read(self, offset: int, size: int) -> Buffer:
        return self.now(offset, size)

    def now(self, offset: int, size: int) -> Buffer:
        if self._progress is not None:
            self._progress(offset + size, self.nbytes)
        at = bisect_right(self._ends, offset)
        start = offset - (self._ends[at - 1] if at else 0)
        if start + size <= len(self._pieces[at]):
            return self._pieces[at][start : start + size]  # no copy
        got = bytearray()
        while len(got) < size:
            got += self._pieces[at][start : start + size - len(got)]
            at, start = at + 1, 0
        return got

    def close(self) -> None:
        for piece in self._pieces:
            piece.release()


class Resumed(Wrapped):
    """The bytes of `payload` from `offset` on (a multiple of limits.BLOCK), which it closes.

    `preceding` are the hashes of the blocks before: the digest at the end is that of the whole value.
    """

    def __init__(self, payload: Payload, offset: int, preceding: Sequence[int]) -> None:
        if offset % limits.BLOCK or len(preceding) != offset // limits.BLOCK or offset >= payload.nbytes:
            raise ValueError(f"{len(preceding)} blocks before byte {offset} of {payload.nbytes}")
        super().__init__(payload)
        self._offset = offset
        self.preceding = preceding
        is_known = self.hashes is not None and len(self.hashes) * limits.BLOCK >= payload.nbytes
        self.hashes = self.hashes[len(preceding) :] if self.hashes is not None and is_known else None

    @property
    def nbytes(self) -> int:
        return self._payload.nbytes - self._offset

    async def read(self, offset: int, size: int) -> Buffer:
        return await super().read(self._offset + offset, size)

    def now(self, offset: int, size: int) -> Buffer | None:
        return super().now(self._offset + offset, size)


def split(payload: Buffer | Payload) -> tuple[Buffer, Payload | None]:
    """What rides beside the header, and what goes as a stream."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        if payload.nbytes:
            return b"", payload
        payload.close()
        return b"", None
    if len(payload) <= limits.INLINE_PAYLOAD:
        return payload, None
    return b"", MemoryPayload(payload)


async def read_all(source: Payload) -> Buffer:
    """A small payload whole. StorageError, Corrupt."""
    try:
        data = await source.read(0, source.nbytes) if source.nbytes else b""
    except OSError as error:
        raise StorageError(f"the disk refused a read: {error.strerror}") from None
    if len(data) != source.nbytes:
        raise Corrupt(f"{len(data)} bytes where there should be {source.nbytes}")
    return data


def close_payload(source: Payload | bytes | None) -> None:
    """Nobody will read this any more; bytes, or none, need no closing."""
    if source is not None and not isinstance(source, bytes):
        source.close()
