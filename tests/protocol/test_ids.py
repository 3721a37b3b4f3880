"""Ids in a row, taken apart."""

from __future__ import annotations

import struct

import pytest

from protocol.ids import ID_BYTES, split_ids, splitter


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_each_of_those_in_a_row(count: int) -> None:
    ids = [number.to_bytes(ID_BYTES, "big") for number in range(count)]
    assert split_ids(b"".join(ids)) == ids
    assert splitter(count)(b"".join(ids)) == tuple(ids)


def test_no_other_number_than_was_said() -> None:
    for nbytes in (0, ID_BYTES, 2 * ID_BYTES - 1, 3 * ID_BYTES):
        with pytest.raises(struct.error):
            splitter(2)(bytes(nbytes))
