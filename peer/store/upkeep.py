"""Looking after a store while it is open: check everything, and sweep what nothing needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from peer.hashing import HASH_BYTES
from peer.store import rows
from peer.store.blobs import Blobs
from peer.store.database import Database
from peer.store.removal import Removal
from peer.store.rows import StoredObject
from protocol.errors import Corrupt, StorageError
from search.index import Index
from search.records import Record

_PAGE: Final = 256  # objects looked up at once
_log = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Called with the bytes checked so far and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Damage:
    """An object that is not what was stored: its id, name and tags as far as its row can be read, and what is wrong."""

    id: bytes
    name: str | None
    tags: tuple[str, ...]
    what: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, and what is damaged.

    Attributes:
        objects, blobs, bytes: how many were looked at; a blob that several objects share counts once.
        damaged: the objects that are not whole, in the order in which they were stored.
        database: what SQLite's integrity check and our own counts found; empty if nothing.
    """

    objects: int
    blobs: int
    bytes: int
    damaged: tuple[Damage, ...]
    database: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return not self.damaged and not self.database


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What compacting freed.

    Attributes:
        files, file_bytes: rubbish among the blobs, with what the start swept.
        database_bytes: by which the database became smaller.
        is_rewritten: whether it was written anew for that.
    """

    files: int
    file_bytes: int
    database_bytes: int
    is_rewritten: bool

    @property
    def freed(self) -> int:
        return self.file_bytes + self.database_bytes


@dataclass(slots=True)
class Tally:
    """What a check has seen so far."""

    of: int
    objects: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    verdicts: dict[str, str | None] = field(default_factory=dict)  # blob → what is wrong with it


class Upkeep:
    """Gets its parts from the store."""

    def __init__(self, blobs: Blobs, database: Database, index: Index, removal: Removal) -> None:
        self._blobs = blobs
        self._database = database
        self._index = index
        self._removal = removal
        self._swept = (0, 0)  # files and bytes, by the start

    # --- checking -------------------------------------------------------------------------------------------

    async def verify(self, progress: Progress) -> VerifyReport:
        """Check the database, and read and hash every object. Objects that come or go meanwhile may be left out."""
        total = await self._database.read(self._index.statistics)
        tally = Tally(total.bytes)
        last = 0
        while page := await self._database.read(partial(self._index.after, number=last, limit=_PAGE)):
            for _, uid in page:
                await self._verify_one(uid, tally, partial(_report, progress, tally.bytes, tally.of))
                progress(tally.bytes, tally.of)
            last = page[-1][0]
        database = await self._database.check(self._index.recount)
        return VerifyReport(tally.objects, len(tally.verdicts), tally.bytes, tuple(tally.damaged), database)

    async def _verify_one(self, uid: bytes, tally: Tally, progress: Callable[[int], object]) -> None:
        record: Record | None = None
        try:
            record = await self._database.read(lambda db: self._index.get(db, uid))
            stored = await self._database.read(lambda db: rows.find(db, self._index, uid))
            if record is None or stored is None:
                return  # deleted meanwhile
            what = await self._verify_blob(stored, tally, progress)
            tally.bytes += stored.contents.nbytes
        except Corrupt as error:
            what = error.message
        tally.objects += 1
        if what is not None and await self._is_here(uid):
            tally.damaged.append(_damage(uid, record, what))

    async def _verify_blob(self, stored: StoredObject, tally: Tally, progress: Callable[[int], object]) -> str | None:
        """What is wrong with the object's blob; None if nothing is, or it has none."""
        blob = stored.blob
        if blob is None:
            return None
        if blob not in tally.verdicts:
            try:
                tally.verdicts[blob] = await self._judge(stored, blob, progress)
            except Corrupt as error:
                tally.verdicts[blob] = error.message
        return tally.verdicts[blob]

    async def _judge(self, stored: StoredObject, blob: str, progress: Callable[[int], object]) -> str | None:
        seen = 0

        def count(nbytes: int) -> None:
            nonlocal seen
            seen += nbytes
            progress(seen)

        (await self._blobs.open(blob, stored.layout)).close()
        found = await self._blobs.measure(blob, stored.start, count)
        if found.content != blob:
            return f"blob {blob[:12]} {_difference(found.blocks, stored.layout.blocks)}"
        if found.blocks != stored.blocks:
            return f"blob {blob[:12]} is whole, but the list of its block hashes is damaged: store the object again"
        return None

    async def _is_here(self, uid: bytes) -> bool:
        try:
            return await self._database.read(lambda db: self._index.get(db, uid)) is not None
        except Corrupt:
            return True

    # --- sweeping -------------------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """For the start, when nobody writes: remove files that no row names; how many blobs are missing."""
        named = await self._database.read(lambda db: set(self._index.blobs(db)))
        found = await self._blobs.look_through(named)
        if found.temporaries or found.unnamed:
            self._swept = await self._blobs.remove_all([*found.temporaries, *found.unnamed])
        if found.missing:
            _log.error("%d blob files are lost, such as %s", len(found.missing), min(found.missing)[:12])
        return len(found.missing)

    async def compact(self, whole: Callable[[Coroutine[Any, Any, int]], Coroutine[Any, Any, int]]) -> CompactReport:
        """Remove files that no row names and nobody writes, and make the database as small as it can be."""
        if self._database.is_broken:
            # A row that could not be synced may come back with the next start, and would lack its blob.
            raise StorageError("nothing is swept after the disk has failed: restart the peer first")
        (files, freed), self._swept = self._swept, (0, 0)
        named = await self._database.read(lambda db: set(self._index.blobs(db)))
        found = await self._blobs.look_through(named)
        count, nbytes = await self._blobs.remove_temporaries(found.temporaries)
        files, freed = files + count, freed + nbytes
        for blob in found.unnamed:
            nbytes = await whole(self._remove_unused(blob))
            files, freed = files + (nbytes > 0), freed + nbytes
        smaller, is_rewritten = await self._database.compact()
        return CompactReport(files, freed, smaller, is_rewritten)

    async def _remove_unused(self, blob: str) -> int:
        # Whoever places it holds its name until the row is there.
        async with self._removal.names.hold(blob):
            return await self._removal.remove_unused(blob)


def _report(progress: Progress, before: int, of: int, more: int) -> None:
    progress(before + more, of)


def _damage(uid: bytes, record: Record | None, what: str) -> Damage:
    if record is None:
        return Damage(uid, None, (), what)
    return Damage(uid, record["name"], tuple(record["tags"]), what)


def _difference(found: bytes, stored: bytes) -> str:
    """In words, where the payload is not what was stored."""
    size = HASH_BYTES
    bad = [at // size for at in range(0, len(stored), size) if found[at : at + size] != stored[at : at + size]]
    if not bad:
        return "is not what was stored, though its payload is: take the object from another holder or delete it"
    shown = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
    return f"is damaged in {len(bad)} of {len(stored) // size} blocks ({shown}): take the object from another holder"
