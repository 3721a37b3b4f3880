"""How many objects a second the store takes and gives, and how long it takes to open a million of them.

Objects of 1,000 bytes with three tags. Reference, in the same run on the same disk: sqlite3 alone in a loop (WAL,
synchronous=FULL), which inserts the same rows into the same tables and does nothing else, one object to a commit, and
selects them again. `sqlite_64` puts 64 objects into a commit, as ours may where 64 writers wait.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure, interleaved, options, report
from peer.process import run_loop
from peer.store.contents import Contents
from peer.store.rows import Sealed
from peer.store.store import Store
from protocol.tensors import TensorHeader
from search.schema import migrate

_PEER, _OWNER = "p" * 52, "o" * 52
_NBYTES = 1_000
_WRITERS = 64
_MILLION = 1_000_000
_TAGS = ["digits", "test", "images"]


def _record(uid: bytes) -> dict[str, Any]:
    return {
        "id": uid,
        "kind": "tensor",
        "name": None,
        "owner": _OWNER,
        "tags": _TAGS,
        "description": "",
        "dtype": "uint8",
        "shape": [_NBYTES],
        "nbytes": _NBYTES,
        "private": False,
        "labels": [],
        "created": 0.0,
        "published": True,
    }


def _sealed() -> Sealed:
    return Sealed(Contents.one(TensorHeader("uint8", (_NBYTES,))), inline=bytes(_NBYTES))


# --- ours -------------------------------------------------------------------------------------------------
class Ours:
    """The store in `folder`; every call gives a rate a second."""

    def __init__(self, store: Store, count: int) -> None:
        self._store = store
        self._count = count
        self.ids: list[bytes] = []

    async def put_singly(self) -> float:
        return await self._timed(self._count, self._put(self._count))

    async def put_batched(self) -> float:
        each = 4 * self._count // _WRITERS
        return await self._timed(each * _WRITERS, asyncio.gather(*(self._put(each) for _ in range(_WRITERS))))

    async def get(self) -> float:
        async def all_of_them() -> None:
            for uid in self.ids[: self._count]:
                assert len((await self._store.get(uid)).inline or b"") == _NBYTES

        return await self._timed(min(self._count, len(self.ids)), all_of_them())

    async def _put(self, count: int) -> None:
        for _ in range(count):
            uid = secrets.token_bytes(16)
            await self._store.publish(_record(uid), bytes(_NBYTES))
            self.ids.append(uid)

    async def _timed(self, count: int, work: Any) -> float:
        begun = time.perf_counter()
        await work
        return count / (time.perf_counter() - begun)


# --- the reference ----------------------------------------------------------------------------------------
class Bare:
    """sqlite3 alone: the same rows in the same tables, by the plain statements for that and no other work."""

    def __init__(self, path: Path, count: int) -> None:
        self._count = count
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL").fetchall()
        self._db.execute("PRAGMA synchronous=FULL").fetchall()
        migrate(self._db)
        for number, tag in enumerate(_TAGS, 1):
            self._db.execute("INSERT INTO tags VALUES (?, ?, 0)", (number, tag))
        self._extra = _sealed().place().extra
        self._ids: list[bytes] = []

    def close(self) -> None:
        self._db.close()

    async def put_singly(self) -> float:
        return self._put(self._count, 1)

    async def put_batched(self) -> float:
        return self._put(4 * self._count, _WRITERS)

    async def get(self) -> float:
        begun = time.perf_counter()
        wanted = self._ids[: self._count]
        for uid in wanted:
            row = self._db.execute(
                "SELECT o.*, c.* FROM objects o JOIN contents c ON c.object_id = o.id WHERE o.uid = ?", (uid,)
            ).fetchone()
            assert row is not None
        return len(wanted) / (time.perf_counter() - begun)

    def _put(self, count: int, to_a_commit: int) -> float:
        begun = time.perf_counter()
        for _ in range(count // to_a_commit):
            self._db.execute("BEGIN IMMEDIATE")
            for _ in range(to_a_commit):
                self._insert(secrets.token_bytes(16))
            self._db.execute("COMMIT")
        return count // to_a_commit * to_a_commit / (time.perf_counter() - begun)

    def _insert(self, uid: bytes) -> None:
        db = self._db
        values = (
            uid,
            "tensor",
            _OWNER,
            "",
            "uint8",
            "[1000]",
            1000,
            _NBYTES,
            0,
            "[]",
            0.0,
            '["digits","test","images"]',
        )
        number = db.execute(
            "INSERT INTO objects (uid, kind, owner, description, dtype, shape, nrows, nbytes, private, labels, created,"
            " tags) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        ).lastrowid
        db.execute("INSERT INTO contents VALUES (?, NULL, ?, ?)", (number, bytes(_NBYTES), self._extra))
        for tag in range(1, len(_TAGS) + 1):
            db.execute("UPDATE tags SET n = n + 1 WHERE id = ?", (tag,))
            db.execute("INSERT INTO object_tags VALUES (?, ?)", (tag, number))
        db.execute("UPDATE totals SET objects = objects + 1, bytes = bytes + ?", (_NBYTES,))
        self._ids.append(uid)


# --- a million objects ------------------------------------------------------------------------------------
def _fill(path: Path, count: int) -> None:
    """Rows of so many objects with three tags each, by SQL alone: publishing them one by one takes minutes."""
    place = _sealed().place()
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
    with sqlite3.connect(path, isolation_level=None) as db:
        for setting in ("PRAGMA synchronous=OFF", "PRAGMA journal_mode=OFF", "PRAGMA cache_size=-200000"):
            db.execute(setting).fetchall()
        db.execute("BEGIN")
        db.execute(
            "INSERT INTO objects (id, uid, kind, owner, description, dtype, shape, nrows, nbytes, private, labels,"
            " created, tags)"
            f" {numbers} SELECT i, CAST(printf('%016d', i) AS BLOB), 'tensor', ?, '', 'uint8', '[1000]', 1000, 1000, 0,"
            " '[]', 0.0, '[\"a' || i % 100 || '\",\"b' || i % 10000 || '\",\"c' || i % 100000 || '\"]' FROM n",
            (_OWNER,),
        )
        # The bytes of most are left out: a start reads none, and a gigabyte of zeros would only take time.
        db.execute(
            "INSERT INTO contents (object_id, inline, extra)"
            f" {numbers} SELECT i, iif(i % 100, zeroblob(64), ?), ? FROM n",
            (place.inline, place.extra),
        )
        first = 0
        for letter, kinds in (("a", 100), ("b", 10_000), ("c", 100_000)):
            kinds = min(kinds, count)
            each = f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {kinds - 1}) "
            db.execute(f"INSERT INTO tags {each} SELECT {first} + i, '{letter}' || i, {count // kinds} FROM n")
            db.execute(
                f"INSERT INTO object_tags {each}, m(j) AS (SELECT 0 UNION ALL SELECT j + 1 FROM m"
                f" WHERE j < {count // kinds - 1}) SELECT {first} + i, j * {kinds} + iif(i, i, {kinds}) FROM n, m"
            )
            first += kinds
        db.execute(f"UPDATE totals SET objects = {count}, bytes = 1000 * {count}")
        db.execute("COMMIT")
    db.close()


async def _start(folder: Path) -> float:
    begun = time.perf_counter()
    store = await Store.open(folder, _PEER)
    found = await store.statistics()
    taken = time.perf_counter() - begun
    await store.close()
    assert found.objects >= _MILLION
    return taken


async def _start_after_kill(folder: Path) -> float:
    """The same with changes in the log that no orderly end folded into the file."""
    store = await Store.open(folder, _PEER)
    try:
        for _ in range(200):
            await store.publish(_record(secrets.token_bytes(16)), bytes(_NBYTES))
        with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
            await asyncio.to_thread(shutil.copytree, folder, Path(copy) / "killed")
            return await _start(Path(copy) / "killed")
    finally:
        await store.close()


# --- all --------------------------------------------------------------------------------------------------
async def measure(quick: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="grid-bench-") as folder:
        figures = await _rates(Path(folder), 300 if quick else 1_000, 5 if quick else 15)
        figures += await _starts(Path(folder), 3 if quick else 9)
    return figures


async def _rates(folder: Path, count: int, rounds: int) -> list[Figure]:
    bare = Bare(folder / "bare.sqlite", count)
    store = await Store.open(folder / "alice", _PEER)
    try:
        ours = Ours(store, count)
        found = await interleaved(
            rounds,
            {
                "put_durable": ours.put_singly,
                "bare_put_durable": bare.put_singly,
                "put_batched": ours.put_batched,
                "bare_put_batched": bare.put_batched,
                "get": ours.get,
                "bare_get": bare.get,
            },
        )
    finally:
        await store.close()
        bare.close()
    what = {
        "put_durable": ("objects of 1,000 bytes put one after another, each durable", ""),
        "put_batched": (f"the same from {_WRITERS} writers at once", "at least 0.7"),
        "get": ("objects read one after another, checked", ""),
    }
    return [
        Figure(name, words, "1/s", found[name], _references(name, found), bar) for name, (words, bar) in what.items()
    ]


def _references(name: str, found: Mapping[str, float]) -> dict[str, float]:
    if name == "put_batched":
        return {"sqlite": found["bare_put_durable"], "sqlite_64": found["bare_put_batched"]}
    return {"sqlite": found[f"bare_{name}"]}


async def _starts(folder: Path, rounds: int) -> list[Figure]:
    await (await Store.open(folder / "million", _PEER)).close()
    await asyncio.to_thread(_fill, folder / "million" / "objects.sqlite", _MILLION)
    found = await interleaved(rounds, {"start_1e6": lambda: _start(folder / "million")})
    killed = await _start_after_kill(folder / "million")
    return [
        Figure("start_1e6", "opening a store of 1e6 objects", "s", found["start_1e6"], {}, "at most 2"),
        Figure("start_1e6_killed", "the same after kill -9", "s", killed, {}, "at most 2"),
    ]


if __name__ == "__main__":
    chosen = options(__doc__)
    report("store", run_loop(measure(chosen.quick)), chosen)
