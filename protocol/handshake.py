"""The four messages that open a session, as a table of states (SPEC.md, Handshake).

    dialer                      acceptor
    Hello      ------------->
               <-------------   Challenge   (with the acceptor's proof)
    Proof      ------------->
               <-------------   Welcome

Both ends have proved their keys when it is over. Nothing else is understood before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from protocol import identity
from protocol.codec import VERSION
from protocol.errors import HandshakeFailed
from protocol.identity import Signer, Verify
from protocol.messages import Challenge, Hello, Message, Proof, Welcome


class State(Enum):
    AWAIT_HELLO = "await hello"
    AWAIT_CHALLENGE = "await challenge"
    AWAIT_PROOF = "await proof"
    AWAIT_WELCOME = "await welcome"
    OPEN = "open"


EXPECTED: Final[dict[State, type[Message]]] = {
    State.AWAIT_HELLO: Hello,
    State.AWAIT_CHALLENGE: Challenge,
    State.AWAIT_PROOF: Proof,
    State.AWAIT_WELCOME: Welcome,
}


@dataclass(frozen=True, slots=True)
class Remote:
    """Who is at the other end: proved id, claimed name, role, lease, stream window; and the name of what the acceptor
    remembers of the lease (see Welcome). The role is "client", "peer", or, of a line of secure runs, "party" (between
    peers) or "rounds" (between processes of a session; SPEC.md, 12)."""

    id: str
    name: str
    role: str
    lease: bytes | None
    window: int
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Introduction:
    """What this end says of itself. `expect` is the id that the dialer wants to meet, `lease` whose
    temporaries it comes back to."""

    role: str
    name: str
    expect: str | None = None
    lease: bytes | None = None


MemoryOf = Callable[[str, bytes | None], int | None]
"""The name of what the acceptor remembers of this lease of this principal, from now on if not before (see Welcome)."""


def forgetful(principal: str, lease: bytes | None) -> int | None:
    """Remembers nothing of anyone."""
    return None


class Handshake:
    """One end's part in it. `receive` takes the other's message and returns what to answer.

    `is_over` turns true with the last message; `remote` is then set. The acceptor's `memory_of` is asked once the
    dialer has proved its key.

    Raises (from receive):
        HandshakeFailed: wrong message, version, key, signature or id.
    """

    def __init__(
        self,
        ours: Introduction,
        signer: Signer,
        verify: Verify,
        nonce: bytes,
        *,
        dialer: bool,
        window: int,
        memory_of: MemoryOf = forgetful,
    ) -> None:
        self._memory_of = memory_of
        self._ours = ours
        self._signer = signer
        self._verify = verify
        self._nonce = nonce
        self._window = window
        self._hello: Hello | None = None
        self._challenge: Challenge | None = None
        self.state = State.AWAIT_CHALLENGE if dialer else State.AWAIT_HELLO
        self.remote: Remote | None = None

    @property
    def is_over(self) -> bool:
        return self.state is State.OPEN

    def hello(self) -> Hello:
        """The dialer's first message."""
        self._hello = Hello(
            [VERSION],
            self._signer.public_key,
            self._nonce,
            self._ours.role,
            self._ours.name,
            self._ours.expect,
            self._ours.lease,
        )
        return self._hello

    def receive(self, message: Message | None) -> Message | None:
        expected = EXPECTED[self.state]
        if not isinstance(message, expected):
            came = type(message).__name__ if message is not None else "an unknown message"
            raise HandshakeFailed(f"{expected.__name__} was due, {came} came")
        return _STEPS[self.state](self, message)

    def _on_hello(self, message: Message) -> Message:
        assert isinstance(message, Hello)
        if VERSION not in message.versions:
            raise HandshakeFailed(
                f"the other end speaks versions {message.versions[:8]}, this one {VERSION}: upgrade one",
                versions=[VERSION],
            )
        our_id = identity.peer_id(self._signer.public_key)
        if message.expect is not None and message.expect != our_id:
            raise HandshakeFailed(f"wrong peer: this is {our_id[:12]}, not {message.expect[:12]}")
        self._hello = message
        self.state = State.AWAIT_PROOF
        unsigned = (message.key, self._signer.public_key, message.nonce, self._nonce)
        signature = self._signer.sign(identity.transcript("acceptor", *unsigned))
        self._challenge = Challenge(VERSION, self._signer.public_key, self._nonce, self._ours.name, signature)
        return self._challenge

    def _on_challenge(self, message: Message) -> Message:
        assert isinstance(message, Challenge)
        if message.version != VERSION:
            raise HandshakeFailed(
                f"the other end chose version {message.version}, this one speaks {VERSION}: upgrade one",
                versions=[VERSION],
            )
        their_id = identity.peer_id(message.key)
        if self._ours.expect is not None and their_id != self._ours.expect:
            raise HandshakeFailed(f"wrong peer: expected {self._ours.expect[:12]}, met {their_id[:12]}")
        self._challenge = message
        self._check(message.key, message.signature, "acceptor")
        self.state = State.AWAIT_WELCOME
        return Proof(self._signer.sign(self._transcript("dialer")))

    def _on_proof(self, message: Message) -> Message:
        assert isinstance(message, Proof) and self._hello is not None
        self._check(self._hello.key, message.signature, "dialer")
        hello = self._hello
        memory = self._memory_of(identity.peer_id(hello.key), hello.lease)
        self._open(hello.key, hello.name, hello.role, hello.lease, self._window, memory)
        return Welcome(self._window, memory)

    def _on_welcome(self, message: Message) -> None:
        assert isinstance(message, Welcome) and self._challenge is not None
        self._open(self._challenge.key, self._challenge.name, "peer", None, message.window, message.memory)

    def _open(self, key: bytes, name: str, role: str, lease: bytes | None, window: int, memory: int | None) -> None:
        self.remote = Remote(identity.peer_id(key), name, role, lease, window, memory)
        self.state = State.OPEN

    def _transcript(self, role: str) -> bytes:
        assert self._hello is not None and self._challenge is not None
        return identity.transcript(role, self._hello.key, self._challenge.key, self._hello.nonce, self._challenge.nonce)

    def _check(self, key: bytes, signature: bytes, role: str) -> None:
        if not self._verify(key, signature, self._transcript(role)):
            raise HandshakeFailed(f"the {role} did not prove its key")


_STEPS: Final[dict[State, Callable[[Handshake, Message], Message | None]]] = {
    State.AWAIT_HELLO: Handshake._on_hello,
    State.AWAIT_CHALLENGE: Handshake._on_challenge,
    State.AWAIT_PROOF: Handshake._on_proof,
    State.AWAIT_WELCOME: Handshake._on_welcome,
}
