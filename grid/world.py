"""What the queries of a run found, and whether it is still so.

Between search and run objects are moved, deleted, tagged anew, and peers end. So what was found is looked at again
while the program runs; where it is not as it was, the queries are asked once more (running.py).
"""

from __future__ import annotations

import asyncio
import difflib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import Ambiguous, GridError, NotFound
from search.query import parse_query
from search.terms import And, Tag, all_of, leaves

if TYPE_CHECKING:
    from grid.hits import Hit, Hits
    from grid.pointer import Pointer

Search = Callable[[str], Awaitable["Hits"]]
Holders = Callable[[str], Awaitable["list[Pointer]"]]
_MOST_COPIES: Final = 16  # of a query that finds more, several values are meant
Seen = tuple[tuple[str, str, str], ...]  # of each query: the peer of what it found there, and the object


class World:
    """The hits of all queries of one run, each asked once. `what` is where the query stands: the argument's name.

    `near`: how many bytes of what was given otherwise are at which peer, by its id. `holders` finds objects by the name
    of their contents, one at each peer that has one.
    """

    def __init__(self, search: Search, holders: Holders, near: Mapping[str, int] | None = None) -> None:
        self._search = search
        self._holders = holders
        self._contents: dict[str, list[Pointer]] = {}
        self._given = dict(near or {})
        self._hits: dict[str, Hits] = {}
        self._what: dict[str, str] = {}
        self._taken: dict[str, Hit] = {}  # of copies

    @property
    def spread(self) -> list[str]:
        """The queries that found several objects, of which each peer may have its own."""
        return [query for query, hits in self._hits.items() if len(hits) > 1]

    @property
    def hits(self) -> Mapping[str, Hits]:
        """By query."""
        return self._hits

    def found(self, query: str) -> Hit:
        """What was taken of what the query found."""
        return self._taken[query] if query in self._taken else self._hits[query][0]

    def what(self, query: str) -> str:
        return self._what[query]

    async def look(self, queries: Mapping[str, str]) -> None:
        """Ask all of these (each with its `what`) at once; those that were asked before are known."""
        new = [query for query in queries if query not in self._hits]
        found = await asyncio.gather(*(self._search(query) for query in new))
        self._hits.update(zip(new, found, strict=True))
        self._what.update({query: queries[query] for query in new})

    async def again(self) -> World:
        """The same queries, asked now."""
        later = World(self._search, self._holders, self._given)
        await asyncio.gather(later.look(self._what), *(later.having(content) for content in self._contents))
        return later

    async def having(self, content: str) -> list[Pointer]:
        """The objects with contents of that name, one at each peer that has one; asked for once."""
        if content not in self._contents:
            self._contents[content] = await self._holders(content)
        return self._contents[content]

    async def one(self, query: str, peer: str | None = None) -> Hit:
        """What the query found: the only object, of several the one at the peer of that id, or of copies of one value
        the nearest.

        Raises:
            NotFound, Ambiguous: there is none, or not one; the error names the argument and says what to do.
        """
        hits = self._hits[query]
        if peer is not None and len(hits) > 1:
            there = [hit for hit in hits if hit.location.id == peer]
            if len(there) == 1:
                return there[0]
        if await _are_copies(hits):
            self._taken[query] = self._nearest(query)
            return self._taken[query]
        try:
            return hits.one()
        except NotFound as error:
            hint = await self._hint(query)
            raise NotFound(f"{self._what[query]}: {error.message}{hint}") from None
        except Ambiguous as error:
            peers = len(hits.by_peer)
            advice = f". They are at {peers} peers: g.map (--map) runs the plan at each" if peers == len(hits) else ""
            raise Ambiguous(f"{self._what[query]}: {error.message}{advice}") from None

    def _nearest(self, query: str) -> Hit:
        """Of what the query found, the one at the peer where most of the rest is."""
        near = Counter(self._given)
        for other, hits in self._hits.items():
            if other != query and len(hits) == 1:
                near[hits[0].location.id] += int(hits[0].record.get("nbytes") or 0)
        return max(self._hits[query], key=lambda hit: near[hit.location.id])

    def seen(self, peer: str | None = None) -> Seen:
        """What the queries found, for the run at the peer of that id."""
        return tuple(sorted((query, hit.location.id, hit.id_at_location) for query, hit in self._of(peer)))

    def _of(self, peer: str | None) -> list[tuple[str, Hit]]:
        return [
            (query, hit)
            for query, hits in self._hits.items()
            for hit in hits
            if len(hits) == 1 or peer in (None, hit.location.id)
        ]

    def changes(self, later: World) -> list[str]:
        """A sentence for each query that finds other objects now."""
        return [
            f"{query!r} found {_listed(hits)}, and now {_listed(later._hits[query])}"
            for query, hits in self._hits.items()
            if _ids(hits) != _ids(later._hits[query])
        ] + [
            f"the contents {content[:12]} were at {_places(held)}, and are now at {_places(later._contents[content])}"
            for content, held in self._contents.items()
            if _places(held) != _places(later._contents[content])
        ]

    async def is_doubtful(self, peer: str | None = None) -> bool:
        """Whether some of what was found, for the run at the peer of that id, may not be what its query finds any more:
        its tags are others, or it is gone.

        Each object's peer is asked. What cannot be told by it is not in doubt: the run itself will say so.
        """
        return any(await asyncio.gather(*(_is_other(hit) for _, hit in self._of(peer))))

    async def _hint(self, query: str) -> str:
        """Which part of a query finds nothing, and what was perhaps meant."""
        parsed = parse_query(query)
        parts = parsed.parts if isinstance(parsed, And) else ()
        if not parts:
            return ""
        found = await asyncio.gather(*(self._search(str(part)) for part in parts), return_exceptions=True)
        empty = [
            part
            for part, hits in zip(parts, found, strict=True)
            if not isinstance(hits, BaseException) and not len(hits)
        ]
        if not empty:
            return f". Each of its parts finds something, but nothing has all: {', '.join(map(str, parts))}"
        rest = all_of([part for part in parts if part not in empty])
        near = await self._near(empty, str(rest)) if len(empty) < len(parts) else ""
        return f". Nothing at all matches {', '.join(map(str, empty))}{near}"

    async def _near(self, empty: list[Any], rest: str) -> str:
        """Tags like these on what the rest of the query finds."""
        try:
            others = await self._search(rest)
        except GridError:
            return ""
        tags = sorted({tag for hit in others for tag in hit.tags})
        wrong = [f"#{leaf.name}" for part in empty for leaf in leaves(part) if isinstance(leaf, Tag)]
        close = [match for tag in wrong for match in difflib.get_close_matches(tag, tags, n=1)]
        return f"; did you mean {' '.join(close)}?" if close else f"; {rest} finds {_listed(others)}"


