"""Records and contents to store, and a store that is closed when the test ends."""

import asyncio
import contextlib
import hashlib
import itertools
import os
import re
import secrets
import sqlite3
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from peer.store.contents import Contents
from peer.store.store import Store
from protocol import limits
from protocol.errors import NotFound
from protocol.tensors import TensorHeader

PEER = "p" * 52
OWNER = "o" * 52
LARGE = limits.STORE_INLINE + 1_000  # bytes: the contents of this size get a file
BLOB = re.compile(r"[0-9a-f]{64}")


def content_of(uid, nbytes):
    """Bytes that only this object has, so that what is read back proves itself."""
    return hashlib.shake_128(uid).digest(nbytes)


def make_record(nbytes=256, *, uid=None, **changes):
    record = {
        "id": uid or secrets.token_bytes(16),
        "kind": "tensor",
        "name": None,
        "owner": OWNER,
        "tags": ["digits"],
        "description": "",
        "dtype": "uint8",
        "shape": [nbytes],
        "nbytes": nbytes,
        "private": False,
        "labels": [],
        "created": 1_767_225_600.0,
        "published": True,
    }
    assert changes.keys() <= record.keys()
    return record | changes


def blobs_in(folder):
    return sorted(name for name in os.listdir(Path(folder) / "blobs") if BLOB.fullmatch(name))


def flip(path, at, bit=0):
    """Turn one bit of the byte at `at` over, whatever the file's mode says."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def failing_commits(code):
    """A class of SQLite connections: while its `is_armed` is true, their commits fail with this error code."""

    class Connection(sqlite3.Connection):
        is_armed = False

        def execute(self, sql, *parameters):
            if sql == "COMMIT" and type(self).is_armed:
                error = sqlite3.OperationalError("made by the test")
                error.sqlite_errorcode, error.sqlite_errorname = code, "TEST"
                raise error
            return super().execute(sql, *parameters)

    return Connection


def temporaries_in(folder):
    return [name for name in os.listdir(Path(folder) / "blobs") if name.startswith("tmp-")]


@contextlib.asynccontextmanager
async def opened(folder, **options):
    store = await Store.open(folder, PEER, name="alice", **options)
    try:
        yield store
    finally:
        await store.close()


async def put(store, nbytes=256, *, uid=None, data=None, **changes):
    """Publish a tensor; its record."""
    record = make_record(nbytes, uid=uid, **changes)
    await store.publish(record, content_of(record["id"], nbytes) if data is None else data)
    return record


async def bytes_of(store, stored):
    payload = await store.payload(stored)
    try:
        return bytes(await payload.read(0, payload.nbytes))
    finally:
        payload.close()


async def is_whole(store, uid):
    """Whether the object is there with the bytes that belong to it."""
    stored = await store.get(uid)
    return await bytes_of(store, stored) == content_of(uid, stored.record["nbytes"])


async def check_consistent(store, folder):
    """Every row has its whole contents, and every file its row."""
    while store._under_way:  # the file of an object that was moved away goes behind the caller's back
        await asyncio.wait(set(store._under_way))
    records = (await store.find("", 100_000)).records
    named = set()
    for record in records:
        assert await is_whole(store, record["id"])
        named.add((await store.get(record["id"])).blob)
    assert set(blobs_in(folder)) == named - {None}
    assert temporaries_in(folder) == []
    return {record["id"] for record in records}


def words_of(said):
    """What a process of process_to_kill.py said, by its kind: the ids put, those it began to delete, those deleted."""
    words = {"put": set(), "deleting": set(), "deleted": set()}
    for line in said.decode().splitlines():
        word, uid = line.split()
        words[word].add(bytes.fromhex(uid))
    return words


async def check_kept(store, words):
    """All that such a process was told is there, or gone, as it was told."""
    for uid in words["put"] - words["deleting"]:
        assert await is_whole(store, uid), "an acknowledged object is not whole"
    for uid in words["deleted"]:
        with pytest.raises(NotFound):
            await store.get(uid)


@pytest.fixture
def kit():
    """The helpers above, for tests that live in files of their own."""
    return SimpleNamespace(
        PEER=PEER,
        OWNER=OWNER,
        LARGE=LARGE,
        content_of=content_of,
        make_record=make_record,
        blobs_in=blobs_in,
        flip=flip,
        failing_commits=failing_commits,
        temporaries_in=temporaries_in,
        opened=opened,
        put=put,
        bytes_of=bytes_of,
        is_whole=is_whole,
        check_consistent=check_consistent,
        words_of=words_of,
        check_kept=check_kept,
        header=lambda nbytes: TensorHeader("uint8", (nbytes,)),
        uint8=lambda nbytes: Contents.one(TensorHeader("uint8", (nbytes,))),
        ids=lambda: (number.to_bytes(16, "big") for number in itertools.count(1)),
    )


@pytest.fixture
def quick_path(tmp_path):
    """A folder in memory where there is such a thing: for tests that start many stores and cut no power."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="grid-test-") as folder:
        yield Path(folder)


def runner(path):
    def run_body(body, **options):
        async def main():
            async with opened(path / "alice", **options) as store:
                return await body(store, path / "alice")

        return asyncio.run(main())

    return run_body


@pytest.fixture
def run(tmp_path):
    """Run `body(store, folder)` on the store of this test, which is closed after it."""
    return runner(tmp_path)


@pytest.fixture
def run_quick(quick_path):
    """The same, in memory."""
    return runner(quick_path)
