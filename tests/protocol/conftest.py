"""Two sessions joined back to back, and frames that no honest end would send."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest

from peer.keys import Identity, verify
from protocol import limits
from protocol.handshake import Introduction
from protocol.session import Event, Session


@dataclass
class End:
    """One end of a pair: its session, and what came out of it."""

    identity: Identity
    session: Session
    events: list[Event] = field(default_factory=list)

    def take(self, messages: list[bytes]) -> None:
        for message in messages:
            self.events.extend(self.session.receive(message))

    def send_chunk(self, other: End, stream: int, payload: bytes | memoryview, **hashes: Any) -> None:
        """The next chunk of a stream of this end, straight to the other."""
        other.take(self.session.data_to_send())
        head = self.session.chunk(stream, memoryview(payload), **hashes)
        assert head is not None
        other.take([head + payload])

    def of(self, kind: type) -> list[Any]:
        """Its events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


class Pair:
    """A dialer and an acceptor, with nothing between them."""

    def __init__(
        self,
        dialer: Introduction | None = None,
        acceptor: Introduction | None = None,
        window: int = limits.WINDOW,
    ) -> None:
        ours, theirs = Identity.generate(), Identity.generate()
        self.dialer = End(
            ours, Session(dialer or Introduction("client", "dora"), ours, verify, os.urandom(32), dialer=True)
        )
        acceptor = acceptor or Introduction("peer", "alice")
        self.acceptor = End(theirs, Session(acceptor, theirs, verify, os.urandom(32), dialer=False, window=window))

    def pump(self) -> Pair:
        """Carry messages both ways until neither has any."""
        while self.dialer.session.has_data or self.acceptor.session.has_data:
            self.acceptor.take(self.dialer.session.data_to_send())
            self.dialer.take(self.acceptor.session.data_to_send())
        return self


@pytest.fixture(scope="session")
def make_pair() -> type[Pair]:
    return Pair


@pytest.fixture
def pair() -> Pair:
    """Two ends whose session is open."""
    made = Pair().pump()
    assert made.dialer.session.is_open and made.acceptor.session.is_open
    return made


Raw = Callable[..., bytes]


def _raw(kind: int, header: Any = None, payload: bytes = b"", **prelude: Any) -> bytes:
    packed = header if isinstance(header, bytes) else msgpack.packb(header if header is not None else {})
    values = {
        "magic": b"PGRD",
        "version": 1,
        "flags": 0,
        "header_bytes": len(packed),
        "payload_bytes": len(payload),
        **prelude,
    }
    return (
        struct.pack(
            "<4sBBHIQ",
            values["magic"],
            values["version"],
            kind,
            values["flags"],
            values["header_bytes"],
            values["payload_bytes"],
        )
        + packed
        + payload
    )


@pytest.fixture(scope="session")
def raw() -> Raw:
    """A frame made by hand: raw(type, header map or bytes, payload, magic=, version=, flags=, header_bytes=...)."""
    return _raw
