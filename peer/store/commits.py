"""Many changes, one commit: what the database's thread does with those that wait. Blocks; knows no loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, Generic, Protocol, TypeVar

from peer.store.mark import Mark
from peer.store.sqlite_errors import is_fatal, translated
from protocol import limits
from protocol.errors import StorageError

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)
_WORTH_WRITING: Final = limits.MIB  # unused bytes in the database below which it is left as it is


class Kind(Protocol[Item]):
    """One kind of change to one thing, such as to insert an object, of which many may wait."""

    def one(self, db: sqlite3.Connection, item: Item, /) -> None: ...

    def all(self, db: sqlite3.Connection, items: Sequence[Item], /) -> None:
        """The same as `one` for each, at less cost. It may fail where `one` would not; all is undone then."""
        ...


@dataclass(slots=True, eq=False)
class Change(Generic[T]):
    """A change that waits for its turn, then holds what came of it until the loop hands it over.

    `kind` and `item` say that it is one of many of a kind, and are what `apply` calls.
    """

    apply: Callable[[sqlite3.Connection], T]
    future: asyncio.Future[T]
    kind: Kind[Any] | None = None
    item: Any = None
    result: list[T] = field(default_factory=list)
    error: BaseException | None = None
    is_settled: bool = False

    def run(self, db: sqlite3.Connection) -> None:
        self.forget()
        self.result.append(self.apply(db))

    def forget(self) -> None:
        self.result.clear()
        self.error = None

    def settle(self) -> None:
        self.is_settled = True
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

    @property
    def is_broken(self) -> bool:
        """Whether a sync failed, so that nothing more is written."""
        return self._broken is not None

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
            if not self._run_all(db, batch):
                self._run_each(db, batch)
            self._commit(db)
        except sqlite3.Error as error:
            # A full disk can make SQLite give up the whole transaction, whoever's statement it was.
            self._note(error)
            roll_back(db)
            return False
        for change in batch:
            change.error = change.error and _outward(change.error)
        return True

    def _run_all(self, db: sqlite3.Connection, batch: Sequence[Change[Any]]) -> bool:
        """Run a batch in which nothing fails, as most are; else undo it all, and False."""
        db.execute("BEGIN IMMEDIATE")
        try:
            for kind, alike in groupby(batch, key=lambda change: change.kind):
                _run_alike(db, kind, list(alike))
                _check_in_transaction(db)
        except Exception:
            _check_in_transaction(db)
            db.execute("ROLLBACK")
            return False
        return True

    def _run_each(self, db: sqlite3.Connection, batch: Sequence[Change[Any]]) -> None:
        """The same at the cost of two more statements a change: one that fails is undone by itself."""
        db.execute("BEGIN IMMEDIATE")
        for change in batch:
            db.execute("SAVEPOINT change")
            try:
                change.run(db)
            except Exception as error:
                change.error = error
                db.execute("ROLLBACK TO change")
            db.execute("RELEASE change")

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
        _check_in_transaction(db)
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


def _run_alike(db: sqlite3.Connection, kind: Kind[Any] | None, changes: Sequence[Change[Any]]) -> None:
    if kind is not None and len(changes) > 1:
        kind.all(db, [change.item for change in changes])
        for change in changes:
            change.result[:] = [None]
        return
    for change in changes:
        change.run(db)
        _check_in_transaction(db)


def _check_in_transaction(db: sqlite3.Connection) -> None:
    """What follows would else be committed by itself, statement by statement."""
    if not db.in_transaction:
        raise sqlite3.OperationalError("the transaction was lost")


def roll_back(db: sqlite3.Connection) -> None:
    """Undo the transaction, if there is one still: some errors have undone it already."""
    with suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")


def compact(db: sqlite3.Connection) -> bool:
    """Fold the log into the file; write the file anew if a quarter of it is unused. Whether it was written anew."""
    _fold(db)
    (unused,), (pages,), (size,) = (
        db.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count", "page_size")
    )
    if unused * 4 < pages or unused * size < _WORTH_WRITING:
        return False
    db.execute("PRAGMA temp_store=FILE").fetchall()  # a copy of the whole would else be in memory
    try:
        db.execute("VACUUM")
    finally:
        db.execute("PRAGMA temp_store=MEMORY").fetchall()
        _fold(db)
    return True


def _fold(db: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):  # then it is a little fuller still, and the commit will say if it is too full
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _outward(error: BaseException) -> BaseException:
    if not isinstance(error, sqlite3.Error):
        return error
    outward = translated(error)
    outward.__cause__ = error
    return outward
