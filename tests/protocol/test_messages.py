"""Messages check themselves: invalid ones cannot be built, here or from the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol import codec, limits, messages
from protocol.errors import NotCollocated, ProtocolError
from protocol.messages import Abort, Challenge, Chunk, Credit, Fault, Hello, Message, Proof, Reply, Request, Welcome

Raw = Callable[..., bytes]
KEY, NONCE, SIGNATURE, LEASE = bytes(32), bytes(range(32)), bytes(64), bytes(16)

GOOD: list[Message] = [
    Hello([1], KEY, NONCE, "client"),
    Hello([1, 2], KEY, NONCE, "peer", "bob", "a" * 52, LEASE),
    Challenge(1, KEY, NONCE, "alice", SIGNATURE),
    Proof(SIGNATURE),
    Welcome(limits.CHUNK),
    Request(1, "peers", {}),
    Request(limits.MAX_ID, "put", {"id": LEASE}, payload=memoryview(b"bytes")),
    Request(2, "put", {}, 1, 100_000),
    Reply(1, {"peers": []}),
    Reply(1, {}, 2, 1),
    Fault("protocol", "no"),
    Fault("denied", "no", 7, "fetch", "alice", {"owners": ["x"]}),
    Chunk(1, 0, memoryview(b"x")),
    Credit(1, 1),
    Abort(stream=1),
    Abort(request=1, message="enough"),
]


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    payload = bytes(getattr(message, "payload", b""))
    (frame,) = codec.decode(codec.encode(message.type, messages.header(message), len(payload)) + payload)
    again = messages.parse(frame)
    assert again == message
    assert bytes(getattr(again, "payload", b"")) == payload


def test_fields_that_are_none_are_left_out() -> None:
    assert messages.header(Hello([1], KEY, NONCE, "peer")).keys() == {"versions", "key", "nonce", "role", "name"}
    assert messages.header(Abort(stream=3)).keys() == {"stream", "message"}


BAD: list[tuple[type, dict[str, Any]]] = [
    *[
        (Hello, {"versions": [1], "key": KEY, "nonce": NONCE, "role": "client", **wrong})
        for wrong in (
            {"versions": 1},
            {"versions": ["1"]},
            {"versions": [True]},
            {"key": KEY[:31]},
            {"key": "k" * 32},
            {"nonce": NONCE + b"x"},
            {"nonce": None},
            {"role": "root"},
            {"role": None},
            {"name": None},
            {"name": b"bytes"},
            {"name": "x" * (limits.MAX_NAME + 1)},
            {"name": "two\nlines"},
            {"name": "\x1b[31mred"},
            {"name": "\u202eright to left"},
            {"expect": 5},
            {"lease": bytes(15)},
            {"lease": "x" * 16},
        )
    ],
    *[
        (Challenge, {"version": 1, "key": KEY, "nonce": NONCE, "name": "a", "signature": SIGNATURE, **wrong})
        for wrong in (
            {"version": "1"},
            {"version": True},
            {"key": bytes(33)},
            {"nonce": bytes(0)},
            {"name": 7},
            {"name": "a\0b"},
            {"signature": bytes(63)},
            {"signature": None},
        )
    ],
    (Proof, {"signature": bytes(65)}),
    (Proof, {"signature": "x" * 64}),
    (Welcome, {"window": limits.CHUNK - 1}),
    (Welcome, {"window": limits.WINDOW + 1}),
    (Welcome, {"window": 2e6}),
    (Welcome, {"window": -1}),
    *[
        (Request, {"id": 1, "op": "put", "args": {}, **wrong})
        for wrong in (
            {"once": 5, "seen": 6},
            {"id": 0},
            {"id": -1},
            {"id": True},
            {"id": 1.0},
            {"id": "1"},
            {"id": limits.MAX_ID + 1},
            {"op": ""},
            {"op": b"put"},
            {"op": "x" * (limits.MAX_NAME + 1)},
            {"args": []},
            {"args": None},
            {"stream": 0, "nbytes": 1},
            {"stream": True, "nbytes": 1},
            {"stream": 1},
            {"stream": 1, "nbytes": 0},
            {"stream": 1, "nbytes": -1},
            {"stream": 1, "nbytes": limits.MAX_TENSOR + 1},
            {"stream": 1, "nbytes": 1.5},
            {"nbytes": 5},
            {"stream": 1, "nbytes": 1, "payload": memoryview(b"x")},
            {"payload": memoryview(bytes(limits.INLINE_PAYLOAD + 1))},
        )
    ],
    *[
        (Reply, {"id": 1, "result": {}, **wrong})
        for wrong in (
            {"id": 0},
            {"id": None},
            {"result": []},
            {"result": None},
            {"stream": 2},
            {"nbytes": 2},
            {"stream": 2, "nbytes": 1, "payload": memoryview(b"x")},
            {"payload": memoryview(bytes(limits.INLINE_PAYLOAD + 1))},
        )
    ],
    *[
        (Fault, {"id": 1, "code": "denied", "message": "no", **wrong})
        for wrong in (
            {"id": 0},
            {"id": "1"},
            {"code": 5},
            {"message": None},
            {"operation": 5},
            {"peer": []},
            {"fields": []},
            {"fields": None},
        )
    ],
    *[
        (Chunk, {"stream": 1, "offset": 0, "payload": memoryview(b"x"), **wrong})
        for wrong in (
            {"stream": 0},
            {"stream": "1"},
            {"offset": -1},
            {"offset": True},
            {"offset": limits.MAX_TENSOR + 1},
            {"payload": memoryview(b"")},
            {"payload": memoryview(bytes(limits.CHUNK + 1))},
        )
    ],
    *[
        (Credit, {"stream": 1, "nbytes": 1, **wrong})
        for wrong in ({"stream": 0}, {"nbytes": 0}, {"nbytes": -5}, {"nbytes": True}, {"nbytes": 2**62})
    ],
    (Abort, {}),
    (Abort, {"stream": 1, "request": 1}),
    (Abort, {"stream": 0}),
    (Abort, {"request": -1}),
    (Abort, {"request": True}),
    (Abort, {"stream": 1, "message": b"x"}),
]


@pytest.mark.parametrize(("kind", "fields"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_an_invalid_message_cannot_be_built(kind: type, fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=kind.__name__):
        kind(**fields)


@pytest.mark.parametrize(("kind", "fields"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_an_invalid_message_from_the_wire_is_refused(raw: Raw, kind: type, fields: dict[str, Any]) -> None:
    header = {name: value for name, value in fields.items() if name != "payload"}
    if any(value is None and name not in messages._REQUIRED[kind.type] for name, value in header.items()):
        return  # on the wire that is a field left out
    with pytest.raises(ProtocolError):
        for frame in codec.decode(raw(kind.type, header, bytes(fields.get("payload", b"")))):
            messages.parse(frame)


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_a_required_field_that_is_missing_is_named(message: Message, raw: Raw) -> None:
    whole = messages.header(message)
    for name in messages._REQUIRED[message.type] - {"payload"}:
        header = {key: value for key, value in whole.items() if key != name}
        (frame,) = codec.decode(raw(message.type, header, bytes(getattr(message, "payload", b""))))
        with pytest.raises(ProtocolError, match=name):
            messages.parse(frame)


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_unknown_fields_are_ignored(message: Message, raw: Raw) -> None:
    header = {**messages.header(message), "later": [1, 2], "type": 3, "payload": b"no"}
    (frame,) = codec.decode(raw(message.type, header, bytes(getattr(message, "payload", b""))))
    assert messages.parse(frame) == message


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_a_field_that_may_be_absent_may_be_nil(message: Message, raw: Raw) -> None:
    optional = messages._FIELDS[message.type] - messages._REQUIRED[message.type]
    header = {**dict.fromkeys(optional), **messages.header(message)}
    (frame,) = codec.decode(raw(message.type, header, bytes(getattr(message, "payload", b""))))
    assert messages.parse(frame) == message


@pytest.mark.parametrize("kind", [0, 11, 99, 255])
def test_a_type_of_a_later_version_is_no_message(kind: int, raw: Raw) -> None:
    (frame,) = codec.decode(raw(kind, {"anything": 1}, b"payload"))
    assert messages.parse(frame) is None


@pytest.mark.parametrize(
    "message",
    [each for each in GOOD if not isinstance(each, Request | Reply | Chunk)],
    ids=lambda message: type(message).__name__,
)
def test_messages_that_carry_no_payload_are_refused_with_one(message: Message, raw: Raw) -> None:
    (frame,) = codec.decode(raw(message.type, messages.header(message), b"x"))
    with pytest.raises(ProtocolError, match="no payload"):
        messages.parse(frame)


def test_a_fault_gives_back_its_error() -> None:
    error = NotCollocated("x is at alice, y at bob", operation="aten.add.Tensor", peer="alice", peers=["a", "b"])
    again = Fault.of(3, error).error()
    assert type(again) is NotCollocated
    assert (again.message, again.operation, again.peer, again.fields) == (
        error.message,
        "aten.add.Tensor",
        "alice",
        {"peers": ["a", "b"]},
    )
