"""Chunks straight from the socket into place, and everything else to the library: without a socket."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from peer.direct import Direct
from peer.hashing import hash_of
from protocol import codec, limits
from protocol.codec import FrameType
from protocol.messages import Chunk

URL = parse_uri("ws://127.0.0.1:1/")
SIDES = ("server", "client")
BLOCK = random.Random(1).randbytes(limits.CHUNK)


class Transport:
    def __init__(self) -> None:
        self.protocol: Any = None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> Any:
        return None

    def get_write_buffer_size(self) -> int:
        return 0


class Socket:
    """The library's part: its parser, and what came out of it."""

    def __init__(self, side: str) -> None:
        is_server = side == "server"
        self.protocol: Protocol = (
            ServerProtocol(state=State.OPEN, max_size=limits.MAX_FRAME)
            if is_server
            else ClientProtocol(URL, state=State.OPEN, max_size=limits.MAX_FRAME)
        )
        self.transport = Transport()
        self.log: list[Any] = []
        self.given = 0
        self.handed = 0
        self.is_lost = False

    def sink(self, message: bytes) -> bool:
        """Takes every second message that it is given; the others go through the library."""
        self.handed += 1
        if self.handed % 2:
            self.log.append((Opcode.BINARY, bytes(message), True))
        return bool(self.handed % 2)

    def data_received(self, data: bytes) -> None:
        self.given += len(data)
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            assert isinstance(event, Frame)
            self.log.append((event.opcode, bytes(event.data), event.fin))

    def eof_received(self) -> None:
        self.protocol.receive_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True


class Places:
    """One stream's target; `log` is shared with the library's, so that the order shows."""

    def __init__(self, socket: Socket, blocks: int = 42) -> None:
        self.log = socket.log
        self.memory = bytearray(blocks * limits.CHUNK)
        self.is_wanted = True

    def place(self, stream: int, offset: int, nbytes: int) -> memoryview | None:
        if not self.is_wanted or offset + nbytes > len(self.memory):
            return None
        return memoryview(self.memory)[offset : offset + nbytes]

    def placed(self, size: int, chunk: Chunk) -> None:
        self.log.append((Opcode.BINARY, message_of(chunk.offset, bytes(chunk.payload)), True))
        assert size == len(self.log[-1][1])


def message_of(offset: int, payload: bytes, stream: int = 1, **header: Any) -> bytes:
    fields = {"stream": stream, "offset": offset, "hash": hash_of(payload), **header}
    return codec.encode(FrameType.CHUNK, fields, len(payload)) + payload


def frame(
    side: str, message: bytes, opcode: Opcode = Opcode.BINARY, fin: bool = True, mask: bool | None = None
) -> bytes:
    return Frame(opcode, message, fin).serialize(mask=side == "server" if mask is None else mask)


def line(side: str) -> tuple[Socket, Places, Direct]:
    socket = Socket(side)
    places = Places(socket)
    return socket, places, Direct(socket, places, lambda: None)  # type: ignore[arg-type]


def deliver(direct: Direct, data: bytes, step: int | random.Random = 1 << 30) -> None:
    """What the transport does: so many bytes at a time, and never more than there is room for."""
    at = 0
    while at < len(data):
        buffer = direct.get_buffer(-1)
        assert len(buffer), "a transport takes an empty buffer for a defect"
        size = step if isinstance(step, int) else step.choice((1, 2, 7, 100, 5_000, 70_000, limits.CHUNK))
        piece = data[at : at + min(size, len(buffer))]
        buffer[: len(piece)] = piece
        direct.buffer_updated(len(piece))
        at += len(piece)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", range(8))
def test_all_messages_come_in_order_however_the_bytes_are_cut(side: str, seed: int) -> None:
    """Chunks among small messages, messages of many sizes, pings, and messages in fragments."""
    chance = random.Random(seed)
    socket, _, direct = line(side)
    sent: list[tuple[Opcode, bytes, bool]] = []
    offset = 0
    for _ in range(40):
        kind = chance.choice(("chunk", "chunk", "chunk", "small", "large", "ping", "parts", "last", "long header"))
        if kind == "ping":
            sent.append((Opcode.PING, chance.randbytes(chance.choice((0, 5, 125))), True))
        elif kind == "parts":
            sent.append((Opcode.BINARY, chance.randbytes(100_000), False))
            sent.append((Opcode.PING, b"in between", True))
            sent.append((Opcode.CONT, chance.randbytes(chance.choice((0, 100_000))), True))
        elif kind == "small":
            sent.append((Opcode.BINARY, chance.randbytes(chance.choice((0, 1, 125, 126, 127, 2_000))), True))
        elif kind == "large":
            sent.append((Opcode.BINARY, chance.randbytes(chance.choice((65_535, 65_536, 500_000))), True))
        elif kind == "long header":
            sent.append((Opcode.BINARY, message_of(offset, BLOCK[:70_000], message="x" * 300), True))
        else:
            payload = BLOCK if kind == "chunk" else BLOCK[: chance.choice((1, 65_000, 66_000))]
            sent.append((Opcode.BINARY, message_of(offset, payload), True))
            offset += limits.CHUNK
    data = b"".join(frame(side, message, opcode, fin) for opcode, message, fin in sent)
    deliver(direct, data, chance)
    assert socket.log == sent
    assert socket.given < len(data) - 5 * limits.CHUNK, "chunks came by way of the library"


@pytest.mark.parametrize("side", SIDES)
def test_a_chunks_bytes_are_written_where_they_belong(side: str) -> None:
    socket, places, direct = line(side)
    data = b"".join(frame(side, message_of(at * limits.CHUNK, BLOCK)) for at in range(4))
    deliver(direct, data)
    assert bytes(places.memory[: 4 * limits.CHUNK]) == 4 * BLOCK
    assert socket.given == 0


