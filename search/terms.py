"""What a query is once it is read: a tree of frozen terms, each of which prints as the text it is read from.

The tree is canonical: And and Or have at least two parts, none of their own kind; Not never holds a Not;
Everything stands alone (or inside Not, which is then NOTHING). `all_of`, `any_of` and `negate` keep it so;
a constructor refuses what is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from search.fields import FIELDS, Value
from search.tags import parse_prefix, parse_tag, show_tag
from search.text import first_control, fold

# What the parser takes without quotes, as a word and as the value of a field.
_BARE_WORD: Final = re.compile(r"[^\s()|\"*:=<>#!&-][^\s()|\"*:=<>]*")
_BARE_VALUE: Final = re.compile(r"[^\s()|\"]+")
RESERVED: Final = ("AND", "OR", "NOT")  # words of other search languages; the parser says what to write instead


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _require(is_so: bool, what: str) -> None:
    if not is_so:
        raise ValueError(f"a term of a query has to be {what}")


def _require_parts(parts: tuple[Query, ...], kind: type) -> None:
    _require(isinstance(parts, tuple) and len(parts) > 1, "canonical: build it with all_of() or any_of()")
    for part in parts:
        _require(not isinstance(part, kind) and part not in (EVERYTHING, NOTHING), "canonical: flat, no constants")


@dataclass(frozen=True, slots=True)
class Everything:
    """Every object: the empty query."""

    def __str__(self) -> str:
        return "*"


@dataclass(frozen=True, slots=True)
class Tag:
    """Objects that carry this tag."""

    name: str

    def __post_init__(self) -> None:
        _require(parse_tag(self.name) == self.name, "a tag as it is stored")

    def __str__(self) -> str:
        return show_tag(self.name)


@dataclass(frozen=True, slots=True)
class TagPrefix:
    """Objects with a tag that begins so; the empty prefix: objects with any tag."""

    prefix: str

    def __post_init__(self) -> None:
        _require(parse_prefix(self.prefix) == self.prefix, "the beginning of a tag as it is stored")

    def __str__(self) -> str:
        return f"{show_tag(self.prefix)}*"


@dataclass(frozen=True, slots=True)
class Field:
    """A comparison. `operator` is one of FIELDS[name].operators (':' is equality; '!=' is Not of it)."""

    name: str
    operator: str
    value: Value

    def __post_init__(self) -> None:
        _require(self.name in FIELDS and self.operator in FIELDS[self.name].operators, "a comparison of a field")
        rule = FIELDS[self.name]
        _require(rule.read(rule.show(self.value)) == self.value, f"a value of {self.name}")

    def __str__(self) -> str:
        shown = FIELDS[self.name].show(self.value)
        return f"{self.name}{self.operator}{shown if _BARE_VALUE.fullmatch(shown) else _quoted(shown)}"


@dataclass(frozen=True, slots=True)
class Word:
    """Objects whose name or description holds this text, upper and lower case alike."""

    text: str

    def __post_init__(self) -> None:
        _require(bool(fold(self.text)) and first_control(self.text) is None, "a text to search for")

    def __str__(self) -> str:
        is_bare = _BARE_WORD.fullmatch(self.text) and self.text not in RESERVED
        return self.text if is_bare else _quoted(self.text)


@dataclass(frozen=True, slots=True)
class Not:
    """Objects that the part does not match."""

    part: Query

    def __post_init__(self) -> None:
        _require(not isinstance(self.part, Not), "canonical: build it with negate()")

    def __str__(self) -> str:
        return f"-({self.part})" if isinstance(self.part, And | Or) else f"-{self.part}"


@dataclass(frozen=True, slots=True)
class And:
    """Objects that every part matches."""

    parts: tuple[Query, ...]

    def __post_init__(self) -> None:
        _require_parts(self.parts, And)

    def __str__(self) -> str:
        return " ".join(f"({part})" if isinstance(part, Or) else str(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    """Objects that any part matches."""

    parts: tuple[Query, ...]

    def __post_init__(self) -> None:
        _require_parts(self.parts, Or)

    def __str__(self) -> str:
        return " | ".join(str(part) for part in self.parts)


Query: TypeAlias = Everything | Tag | TagPrefix | Field | Word | Not | And | Or

EVERYTHING: Final = Everything()
NOTHING: Final = Not(EVERYTHING)


def all_of(parts: Iterable[Query]) -> Query:
    """The canonical query that matches what every part matches; of no parts, everything."""
    kept: list[Query] = []
    for part in parts:
        if part == NOTHING:
            return NOTHING
        if part != EVERYTHING:
            kept.extend(part.parts if isinstance(part, And) else (part,))
    return And(tuple(kept)) if len(kept) > 1 else kept[0] if kept else EVERYTHING


def any_of(parts: Iterable[Query]) -> Query:
    """The canonical query that matches what any part matches; of no parts, nothing."""
    kept: list[Query] = []
    for part in parts:
        if part == EVERYTHING:
            return EVERYTHING
        if part != NOTHING:
            kept.extend(part.parts if isinstance(part, Or) else (part,))
    return Or(tuple(kept)) if len(kept) > 1 else kept[0] if kept else NOTHING


def negate(part: Query) -> Query:
    """The canonical query that matches what `part` does not."""
    return part.part if isinstance(part, Not) else Not(part)


def leaves(query: Query) -> Iterator[Query]:
    """The terms of a query without the AND, OR and NOT between them, from left to right."""
    if isinstance(query, And | Or):
        for part in query.parts:
            yield from leaves(part)
    elif isinstance(query, Not):
        yield from leaves(query.part)
    else:
        yield query


def rewrite(query: Query, leaf: Callable[[Query], Query]) -> Query:
    """The query with each of its leaves replaced, made canonical again."""
    if isinstance(query, And):
        return all_of(rewrite(part, leaf) for part in query.parts)
    if isinstance(query, Or):
        return any_of(rewrite(part, leaf) for part in query.parts)
    if isinstance(query, Not):
        return negate(rewrite(query.part, leaf))
    return leaf(query)
