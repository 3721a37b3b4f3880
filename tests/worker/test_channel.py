"""Framing and descriptors between a peer and its workers."""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import os
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from peer.worker.channel import BlockingChannel, LoopChannel
from peer.worker.framing import Decoder, encode
from protocol import limits
from protocol.errors import BadRequest, ProtocolError, TooLarge
from tests.waiting import PATIENCE, no_descriptors_left


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def pipe_with(text: bytes) -> int:
    """A descriptor that reads `text`: to see which one arrived where."""
    reads, writes = os.pipe()
    os.write(writes, text)
    os.close(writes)
    return reads


def _full_of(item: bytes) -> bytes:
    """A message of more lists or maps than any may have."""
    count = limits.WORKER_CONTAINERS + 10
    return struct.pack("<IB", 5 + count, 0) + b"\xdd" + struct.pack(">I", count) + count * item


class Collector:
    """A LoopChannel and what it heard."""

    def __init__(self, sock: socket.socket, receive_limit: int = limits.WORKER_REPLY) -> None:
        self.messages: list[Any] = []
        self.texts: list[bytes] = []
        self.end: list[Exception | None] = []
        self.happened = asyncio.Event()
        self.channel = LoopChannel(
            sock, self.heard, self.ended, send_limit=limits.WORKER_MESSAGE, receive_limit=receive_limit
        )

    def heard(self, message: Any, descriptors: list[int]) -> None:
        self.messages.append(message)
        for fd in descriptors:
            self.texts.append(os.read(fd, 100))
            os.close(fd)
        self.happened.set()

    def ended(self, error: Exception | None) -> None:
        self.end.append(error)
        self.happened.set()

    async def until(self, messages: int) -> None:
        while len(self.messages) < messages and not self.end:
            self.happened.clear()
            await asyncio.wait_for(self.happened.wait(), PATIENCE)

    async def until_end(self) -> Exception | None:
        while not self.end:
            self.happened.clear()
            await asyncio.wait_for(self.happened.wait(), PATIENCE)
        return self.end[0]


def test_messages_survive_any_cut() -> None:
    messages = [["run", 1, [b"x" * 300, {"a": 1.5}]], ["drop", []], None, "é" * 1000]
    stream = b"".join(encode(message) for message in messages)
    for seed in range(50):
        chance = random.Random(seed)
        decoder = Decoder(limits.WORKER_REPLY)
        heard: list[Any] = []
        at = 0
        while at < len(stream):
            size = chance.choice([1, 2, 7, 300, 5000])
            heard += [message for message, _ in decoder.feed(stream[at : at + size])]
            at += size
        assert heard == messages


def test_only_what_is_one_whole_message_is_read_alone() -> None:
    message = ["run", 1, [b"x" * 300]]
    whole = encode(message)
    decoder = Decoder(1000)
    assert decoder.alone(memoryview(whole)) == message
    for other in (whole[:-1], whole[:3], whole + b"x", whole + whole, encode(message, 1)):
        assert decoder.alone(memoryview(other)) is None
    assert Decoder(300).alone(memoryview(whole)) is None
    assert list(decoder.feed(whole[:10])) == []
    assert decoder.alone(memoryview(encode(["drop"]))) is None  # it is the rest of the one that has begun


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_are_kept() -> None:
    decoder = Decoder(1000)
    with pytest.raises(ProtocolError, match="1001 bytes"):
        list(decoder.feed(struct.pack("<IB", 1001, 0)))


def test_descriptors_that_did_not_come_are_refused() -> None:
    with pytest.raises(ProtocolError, match="claims 1 descriptors"):
        list(Decoder(1000).feed(encode(["x"], 1)))


def test_bytes_that_are_not_msgpack_are_refused() -> None:
    with pytest.raises(ProtocolError, match="does not decode"):
        list(Decoder(1000).feed(struct.pack("<IB", 1, 0) + b"\xc1"))


def test_a_long_message_of_few_lists_is_read() -> None:
    values = [[number] for number in range(1000)] + [bytes(2 * limits.WORKER_CONTAINERS)]
    ((message, _),) = Decoder(limits.WORKER_REPLY, limits.WORKER_CONTAINERS).feed(encode(values))
    assert message == values


def test_deep_nesting_is_refused() -> None:
    body = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(ProtocolError, match="does not decode"):
        list(Decoder(limits.WORKER_REPLY).feed(struct.pack("<IB", len(body), 0) + body))


def test_what_msgpack_cannot_hold_is_a_bad_request() -> None:
    for value in (1 << 64, object(), {"a": {1, 2}}):
        with pytest.raises(BadRequest, match="cannot travel"):
            encode(["x", value])


def test_a_message_beyond_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge) as caught:
        encode(["x", b"1" * 2000], limit=1000)
    assert caught.value.fields["limit"] == "WORKER_MESSAGE"


def test_each_message_gets_its_own_descriptors() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            sender, receiver = Collector(ours), Collector(theirs)
            for number in range(100):
                descriptors = [pipe_with(b"%d-%d" % (number, which)) for which in range(number % 4)]
                sender.channel.send([number, b"x" * (number * 37)], descriptors)
                for fd in descriptors:
                    os.close(fd)
            await receiver.until(100)
            assert [message[0] for message in receiver.messages] == list(range(100))
            assert receiver.texts == [b"%d-%d" % (n, which) for n in range(100) for which in range(n % 4)]
            sender.channel.close()
            receiver.channel.close()

    with no_descriptors_left():
        asyncio.run(main())


