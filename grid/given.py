"""What the arguments of a plan mean: queries, or what they are themselves.

A text is a query where it says so itself: it has a tag (`#digits`) or a field (`kind:model`) in it. All other texts are
options of the function ("mean", "ij,jk->ik"). `grid.query("hand written")` makes a query of words alone, and
`grid.text("#1")` keeps a text that would be one from being taken for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from protocol.errors import QueryError
from search.fields import FIELDS
from search.query import parse_query
from search.terms import Field, Tag, TagPrefix, leaves


class Query(str):
    """A text that is a query, whatever is in it."""

    __slots__ = ()


class Text(str):
    """A text that is no query, whatever is in it."""

    __slots__ = ()


def query(text: str) -> Query:
    """An argument that is a query though it has no tag and no field: `g.run(plan, images=grid.query("hand written"))`.

    Raises:
        QueryError: it does not parse.
    """
    parse_query(text)
    return Query(text)


def text(value: str) -> Text:
    """An argument that is a text, and no query: `g.run(plan, title=grid.text("#1"))`."""
    return Text(value)


class PerPeer(dict[str, Any]):
    """{peer: result}, as `g.map` gives it. As an argument of `g.map` it stands for each peer's own result."""


# Where a term begins: a tag, or a field with its operator.
_TERM: Final = re.compile(rf"(?:^|[\s(|!-])(?:#|(?:{'|'.join(FIELDS)})\s*(?:[:=<>]|!=))", re.IGNORECASE)


def as_query(value: object) -> str | None:
    """The query that an argument is; None where it is something else.

    Raises:
        QueryError: it has a tag or a field, and does not parse.
    """
    if isinstance(value, Query):
        return str(value)
    if not isinstance(value, str) or isinstance(value, Text):
        return None
    try:
        parsed = parse_query(value)
    except QueryError:
        if _TERM.search(value):
            raise
        return None
    return value if any(isinstance(leaf, Tag | TagPrefix | Field) for leaf in leaves(parsed)) else None


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What is in lists, tuples and dicts, however deep, each with its path: "pair.0", "batch.images"."""
    if isinstance(value, Mapping) and not isinstance(value, PerPeer):
        for key, item in value.items():
            yield from walk(item, joined(path, key))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from walk(item, joined(path, at))
    else:
        yield path, value


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and dicts with `change` applied to what is in them."""
    if isinstance(value, Mapping) and not isinstance(value, PerPeer):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [mapped(item, change) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return tuple(items) if isinstance(value, tuple) else items
    return change(value)


def queries(value: Any) -> dict[str, str]:
    """All queries among arguments, each with the path of the first argument that it stands in."""
    found: dict[str, str] = {}
    for path, item in walk(value):
        asked = as_query(item)
        if asked is not None:
            found.setdefault(asked, path)
    return found


def plain_texts(value: Any) -> dict[str, str]:
    """The texts that were taken for options, by path; without those that are said to be texts."""
    return {
        path: item
        for path, item in walk(value)
        if isinstance(item, str) and not isinstance(item, Text) and as_query(item) is None
    }


def joined(path: str, key: object) -> str:
    """The path of an item, as programs name their inputs (PROGRAM.md, Inputs)."""
    return f"{path}.{key}" if path else str(key)
