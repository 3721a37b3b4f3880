"""One secure session at the asker: who computes and deals in it, what its peers know by now, and the shares that stay.

KeptShares that are collected are let go at the parties.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from grid.ids import fresh_id
from protocol import limits
from protocol.errors import GridError

if TYPE_CHECKING:
    from grid.remote import RemotePeer


@dataclass(frozen=True, slots=True)
class Team:
    """Who computes, and who deals (None: three parties do without)."""

    parties: tuple[RemotePeer, ...]
    provider: RemotePeer | None

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for the same peers in the same order."""
        return (*(each.id for each in self.parties), self.provider.id if self.provider is not None else "")


class KeptShares:
    """Shares of one tensor that the parties of a session keep. `bits`: fractional bits of its words; `is_private`:
    perhaps it derives from somebody's private data.

    They are let go when this is collected. A run that needs them when their session is over says so (PartyFailed).
    """

    __slots__ = ("__weakref__", "bits", "dtype", "id", "is_private", "session", "shape")

    def __init__(
        self,
        session: SecureSession,
        id: bytes,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        bits: int,
        is_private: bool = False,
    ) -> None:
        self.session, self.id, self.is_private = session, id, is_private
        self.dtype, self.shape, self.bits = dtype, torch.Size(shape), bits
        session.alive += 1

    def __del__(self) -> None:
        session = getattr(self, "session", None)
        if session is not None:
            session.let_go(self.id)


@dataclass(slots=True)
class Stored:
    """A stored object of which the parties keep shares: its id among those."""

    id: bytes
    nbytes: int


@dataclass(eq=False)
class SecureSession:
    """One session: processes at the team's peers, and what they keep."""

    loop: asyncio.AbstractEventLoop
    soon: Callable[[Coroutine[Any, Any, None]], None]  # has something done that nobody waits for
    team: Team
    id: bytes = field(default_factory=fresh_id)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    peers: dict[str, RemotePeer] = field(default_factory=dict)  # who was ever told of it
    alive: int = 0  # KeptShares
    used: float = field(default_factory=time.monotonic)
    failure: GridError | None = None
    known: dict[str, OrderedDict[str, None]] = field(default_factory=dict)  # programs, by peer, as the processes do
    stored: dict[tuple[str, bytes, int], Stored] = field(default_factory=dict)
    fixed: set[bytes] = field(default_factory=set)  # kept shares whose masks are open
    seen: set[bytes] = field(default_factory=set)  # kept shares that a run has used already
    stock: dict[bytes, deque[tuple[bytes, int]]] = field(default_factory=dict)  # what was dealt ahead (_stock_key)
    _drops: list[bytes] = field(default_factory=list)

    def let_go(self, id: bytes) -> None:
        """Shares that nobody needs any more. From any thread; the parties are told soon."""
        self.alive -= 1
        if self.failure is None:
            self._drops.append(id)
            if len(self._drops) == 1:
                with contextlib.suppress(RuntimeError):  # the loop is closed: so is the session
                    self.loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        ids, self._drops = self._drops, []
        self.fixed.difference_update(ids)
        self.seen.difference_update(ids)
        if self.failure is None and ids:
            self._tell_all(ids)

    def stay(self) -> None:
        """Tells all that it is needed still, though nothing runs."""
        if self.failure is None:
            self._tell_all([])

    def end(self, why: GridError) -> None:
        """It is over: nothing of it is used again."""
        if self.failure is None:
            self.failure = why
            self._tell_all(None)

    def _tell_all(self, ids: list[bytes] | None) -> None:
        for peer in self.peers.values():
            self.soon(_drop_at(peer, self.id, ids))

    def knows(self, peer: RemotePeer, program: str) -> bool:
        """Whether that peer's process has the program; from now on it has."""
        known = self.known.setdefault(peer.id, OrderedDict())
        found = program in known
        known[program] = None
        known.move_to_end(program)
        while len(known) > limits.SECURE_PROGRAMS:
            known.popitem(last=False)
        return found

    def has_stock(self, program: bytes) -> bool:
        """Whether something was dealt ahead for this program."""
        return any(stock and of.startswith(program) for of, stock in self.stock.items())

    @property
    def keeps(self) -> bool:
        """Whether something would be lost with it that only its asker can have made anew."""
        return self.alive > 0 or any(self.stock.values())

    @property
    def stored_bytes(self) -> int:
        return sum(each.nbytes for each in self.stored.values())


async def _drop_at(peer: RemotePeer, session: bytes, ids: list[bytes] | None) -> None:
    with contextlib.suppress(GridError):
        await peer.request("secure_drop", {"session": session, "ids": ids})
