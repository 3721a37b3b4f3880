"""A search of all peers at once, without tensors: who is asked, and what they say they have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peer.membership import Member, Membership
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import GridError, LinkError
from protocol.rows import unpack_rows
from search.plan import Fanout, PeerRef

Record = dict[str, Any]
Read = Callable[[Member, str, dict[str, Any]], Awaitable[tuple[dict[str, Any], Buffer]]]
_Answer = tuple[list[Record], Mapping[str, Any]]  # of one peer: what it has, and what else it says of that


@dataclass(frozen=True, slots=True)
class Records:
    """What a search found, as the peers describe it. `unreachable` names those that did not answer, and why;
    `truncated` those that had more than limits.MAX_HITS; `damaged` those at which more match, and how many, whose rows
    cannot be read."""

    query: str
    records: Sequence[Record]
    unreachable: dict[str, str]
    truncated: Sequence[str]
    damaged: dict[str, int]

    def __len__(self) -> int:
        return len(self.records)


class Searcher:
    """Asks the members: `learn` finds out who they are now, `read` asks one of them."""

    def __init__(self, membership: Membership, learn: Callable[[], Awaitable[None]], read: Read) -> None:
        self._membership = membership
        self._learn = learn
        self._read = read

    async def records(self, query: str, timeout: float) -> Records:
        """All answers together. QueryError."""
        fanout = await self._fan_out(query, timeout)
        async for _ in self._answers(fanout):
            pass
        unreachable = {peer.name: error.message for peer, error in fanout.unreachable.items()}
        damaged = {peer.name: count for peer, count in fanout.damaged.items()}
        return Records(query, fanout.hits, unreachable, [peer.name for peer in fanout.truncated], damaged)

    async def stream(self, query: str, timeout: float) -> AsyncIterator[Sequence[Record]]:
        """What is new in each answer, as it arrives. QueryError."""
        return self._answers(await self._fan_out(query, timeout))

    async def _fan_out(self, query: str, timeout: float) -> Fanout:
        now = asyncio.get_running_loop().time()
        Fanout(query, (), now, now)  # a query that does not parse is refused before anyone is asked
        await self._learn()
        peers = [PeerRef(member.name, member.id) for member in self._membership.all()]
        return Fanout(query, peers, now, asyncio.get_running_loop().time() + timeout)

    async def _answers(self, fanout: Fanout) -> AsyncIterator[Sequence[Record]]:
        loop = asyncio.get_running_loop()
        asked = {loop.create_task(self._ask(peer.id, fanout.text)): peer.id for peer in fanout.ask}
        waiting: set[asyncio.Task[_Answer]] = set(asked)
        try:
            while waiting and not fanout.is_done:
                left = max(fanout.deadline - loop.time(), 0)
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield self._answered(fanout, asked[task], task, loop.time())
                if not done:
                    fanout.expired(loop.time())
        finally:
            for task in waiting:
                task.cancel()

    async def _ask(self, id: str, query: str) -> _Answer:
        member = self._membership.get(id)
        assert member is not None
        result, rows = await self._read(member, "search", {"query": query})
        return unpack_rows(rows, limits.MAX_HITS), result

    def _answered(self, fanout: Fanout, id: str, task: asyncio.Task[_Answer], now: float) -> Sequence[Record]:
        error = task.exception()
        if error is None:
            records, more = task.result()
            return fanout.answered(id, records, more.get("truncated"), now, more.get("damaged"))
        if not isinstance(error, GridError):
            raise error
        if isinstance(error, LinkError):
            self._membership.failed(id)
        fanout.failed(id, error, now)
        return ()