async def _are_copies(hits: Hits) -> bool:
    """Whether these are several objects of one value, all bytes the same, as their peers say."""
    looks = [[_said(hit.record, key) for key in ("kind", "dtype", "shape", "nbytes")] for hit in hits]
    if not 1 < len(looks) <= _MOST_COPIES or any(other != looks[0] for other in looks):
        return False
    asked = (hit.location.request("describe", {"id": bytes.fromhex(hit.id_at_location)}) for hit in hits)
    said = await asyncio.gather(*asked, return_exceptions=True)
    tokens = {None if isinstance(each, BaseException) else each.get("token") for each in said}
    return len(tokens) == 1 and None not in tokens


async def _is_other(hit: Hit) -> bool:
    try:
        now = await hit.location.describe_object(bytes.fromhex(hit.id_at_location))
    except NotFound:
        return True
    except GridError:
        return False
    return any(_said(now, key) != _said(hit.record, key) for key in ("kind", "tags", "name", "description"))


def _said(record: Mapping[str, Any], key: str) -> Any:
    return sorted(record["tags"]) if key == "tags" else record.get(key)


def _places(held: list[Pointer]) -> str:
    return ", ".join(sorted(pointer.location.name for pointer in held)) or "no peer"


def _ids(hits: Hits) -> set[tuple[str, str]]:
    return {(hit.location.id, hit.id_at_location) for hit in hits}


def _listed(hits: Hits) -> str:
    shown = [f"{hit.record['kind']} {hit.id_at_location[:12]} at {hit.location.name}" for hit in hits]
    if not shown:
        silent = ", ".join(hits.unreachable)
        return f"nothing ({silent} did not answer)" if silent else "nothing"
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
