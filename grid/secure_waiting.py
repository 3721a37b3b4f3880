"""How long who asks for a secure run waits for those who take part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from protocol.errors import PartyFailed

if TYPE_CHECKING:
    from grid.remote import RemotePeer

T = TypeVar("T")


class Answering:
    """Who has not answered yet. Once a party has, the run is over: who is silent for `patience` seconds after that is
    given up. (Before, those who take part look after each other.)

    Args:
        parties: ids of the peers whose answer says that.
    """

    def __init__(self, patience: float, parties: Collection[str]) -> None:
        self._patience, self._parties = patience, parties
        self._waiting: dict[str, asyncio.Task[Any]] = {}
        self._late: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From now on nobody is silent for longer."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self._give_up)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def of(self, peer: RemotePeer, reply: Awaitable[T]) -> T:
        """What the peer answers. PartyFailed: it did not, though it was time to."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting[peer.id] = task
        try:
            answer = await reply
        except asyncio.CancelledError:
            if peer.id not in self._late:
                raise
            raise PartyFailed(f"{peer.name} has not answered for {self._patience:g} s", peer=peer.name) from None
        finally:
            del self._waiting[peer.id]
        if peer.id in self._parties:
            self.begin()
        return answer

    def _give_up(self) -> None:
        for id, task in self._waiting.items():
            self._late.add(id)
            task.cancel()
