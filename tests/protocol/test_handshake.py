"""Both ends prove their keys, and nothing is understood before they have."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from peer.keys import Identity, verify
from protocol import codec, identity, limits, messages
from protocol.errors import HandshakeFailed, ProtocolError
from protocol.handshake import Handshake, Introduction, State
from protocol.messages import Challenge, Hello, Message, Proof, Welcome
from protocol.session import Opened, Session

Raw = Callable[..., bytes]

ALICE, DORA, MALLORY = Identity.generate(), Identity.generate(), Identity.generate()


def dialer(signer: Identity = DORA, expect: str | None = None, **kwargs: Any) -> Handshake:
    ours = Introduction("client", "dora", expect, kwargs.pop("lease", None))
    return Handshake(ours, signer, verify, os.urandom(32), dialer=True, window=limits.WINDOW)


def acceptor(signer: Identity = ALICE, window: int = limits.WINDOW, **kwargs: Any) -> Handshake:
    ours = Introduction("peer", "alice")
    return Handshake(ours, signer, verify, os.urandom(32), dialer=False, window=window, **kwargs)


def changed(message: Any, **fields: Any) -> Any:
    return type(message)(**{**messages.header(message), **fields})


def flipped(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def shake(left: Handshake, right: Handshake) -> None:
    """The four messages, from Hello to Welcome."""
    challenge = right.receive(left.hello())
    proof = left.receive(challenge)
    assert left.receive(right.receive(proof)) is None


# --- success ----------------------------------------------------------------------------------------------


def test_both_ends_know_who_the_other_is() -> None:
    left, right = dialer(lease=bytes(16)), acceptor(window=limits.CHUNK)
    shake(left, right)
    assert left.is_over and right.is_over
    assert left.remote is not None and right.remote is not None
    assert (left.remote.id, left.remote.name, left.remote.role) == (ALICE.id, "alice", "peer")
    assert (right.remote.id, right.remote.name, right.remote.role) == (DORA.id, "dora", "client")
    assert (left.remote.lease, right.remote.lease) == (None, bytes(16))
    assert left.remote.window == right.remote.window == limits.CHUNK


def test_the_dialer_hears_the_name_of_what_is_remembered_of_its_lease() -> None:
    asked: list[Any] = []

    def memory_of(principal: str, lease: bytes | None) -> int | None:
        asked.append((principal, lease))
        return 7

    left, right = dialer(lease=bytes(16)), acceptor(memory_of=memory_of)
    shake(left, right)
    assert left.remote is not None and left.remote.memory == 7
    assert right.remote is not None and right.remote.memory == 7
    assert asked == [(right.remote.id, bytes(16))]


def test_nothing_is_remembered_before_the_proof() -> None:
    def memory_of(principal: str, lease: bytes | None) -> int | None:
        raise AssertionError("a stranger's lease was looked up")

    left, right = dialer(lease=bytes(16)), acceptor(memory_of=memory_of)
    left.receive(right.receive(left.hello()))
    with pytest.raises(HandshakeFailed):
        right.receive(Proof(bytes(64)))


@pytest.mark.parametrize("memory", [0, -1, True, "7", 1 << 63])
def test_a_memory_is_a_positive_integer(memory: Any) -> None:
    with pytest.raises(ProtocolError):
        Welcome(memory=memory)


def test_nobody_is_known_before_the_proof() -> None:
    left, right = dialer(), acceptor()
    challenge = right.receive(left.hello())
    assert right.remote is None and not right.is_over
    proof = left.receive(challenge)
    assert left.remote is None and right.remote is None
    right.receive(proof)
    assert right.remote is not None and left.remote is None


def test_the_expected_peer_is_met() -> None:
    left, right = dialer(expect=ALICE.id), acceptor()
    shake(left, right)
    assert left.is_over and right.is_over


def test_a_later_version_beside_ours_is_no_obstacle() -> None:
    challenge = acceptor().receive(changed(dialer().hello(), versions=[7, 1]))
    assert isinstance(challenge, Challenge) and challenge.version == 1


# --- who is it? -------------------------------------------------------------------------------------------


def test_the_dialer_refuses_another_peer_than_expected() -> None:
    left, right = dialer(expect=MALLORY.id), acceptor()
    challenge = right.receive(changed(left.hello(), expect=ALICE.id))
    with pytest.raises(HandshakeFailed, match="wrong peer"):
        left.receive(challenge)


def test_the_acceptor_says_that_it_is_not_the_expected_one() -> None:
    with pytest.raises(HandshakeFailed, match="wrong peer"):
        acceptor().receive(dialer(expect=MALLORY.id).hello())


def test_a_peer_of_the_same_name_with_another_key_is_refused() -> None:
    left = dialer(expect=ALICE.id)
    challenge = acceptor(signer=MALLORY).receive(changed(left.hello(), expect=None))
    with pytest.raises(HandshakeFailed, match="wrong peer"):
        left.receive(challenge)


def test_an_acceptor_that_claims_a_key_it_does_not_have_is_refused() -> None:
    left = dialer(expect=ALICE.id)
    challenge = acceptor(signer=MALLORY).receive(changed(left.hello(), expect=None))
    with pytest.raises(HandshakeFailed, match="did not prove"):
        left.receive(changed(challenge, key=ALICE.public_key))


def test_a_dialer_that_claims_a_key_it_does_not_have_is_refused() -> None:
    left, right = dialer(signer=MALLORY), acceptor()
    hello = changed(left.hello(), key=DORA.public_key)
    challenge = right.receive(hello)
    assert isinstance(challenge, Challenge)
    signed = identity.transcript("dialer", DORA.public_key, ALICE.public_key, hello.nonce, challenge.nonce)
    with pytest.raises(HandshakeFailed, match="did not prove"):
        right.receive(Proof(MALLORY.sign(signed)))
    assert right.remote is None


def test_one_in_the_middle_cannot_pass_on_the_proof_of_another_key() -> None:
    left, right = dialer(), acceptor()
    between = acceptor(signer=MALLORY)  # what Dora meets
    proof = left.receive(between.receive(left.hello()))
    right.receive(left.hello())  # what Mallory tells Alice
    with pytest.raises(HandshakeFailed, match="did not prove"):
        right.receive(proof)


# --- signatures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_a_flipped_bit_in_the_acceptors_signature_is_found(at: int) -> None:
    left, right = dialer(), acceptor()
    challenge = right.receive(left.hello())
    assert isinstance(challenge, Challenge)
    with pytest.raises(HandshakeFailed, match="acceptor did not prove"):
        left.receive(changed(challenge, signature=flipped(challenge.signature, at)))
    assert left.remote is None


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_a_flipped_bit_in_the_dialers_signature_is_found(at: int) -> None:
    left, right = dialer(), acceptor()
    proof = left.receive(right.receive(left.hello()))
    assert isinstance(proof, Proof)
    with pytest.raises(HandshakeFailed, match="dialer did not prove"):
        right.receive(Proof(flipped(proof.signature, at)))
    assert right.remote is None


@pytest.mark.parametrize("field", ["nonce", "key"])
def test_a_challenge_changed_on_its_way_is_found(field: str) -> None:
    left, right = dialer(), acceptor()
    challenge = right.receive(left.hello())
    with pytest.raises(HandshakeFailed):
        left.receive(changed(challenge, **{field: flipped(getattr(challenge, field))}))


@pytest.mark.parametrize("field", ["nonce", "key"])
def test_a_hello_changed_on_its_way_is_found(field: str) -> None:
    left, right = dialer(), acceptor()
    hello = left.hello()
    challenge = right.receive(changed(hello, **{field: flipped(getattr(hello, field))}))
    with pytest.raises(HandshakeFailed, match="did not prove"):
        left.receive(challenge)


def test_the_acceptors_signature_reflected_is_no_proof() -> None:
    right = acceptor()
    challenge = right.receive(dialer().hello())
    assert isinstance(challenge, Challenge)
    with pytest.raises(HandshakeFailed, match="dialer did not prove"):
        right.receive(Proof(challenge.signature))


def test_an_acceptor_cannot_be_made_to_sign_for_itself_as_dialer() -> None:
    """Mallory dials Alice with Alice's own key and hopes to use her answer as the proof."""
    right = acceptor()
    hello = Hello([1], ALICE.public_key, os.urandom(32), "client")
    challenge = right.receive(hello)
    assert isinstance(challenge, Challenge)
    with pytest.raises(HandshakeFailed, match="dialer did not prove"):
        right.receive(Proof(challenge.signature))


