"""The federated query planner: one query to many peers, without a socket or a clock in sight.

Events and the time go in; who is asked, what came together and who is missing come out. An answer is a
stranger's claim: each record in it is checked, matched once more against the query, and dropped if it fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from protocol import limits
from protocol.errors import BadRequest, GridError, ProtocolError, TimedOut
from search.match import matches, resolve_peer
from search.query import parse_query
from search.records import Record, check_record
from search.terms import NOTHING, Query


@dataclass(frozen=True, slots=True)
class PeerRef:
    """A peer by name, for people, and by id, which decides."""

    name: str
    id: str


@dataclass(frozen=True, slots=True)
class FanoutStatistics:
    """asked = answered + failed + waiting; dropped: records that were malformed or did not match."""

    asked: int
    answered: int
    failed: int
    waiting: int
    hits: int
    dropped: int


class Fanout:
    """One search over several peers.

    The caller sends `text` to each peer in `ask`, then reports what happens with `answered`, `failed` and
    `expired`, until `is_done`. An event at the deadline or later first expires whoever is still waited for;
    an answer that comes late, twice, or from a peer that was not asked changes nothing.

    Args:
        query: the query, or its text (QueryError if it does not parse).
        peers: whom there is to ask; one per id.
        now, deadline: seconds on the caller's clock.
    """

    def __init__(self, query: Query | str, peers: Iterable[PeerRef], now: float, deadline: float) -> None:
        self.query = parse_query(query) if isinstance(query, str) else query
        self.text = str(self.query)
        self.started = now
        self.deadline = deadline
        known = {peer.id: peer for peer in peers}
        # A peer for which the `peer:` terms already say no is not asked: resolve_peer handles negation too.
        self.ask = tuple(peer for id, peer in known.items() if resolve_peer(self.query, peer.name, id) != NOTHING)
        self._waiting = {peer.id: peer for peer in self.ask}
        self._answered: set[str] = set()
        self._truncated: list[PeerRef] = []
        self._damaged: dict[PeerRef, int] = {}
        self._unreachable: dict[PeerRef, GridError] = {}
        self._hits: dict[tuple[str, bytes], Record] = {}
        self._dropped = 0

    # --- events ---------------------------------------------------------------------------------------
    def answered(
        self, peer_id: str, records: object, truncated: object, now: float, damaged: object = 0
    ) -> tuple[Record, ...]:
        """A peer answered. Gives the records that are new with it, for whoever shows hits as they come.

        Each has `peer` and `peer_id` as we know them, whatever the peer wrote there.
        """
        self.expired(now)
        peer = self._waiting.pop(peer_id, None)
        if peer is None:
            return ()
        if not isinstance(records, list | tuple):
            self._unreachable[peer] = ProtocolError("its answer is not a list of records", peer=peer.name)
            return ()
        self._answered.add(peer_id)
        new = self._accept(peer, records)
        is_cut = len(records) > limits.MAX_HITS or len(self._hits) >= limits.MAX_MERGED_HITS
        if truncated is True or is_cut:
            self._truncated.append(peer)
        if type(damaged) is int and damaged > 0:
            self._damaged[peer] = damaged
        return new

    def failed(self, peer_id: str, error: GridError, now: float) -> None:
        """A peer cannot be reached, or answered with an error."""
        self.expired(now)
        peer = self._waiting.pop(peer_id, None)
        if peer is not None:
            self._unreachable[peer] = error

    def expired(self, now: float) -> None:
        """Time has passed. At the deadline, whoever has not answered is unreachable."""
        if now < self.deadline:
            return
        for peer in self._waiting.values():
            waited = self.deadline - self.started
            self._unreachable[peer] = TimedOut(f"no answer within {waited:g} s", operation="search", peer=peer.name)
        self._waiting.clear()

    # --- results --------------------------------------------------------------------------------------
    @property
    def is_done(self) -> bool:
        return not self._waiting

    @property
    def waiting(self) -> tuple[PeerRef, ...]:
        """The peers from which an answer may still come."""
        return tuple(self._waiting.values())

    @property
    def hits(self) -> list[Record]:
        """What came together so far: by the holder's name (then id), within one peer the newest first.

        An object that several peers hold is in the list once for each.
        """
        return sorted(self._hits.values(), key=lambda hit: (hit["peer"], hit["peer_id"], -hit["created"], hit["id"]))

    @property
    def unreachable(self) -> Mapping[PeerRef, GridError]:
        """Who did not answer, and why."""
        return MappingProxyType(self._unreachable)

    @property
    def truncated(self) -> tuple[PeerRef, ...]:
        """The peers that have more matches than are here."""
        return tuple(self._truncated)

    @property
    def damaged(self) -> Mapping[PeerRef, int]:
        """The peers that have objects which match and cannot be read, and how many."""
        return MappingProxyType(self._damaged)

    def statistics(self) -> FanoutStatistics:
        return FanoutStatistics(
            asked=len(self.ask),
            answered=len(self._answered),
            failed=len(self._unreachable),
            waiting=len(self._waiting),
            hits=len(self._hits),
            dropped=self._dropped,
        )

    def __repr__(self) -> str:
        counts = self.statistics()
        return f"<Fanout {self.text!r}: {counts.answered} of {counts.asked} answered, {counts.hits} hits>"

    # --- inside ---------------------------------------------------------------------------------------
    def _accept(self, peer: PeerRef, records: list[object] | tuple[object, ...]) -> tuple[Record, ...]:
        new: list[Record] = []
        for value in records[: limits.MAX_HITS]:
            record = self._checked(peer, value)
            if record is None:
                self._dropped += 1
                continue
            key = (peer.id, record["id"])
            if key not in self._hits and len(self._hits) < limits.MAX_MERGED_HITS:
                self._hits[key] = record
                new.append(record)
        return tuple(new)

    def _checked(self, peer: PeerRef, value: object) -> Record | None:
        """The record that a peer claims to have found, or None if it is malformed or does not match."""
        try:
            record = check_record(value)
        except BadRequest:
            return None
        if not matches(self.query, record, peer.name, peer.id):
            return None
        return {**record, "peer": peer.name, "peer_id": peer.id}
