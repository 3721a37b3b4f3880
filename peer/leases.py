"""Leases: whose temporaries live, and until when. Decides; the peer calls it with the time.

A lease belongs to a principal and is named by 16 bytes that the client chose. While any connection of it is
open its temporaries live; after the last one closed they live limits.LEASE_GRACE longer, so that a client that
comes back with the same lease finds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from protocol import limits

LeaseKey = tuple[str, bytes]
"""(principal id, the 16 bytes of the lease)."""


@dataclass(slots=True)
class _Lease:
    connections: int = 0
    expires: float | None = None
    objects: set[bytes] = field(default_factory=set)


class Leases:
    """All leases of one peer. Times are seconds of any monotonic clock."""

    def __init__(self, grace: float = limits.LEASE_GRACE) -> None:
        self._grace = grace
        self._leases: dict[LeaseKey, _Lease] = {}

    def connected(self, key: LeaseKey) -> None:
        lease = self._leases.setdefault(key, _Lease())
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
        self._leases.setdefault(key, _Lease(expires=-math.inf)).objects.add(id)

    def remove(self, key: LeaseKey, id: bytes) -> None:
        lease = self._leases.get(key)
        if lease is not None:
            lease.objects.discard(id)

    def expire(self, now: float) -> set[bytes]:
        """The temporaries whose lease ran out by now; their leases are over."""
        over = [key for key, lease in self._leases.items() if lease.expires is not None and lease.expires <= now]
        return set().union(*(self._leases.pop(key).objects for key in over))

    def next_expiry(self) -> float | None:
        """When `expire` has something to do next."""
        return min((lease.expires for lease in self._leases.values() if lease.expires is not None), default=None)
