"""What a query means, in plain Python: does it match this record?

The reference for every other evaluation (tests hold the SQL of search/compile.py to it), and itself in use
for temporaries, streams and the answers of other peers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from search.fields import Shape, Span
from search.records import rows_of
from search.terms import (
    EVERYTHING,
    NOTHING,
    And,
    Everything,
    Field,
    Not,
    Or,
    Query,
    Tag,
    TagPrefix,
    Word,
    rewrite,
)
from search.text import fold, searched_text

# `peer:` also takes the beginning of an id; shorter ones would catch ids when a name was meant.
MIN_PEER_ID: Final = 8


def matches(query: Query, record: Mapping[str, Any], peer_name: str = "", peer_id: str = "") -> bool:
    """Whether `query` matches a record of an object that the peer of that name and id holds.

    A field that the record has not (the dtype of a model, the rows of a scalar) satisfies no comparison, so
    it satisfies the negation of each.
    """
    match query:
        case Everything():
            return True
        case And(parts):
            return all(matches(part, record, peer_name, peer_id) for part in parts)
        case Or(parts):
            return any(matches(part, record, peer_name, peer_id) for part in parts)
        case Not(part):
            return not matches(part, record, peer_name, peer_id)
        case Tag(name):
            return name in record["tags"]
        case TagPrefix(prefix):
            return any(tag.startswith(prefix) for tag in record["tags"])
        case Word(text):
            return fold(text) in searched_text(record.get("name"), record["description"])
        case Field("peer", _, value):
            return peer_is(str(value), peer_name, peer_id)
        case Field(name, comparison, value):
            return _FIELDS[name](record, comparison, value)


def peer_is(value: str, name: str, id: str) -> bool:
    """Whether the value of a `peer:` term means the peer of this name and id."""
    if text_is(value, name):
        return True
    start = value.removesuffix("*").lower()
    return len(start) >= MIN_PEER_ID and id.startswith(start)


def text_is(value: str, text: str) -> bool:
    """Whether `text` is `value`, or begins with it where it ends with '*'; both folded."""
    if value.endswith("*"):
        return fold(text).startswith(fold(value[:-1]))
    return fold(text) == fold(value)


def resolve_peer(query: Query, name: str, id: str) -> Query:
    """The query with its `peer:` terms answered for one peer; NOTHING if that peer cannot have a match."""

    def answer(term: Query) -> Query:
        if isinstance(term, Field) and term.name == "peer":
            return EVERYTHING if peer_is(str(term.value), name, id) else NOTHING
        return term

    return rewrite(query, answer)


_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ":": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _literal_is(value: str, text: str | None) -> bool:
    if text is None:
        return False
    return text.startswith(value[:-1]) if value.endswith("*") else text == value


def _shape_is(wanted: Shape, shape: list[int] | None) -> bool:
    if shape is None or len(shape) != len(wanted):
        return False
    return all(want is None or want == dim for want, dim in zip(wanted, shape, strict=True))


def _number_is(comparison: str, wanted: int, number: int | None) -> bool:
    return number is not None and _ORDER[comparison](number, wanted)


def _moment_is(comparison: str, span: Span, moment: float) -> bool:
    match comparison:
        case "<":
            return moment < span.start
        case "<=":
            return moment < span.end
        case ">":
            return moment >= span.end
        case ">=":
            return moment >= span.start
        case _:
            return span.start <= moment < span.end


_FIELDS: Final[Mapping[str, Callable[[Mapping[str, Any], str, Any], bool]]] = {
    "kind": lambda record, _, value: _literal_is(value, record["kind"]),
    "name": lambda record, _, value: record.get("name") is not None and text_is(value, record["name"]),
    "owner": lambda record, _, value: record["owner"].startswith(value),
    "id": lambda record, _, value: record["id"].hex().startswith(value),
    "dtype": lambda record, _, value: _literal_is(value, record.get("dtype")),
    "shape": lambda record, _, value: _shape_is(value, record.get("shape")),
    "private": lambda record, _, value: record["private"] == value,
    "rows": lambda record, comparison, value: _number_is(comparison, value, rows_of(record)),
    "size": lambda record, comparison, value: _number_is(comparison, value, record["nbytes"]),
    "created": lambda record, comparison, value: _moment_is(comparison, value, record["created"]),
}
