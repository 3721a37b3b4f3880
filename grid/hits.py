"""What a search found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from protocol.errors import Ambiguous, NotFound
from protocol.ids import ID_BYTES

if TYPE_CHECKING:
    from grid.plans import RemotePlan
    from grid.pointer import Pointer
    from grid.stored_models import RemoteModel

    Hit: TypeAlias = Pointer | RemoteModel | RemotePlan

_ID_PREFIX = re.compile(r"[0-9a-f]{4,32}")


class Hits(Sequence["Hit"]):
    """The objects found, as pointers, none of them owning. `unreachable` names the peers that did not answer, and why.

    Attributes:
        query: what was asked.
        unreachable: {peer name: reason}.
        truncated: names of peers that had more than limits.MAX_HITS.
        damaged: {peer name: how many more match there, whose rows cannot be read}.
    """

    def __init__(
        self,
        query: str,
        hits: Sequence[Hit],
        unreachable: Mapping[str, str],
        truncated: Sequence[str] = (),
        damaged: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.query = query
        self._hits = list(hits)
        self.unreachable = dict(unreachable)
        self.truncated = list(truncated)
        self.damaged = dict(damaged)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        return self._hits[index]

    def __len__(self) -> int:
        return len(self._hits)

    def __repr__(self) -> str:
        lines = [f"{len(self)} hit{'s' * (len(self) != 1)} for {self.query!r}", *(f"  {hit!r}" for hit in self._hits)]
        lines += [f"  no answer from {name}: {reason}" for name, reason in self.unreachable.items()]
        lines += [f"  {name} has {count} more that cannot be read" for name, count in self.damaged.items()]
        return "\n".join(lines)

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the peers say of the objects found."""
        return [hit.record for hit in self._hits]

    @property
    def by_peer(self) -> dict[str, list[Hit]]:
        """The hits of each peer that has any, by its name."""
        grouped: dict[str, list[Hit]] = {}
        for hit in self._hits:
            grouped.setdefault(hit.location.name, []).append(hit)
        return grouped

    def one(self) -> Hit:
        """The only hit.

        Raises:
            NotFound: there is none; the error says which peers did not answer.
            Ambiguous: there are several; the error lists them.
        """
        only(self.query, self.records, self.unreachable)
        return self._hits[0]


def is_id_prefix(reference: str) -> bool:
    """Whether a text may be meant as the beginning of an id."""
    return _ID_PREFIX.fullmatch(reference) is not None


def is_whole_id(text: str) -> bool:
    return is_id_prefix(text) and len(text) == 2 * ID_BYTES


def readings(reference: str) -> list[str]:
    """The queries that a reference may mean, in the order in which they are tried: the beginning of an id, a query."""
    return [f"id:{reference}", reference] if is_id_prefix(reference) else [reference]


def only(query: str, records: Sequence[Mapping[str, Any]], unreachable: Mapping[str, str]) -> dict[str, Any]:
    """The only record. NotFound, Ambiguous: see Hits.one."""
    if not records:
        missing = "".join(f"; {name} did not answer ({reason})" for name, reason in unreachable.items())
        raise NotFound(f"nothing matches {query!r}{missing or ' (the empty query finds all that there is)'}")
    if len(records) > 1:
        listed = ", ".join(map(_short, records[:5])) + (", ..." if len(records) > 5 else "")
        raise Ambiguous(
            f"{len(records)} objects match {query!r}: {listed}. Add its name, a tag or peer:NAME, or give its id"
        )
    return dict(records[0])


def _short(record: Mapping[str, Any]) -> str:
    name, shape = record.get("name"), record.get("shape")
    told = [f"'{name}'"] if name else []
    told += [f"{record['dtype']} {list(shape)}"] if shape is not None else []
    told += ["#" + tag for tag in record.get("tags", ())]
    return f"{record['peer']}:{record['id'].hex()[:12]} ({' '.join(told)})"
