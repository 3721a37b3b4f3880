"""A query as SQL over the tables of search/schema.py: text with placeholders, and what goes into them.

Nothing that a user or a peer wrote ever becomes SQL text. Two ways into the tables:

- a conjunction with tags starts at the rarest tag and joins the others to it by CROSS JOIN, which SQLite
  takes as an order. Measured at 1e6 objects, a rare tag and one of 100,000: 20 us; the other order, 26 ms;
- any other query that names few objects (an id, an OR of tags, a prefix) looks these up first, if that is less.

What is left is tested row by row, newest first, and stops at the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from protocol import limits
from search.fields import Shape, Span
from search.match import resolve_peer
from search.terms import (
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
    leaves,
    rewrite,
)
from search.text import fold

COLUMNS: Final = (
    "uid",
    "kind",
    "name",
    "owner",
    "description",
    "dtype",
    "shape",
    "nbytes",
    "private",
    "labels",
    "reveal",
    "created",
    "tags",
)
SELECT: Final = "SELECT " + ", ".join(f"o.{column}" for column in COLUMNS)

Statement: TypeAlias = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class TagCounts:
    """What the tags table says of the tags in one query. A tag that is not here is on no object.

    tags: name -> (row id, number of objects); prefixes: prefix -> objects its tags are on, about.
    """

    tags: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    prefixes: Mapping[str, int] = field(default_factory=dict)


def tags_in(query: Query) -> list[str]:
    """The tags that a query names, each once."""
    return list(dict.fromkeys(leaf.name for leaf in leaves(query) if isinstance(leaf, Tag)))


def prefixes_in(query: Query) -> list[str]:
    """The tag prefixes that a query names, each once."""
    return list(dict.fromkeys(leaf.prefix for leaf in leaves(query) if isinstance(leaf, TagPrefix)))


def prefix_range(prefix: str) -> tuple[str, str]:
    """[low, high) of the tags that begin with `prefix`: no tag holds a character as high as DEL."""
    return prefix, prefix + "\x7f"


def compile_query(query: Query, counts: TagCounts, limit: int, peer_name: str = "", peer_id: str = "") -> Statement:
    """The SELECT of COLUMNS that finds what `query` matches at the peer of that name and id.

    Newest first, at most `limit` rows. The rows are those for which search.match.matches is true, as long as
    `counts` was read in the same transaction.
    """
    query = _without_absent_tags(resolve_peer(query, peer_name, peer_id), counts)
    conjuncts = query.parts if isinstance(query, And) else (query,)
    tags = {part.name: counts.tags[part.name] for part in conjuncts if isinstance(part, Tag)}
    if query == NOTHING or len(tags) > limits.MAX_TAGS:  # more tags than any object has
        return f"{SELECT} FROM objects o WHERE 0", ()
    rest = [part for part in conjuncts if not isinstance(part, Tag)]
    found = _fewest(_candidates(part, counts) for part in rest)
    if tags and (found is None or min(n for _, n in tags.values()) <= found.cost):
        return _from_tags(tags, rest, limit)
    sql, values = _all(conjuncts)
    if found is not None:
        sql, values = f"o.id IN ({found.sql}) AND {sql}", found.values + values
    return f"{SELECT} FROM objects o WHERE {sql} ORDER BY o.id DESC LIMIT ?", (*values, limit)


def _from_tags(tags: Mapping[str, tuple[int, int]], rest: Sequence[Query], limit: int) -> Statement:
    ids = [id for id, _ in sorted(tags.values(), key=lambda tag: tag[1])]
    joins = "".join(f"object_tags t{i} CROSS JOIN " for i in range(len(ids)))
    links = "".join(f" AND t{i}.tag_id = ? AND t{i}.object_id = t0.object_id" for i in range(1, len(ids)))
    sql, values = _all(rest)
    return (
        f"{SELECT} FROM {joins}objects o WHERE t0.tag_id = ?{links} AND o.id = t0.object_id AND {sql}"
        " ORDER BY t0.object_id DESC LIMIT ?",
        (*ids, *values, limit),
    )


def _without_absent_tags(query: Query, counts: TagCounts) -> Query:
    def answer(term: Query) -> Query:
        if isinstance(term, Tag) and term.name not in counts.tags:
            return NOTHING
        return term

    return rewrite(query, answer)


# --- where to start ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Candidates:
    """A SELECT of object ids, no match of some term left out, and about how many it gives."""

    cost: int
    sql: str
    values: tuple[Any, ...]


def _candidates(query: Query, counts: TagCounts) -> _Candidates | None:
    """The objects that a term can match, found by an index; None where only a scan finds them."""
    match query:
        case Tag(name):
            id, n = counts.tags[name]
            return _Candidates(n, "SELECT object_id FROM object_tags WHERE tag_id = ?", (id,))
        case TagPrefix(prefix):
            ids = "SELECT id FROM tags WHERE name >= ? AND name < ?"
            sql = f"SELECT object_id FROM object_tags WHERE tag_id IN ({ids})"
            return _Candidates(counts.prefixes[prefix], sql, prefix_range(prefix))
        case Field("id", _, value):
            # Ids are random: of 16 million objects one in 16 shares the first digit, and so on.
            cost = max(1, (1 << 24) >> 4 * len(str(value)))
            return _Candidates(cost, "SELECT id FROM objects WHERE uid BETWEEN ? AND ?", uid_range(str(value)))
        case And(parts):
            return _fewest(_candidates(part, counts) for part in parts)
        case Or(parts):
            each = [_candidates(part, counts) for part in parts]
            known = [part for part in each if part is not None]
            if len(known) < len(each):
                return None
            return _Candidates(
                sum(part.cost for part in known),
                " UNION ALL ".join(part.sql for part in known),
                tuple(value for part in known for value in part.values),
            )
        case _:
            return None


def _fewest(candidates: Iterator[_Candidates | None]) -> _Candidates | None:
    return min((each for each in candidates if each is not None), key=lambda each: each.cost, default=None)


# --- testing a row ----------------------------------------------------------------------------------------
# Each expression is 1 or 0 and never NULL, so that NOT means what it says.
def _all(parts: Sequence[Query]) -> Statement:
    return _joined(" AND ", parts) if parts else ("1", ())


def _joined(word: str, parts: Sequence[Query]) -> Statement:
    each = [_test(part) for part in parts]
    return "(" + word.join(sql for sql, _ in each) + ")", tuple(value for _, values in each for value in values)


def _test(query: Query) -> Statement:
    match query:
        case Everything():
            return "1", ()
        case And(parts):
            return _joined(" AND ", parts)
        case Or(parts):
            return _joined(" OR ", parts)
        case Not(part):
            sql, values = _test(part)
            return f"NOT {sql}", values
        case Tag(name):
            # The list is JSON, and no character of a tag is escaped there: its quotes mark where tags begin and end.
            return "(instr(o.tags, ?) > 0)", (f'"{name}"',)
        case TagPrefix(prefix):
            return "(instr(o.tags, ?) > 0)", (f'"{prefix}',)
        case Word(text):
            return "(ifnull(instr(o.words, ?), 0) > 0)", (fold(text),)
        case Field(name, comparison, value):
            return _FIELDS[name](comparison, value)


def _begins(column: str) -> Callable[[str, Any], Statement]:
    def test(_: str, value: str) -> Statement:
        return f"(substr(o.{column}, 1, ?) = ?)", (len(value), value)

    return test


def _literal(column: str) -> Callable[[str, Any], Statement]:
    def test(_: str, value: str) -> Statement:
        if value.endswith("*"):
            return f"(ifnull(substr(o.{column}, 1, ?) = ?, 0))", (len(value) - 1, value[:-1])
        return f"(o.{column} IS ?)", (value,)

    return test


def _number(column: str) -> Callable[[str, Any], Statement]:
    def test(comparison: str, value: int) -> Statement:
        return f"(ifnull(o.{column} {_ORDER[comparison]} ?, 0))", (int(value),)

    return test


def _name(_: str, value: str) -> Statement:
    begin = fold(value[:-1]) if value.endswith("*") else fold(value) + "\n"
    return "(o.name IS NOT NULL AND instr(o.words, ?) = 1)", (begin,)


def uid_range(start: str) -> tuple[bytes, bytes]:
    """The lowest and the highest id that begin with these hexadecimal digits."""
    return bytes.fromhex(start.ljust(32, "0")), bytes.fromhex(start.ljust(32, "f"))


def _id(_: str, value: str) -> Statement:
    return "(o.uid BETWEEN ? AND ?)", uid_range(value)


def _shape(_: str, shape: Shape) -> Statement:
    known = [(index, dim) for index, dim in enumerate(shape) if dim is not None]
    tests = "".join(f" AND json_extract(o.shape, '$[{index}]') = ?" for index, _ in known)
    values = (len(shape), *(dim for _, dim in known))
    return f"(ifnull(json_array_length(o.shape) = ?{tests}, 0))", values


def _created(comparison: str, span: Span) -> Statement:
    match comparison:
        case "<":
            return "(o.created < ?)", (span.start,)
        case "<=":
            return "(o.created < ?)", (span.end,)
        case ">":
            return "(o.created >= ?)", (span.end,)
        case ">=":
            return "(o.created >= ?)", (span.start,)
        case _:
            return "(o.created >= ? AND o.created < ?)", (span.start, span.end)


_ORDER: Final[Mapping[str, str]] = {":": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}

_FIELDS: Final[Mapping[str, Callable[[str, Any], Statement]]] = {
    "kind": _literal("kind"),
    "name": _name,
    "owner": _begins("owner"),
    "id": _id,
    "dtype": _literal("dtype"),
    "shape": _shape,
    "private": _number("private"),
    "rows": _number("nrows"),
    "size": _number("nbytes"),
    "created": _created,
}