def test_a_recorded_proof_is_worth_nothing_again() -> None:
    left, right = dialer(), acceptor()
    hello = left.hello()
    proof = left.receive(right.receive(hello))
    right.receive(proof)
    again = acceptor()
    again.receive(hello)
    with pytest.raises(HandshakeFailed, match="dialer did not prove"):
        again.receive(proof)


def test_a_recorded_challenge_is_worth_nothing_again() -> None:
    left, right = dialer(), acceptor()
    challenge = right.receive(left.hello())
    again = dialer()
    again.hello()
    with pytest.raises(HandshakeFailed, match="acceptor did not prove"):
        again.receive(challenge)


def test_a_key_that_is_no_point_of_the_curve_is_refused_as_such() -> None:
    right = acceptor()
    right.receive(Hello([1], b"\xff" * 32, os.urandom(32), "client"))
    with pytest.raises(HandshakeFailed, match="did not prove"):
        right.receive(Proof(bytes(64)))


# --- versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [[], [0], [2], [2, 3, 4]])
def test_a_dialer_of_other_versions_is_refused(versions: list[int]) -> None:
    with pytest.raises(HandshakeFailed, match="version"):
        acceptor().receive(changed(dialer().hello(), versions=versions))


def test_an_acceptor_that_chose_another_version_is_refused() -> None:
    left, right = dialer(), acceptor()
    challenge = right.receive(left.hello())
    with pytest.raises(HandshakeFailed, match="version 2"):
        left.receive(changed(challenge, version=2))


# --- before it is over ------------------------------------------------------------------------------------

