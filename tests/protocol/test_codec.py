"""Frames: what is refused, and that nothing else than ProtocolError ever comes out."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import codec, limits, messages
from protocol.codec import FrameType
from protocol.errors import BadRequest, ProtocolError, TooLarge

Raw = Callable[..., bytes]

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars | st.binary(max_size=64),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=6),
    max_leaves=30,
)
headers = st.dictionaries(st.text(max_size=20), values, max_size=8)


def decode_all(message: bytes, max_header: int = limits.MAX_HEADER) -> list[codec.Frame]:
    return list(codec.decode(message, max_header))


def refused(message: bytes, **kwargs: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode_all(message, **kwargs)
    return caught.value.message


# --- what goes through ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(FrameType), header=headers, payload=st.binary(max_size=100))
def test_what_is_encoded_is_decoded_again(kind: FrameType, header: dict[str, Any], payload: bytes) -> None:
    (frame,) = decode_all(codec.encode(kind, header, len(payload)) + payload)
    assert (frame.type, frame.header, bytes(frame.payload)) == (kind, header, payload)


def test_one_message_holds_several_frames(raw: Raw) -> None:
    frames = decode_all(raw(5, {"a": 1}, b"one") + raw(9, {"b": 2}) + raw(8, {"c": 3}, b"three"))
    assert [(frame.type, frame.header, bytes(frame.payload)) for frame in frames] == [
        (5, {"a": 1}, b"one"),
        (9, {"b": 2}, b""),
        (8, {"c": 3}, b"three"),
    ]


def test_a_payload_is_a_view_of_the_message(raw: Raw) -> None:
    message = bytearray(raw(8, {}, b"before"))
    (frame,) = codec.decode(message)
    message[-6:] = b"after!"
    assert bytes(frame.payload) == b"after!"


def test_an_empty_payload_keeps_no_message_alive(raw: Raw) -> None:
    (frame,) = decode_all(raw(5))
    assert frame.payload.obj == b""


def test_unknown_frame_types_are_frames_too(raw: Raw) -> None:
    (frame,) = decode_all(raw(200, {"later": True}))
    assert frame.type == 200


def test_a_chunk_of_the_largest_size_goes_through(raw: Raw) -> None:
    (frame,) = decode_all(raw(8, {}, bytes(limits.CHUNK)))
    assert len(frame.payload) == limits.CHUNK


# --- preludes ---------------------------------------------------------------------------------------------


def test_an_empty_message_is_refused() -> None:
    assert "empty" in refused(b"")


def test_a_message_cut_anywhere_is_refused(raw: Raw) -> None:
    whole = raw(5, {"id": 1, "op": "peers", "args": {}}, b"payload")
    for length in range(len(whole)):
        refused(whole[:length])


def test_a_second_frame_cut_anywhere_is_refused(raw: Raw) -> None:
    whole = raw(9, {"a": 1}) + raw(9, {"b": 2})
    for length in range(len(whole) // 2 + 1, len(whole)):
        refused(whole[:length])


@pytest.mark.parametrize(
    ("prelude", "says"),
    [
        ({"magic": b"HTTP"}, "magic"),
        ({"version": 0}, "version 0"),
        ({"version": 2}, "version 2"),
        ({"flags": 1}, "flags"),
        ({"flags": 0x8000}, "flags"),
        ({"header_bytes": limits.MAX_HEADER + 1}, "header of"),
        ({"header_bytes": 2**32 - 1}, "header of"),
        ({"payload_bytes": limits.CHUNK + 1}, "payload of"),
        ({"payload_bytes": 2**63 - 1}, "payload of"),
        ({"payload_bytes": 2**64 - 1}, "payload of"),
        ({"payload_bytes": 8}, "cut off"),
    ],
)
def test_a_prelude_that_breaks_a_rule_is_refused(raw: Raw, prelude: dict[str, Any], says: str) -> None:
    assert says in refused(raw(5, {"id": 1}, b"payload", **prelude))


def test_lengths_that_lie_allocate_nothing(raw: Raw) -> None:
    message = raw(5, {}, b"", payload_bytes=2**63 - 1)
    tracemalloc.start()
    refused(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * limits.KIB


def test_before_the_session_is_open_headers_are_small(raw: Raw) -> None:
    fits = msgpack.packb({"name": "x" * (limits.MAX_HELLO - 9)})
    assert len(fits) == limits.MAX_HELLO
    assert len(decode_all(raw(1, fits), max_header=limits.MAX_HELLO)) == 1
    assert "header of" in refused(raw(1, fits + b"x"), max_header=limits.MAX_HELLO)


def test_frames_of_one_message_are_counted(raw: Raw) -> None:
    assert len(decode_all(raw(99) * limits.MAX_FRAMES)) == limits.MAX_FRAMES
    assert "frames" in refused(raw(99) * (limits.MAX_FRAMES + 1))


# --- headers ----------------------------------------------------------------------------------------------

NAMED = bytes.fromhex("81a161")  # {"a": ... one value follows
BOMBS: dict[str, bytes] = {
    "nothing": b"",
    "not a map: nil": b"\xc0",
    "not a map: list": b"\x90",
    "not a map: integer": b"\x07",
    "not a map: text": b"\xa1a",
    "bytes after the map": b"\x80\x80",
    "a value is missing": b"\x81\xa1a",
    "the byte that msgpack never uses": NAMED + b"\xc1",
    "text that is not UTF-8": NAMED + b"\xa2\xff\xfe",
    "text with a surrogate": NAMED + b"\xa3\xed\xa0\x80",
    "list of 2^32-1": NAMED + b"\xdd\xff\xff\xff\xff",
    "map of 2^32-1": NAMED + b"\xdf\xff\xff\xff\xff",
    "text of 2^32-1": NAMED + b"\xdb\xff\xff\xff\xff",
    "bytes of 2^32-1": NAMED + b"\xc6\xff\xff\xff\xff",
    "extension of 2^32-1": NAMED + b"\xc9\xff\xff\xff\xff\x05",
    "list of 65,535": NAMED + b"\xdc\xff\xff",
    "map of 65,535": NAMED + b"\xde\xff\xff",
    "extension of 0 bytes": NAMED + b"\xc7\x00\x05",
    "extension of 1 byte": NAMED + b"\xd4\x05\x00",
    "extension of 2 bytes": NAMED + b"\xd5\x05\x00\x00",
    "extension of 4 bytes": NAMED + b"\xd6\x05" + bytes(4),
    "extension of 8 bytes": NAMED + b"\xd7\x05" + bytes(8),
    "extension of 16 bytes": NAMED + b"\xd8\x05" + bytes(16),
    "timestamp of 4 bytes": NAMED + b"\xd6\xff" + bytes(4),
    "timestamp of 8 bytes": NAMED + b"\xd7\xff" + bytes(8),
    "timestamp of 12 bytes": NAMED + b"\xc7\x0c\xff" + bytes(12),
    "timestamp beyond all years": NAMED + b"\xc7\x0c\xff" + b"\xff" * 12,
    "empty extension that is a timestamp": NAMED + b"\xc7\x00\xff",
    "the same key twice": b"\x82\xa1a\x01\xa1a\x02",
    "the same key twice, further in": NAMED + b"\x82\xa1a\x01\xa1a\x02",
    "the same key twice, in a list": NAMED + b"\x91\x82\xa1b\x01\xa1b\x01",
    "a number as key": b"\x81\x01\x01",
    "nil as key": b"\x81\xc0\x01",
    "a fraction as key": b"\x81\xcb" + bytes(8) + b"\x01",
    "bytes as key": b"\x81\xc4\x01a\x01",
    "bytes as key, further in": NAMED + b"\x81\xc4\x01a\x01",
    "a list as key": b"\x81\x90\x01",
    "a map as key": b"\x81\x80\x01",
    "1,024 lists inside one another": NAMED + b"\x91" * 1024 + b"\xc0",
    "60,000 lists inside one another": NAMED + b"\x91" * 60_000,
    "60,000 maps inside one another": b"\x81\xa1a" * 20_000,
    "65 lists inside one another": NAMED + b"\x91" * limits.MAX_DEPTH + b"\xc0",
    "64 KiB of empty lists": b"\x90" * limits.MAX_HEADER,
    "64 KiB of empty lists in lists": NAMED + (b"\xdc\x10\x00" + b"\x90" * 4096) * 15,
    "5,000 empty lists too many": msgpack.packb({"a": [[[]] * 2500, [[]] * 2499]}),
    "5,000 empty maps too many": msgpack.packb({"a": [[{}] * 2500, [{}] * 2499]}),
    "a list of 4,097": msgpack.packb({"a": [0] * (limits.MAX_ARRAY + 1)}),
    "a map of 257": msgpack.packb({str(n): 0 for n in range(limits.MAX_MAP + 1)}),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_header_that_breaks_a_rule_is_refused(raw: Raw, bomb: bytes) -> None:
    refused(raw(5, bomb[: limits.MAX_HEADER]))


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_header_that_breaks_a_rule_costs_little_memory(bomb: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        codec.unpack_header(bomb[: limits.MAX_HEADER])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * limits.MIB


@pytest.mark.parametrize(
    "header",
    [
        {"a": [[]] * (limits.MAX_ARRAY - 1)},
        {"a": [[[]] * 2500, [[]] * 2496]},
        {"a": [0] * limits.MAX_ARRAY},
        {str(n): 0 for n in range(limits.MAX_MAP)},
        {"a": "x" * (limits.MAX_HEADER - 6)},
        {"a": bytes(limits.MAX_HEADER - 6)},
        {"big": 2**64 - 1, "small": -(2**63), "real": 1e308, "none": None},
    ],
    ids=["lists", "containers", "items", "entries", "text", "bytes", "numbers"],
)
def test_a_header_at_its_limits_is_taken(raw: Raw, header: dict[str, Any]) -> None:
    (frame,) = decode_all(raw(5, header))
    assert frame.header == header


def test_as_many_lists_inside_one_another_as_allowed_are_taken() -> None:
    codec.unpack_header(NAMED + b"\x91" * (limits.MAX_DEPTH - 2) + b"\xc0")


def test_bytes_that_only_look_like_many_lists_are_taken() -> None:
    header = {"a": b"\x90" * (limits.MAX_CONTAINERS + 1)}
    assert codec.unpack_header(msgpack.packb(header)) == header


# --- what an honest end cannot send -----------------------------------------------------------------------


def test_a_header_beyond_its_size_never_leaves() -> None:
    with pytest.raises(TooLarge) as caught:
        codec.encode(FrameType.REQUEST, {"a": bytes(limits.MAX_HEADER)})
    assert caught.value.fields["limit"] == "MAX_HEADER"


@pytest.mark.parametrize(
    "header",
    [
        {"a": [0] * (limits.MAX_ARRAY + 1)},
        {"a": {str(n): 0 for n in range(limits.MAX_MAP + 1)}},
        {"a": [[[]] * 2500, [[]] * 2500]},
    ],
    ids=["items", "entries", "containers"],
)
def test_a_header_that_the_other_end_would_refuse_never_leaves(header: dict[str, Any]) -> None:
    with pytest.raises(TooLarge):
        codec.encode(FrameType.REQUEST, header)


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, -(2**63) - 1, "\ud800", 1j])
def test_a_value_that_msgpack_cannot_hold_never_leaves(value: object) -> None:
    with pytest.raises(BadRequest):
        codec.encode(FrameType.REQUEST, {"a": value})


# --- anything at all --------------------------------------------------------------------------------------

SAMPLES = [
    (1, {"versions": [1], "key": bytes(32), "nonce": bytes(32), "role": "client", "name": "dora"}, b""),
    (2, {"version": 1, "key": bytes(32), "nonce": bytes(32), "name": "alice", "signature": bytes(64)}, b""),
    (4, {"window": limits.WINDOW}, b""),
    (5, {"id": 1, "op": "put", "args": {"id": bytes(16), "shape": [2, 3], "tags": ["#a"]}}, b"123456"),
    (6, {"id": 1, "result": {"records": [{"id": bytes(16), "tags": []}]}, "stream": 2, "nbytes": 9}, b""),
    (7, {"id": 1, "code": "not_found", "message": "no", "fields": {}}, b""),
    (8, {"stream": 1, "offset": 0}, b"chunk"),
    (9, {"stream": 1, "nbytes": 5}, b""),
    (10, {"request": 4, "message": "enough"}, b""),
]


def parse_all(message: bytes) -> None:
    """ProtocolError is the only error that may come out of bytes."""
    try:
        for frame in codec.decode(message):
            messages.parse(frame)
    except ProtocolError:
        pass


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_as_such(data: bytes) -> None:
    parse_all(data)


@settings(max_examples=200, deadline=None)
@given(sample=st.sampled_from(SAMPLES), header=st.binary(max_size=200))
def test_arbitrary_headers_are_refused_as_such(raw: Raw, sample: tuple[int, Any, bytes], header: bytes) -> None:
    parse_all(raw(sample[0], header, sample[2]))


@settings(max_examples=100, deadline=None)
@given(sample=st.sampled_from(SAMPLES), name=st.text(max_size=8), value=values, data=st.data())
def test_arbitrary_fields_are_refused_as_such(
    raw: Raw, sample: tuple[int, dict[str, Any], bytes], name: str, value: Any, data: st.DataObject
) -> None:
    kind, header, payload = sample
    key = data.draw(st.sampled_from([*header, "stream", "nbytes", "lease", "expect", name]))
    parse_all(raw(kind, {**header, key: value}, payload))


def test_mutated_messages_are_refused_as_such(raw: Raw) -> None:
    chance = random.Random(20)
    whole = [raw(*sample) for sample in SAMPLES]
    for _ in range(20_000):
        message = bytearray(chance.choice(whole) + chance.choice([b"", chance.choice(whole)]))
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(message))
            if chance.random() < 0.7:
                message[at] = chance.randrange(256)
            elif chance.random() < 0.5:
                del message[at : at + chance.randint(1, 4)]
            else:
                message[at:at] = chance.randbytes(chance.randint(1, 4))
            if not message:
                break
        parse_all(bytes(message))
