"""An object's bytes on their way in: kept in memory while they are few, else written to a blob file."""

from __future__ import annotations

from peer.store.blob_writer import BlobWriter
from peer.store.contents import Contents
from peer.store.rows import Sealed
from peer.store.waiting import undisturbed
from protocol.codec import Buffer
from protocol.errors import BadTensor, StorageError


class StoreWriter:
    """Takes the bytes of `contents`, in order. Made by Store.writer; spent by Store.publish or `abort`.

    Attributes:
        contents: what is written.
        blob: the file, where the contents are large.
    """

    def __init__(self, contents: Contents, blob: BlobWriter | None, writers: set[StoreWriter]) -> None:
        self.contents = contents
        self.blob = blob
        self._inline = bytearray()
        self._is_spent = False
        self._writers = writers
        writers.add(self)

    async def begin(self) -> None:
        """Reserve the space; once, by the store."""
        if self.blob is not None:
            await self.blob.begin()

    @property
    def taken(self) -> int:
        """Payload bytes accepted so far: where a broken transfer goes on."""
        return len(self._inline) if self.blob is None else self.blob.taken

    async def write(self, chunk: Buffer, *, is_kept: bool = False, block_hash: int | None = None) -> None:
        """Take the next bytes. Waits while too many wait for the disk.

        The chunk may be reused when this returns. With `is_kept` its owner promises not to change it for as long as
        anything refers to it; it is then written from where it lies, without a copy. `block_hash` is that of a chunk
        which is one whole block, where it is known.
        BadTensor for more bytes than the contents have; after a StorageError nothing but `abort` is left to do.
        """
        if self._is_spent:
            raise _spent()
        if self.blob is not None:
            await self.blob.write(chunk, is_kept=is_kept, block_hash=block_hash)
        elif len(self._inline) + memoryview(chunk).nbytes > self.contents.nbytes:
            raise BadTensor(f"more than the {self.contents.nbytes} bytes announced came")
        else:
            self._inline += memoryview(chunk).cast("B")

    async def seal(self) -> Sealed:
        """All bytes on the disk, or in memory if they are few; BadTensor if some are missing. For the store."""
        if self._is_spent:
            raise _spent()
        if self.blob is not None:
            name, blocks = await self.blob.seal()
            return Sealed(self.contents, blob=name, start=self.blob.start, blocks=blocks)
        if len(self._inline) != self.contents.nbytes:
            raise BadTensor(f"{len(self._inline)} of {self.contents.nbytes} bytes came")
        return Sealed(self.contents, inline=bytes(self._inline))

    async def abort(self) -> None:
        """Remove what was written; nothing after it was published. Never fails; may be called twice."""
        self._writers.discard(self)
        self._is_spent = True
        self._inline = bytearray()
        if self.blob is not None:
            await undisturbed(self.blob.abort())


def _spent() -> StorageError:
    return StorageError("this writer was published or aborted: begin again with a new one")
