"""One database in memory, one index on it, and records with every field filled in."""

import itertools
import sqlite3

import pytest

from search import Index, migrate

ALICE = "a" * 52
OWNER = "o" * 52


@pytest.fixture
def make_record():
    numbers = itertools.count(1)

    def make(*tags, **changes):
        number = next(numbers)
        record = {
            "id": number.to_bytes(16, "big"),
            "kind": "tensor",
            "name": None,
            "owner": OWNER,
            "tags": list(tags),
            "description": "",
            "dtype": "float32",
            "shape": [10, 784],
            "nbytes": 31_360,
            "private": False,
            "labels": [],
            "created": 1_767_225_600.0 + number,  # 2026-01-01, and a second later each time
            "published": True,
        }
        assert changes.keys() <= record.keys()
        return record | changes

    return make


@pytest.fixture
def db():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    yield connection
    connection.close()


@pytest.fixture
def index():
    return Index("alice", ALICE)
