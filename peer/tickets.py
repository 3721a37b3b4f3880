"""Tickets: the leave to collect one object, given by its holder to one other peer. Decides; waits for nothing.

A ticket is good for `lifetime` seconds, counted anew with everything that its target does with it: a transfer may
take as long as it takes. Where too many are out, those who have the most make room for those who have fewer. Those of
published objects are in the store as well, and come back from there (`restore`) after a restart, or when this process
has forgotten them. That a target has what it came for is remembered for a while, so that it may say so twice, or ask.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peer.store.journal import Offered
from protocol import limits
from protocol.errors import Denied, NotFound
from protocol.sizes import beyond


@dataclass(slots=True, eq=False)
class Ticket:
    """`asker` may have `object` sent to `target` (a peer id); the source gives it up afterwards if `is_move`.

    Attributes:
        is_durable: it is in the store as well.
        is_given_up: the target has the object; of a move, ours is gone.
        is_refused: the target was told that the object stays, and to drop what it has.
        was_collected: the target has come with it.
        takers: what is being done with it, answers with the value on their way among that: meanwhile it does not lapse.
        value: of a temporary, what the target gets: the same bytes however often it comes. Moves fills it.
    """

    token: bytes
    object: bytes
    asker: str
    target: str
    is_move: bool
    is_durable: bool
    expires: float
    is_given_up: bool = False
    is_refused: bool = False
    was_collected: bool = False
    takers: int = 0
    value: Any = None

    def is_stale(self, now: float) -> bool:
        return self.expires < now and not self.takers


class Tickets:
    """`secret` makes 32 unguessable bytes; `let_go` is called with each ticket once, when it is of no use any more."""

    def __init__(
        self,
        secret: Callable[[], bytes],
        let_go: Callable[[Ticket], None] = lambda ticket: None,
        lifetime: float = limits.TICKET_LIFETIME,
    ) -> None:
        self._secret = secret
        self._let_go = let_go
        self._lifetime = lifetime
        self._tickets: dict[bytes, Ticket] = {}
        self._over: OrderedDict[bytes, Ticket] = OrderedDict()  # given up, at most limits.MAX_TICKETS

    def issue(
        self, object: bytes, asker: str, target: str, is_move: bool, now: float, *, is_durable: bool = False
    ) -> Ticket:
        """A new ticket. TooLarge while too many are out, and nobody who has more than this asker can spare one."""
        self.sweep(now)
        if len(self._tickets) >= limits.MAX_TICKETS and not self._make_room(asker):
            sentence = "too many transfers were offered and not collected: try again in {seconds:g} s"
            raise beyond("MAX_TICKETS", len(self._tickets) + 1, sentence, seconds=self._lifetime)
        ticket = Ticket(self._secret(), object, asker, target, is_move, is_durable, now + self._lifetime)
        self._tickets[ticket.token] = ticket
        return ticket

    def _make_room(self, asker: str) -> bool:
        """Let one go of an asker who has more than this one: nobody can keep the others out."""
        counts = Counter(ticket.asker for ticket in self._tickets.values())
        for other, count in counts.most_common():
            if count <= counts[asker]:
                return False
            idle = [ticket for ticket in self._tickets.values() if ticket.asker == other and not ticket.takers]
            if idle:
                # The oldest that was not used; one of a published object comes back from the store.
                self.spend(min(idle, key=lambda ticket: ticket.was_collected and not ticket.is_durable).token)
                return True
        return False

    def restore(self, token: bytes, offered: Offered, now: float) -> Ticket:
        """One from the store, which its target shows."""
        expires = now + self._lifetime
        ticket = Ticket(token, offered.object, offered.asker, offered.target, offered.is_move, True, expires)
        ticket.was_collected, ticket.is_refused = True, offered.is_refused
        self._tickets[token] = ticket
        if offered.is_done:
            self.given_up(ticket, now)
        return ticket

    def find(self, token: bytes) -> Ticket | None:
        return self._tickets.get(token) or self._over.get(token)

    def check(self, ticket: Ticket | None, peer: str, now: float) -> Ticket:
        """The ticket, if this peer may use it now: NotFound where it is unknown or stale, Denied if it is another's."""
        if ticket is None or ticket.is_stale(now):
            raise NotFound("no such transfer is on offer: it was collected already, or the offer is stale; ask again")
        if ticket.target != peer:
            raise Denied("this transfer was offered to another peer")
        return ticket

    def used(self, ticket: Ticket, now: float) -> None:
        """Its target did something with it: it is good for a lifetime from now."""
        ticket.expires = now + self._lifetime

    def given_up(self, ticket: Ticket, now: float) -> None:
        """The target has the object; of a move, ours is gone."""
        ticket.is_given_up = True
        self.used(ticket, now)
        self.spend(ticket.token)
        self._over[ticket.token] = ticket
        if len(self._over) > limits.MAX_TICKETS:
            self._over.popitem(last=False)

    def spend(self, token: bytes) -> None:
        """Nobody will come with it again."""
        ticket = self._tickets.pop(token, None)
        if ticket is not None:
            self._let_go(ticket)

    def sweep(self, now: float) -> None:
        """Forget those that are stale."""
        for ticket in [ticket for ticket in self._tickets.values() if ticket.is_stale(now)]:
            self.spend(ticket.token)
        while self._over and next(iter(self._over.values())).is_stale(now):
            self._over.popitem(last=False)

    def close(self) -> None:
        for token in list(self._tickets):
            self.spend(token)
