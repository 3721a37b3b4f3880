"""Leases: whose temporaries live, and until when. Decides; the peer calls it with the time.

A lease belongs to a principal and is named by 16 bytes that the client chose. While any connection of it is
open its temporaries live; after the last one closed they live limits.LEASE_GRACE longer, so that a client that
comes back with the same lease finds them. From its first handshake until it is over a lease has a *memory*: a number
by which the client learns that nothing of it was forgotten meanwhile (SPEC.md, Handshake).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import limits

LeaseKey = tuple[str, bytes]
"""(principal id, the 16 bytes of the lease)."""


@dataclass(slots=True)
class _Lease:
    memory: int
    connections: int = 0
    expires: float | None = None
    objects: set[bytes] = field(default_factory=set)


def _draw() -> int:
    return 1 + secrets.randbelow(limits.MAX_ID)


class Leases:
    """All leases of one peer. Times are seconds of any monotonic clock. `on_over` hears of each lease that is over."""

    def __init__(
        self,
        grace: float = limits.LEASE_GRACE,
        on_over: Callable[[LeaseKey], None] = lambda _: None,
        draw: Callable[[], int] = _draw,
    ) -> None:
        self._grace = grace
        self._on_over = on_over
        self._draw = draw
        self._leases: dict[LeaseKey, _Lease] = {}

    def memory(self, key: LeaseKey, now: float) -> int:
        """The number of what is known of this lease; it is known from now on, for the grace at least."""
        lease = self._leases.get(key)
        if lease is None:
            lease = self._leases[key] = _Lease(self._draw(), expires=now + self._grace)
        elif lease.expires is not None:
            lease.expires = now + self._grace  # somebody is on the way to it
        return lease.memory

    def connected(self, key: LeaseKey) -> None:
        lease = self._leases.get(key)
        if lease is None:
            lease = self._leases[key] = _Lease(self._draw())
        lease.connections += 1
        lease.expires = None

    def disconnected(self, key: LeaseKey, now: float) -> None:
        lease = self._leases[key]
        lease.connections -= 1
        if lease.connections == 0:
            # Kept for the grace even while it holds nothing: what was under way may still give a result.
            lease.expires = now + self._grace

    def add(self, key: LeaseKey, id: bytes) -> None:
        """The lease holds this temporary, too. One that came when its lease was over is over with the next `expire`."""
        lease = self._leases.get(key)
        if lease is None:
            lease = self._leases[key] = _Lease(self._draw(), expires=-math.inf)
        lease.objects.add(id)

    def remove(self, key: LeaseKey, id: bytes) -> None:
        lease = self._leases.get(key)
        if lease is not None:
            lease.objects.discard(id)

    def expire(self, now: float) -> set[bytes]:
        """The temporaries whose lease ran out by now; their leases are over."""
        over = [key for key, lease in self._leases.items() if lease.expires is not None and lease.expires <= now]
        gone = set[bytes]().union(*(self._leases.pop(key).objects for key in over))
        for key in over:
            self._on_over(key)
        return gone
