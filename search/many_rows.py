"""Many rows in few statements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from search.schema import Database

# sqlite3 lets the interpreter's lock go for each step of a statement and must win it back after: with a step for each
# row, a thread that inserts many moves on only while the event loop's is idle.
_ROWS: Final = 16


def insert_rows(db: Database, into: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows, all of one length, `into` a table whose columns are named: `tags (name, n)`."""
    if not rows:
        return
    whole = len(rows) - len(rows) % _ROWS
    for start in range(0, whole, _ROWS):
        db.execute(_statement(into, _ROWS, len(rows[0])), list(chain.from_iterable(rows[start : start + _ROWS])))
    db.executemany(_statement(into, 1, len(rows[0])), rows[whole:])


@lru_cache(64)
def _statement(into: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT INTO {into} VALUES {', '.join([row] * rows)}"
