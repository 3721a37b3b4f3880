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

    async def write(self, chunk: Buffer) -> None:
        """Take the next bytes; the chunk may be reused when this returns. Waits while too many wait for the disk.

        BadTensor for more bytes than the contents have; after a StorageError nothing but `abort` is left to do.
        """
        if self._is_spent:
            raise _spent()
        if self.blob is not None:
            await self.blob.write(chunk)
        elif len(self._inline) + memoryview(chunk).nbytes > self.contents.nbytes:
            raise BadTensor(f"more than the {self.contents.nbytes} bytes announced came")
        else:
            self._inline += memoryview(chunk).cast("B")

    async def seal(self) -> Sealed:
        """All bytes on the disk, or in memory if they are few; BadTensor if some are missing. For the store."""
        if self._is_spent:
            raise _spent()
        if self.blob is not None:
            return Sealed(self.contents, blob=await self.blob.seal(), start=self.blob.start)
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