def test_many_messages_at_once_leave_others_their_turns() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            receiver = Collector(theirs)
            ours.sendall(b"".join(encode([number]) for number in range(500)))
            grown, last = [], 0
            while last < 500:
                await asyncio.sleep(0)
                grown.append(len(receiver.messages) - last)
                last = len(receiver.messages)
            assert receiver.messages == [[number] for number in range(500)]
            assert max(grown) <= 8
            ours.sendall(encode(["more"]))
            await receiver.until(501)
            receiver.channel.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_channel_that_is_closed_halfway_lets_go_of_all_that_came() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            sender, receiver = Collector(ours), Collector(theirs)
            for number in range(60):
                fd = pipe_with(b"%d" % number)
                sender.channel.send([number], [fd])
                os.close(fd)
            await receiver.until(1)
            assert len(receiver.messages) < 60
            receiver.channel.close()
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(receiver.messages) < 60
            sender.channel.close()

    with no_descriptors_left():
        asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_queue_that_is_full_waits_and_loses_nothing() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            sender = Collector(ours)
            waited = 0
            for number in range(2000):
                fd = pipe_with(b"%d" % number)
                sender.channel.send([number, b"y" * 5000], [fd])
                os.close(fd)
                if sender.channel.is_full:
                    if not waited:
                        receiver = Collector(theirs)
                    waited += 1
                    await asyncio.wait_for(sender.channel.drained(), PATIENCE)
            await receiver.until(2000)
            assert waited
            assert [int(text) for text in receiver.texts] == list(range(2000))
            sender.channel.close()
            receiver.channel.close()

    with no_descriptors_left():
        asyncio.run(main())


def test_closing_lets_go_of_queued_descriptors_and_of_who_waits() -> None:
    async def main() -> None:
        with pair() as (ours, _):
            sender = Collector(ours)
            while not sender.channel.is_full:
                fd = pipe_with(b"x")
                sender.channel.send([b"y" * 5000], [fd])
                os.close(fd)
            waits = asyncio.create_task(sender.channel.drained())
            await asyncio.sleep(0)
            sender.channel.close()
            await asyncio.wait_for(waits, PATIENCE)
            assert not sender.end

    with no_descriptors_left():
        asyncio.run(main())


def test_the_end_of_the_other_side_is_told_once_after_its_last_message() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            receiver = Collector(ours)
            theirs.sendall(encode(["last"]))
            theirs.close()
            assert await receiver.until_end() is None
            assert receiver.messages == [["last"]]
            receiver.channel.send(["into the void"])  # no error: the answer is that it has ended

    asyncio.run(main())


@pytest.mark.parametrize(
    "data",
    [
        *(struct.pack("<IB", 1 << 31, 0), struct.pack("<IB", 10, 200), struct.pack("<IB", 1, 0) + b"\xc1"),
        *(_full_of(b"\x90"), _full_of(b"\x80")),
    ],
    ids=["length", "descriptors", "body", "empty lists", "empty maps"],
)
def test_a_hostile_stream_ends_the_channel(data: bytes) -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            receiver = Collector(ours)
            theirs.sendall(data)
            assert isinstance(await receiver.until_end(), ProtocolError)

    asyncio.run(main())


def test_descriptors_without_messages_end_the_channel_and_are_closed() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            receiver = Collector(ours)
            fd = pipe_with(b"x")
            theirs.sendall(struct.pack("<I", 100))
            for _ in range(200):  # one byte of a body with each
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                try:
                    theirs.sendmsg([b"\x00"], ancillary)
                except OSError:
                    break
            os.close(fd)
            assert isinstance(await receiver.until_end(), ProtocolError)

    with no_descriptors_left():
        asyncio.run(main())


def test_more_descriptors_than_a_message_may_carry_end_the_channel_and_are_closed() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            receiver = Collector(ours)
            fd = pipe_with(b"x")
            theirs.sendmsg([b"\x00"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * 60))])
            os.close(fd)
            assert isinstance(await receiver.until_end(), ProtocolError)

    with no_descriptors_left():
        asyncio.run(main())


def test_many_small_messages_leave_the_loop_time_for_others() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            collector = Collector(ours)
            one = encode(1)
            theirs.setblocking(False)
            count = theirs.send(one * 150_000) // len(one)  # as many as there is room for
            turns = [0]
            while len(collector.messages) < count:
                await asyncio.sleep(0)
                turns.append(len(collector.messages))
            in_one_turn = max(later - earlier for earlier, later in itertools.pairwise(turns))
            assert count > 20_000 and in_one_turn <= 64 * limits.KIB // len(one) + 1
            collector.channel.close()

    asyncio.run(main())


def test_the_blocking_form_talks_to_the_loop_form() -> None:
    async def main() -> None:
        with pair() as (ours, theirs):
            peer = Collector(ours)
            worker = BlockingChannel(theirs, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_MESSAGE)
            big = os.urandom(8 * limits.MIB)

            def echo() -> None:
                heard: list[Any] = []
                while len(heard) < 2:
                    heard += worker.receive() or []
                for message, descriptors in heard:
                    worker.send([message[0], len(message[1])], descriptors)
                    for fd in descriptors:
                        os.close(fd)

            fd = pipe_with(b"mine")
            peer.channel.send(["big", big], [fd])
            os.close(fd)
            peer.channel.send(["small", b"1"])
            await asyncio.to_thread(echo)
            await peer.until(2)
            assert peer.messages == [["big", len(big)], ["small", 1]]
            assert peer.texts == [b"mine"]
            peer.channel.close()
            assert worker.receive() is None
            worker.close()

    asyncio.run(main())
