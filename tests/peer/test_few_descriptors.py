"""A peer that may have few descriptors: nobody takes so many of them that others find none."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.opening import open_as_dialer
from peer.worker import memory
from protocol import limits
from protocol.handshake import Introduction
from tests.waiting import PATIENCE, descriptors

FEW = 256
MANY = 300  # values that somebody asks for and does not read
COUNT = 20_000  # elements of one: more than rides beside an answer


class Small:
    """A peer of its own process, with few descriptors."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    @asynccontextmanager
    async def asked(self, identity: Identity) -> AsyncIterator[Connection]:
        connection = await open_as_dialer(self.url, Introduction("client", "ann"), identity)
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def small_peer(folder: Path) -> AsyncIterator[Small]:
    """`ulimit -n` bounds the hard limit as well, so that the peer cannot have more."""
    peer = [sys.executable, "-m", "peer.process", "small", "--port", "0", "--folders"]
    folders = Folders.under(folder)
    places = [str(place) for place in (folders.config, folders.data, folders.runtime)]
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'ulimit -n {FEW}; exec "$@"', "sh", *peer, *places), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE)).decode()
        yield Small(line.split()[4], process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), PATIENCE)


async def put(asked: Connection, value: float, count: int = COUNT, **more: Any) -> bytes:
    id = os.urandom(16)
    about = {"id": id, "kind": "tensor", "dtype": "float32", "shape": [count], **more}
    await asked.request("put", about, struct.pack("<f", value) * count)
    return id


async def added(asked: Connection, to: bytes, number: float) -> list[float]:
    """What comes of adding a number to a tensor: the elements that differ, which is one."""
    out = os.urandom(16)
    operation = ["aten.add.Scalar", [to, number], {}, [out]]
    return await values(asked, "run", {"operations": [operation], "fetch": out, "release": [out]})


async def values(asked: Connection, op: str, args: dict[str, Any]) -> list[float]:
    answer = await asked.request(op, args)
    assert not answer.result.get("results"), answer.result
    return sorted(set(memoryview(await answer.read()).cast("B").cast("f")))


async def test_who_asks_for_many_values_and_does_not_read_them_leaves_descriptors_to_others(tmp_path: Path) -> None:
    mallory, ann = Identity.generate(), Identity.generate()
    async with small_peer(tmp_path) as peer, peer.asked(mallory) as deaf, peer.asked(ann) as honest:
        theirs, own = await put(deaf, 0.0), await put(honest, 5.0)
        kept = await put(deaf, 7.0, publish=True, tags=["many"])
        assert await added(honest, own, 0.0) == [5.0]
        assert await added(deaf, theirs, 0.0) == [0.0]
        deaf._socket.transport.pause_reading()
        computed = [asyncio.ensure_future(added(deaf, theirs, float(number))) for number in range(MANY)]
        stored = [asyncio.ensure_future(values(deaf, "fetch", {"id": kept})) for _ in range(MANY)]
        async with peer.asked(mallory) as second:  # behind all of that, as it is the same principal
            assert await added(second, theirs, -1.0) == [-1.0]
        assert descriptors(peer.pid) < FEW * 7 // 8
        assert await added(honest, own, 1.0) == [6.0]
        async with peer.asked(Identity.generate()) as other:
            assert await added(other, await put(other, 1.0), 1.0) == [2.0]
        assert await values(honest, "fetch", {"id": own}) == [5.0]
        deaf._socket.transport.resume_reading()
        assert await asyncio.gather(*computed) == [[float(number)] for number in range(MANY)]
        assert await asyncio.gather(*stored) == [[7.0]] * MANY


async def test_more_values_than_descriptors_are_kept_and_computed_on(tmp_path: Path) -> None:
    async with small_peer(tmp_path) as peer, peer.asked(Identity.generate()) as asked:
        sizes: Sequence[int] = [4] * FEW + [COUNT] * FEW
        ids = [await put(asked, float(number), count) for number, count in enumerate(sizes)]
        assert descriptors(peer.pid) < FEW // 2
        for number in (0, 1, FEW, 2 * FEW - 1):
            assert await added(asked, ids[number], 0.5) == [number + 0.5]
            assert await values(asked, "fetch", {"id": ids[number]}) == [float(number)]


def test_a_peer_takes_what_the_system_lets_it_have_and_plans_with_a_part_of_it() -> None:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW // 2}, {FEW}))
from peer import machine, process
process.enough_descriptors()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), machine.descriptors(10), machine.descriptors(1 << 30))"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(FEW), str(FEW), "10", str(FEW // limits.DESCRIPTORS)]


def test_a_mapping_has_no_descriptor_and_lasts_as_long_as_its_views() -> None:
    fd = memory.new_file("test")
    os.pwrite(fd, b"x" * 100_000, 0)
    before = descriptors()
    pages = memory.map_shared(fd, 100_000, is_writable=False)
    assert descriptors() == before
    os.close(fd)
    view = memoryview(pages).cast("B")[5:10]
    del pages
    assert bytes(view) == b"xxxxx"
