"""Clients that are killed, whatever they were doing, leave nothing at a peer but what they had published.

PEERGRID_KILLS says how many (12).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.opening import open_as_dialer
from peer.peer import Peer, Settings
from protocol import limits
from protocol.handshake import Introduction
from tests.waiting import until

KILLS = int(os.environ.get("PEERGRID_KILLS", "12"))
AT_ONCE = 4
ROOT = Path(__file__).parents[2]

CLIENT = """
import asyncio, os, sys
from pathlib import Path
from peer.keys import Identity
from peer.links import Links
from peer.membership import Member, Membership
from protocol.handshake import Introduction

class Endless:  # the payload of an upload that goes on until we are killed: its second half never comes
    nbytes = 64 << 20
    async def read(self, offset, size):
        await asyncio.sleep(0.005 if offset < self.nbytes // 2 else 3600)
        return bytes(size)
    def close(self):
        pass

def tensor(count):
    return {"id": os.urandom(16), "kind": "tensor", "dtype": "uint8", "shape": [count]}

async def main(key, id, url):
    member = Member(id, "alice", (url,))
    table = Membership()
    table.learn([member])
    links = Links(Identity.load(Path(key)), Introduction("client", "doomed", lease=os.urandom(16)), table)
    link = links.lasting(member)
    await link.request("put", {**tensor(3), "tags": ["kept"]}, bytes(3))
    print("begun", flush=True)
    bulk = await links.to(member, bulk=True)
    bulk.post("put", tensor(64 << 20), Endless())
    bulk.post("put", {**tensor(64 << 20), "tags": ["half"]}, Endless())
    while True:
        small, large = tensor(4), tensor(300_000)
        await link.request("put", small, bytes(4))
        await bulk.request("put", large, bytes(300_000))
        outs = [os.urandom(16) for _ in range(8)]
        adds = [["aten.add.Tensor", [small["id"], small["id"]], {}, [out]] for out in outs]
        link.post("run", {"operations": adds})
        link.post("run", {"operations": [["aten.neg.default", [large["id"]], {}, [os.urandom(16)]]]})
        await link.request("fetch", {"id": outs[0]})

asyncio.run(main(*sys.argv[1:]))
"""


async def doomed(key: Path, alice: Peer, rng: random.Random) -> None:
    """One client's life: it is killed at any moment of it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT, str(key), alice.id, alice.url),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"begun\n"
        await asyncio.sleep(rng.uniform(0, 0.3))
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until_quiet(alice: Peer, tasks: int) -> None:
    """Until nothing is left of any client."""

    def left() -> dict[str, int]:
        return left_of_clients(alice, tasks)

    await until(lambda: not any(left().values()), left)


def left_of_clients(alice: Peer, tasks: int) -> dict[str, int]:
    workers = alice._workers.statistics().workers
    return {
        "sessions": len(alice._sessions),
        "leases": len(alice._leases._leases),
        "ledgers": len(alice._ledgers) + alice._ledgers.nbytes + len(alice._ledgers.tasks),
        "temporaries": alice._objects.count,
        "buffers": alice._buffers.statistics().used,
        "uploads": len(alice._uploads._uploads),
        "held by workers": sum(worker.held for worker in workers),
        "workers": max(len(workers) - 1, 0),  # all of them were one principal's: one may be idle
        "tasks": max(len(asyncio.all_tasks()) - tasks, 0),
    }


@pytest.mark.timeout(300 + 3 * KILLS)
async def test_killed_clients_leave_only_what_they_published(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESUME_TIMEOUT", 0.5)
    key = tmp_path / "doomed.key"
    Identity.load(key)
    rng = random.Random(11)
    alice = await Peer.start(Settings("alice", port=0, folders=folders, lease_grace=0.5))
    try:
        await doomed(key, alice, rng)  # a worker runs from now on
        await until_quiet(alice, 1_000)
        tasks, files = len(asyncio.all_tasks()), descriptors()
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(seed: int) -> None:
            async with limit:
                await doomed(key, alice, random.Random(seed))

        await asyncio.gather(*(one(seed) for seed in range(KILLS)))
        await until_quiet(alice, tasks)
        # Those of a peer that has had nothing to do for a moment, and of the memory that it keeps warm.
        await until(lambda: descriptors() - files <= alice._buffers.statistics().warm + 4, descriptors)
        stored = await alice._store.statistics()
        assert stored.objects == KILLS + 1, "what was published stays, and nothing half"
    finally:
        await alice.close()


async def test_a_client_that_comes_back_within_the_grace_finds_its_temporaries(folders: Folders) -> None:
    """Also where its old session is still open, or not known to be gone."""
    identity = Identity.generate()
    alice = await Peer.start(Settings("alice", port=0, folders=folders))

    async def session() -> Connection:
        return await open_as_dialer(alice.url, Introduction("client", "dora", lease=bytes(16)), identity)

    try:
        made = {"id": bytes(15) + b"x", "kind": "tensor", "dtype": "uint8", "shape": [4]}
        first = await session()
        await first.request("put", made, b"abcd")
        second = await session()
        await first.close()
        assert bytes((await second.request("fetch", {"id": made["id"]})).payload) == b"abcd"
        await second.close()
        third = await session()
        assert third.remote.memory == second.remote.memory == first.remote.memory
        assert bytes((await third.request("fetch", {"id": made["id"]})).payload) == b"abcd"
        await third.close()
    finally:
        await alice.close()
