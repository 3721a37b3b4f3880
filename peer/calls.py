"""What passes over a connection, as those at its ends see it: requests, answers, and the counts of both.

What is made anew for each request is not frozen, as the messages are not (protocol/messages.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final

from peer.incoming import IncomingStream
from peer.payloads import Payload
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import GridError
from protocol.sizes import beyond

if TYPE_CHECKING:  # it imports this file
    from peer.connection import Connection


@dataclass(frozen=True, slots=True)
class Statistics:
    """What connections carried so far, seen from this end; counts only grow, and two can be added.

    Attributes:
        sent_bytes, received_bytes: of all messages, without what WebSocket, TLS and TCP add.
        sent_messages, received_messages: how many WebSocket messages these were.
        payload_sent, payload_received: bytes of objects' values among them, and no others (no headers, no hits).
        corrupt: how often the other end's own copy of what it sent was damaged.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_messages: int = 0
    received_messages: int = 0
    payload_sent: int = 0
    payload_received: int = 0
    corrupt: int = 0

    def __add__(self, other: Statistics) -> Statistics:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Statistics(*(ours + theirs for ours, theirs in pairs))


class Traffic:
    """What one connection has sent and received so far, as it grows; whoever sends or receives counts it here."""

    def __init__(self) -> None:
        self.sent_bytes = self.received_bytes = 0
        self.sent_messages = self.received_messages = 0
        self.payload_sent = self.payload_received = 0

    def statistics(self) -> Statistics:
        return Statistics(**vars(self))

    def value_sent(self, described: dict[str, Any], nbytes: int) -> None:
        """A payload that rode beside its header: it counts if that describes objects' values; rows are none."""
        if nbytes and not _OF_VALUES.isdisjoint(described):
            self.payload_sent += nbytes

    def value_received(self, described: dict[str, Any], nbytes: int) -> None:
        if nbytes and not _OF_VALUES.isdisjoint(described):
            self.payload_received += nbytes


_OF_VALUES: Final = frozenset({"dtype", "spec_bytes", "values", "outputs"})  # what follows `outputs` are their shares


@dataclass(slots=True)
class Response:
    """An answer that came: its map, and its payload beside it or as a stream (never both)."""

    result: dict[str, Any]
    payload: memoryview
    stream: IncomingStream | None

    async def read(self, at_most: int = limits.RECEIVE_BUFFER) -> Buffer:
        """The whole payload in memory, for what is small: TooLarge, and nothing is read, beyond `at_most`."""
        if self.stream is None:
            return self.payload
        if self.stream.nbytes > at_most:
            self.stream.abort("too large")
            sentence = "an answer of {size} bytes, where at most {allowed} are wanted"
            raise beyond("RECEIVE_BUFFER", self.stream.nbytes, sentence, allowed=at_most)
        data = bytearray(self.stream.nbytes)
        await self.stream.into(memoryview(data))
        return data


@dataclass(slots=True)
class Call:
    """A request of the other end, as its handler sees it."""

    connection: Connection
    op: str
    args: dict[str, Any]
    payload: memoryview
    stream: IncomingStream | None

    @property
    def nbytes(self) -> int:
        return self.stream.nbytes if self.stream is not None else len(self.payload)


@dataclass(slots=True)
class Answer:
    """What a handler returns: a map, and perhaps a payload: some bytes, or one that the connection closes."""

    result: dict[str, Any]
    payload: Payload | bytes | None = None


Handler = Callable[[Call], Awaitable[Answer]]
GiveUp = Callable[[], None]
"""Nobody wants the answer any more: what works on it may end. The answer is called back all the same."""
AtOnce = Callable[[Call, Callable[[Answer | GridError], None]], bool | GiveUp]
"""Serves a call without a task of its own, if it can: then it calls back once, from the loop. It gives True, or how to
give up what may take long; else False."""
