"""The journal of moves: offers that outlive this process, and arrivals whose source is still to be told.

    source   offer        the ticket is on the disk before the asker has it
             give_up      object deleted and offer done, in one transaction; a second time is acknowledged again
    target   Store.publish(..., arrived=)   object and note, in one transaction
             confirmed    the source said that it gave the object up: the note goes

Whatever is cut or killed in between, after recovery the target tells the source again (`unconfirmed`), and exactly
one of them keeps the object: the target where `give_up` says True, the source where it says False.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from peer.store import journal
from peer.store.database import Database
from peer.store.journal import Arrived, Offered, Unconfirmed
from peer.store.removal import Gone, Removal
from protocol import limits
from protocol.errors import BadRequest, NotFound
from search.index import Index
from search.records import Record

__all__ = ["Arrived", "Moves", "Offered", "Unconfirmed"]

T = TypeVar("T")


class Whole(Protocol):
    """Runs several steps that neither a cancellation nor the store's end comes between."""

    async def __call__(self, work: Coroutine[Any, Any, T], /) -> T: ...


class Moves:
    """`store.moves`. Every change is on the disk when its call returns; times are seconds since the epoch."""

    def __init__(self, database: Database, index: Index, removal: Removal, whole: Whole) -> None:
        self._database = database
        self._index = index
        self._removal = removal
        self._whole = whole

    # --- at the source --------------------------------------------------------------------------------------

    async def offer(
        self, token: bytes, object: bytes, asker: str, target: str, until: float, *, is_move: bool = True
    ) -> None:
        """Remember that `target` may collect the object by this token, asked for by `asker`, until then: to have it
        alone, or as a copy.

        Only the token's hash is kept. The same offer once more (same token) only sets the time. Of one principal
        limits.MOVES_KEPT offers are kept that are open, as many that are done, and that were refused.
        """
        _check_token(token)
        offered = Offered(object, asker, target, until, is_done=False, is_move=is_move)
        await self._database.write(lambda db: journal.note_offer(db, token, offered))

    async def find(self, token: bytes) -> Offered | None:
        """What was offered by this token; None if nothing was, or it was swept. Looks at no clock."""
        _check_token(token)
        return await self._database.read(lambda db: journal.find_offer(db, token))

    async def give_up(self, token: bytes, object: bytes, unchanged: Callable[[Record], bool]) -> bool:
        """The target has it safely: delete ours and note that the offer is done, in one transaction.

        True if ours is gone by this offer, now or by an earlier call. False if `unchanged` says no to the object's
        record, or the object is gone in another way (deleted, or moved elsewhere by another offer): then the target is
        to drop its copy, and a later call gives False again, whatever the object is by then. `unchanged` runs in the
        database's thread, perhaps twice: it must only look at the record.

        Raises:
            NotFound: nothing was offered by this token, or it was swept; nothing was done.
            BadRequest: another object was.
        """
        _check_token(token)
        until = time.time() + limits.MOVE_KEPT

        def change(db: sqlite3.Connection) -> Gone[bool]:
            return self._give_up(db, token, object, unchanged, until)

        return await self._whole(self._removal.change(change, is_hurried=True))

    def _give_up(
        self,
        db: sqlite3.Connection,
        token: bytes,
        object: bytes,
        unchanged: Callable[[Record], bool],
        until: float,
    ) -> Gone[bool]:
        offered = journal.find_offer(db, token)
        if offered is None:
            raise NotFound("nothing was offered by this ticket, or it has lapsed: ask for the move again")
        if offered.object != object or not offered.is_move:
            raise BadRequest("this ticket is for another object, or for a copy")
        if offered.is_done:
            return Gone(True)  # what has this id now, if anything, came later
        record = self._index.get(db, object)
        if offered.is_refused or record is None or not unchanged(record):
            # For good: the target drops its copy, and this very request may be on the way a second time.
            journal.note_refused(db, token, offered, until)
            return Gone(False)
        gone = self._removal.delete_row(db, object)
        journal.note_done(db, token, offered, until)
        return Gone(True, gone.blobs)

    async def withdraw(self, *tokens: bytes) -> None:
        """Forget offers that were not taken up, in one transaction. Those that are done stay."""
        for token in tokens:
            _check_token(token)

        def change(db: sqlite3.Connection) -> None:
            for token in tokens:
                journal.drop_offer(db, token)

        await self._database.write(change)

    async def sweep(self, now: float | None = None) -> int:
        """Forget offers whose time is over; how many. Each start does, and whoever lives long may at times.

        One that is done is kept MOVE_KEPT from then on, so that a target that was away hears True for so long. The
        notes at a target have no such time: they go by `confirmed` alone.
        """
        at = time.time() if now is None else now
        if not await self._database.read(lambda db: journal.has_stale(db, at)):
            return 0
        return await self._database.write(lambda db: journal.sweep_offers(db, at))

    # --- at the target --------------------------------------------------------------------------------------

    async def unconfirmed(self) -> list[Unconfirmed]:
        """What arrived here and whose source has not been heard to have given it up, the oldest first."""
        return await self._database.read(journal.arrivals)

    async def confirmed(self, token: bytes) -> None:
        """The source gave it up, or will never: forget the note. Nothing if there is none."""
        _check_token(token)
        await self._database.write(lambda db: journal.drop_arrival(db, token))

    async def drop(self, token: bytes, object: bytes) -> bool:
        """The source keeps it: delete our copy and forget the note, in one transaction; whether there was a copy.

        Nothing is deleted without the note: then the move was confirmed; nor what was made later under this id.
        """
        _check_token(token)
        return await self._whole(self._removal.change(lambda db: self._drop(db, token, object)))

    def _drop(self, db: sqlite3.Connection, token: bytes, object: bytes) -> Gone[bool]:
        notes = [note for note in journal.arrivals(db) if note.token == token and note.object == object]
        if not notes:
            return Gone(False)
        journal.drop_arrival(db, token)
        record = self._index.get(db, object)
        if record is not None and record["created"] > notes[0].since:
            return Gone(False)
        return self._removal.delete_row(db, object)


def _check_token(token: bytes) -> None:
    if not isinstance(token, bytes) or not 0 < len(token) <= limits.MAX_TOKEN:
        raise BadRequest(f"a ticket is 1 to {limits.MAX_TOKEN} bytes")
