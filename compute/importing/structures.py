"""The nested structure of a call, as torch writes it into its archives (torch.utils._pytree, treespec_dumps)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from compute.wire import MAX_VALUE_DEPTH, shown
from protocol.errors import BadFile

_PROTOCOL: Final = 1
_TUPLES: Final = frozenset({"builtins.tuple", "collections.namedtuple"})
_FX: Final = "torch.fx.immutable_collections.immutable_"  # what a module that was a graph once gives
_LISTS: Final = frozenset({"builtins.list", f"{_FX}list"})
_DICTS: Final = frozenset({"builtins.dict", "collections.OrderedDict", f"{_FX}dict"})


def structure(text: object, leaves: Sequence[Any]) -> Any:
    """The tuples, lists and dicts that the text describes, with these leaves in order.

    Raises:
        BadFile: it is no such text, names a class of somebody's own, or has another number of leaves.
    """
    try:
        protocol, described = json.loads(text)  # type: ignore[arg-type]  # what is no text raises, as other nonsense does
    except (TypeError, ValueError, RecursionError):
        raise BadFile("the structure of its arguments or results is not readable") from None
    if protocol != _PROTOCOL:
        raise BadFile(f"the structure of its arguments is written in form {shown(protocol)}, and {_PROTOCOL} is read")
    rest = iter(leaves)
    found = _build(described, rest, 0)
    if next(rest, rest) is not rest:
        raise BadFile("it has more values than its structure has places for them")
    return found


def _build(described: Any, leaves: Iterator[Any], depth: int) -> Any:
    if not isinstance(described, dict) or depth > MAX_VALUE_DEPTH:
        raise BadFile("the structure of its arguments or results is not readable")
    kind, inner = described.get("type"), described.get("children_spec")
    if not isinstance(inner, list):
        raise BadFile("the structure of its arguments or results is not readable")
    if kind is None:
        for leaf in leaves:
            return leaf
        raise BadFile("it has fewer values than its structure has places for them")
    items = [_build(item, leaves, depth + 1) for item in inner]
    if kind in _TUPLES:
        return tuple(items)
    if kind in _LISTS:
        return items
    if kind in _DICTS:
        return dict(zip(_keys(described.get("context"), len(items)), items, strict=True))
    raise BadFile(f"it takes or gives a {shown(kind)}: export it with tuples, lists and dicts")


def _keys(context: Any, count: int) -> list[str]:
    try:
        keys = json.loads(context)
    except (TypeError, ValueError, RecursionError):
        keys = None
    if not isinstance(keys, list) or len(keys) != count or not all(isinstance(key, str) for key in keys):
        raise BadFile("a dict among its arguments or results has keys that are no text")
    if len(set(keys)) != count:
        raise BadFile("a dict among its arguments or results has a key twice")
    return keys
