"""Tickets: the leave to collect one object, given by its holder to one other peer, once. Decides; waits for nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol import limits
from protocol.errors import Denied, NotFound, TooLarge


@dataclass(frozen=True, slots=True)
class Ticket:
    """`asker` may have `object` sent to `target` (a peer id); the source gives it up afterwards if `is_move`."""

    object: bytes
    asker: str
    target: str
    is_move: bool
    expires: float


class Tickets:
    """`secret` makes 32 unguessable bytes."""

    def __init__(self, secret: Callable[[], bytes], lifetime: float = limits.TICKET_LIFETIME) -> None:
        self._secret = secret
        self._lifetime = lifetime
        self._tickets: dict[bytes, Ticket] = {}

    def issue(self, object: bytes, asker: str, target: str, is_move: bool, now: float) -> bytes:
        self._sweep(now)
        if len(self._tickets) >= limits.MAX_TICKETS:
            raise TooLarge(
                f"too many transfers were offered and not collected: try again in {self._lifetime:g} s",
                limit="MAX_TICKETS",
                size=len(self._tickets) + 1,
                allowed=limits.MAX_TICKETS,
            )
        token = self._secret()
        self._tickets[token] = Ticket(object, asker, target, is_move, now + self._lifetime)
        return token

    def check(self, token: bytes, peer: str, now: float) -> Ticket:
        """The ticket that this peer presents: NotFound when it is unknown, spent or stale; Denied if it is
        another peer's. It stays good until `spend`, so that a broken transfer can be collected again."""
        ticket = self._tickets.get(token)
        if ticket is None or ticket.expires < now:
            raise NotFound("no such transfer is on offer: it was collected already, or the offer is stale; ask again")
        if ticket.target != peer:
            raise Denied("this transfer was offered to another peer")
        return ticket

    def spend(self, token: bytes) -> None:
        self._tickets.pop(token, None)

    def _sweep(self, now: float) -> None:
        for token in [token for token, ticket in self._tickets.items() if ticket.expires < now]:
            del self._tickets[token]
