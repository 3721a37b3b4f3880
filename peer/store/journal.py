"""What the store remembers of moves, as rows: what was offered from here, and what arrived and is not confirmed.

A move must survive the end of either side at any moment. So an offer outlives the process that made it, its object
goes in the transaction that notes the end of the offer, and an arriving object comes in the transaction that notes
what its source is still to be told (moves.py). A ticket's token opens the object to whoever shows it: at the source
only its hash is kept.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from protocol import limits

TABLES: Final = (
    """
CREATE TABLE moves_out (
    token_hash BLOB PRIMARY KEY,
    object BLOB NOT NULL,          -- its id
    asker TEXT NOT NULL,           -- the principal who asked for the move
    target TEXT NOT NULL,          -- the peer that may collect
    until REAL NOT NULL,           -- seconds since the epoch: then it may be forgotten
    is_done INTEGER NOT NULL,      -- 1: the object was given up; 2: that was refused, for good
    is_move INTEGER NOT NULL       -- 0: it is offered to be copied
) STRICT, WITHOUT ROWID""",
    """
CREATE TABLE moves_in (
    token BLOB PRIMARY KEY,        -- shown again to the source
    source TEXT NOT NULL,          -- the peer it came from
    object BLOB NOT NULL,
    owner TEXT NOT NULL,           -- the object's owner here
    since REAL NOT NULL
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX moves_out_asker ON moves_out (asker, is_done, until)",
)

_OPEN: Final = 0  # values of is_done
_DONE: Final = 1
_REFUSED: Final = 2


@dataclass(frozen=True, slots=True)
class Offered:
    """An offer of an object here to a peer that may collect it until `until`, as a copy or to be given up; `is_done`
    once it was given up, `is_refused` once the target was told that it is not."""

    object: bytes
    asker: str
    target: str
    until: float
    is_done: bool
    is_refused: bool = False
    is_move: bool = True


@dataclass(frozen=True, slots=True)
class Arrived:
    """The ticket by which an object came, and the peer that it came from."""

    token: bytes
    source: str


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """An object of `owner` that arrived `since` then, and whose source has not been heard to have given it up."""

    token: bytes
    source: str
    object: bytes
    since: float
    owner: str


def note_offer(db: sqlite3.Connection, token: bytes, offered: Offered) -> None:
    """The same offer once more is the same row; a new time replaces the old."""
    db.execute(
        "INSERT INTO moves_out (token_hash, object, asker, target, until, is_done, is_move)"
        " VALUES (?, ?, ?, ?, ?, 0, ?) ON CONFLICT (token_hash) DO UPDATE SET until = excluded.until WHERE is_done = 0",
        (_hashed(token), offered.object, offered.asker, offered.target, offered.until, offered.is_move),
    )
    _keep_within_bounds(db, offered.asker, _OPEN)


def find_offer(db: sqlite3.Connection, token: bytes) -> Offered | None:
    row = db.execute(
        "SELECT object, asker, target, until, is_done, is_move FROM moves_out WHERE token_hash = ?", (_hashed(token),)
    ).fetchone()
    if row is None:
        return None
    object, asker, target, until, is_done, is_move = row
    return Offered(object, asker, target, until, is_done == _DONE, is_done == _REFUSED, bool(is_move))


def note_done(db: sqlite3.Connection, token: bytes, offered: Offered, until: float) -> None:
    """The object was given up; this is remembered until then."""
    _note_end(db, token, offered, _DONE, until)


def note_refused(db: sqlite3.Connection, token: bytes, offered: Offered, until: float) -> None:
    """The object is kept: whoever asks by this token again hears the same. This is remembered until then."""
    _note_end(db, token, offered, _REFUSED, until)


def _note_end(db: sqlite3.Connection, token: bytes, offered: Offered, how: int, until: float) -> None:
    db.execute("UPDATE moves_out SET is_done = ?, until = ? WHERE token_hash = ?", (how, until, _hashed(token)))
    _keep_within_bounds(db, offered.asker, how)


def _keep_within_bounds(db: sqlite3.Connection, asker: str, how: int) -> None:
    """Forget the oldest of this principal that ended in this way (or have not): whoever comes with them is told that
    they are not known, and keeps what it has."""
    db.execute(
        "DELETE FROM moves_out WHERE token_hash IN (SELECT token_hash FROM moves_out WHERE asker = ? AND is_done = ?"
        " ORDER BY until DESC LIMIT -1 OFFSET ?)",
        (asker, how, limits.MOVES_KEPT),
    )


def drop_offer(db: sqlite3.Connection, token: bytes) -> None:
    db.execute("DELETE FROM moves_out WHERE token_hash = ? AND is_done = 0", (_hashed(token),))


def sweep_offers(db: sqlite3.Connection, now: float) -> int:
    return db.execute("DELETE FROM moves_out WHERE until < ?", (now,)).rowcount


def has_stale(db: sqlite3.Connection, now: float) -> bool:
    return db.execute("SELECT 1 FROM moves_out WHERE until < ? LIMIT 1", (now,)).fetchone() is not None


def note_arrival(db: sqlite3.Connection, arrived: Arrived, object: bytes, owner: str, now: float) -> None:
    db.execute(
        "INSERT INTO moves_in (token, source, object, owner, since) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (token) DO NOTHING",
        (arrived.token, arrived.source, object, owner, now),
    )


def arrivals(db: sqlite3.Connection) -> list[Unconfirmed]:
    rows = db.execute("SELECT token, source, object, since, owner FROM moves_in ORDER BY since").fetchall()
    return [Unconfirmed(*row) for row in rows]


def drop_arrival(db: sqlite3.Connection, token: bytes) -> None:
    db.execute("DELETE FROM moves_in WHERE token = ?", (token,))


def _hashed(token: bytes) -> bytes:
    return blake3(token).digest()
