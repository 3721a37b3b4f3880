"""Long lists as a payload: rows, each a map under the rules for headers, each preceded by its length (SPEC.md, 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from protocol import limits
from protocol.codec import Buffer, pack_header, unpack_header
from protocol.errors import ProtocolError

_LENGTH_BYTES = 4


def pack_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The rows, one after another: u32 little-endian length, msgpack map."""
    packed = [pack_header(row) for row in rows]
    return b"".join(part for row in packed for part in (len(row).to_bytes(_LENGTH_BYTES, "little"), row))


def unpack_rows(data: Buffer, at_most: int) -> list[dict[str, Any]]:
    """The rows of a payload; ProtocolError for anything else, or for more of them than `at_most`."""
    view, at = memoryview(data), 0
    rows: list[dict[str, Any]] = []
    while at < len(view):
        size = int.from_bytes(view[at : at + _LENGTH_BYTES], "little")
        at += _LENGTH_BYTES
        if not 0 < size <= limits.MAX_HEADER or at + size > len(view):
            raise ProtocolError(f"row {len(rows)} of a payload is cut off, or longer than {limits.MAX_HEADER} bytes")
        if len(rows) == at_most:
            raise ProtocolError(f"a payload of more than {at_most} rows")
        rows.append(unpack_header(view[at : at + size]))
        at += size
    return rows