KINDS: dict[str, tuple[dict[str, Any], bytes]] = {
    "HELLO": ({"versions": [1], "key": bytes(32), "nonce": bytes(32), "role": "client", "name": ""}, b""),
    "CHALLENGE": ({"version": 1, "key": bytes(32), "nonce": bytes(32), "name": "", "signature": bytes(64)}, b""),
    "PROOF": ({"signature": bytes(64)}, b""),
    "WELCOME": ({"window": limits.WINDOW}, b""),
    "REQUEST": ({"id": 1, "op": "search", "args": {"query": "#a"}}, b""),
    "REPLY": ({"id": 1, "result": {}}, b""),
    "FAULT": ({"id": 1, "code": "denied", "message": "no", "fields": {}}, b""),
    "CHUNK": ({"stream": 1, "offset": 0}, b"x"),
    "CREDIT": ({"stream": 1, "nbytes": 1}, b""),
    "ABORT": ({"request": 1}, b""),
    "of a later version": ({}, b""),
}
NUMBERS = {name: number for number, name in enumerate(KINDS, start=1)}
DUE = {
    State.AWAIT_HELLO: "HELLO",
    State.AWAIT_CHALLENGE: "CHALLENGE",
    State.AWAIT_PROOF: "PROOF",
    State.AWAIT_WELCOME: "WELCOME",
}


def session_in(state: State, make_pair: Any) -> Session:
    pair = make_pair()
    if state is State.AWAIT_HELLO:
        return pair.acceptor.session
    if state is State.AWAIT_CHALLENGE:
        pair.dialer.session.data_to_send()
        return pair.dialer.session
    pair.acceptor.take(pair.dialer.session.data_to_send())
    challenge = pair.acceptor.session.data_to_send()
    if state is State.AWAIT_PROOF:
        return pair.acceptor.session
    pair.dialer.take(challenge)
    pair.dialer.session.data_to_send()
    return pair.dialer.session


@pytest.mark.parametrize(
    ("state", "kind"), [(state, kind) for state, due in DUE.items() for kind in KINDS if kind != due]
)
def test_any_message_but_the_due_one_ends_the_handshake(make_pair: Any, raw: Raw, state: State, kind: str) -> None:
    session = session_in(state, make_pair)
    header, payload = KINDS[kind]
    with pytest.raises(HandshakeFailed, match="was due"):
        session.receive(raw(NUMBERS[kind], header, payload))
    assert session.is_dead and not session.is_open
    (fault,) = session.data_to_send()
    (frame,) = codec.decode(fault)
    assert (frame.type, frame.header["code"], "id" in frame.header) == (7, "handshake_failed", False)


@pytest.mark.parametrize("state", DUE)
def test_a_fault_without_id_tells_the_waiting_end_why(make_pair: Any, raw: Raw, state: State) -> None:
    session = session_in(state, make_pair)
    with pytest.raises(HandshakeFailed, match="we do not like you"):
        session.receive(raw(7, {"code": "handshake_failed", "message": "we do not like you", "fields": {}}))
    assert session.is_dead and session.data_to_send() == []


def test_a_message_of_the_handshake_travels_alone(make_pair: Any, raw: Raw) -> None:
    """No request slips in behind the proof."""
    pair = make_pair()
    pair.acceptor.take(pair.dialer.session.data_to_send())
    pair.dialer.take(pair.acceptor.session.data_to_send())
    (proof,) = pair.dialer.session.data_to_send()
    with pytest.raises(HandshakeFailed, match="alone"):
        pair.acceptor.session.receive(proof + raw(5, KINDS["REQUEST"][0]))
    assert pair.acceptor.events == [] and pair.acceptor.session.is_dead


def test_headers_are_small_before_it_is_over(make_pair: Any, raw: Raw) -> None:
    session = session_in(State.AWAIT_HELLO, make_pair)
    hello = {**KINDS["HELLO"][0], "later": bytes(limits.MAX_HELLO)}
    with pytest.raises(ProtocolError, match="header of"):
        session.receive(raw(1, hello))


def test_hostile_hellos_raise_nothing_else(make_pair: Any, raw: Raw) -> None:
    for header in (b"\x91" * 8000, b"\xdd\xff\xff\xff\xff", msgpack.packb([1]), b"", b"\xc1"):
        with pytest.raises(ProtocolError):
            session_in(State.AWAIT_HELLO, make_pair).receive(raw(1, header))


def test_the_ends_of_a_session_hear_that_it_opened(make_pair: Any) -> None:
    pair = make_pair(Introduction("client", "dora", lease=bytes(16))).pump()
    assert [event.remote.name for event in pair.dialer.of(Opened)] == ["alice"]
    assert [(event.remote.name, event.remote.lease) for event in pair.acceptor.of(Opened)] == [("dora", bytes(16))]


@pytest.mark.parametrize("message", [None, Welcome(limits.WINDOW)], ids=["unknown", "known"])
def test_an_open_handshake_takes_no_more(message: Message | None) -> None:
    left, right = dialer(), acceptor()
    shake(left, right)
    with pytest.raises(KeyError):
        left.receive(message)
