"""Rows: long lists of maps in a payload, each under the rules of a header."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from protocol import limits
from protocol.errors import GridError, ProtocolError
from protocol.rows import pack_rows, unpack_rows

ROWS: list[dict[str, Any]] = [{"id": bytes(16), "tags": ["a", "b"], "created": 1.5}, {}, {"name": None}]


def test_rows_come_back_as_they_were() -> None:
    assert unpack_rows(pack_rows(ROWS), at_most=3) == ROWS


def test_no_rows_are_no_bytes() -> None:
    assert pack_rows([]) == b"" and unpack_rows(b"", at_most=0) == []


def test_more_rows_than_wanted_are_refused() -> None:
    with pytest.raises(ProtocolError, match="more than 2"):
        unpack_rows(pack_rows(ROWS), at_most=2)


def test_rows_cut_anywhere_are_refused() -> None:
    whole = pack_rows(ROWS[:1])
    for length in range(1, len(whole)):
        with pytest.raises(ProtocolError):
            unpack_rows(whole[:length], at_most=9)


@pytest.mark.parametrize("size", [0, limits.MAX_HEADER + 1, 2**31, 2**32 - 1])
def test_a_length_beyond_its_limit_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        unpack_rows(size.to_bytes(4, "little") + msgpack.packb({}), at_most=9)


@pytest.mark.parametrize("row", [b"\x90", b"\xc0", b"\x82\xa1a\x01\xa1a\x01", b"\x81\xa1a\xd4\x05\x00"])
def test_each_row_is_under_the_rules_of_a_header(row: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_rows(len(row).to_bytes(4, "little") + row, at_most=9)


def test_a_row_that_cannot_travel_never_leaves() -> None:
    with pytest.raises(GridError):
        pack_rows([{"id": object()}])


def test_mutated_rows_are_refused_as_such() -> None:
    chance = random.Random(7)
    whole = pack_rows(ROWS)
    for _ in range(3_000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            unpack_rows(bytes(data), at_most=9)
        except ProtocolError:
            pass
