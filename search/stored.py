"""An object as the columns of its rows, there and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from protocol.errors import Corrupt
from search.records import Record, check_record, rows_of
from search.text import is_text, searched_text

WRITTEN: Final = (
    "uid, kind, name, owner, description, words, dtype, shape, nrows, nbytes, private, labels, reveal, created, tags"
)


class Contents(NamedTuple):
    """Where an object's bytes are: in the blob file of that name, whose block hashes are `blocks`, or inline.

    `extra` is for the kind's own use. `content`: the name of inline contents that are to be found by it.
    """

    blob: str | None = None
    inline: bytes | None = None
    extra: bytes | None = None
    blocks: bytes = b""
    content: str | None = None


class Prepared(NamedTuple):
    """A checked record, and its columns as they are stored. Made by Index.prepare."""

    record: Record
    row: tuple[Any, ...]


def prepare(record: Record) -> Prepared:
    """Checks a record. BadRequest if it is malformed (search.records.check_record)."""
    checked = check_record({**record, "published": True})
    return Prepared(checked, _row(checked))


def _row(record: Record) -> tuple[Any, ...]:
    """A checked record as the values of WRITTEN."""
    return (
        record["id"],
        record["kind"],
        record["name"],
        record["owner"],
        record["description"],
        words_of(record["name"], record["description"]),
        record["dtype"],
        None if record["shape"] is None else f"[{','.join(map(str, record['shape']))}]",
        rows_of(record),
        record["nbytes"],
        int(record["private"]),
        texts(record["labels"]),
        texts(record.get("reveal") or []),
        record["created"],
        texts(record["tags"]),
    )


def words_of(name: str | None, description: str) -> str | None:
    """The column in which words are searched; None where there is nothing to find."""
    words = searched_text(name, description)
    return None if words == "\n" else words


def _list(uid: bytes, text: str) -> list[Any]:
    try:
        values = json.loads(text)
    except ValueError:
        raise _damaged(uid) from None
    if not isinstance(values, list):
        raise _damaged(uid)
    return values


def _check_texts(uid: bytes, *texts: object) -> None:
    """Corrupt unless each is a text or none. What was no UTF-8 in the file has halves of surrogate pairs here."""
    for text in texts:
        if text is not None and not is_text(text):
            raise _damaged(uid)


def _damaged(uid: bytes) -> Corrupt:
    return Corrupt(
        f"the row of object {uid.hex()[:12]} is damaged: take the object from another holder or delete it",
        id=uid.hex(),
    )


def texts(values: Sequence[str]) -> str:
    """A JSON list of tags or ids: their grammars have nothing that JSON would escape."""
    return '["' + '","'.join(values) + '"]' if values else "[]"


def record_of(row: Sequence[Any], peer_name: str, peer_id: str) -> Record:
    """The record in a row of compile.SELECT. Corrupt if it is damaged."""
    uid, kind, name, owner, description, dtype, shape, nbytes, private, labels, reveal, created, tags = row
    _check_texts(uid, kind, name, owner, description, dtype, shape, labels, reveal, tags)
    revealed = {"reveal": _list(uid, reveal)} if reveal != "[]" else {}
    return {
        **revealed,
        "id": uid,
        "kind": kind,
        "name": name,
        "owner": owner,
        "tags": _list(uid, tags),
        "description": description,
        "dtype": dtype,
        "shape": None if shape is None else _list(uid, shape),
        "nbytes": nbytes,
        "private": bool(private),
        "labels": _list(uid, labels),
        "created": created,
        "published": True,
        "peer": peer_name,
        "peer_id": peer_id,
    }