def test_the_system_reads_into_that_memory_itself() -> None:
    _, places, direct = line("client")
    data = frame("client", message_of(0, BLOCK))
    deliver(direct, data[:200])
    buffer = direct.get_buffer(-1)
    assert buffer.obj is places.memory and len(buffer) == len(data) - 200


@pytest.mark.parametrize("side", SIDES)
def test_what_nobody_wants_any_more_is_written_nowhere(side: str) -> None:
    socket, places, direct = line(side)
    data = frame(side, message_of(0, BLOCK)) + frame(side, b"after it")
    half = len(data) // 2
    deliver(direct, data[:half])
    direct.forget(2)
    assert direct.get_buffer(-1).obj is places.memory
    direct.forget(1)
    before = bytes(places.memory)
    deliver(direct, data[half:], 10_000)
    assert bytes(places.memory) == before
    assert socket.log == [(Opcode.BINARY, b"after it", True)]
    places.memory.clear()  # nothing has a view of it, either


@pytest.mark.parametrize("side", SIDES)
def test_a_chunk_without_a_place_is_a_message_like_others(side: str) -> None:
    socket, places, direct = line(side)
    places.is_wanted = False
    deliver(direct, frame(side, message_of(0, BLOCK)), 50_000)
    assert socket.log == [(Opcode.BINARY, message_of(0, BLOCK), True)] and socket.given > limits.CHUNK


def test_a_frame_that_had_begun_before_is_the_librarys() -> None:
    socket = Socket("client")
    first, second = frame("client", BLOCK), frame("client", message_of(0, BLOCK))
    socket.data_received(first[:1_000])
    places = Places(socket)
    direct = Direct(socket, places, lambda: None)  # type: ignore[arg-type]
    deliver(direct, first[1_000:])
    deliver(direct, second)
    assert [message for _, message, _ in socket.log] == [BLOCK, message_of(0, BLOCK)]
    assert bytes(places.memory[: limits.CHUNK]) == BLOCK


def patched(message: bytes, at: int, new: bytes) -> bytes:
    return message[:at] + new + message[at + len(new) :]


HEADER_AT = codec.PRELUDE_BYTES
WHOLE = message_of(0, BLOCK)
UNSOUND = {
    "wrong magic": patched(WHOLE, 0, b"PGRX"),
    "wrong version": patched(WHOLE, 4, b"\x02"),
    "flags": patched(WHOLE, 6, b"\x01"),
    "another type": patched(WHOLE, 5, b"\x05"),
    "payload length too small": patched(WHOLE, 12, (limits.CHUNK - 1).to_bytes(8, "little")),
    "payload length too large": patched(WHOLE, 12, (limits.CHUNK + 1).to_bytes(8, "little")),
    "header length too large": patched(WHOLE, 8, (1 << 20).to_bytes(4, "little")),
    "header length of zero": patched(WHOLE, 8, bytes(4)),
    "header that is no map": patched(WHOLE, HEADER_AT, b"\xc0"),
    "stream that is no number": message_of(0, BLOCK, stream="1"),  # type: ignore[arg-type]
    "offset that is none": message_of(None, BLOCK),  # type: ignore[arg-type]
    "hash that is text": message_of(0, BLOCK, hash="x"),
    "digest of the wrong size": message_of(0, BLOCK, digest=bytes(3)),
    "two frames": message_of(0, BLOCK[:70_000]) + message_of(70_000, BLOCK[:70_000]),
    "a frame cut off": WHOLE[:-1],
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", UNSOUND)
def test_what_is_not_exactly_a_chunk_is_for_others_to_judge(side: str, name: str) -> None:
    socket, _, direct = line(side)
    deliver(direct, frame(side, UNSOUND[name]), 3_000)
    assert socket.log == [(Opcode.BINARY, UNSOUND[name], True)]


def hostile(side: str) -> dict[str, bytes]:
    good = frame(side, WHOLE)
    return {
        "wrongly masked": frame(side, WHOLE, mask=side != "server"),
        "reserved bit": bytes([good[0] | 0x40]) + good[1:],
        "unknown opcode": bytes([0x83]) + good[1:],
        "too large": frame(side, bytes(limits.MAX_FRAME + 1)),
        "absurdly large": good[:2] + b"\x7f" + b"\xff" * 7 + good[10:],
        "a new message within one in fragments": frame(side, b"a", fin=False) + good,
        "a fragment of nothing": frame(side, BLOCK, Opcode.CONT),
        "a ping in fragments": frame(side, b"", Opcode.PING)[:1].replace(b"\x89", b"\x09") + good[1:],
        "a ping that is too long": bytes([0x89]) + good[1:],
        "after a close": frame(side, b"\x03\xe8", Opcode.CLOSE) + good,
    }


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", hostile("server"))
def test_hostile_frames_end_as_they_do_with_the_library_alone(side: str, name: str) -> None:
    data = hostile(side)[name] + frame(side, WHOLE)
    alone = Socket(side)
    alone.data_received(data)
    socket, places, direct = line(side)
    deliver(direct, data, 4_000)
    assert socket.protocol.state is alone.protocol.state is not State.OPEN
    assert socket.protocol.close_sent == alone.protocol.close_sent
    assert socket.log == alone.log and places.memory.count(0) == len(places.memory)


def test_an_end_within_a_chunk_is_the_end() -> None:
    socket, _, direct = line("client")
    deliver(direct, frame("client", WHOLE)[:1_000])
    direct.eof_received()
    direct.connection_lost(None)
    assert socket.is_lost and socket.log == []
    assert isinstance(direct, asyncio.BufferedProtocol)
