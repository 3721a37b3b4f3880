"""Many changes, one commit: what the database's thread does with those that wait. Blocks; knows no loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from peer.store.mark import Mark
from peer.store.sqlite_errors import is_fatal, translated
from protocol import limits
from protocol.errors import StorageError

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Change(Generic[T]):
    """A change that waits for its turn, then holds what came of it until the loop hands it over."""

    apply: Callable[[sqlite3.Connection], T]
    future: asyncio.Future[T]
    result: list[T] = field(default_factory=list)
    error: BaseException | None = None

    def run(self, db: sqlite3.Connection) -> None:
        self.forget()
        self.result.append(self.apply(db))

    def forget(self) -> None:
        self.result.clear()
        self.error = None

    def settle(self) -> None:
        if self.future.done():
            return
        if self.error is None and self.result:
            self.future.set_result(self.result[0])
        else:
            self.future.set_exception(self.error or StorageError("the database's thread failed; see the peer's log"))
        self.error = None


class Commits:
    """The changes of one writing connection, counted. Used in its thread alone.

    Attributes:
        count: commits since the database was made.
    """

    def __init__(self, count: int, mark: Mark, is_tight: Callable[[], bool]) -> None:
        self.count = count
        self._mark = mark
        self._is_tight = is_tight
        self._broken: StorageError | None = None

    def run(
        self,
        db: sqlite3.Connection,
        waiting: deque[Change[Any]],
        settle: Callable[[Sequence[Change[Any]]], object],
    ) -> None:
        """Commit what waits, and what comes while that is done; `settle` gets each batch that is decided."""
        while waiting:
            batch: list[Change[Any]] = []
            with suppress(IndexError):
                while len(batch) < limits.STORE_COMMIT_BATCH:
                    batch.append(waiting.popleft())
            try:
                if self._is_tight():
                    _fold(db)
                if len(batch) == 1 or not self._commit_together(db, batch):
                    for change in batch:
                        self._commit_alone(db, change)
            finally:
                settle(batch)

    def _commit_together(self, db: sqlite3.Connection, batch: Sequence[Change[Any]]) -> bool:
        """All in one transaction, each undone alone if it fails. False: nothing is done, try each alone."""
        if self._broken is not None:
            return False
        try:
            db.execute("BEGIN IMMEDIATE")
            for change in batch:
                db.execute("SAVEPOINT change")
                try:
                    change.run(db)
                except Exception as error:
                    change.error = error
                    db.execute("ROLLBACK TO change")
                db.execute("RELEASE change")
            self._commit(db)
        except sqlite3.Error as error:
            # A full disk can make SQLite give up the whole transaction, whoever's statement it was.
            self._note(error)
            roll_back(db)
            return False
        for change in batch:
            change.error = change.error and _outward(change.error)
        return True

    def _commit_alone(self, db: sqlite3.Connection, change: Change[Any]) -> None:
        change.forget()
        if self._broken is not None:
            change.error = self._broken.again()
            return
        try:
            db.execute("BEGIN IMMEDIATE")
            change.run(db)
            self._commit(db)
        except Exception as error:
            self._note(error)
            roll_back(db)
            change.error = _outward(error)

    def _commit(self, db: sqlite3.Connection) -> None:
        if not db.in_transaction:
            raise sqlite3.OperationalError("the transaction was lost")
        db.execute("UPDATE counter SET changes = ?", (self.count + 1,))
        db.execute("COMMIT")
        self.count += 1
        self._mark.set(self.count)

    def _note(self, error: BaseException) -> None:
        if is_fatal(error):
            self._broken = StorageError(
                "the disk failed while the database was synced, so nothing more is written to it; "
                "check the disk and restart the peer: what was acknowledged before is kept"
            )


def roll_back(db: sqlite3.Connection) -> None:
    """Undo the transaction, if there is one still: some errors have undone it already."""
    with suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")


def _fold(db: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):  # then it is a little fuller still, and the commit will say if it is too full
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _outward(error: BaseException) -> BaseException:
    if not isinstance(error, sqlite3.Error):
        return error
    outward = translated(error)
    outward.__cause__ = error
    return outward
