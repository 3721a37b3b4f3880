"""Who is sent a descriptor and has none left to take it with: told from an end that breaks the rules."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from peer.buffers import BufferPool
from peer.worker.answers import Refusal
from peer.worker.budgets import Budgets
from peer.worker.channel import BlockingChannel, LoopChannel
from peer.worker.framing import NONE_LEFT, Decoder, ancillary, close_all, encode
from peer.worker.outgoing import Outgoing
from protocol import limits
from protocol.errors import InternalError, ProtocolError
from tests.waiting import PATIENCE, no_descriptors_left


@contextlib.contextmanager
def none_free() -> Iterator[None]:
    """The lowest number that is free is the first that this process may not have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def sent_with_one(sock: socket.socket, message: Any) -> None:
    data = encode(message, 1)
    size = sock.sendmsg([data], ancillary([0]))
    sock.sendall(data[size:])


@pytest.mark.parametrize("text", ["short", "x" * 150_000], ids=["one read", "several"])
async def test_the_peer_hears_the_message_and_goes_on(text: str) -> None:
    ours, theirs = socket.socketpair()
    heard: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
    with no_descriptors_left(), theirs:
        channel = LoopChannel(
            ours,
            lambda message, descriptors: heard.put_nowait((message, descriptors)),
            lambda error: heard.put_nowait((error, [])),
            send_limit=limits.MIB,
            receive_limit=limits.MIB,
        )
        sent_with_one(theirs, text)
        with none_free():
            assert await asyncio.wait_for(heard.get(), PATIENCE) == (text, [NONE_LEFT])
        sent_with_one(theirs, text)
        message, descriptors = await asyncio.wait_for(heard.get(), PATIENCE)
        assert message == text and len(descriptors) == 1 and descriptors != [NONE_LEFT]
        close_all(descriptors)
        channel.close()


def test_a_worker_ends_with_a_word_on_it() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = BlockingChannel(ours, send_limit=1000, receive_limit=1000)
        sent_with_one(theirs, ["provide"])
        with none_free(), pytest.raises(ProtocolError, match="no descriptor is left"):
            channel.receive()
        channel.close()


def test_only_the_message_whose_descriptors_were_lost_is_without() -> None:
    decoder = Decoder(1000)
    assert list(decoder.feed(encode("none") + encode("lost", 2), [], is_short=True)) == [
        ("none", []),
        ("lost", [NONE_LEFT, NONE_LEFT]),
    ]
    with pytest.raises(ProtocolError, match="claims 1 descriptors"):
        list(decoder.feed(encode("lies", 1)))
    with pytest.raises(ProtocolError, match="claims 5 descriptors"):
        list(Decoder(1000).feed(encode("lies", limits.WORKER_FDS + 1), [], is_short=True))


def test_who_wanted_the_value_is_told_and_the_worker_lives() -> None:
    with pytest.raises(Refusal) as refused:
        Outgoing(BufferPool(), Budgets(), "ann").adopt(NONE_LEFT, 100_000)
    assert isinstance(refused.value.error, InternalError)
    assert "as many files open as it may" in refused.value.error.message
