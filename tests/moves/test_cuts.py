"""Moves whose lines are cut, reset or stalled after every so many bytes: after recovery exactly one has it, whole.

With PEERGRID_FULL set, at every byte and in every way; else at a sample of them. The object goes to and fro between
the same two peers, so that what one break leaves behind would show in the next move.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from peer import opening, transport
from peer.folders import Folders
from protocol import limits
from protocol.errors import GridError
from tests.faults import FaultProxy
from tests.full import FULL
from tests.moves.two_peers import Two, two_peers

SMALL = os.urandom(256)  # in one frame, as all up to limits.INLINE_PAYLOAD are: most breaks are not within its bytes
LARGE = os.urandom(8 * limits.CHUNK)
STEP = 1 if FULL else 16
WAYS = ("fin", "rst", "stall")
PAIRS = 8 if FULL else 1  # of peers, at work side by side: a stall is waited for most of the time


def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long on purpose takes a moment from now on."""
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.1)
    monkeypatch.setattr(limits, "PING_INTERVAL", 0.2)
    monkeypatch.setattr(limits, "PING_TIMEOUT", 0.2)
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT", 0.2)
    monkeypatch.setattr(limits, "RECONNECT_FIRST", 0.002)
    monkeypatch.setattr(limits, "RECONNECT_MOST", 0.02)
    for dialling in (transport.dial, opening.open_as_dialer):  # a line may be silent before there is a connection
        *others, _ = dialling.__defaults__ or ()
        monkeypatch.setattr(dialling, "__defaults__", (*others, 0.5))


class Moved:
    """An object that is moved to and fro between two peers; each way is broken once."""

    def __init__(self, two: Two, data: bytes) -> None:
        self.two = two
        self.data = data
        self.id = os.urandom(16)
        self.source, self.target = "alice", "bob"

    def way(self, role: str) -> FaultProxy:
        """That from target to source, or of the client to either."""
        if role == "peers":
            return self.two.to_alice if self.source == "alice" else self.two.to_bob
        return self.two.client_to[getattr(self, role)]

    async def move(self) -> None:
        await self.two.move(self.id, source=self.source, target=self.target)

    async def settle(self) -> None:
        """Exactly one has it, whole; that is the next source."""
        found = await self.two.settled(self.id)
        assert list(found.values()) == [self.data], list(found)
        if self.target in found:
            self.source, self.target = self.target, self.source

    async def check(self, role: str, direction: str, nbytes: int, way: str) -> None:
        """One move; the way breaks after so many bytes of that direction, once."""
        proxy = self.way(role)
        proxy.cut()
        faults = getattr(proxy, direction)
        if way == "stall":
            faults.stall_after, faults.stalls = nbytes, 1
        else:
            faults.cut_after, faults.cuts, faults.reset = nbytes, 1, way == "rst"
        try:
            await self.move()
        except GridError as error:
            assert len(error.message) > 20, error
        faults.stall_after = faults.cut_after = None
        await self.settle()

    async def measure(self, role: str, direction: str) -> int:
        """The bytes that pass that way when nothing breaks; the more of both ways round."""
        most = 0
        for _ in range(2):
            proxy = self.way(role)
            proxy.cut()
            faults = getattr(proxy, direction)
            before = faults.passed
            await self.move()
            await self.settle()
            most = max(most, faults.passed - before)
        return most


Break = tuple[int, str]


def breaks(role: str, nbytes: int) -> list[Break]:
    """After how many bytes, and in which way."""
    found: list[Break] = []
    for turn, at in enumerate(range(1, nbytes + 1, STEP)):
        ways = WAYS if FULL else [WAYS[2] if turn % 16 == 15 else WAYS[turn % 2]]  # few stalls: they wait
        # A silent line of requests is found out by its pings, and those are far between.
        found += [(at, way) for way in ways if role == "peers" or way != "stall"]
    return found


async def check_some(folders: Folders, role: str, direction: str, wanted: Sequence[Break]) -> None:
    """A pair of peers of its own, for these breaks."""
    async with two_peers(folders) as two:
        moved = Moved(two, SMALL)
        await two.put("alice", moved.id, SMALL)
        for at, way in wanted:
            await moved.check(role, direction, at, way)


async def check_all(folder: Path, role: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_peers(Folders.under(folder)) as two:
        moved = Moved(two, SMALL)
        await two.put("alice", moved.id, SMALL)
        wanted = breaks(role, await moved.measure(role, direction))
    soon(monkeypatch)
    async with asyncio.TaskGroup() as pairs:
        for number in range(PAIRS):
            own = Folders.under(folder / str(number))
            pairs.create_task(check_some(own, role, direction, wanted[number::PAIRS]))


@pytest.mark.timeout(7200 if FULL else 900)
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_the_line_between_the_peers_breaks(
    tmp_path: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check_all(tmp_path, "peers", direction, monkeypatch)


@pytest.mark.timeout(7200 if FULL else 900)
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("role", ["source", "target"])
async def test_the_line_of_the_client_breaks(
    tmp_path: Path, role: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check_all(tmp_path, role, direction, monkeypatch)


@pytest.mark.timeout(7200 if FULL else 900)
async def test_a_large_move_breaks_at_every_chunk(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_peers(folders) as two:
        moved = Moved(two, LARGE)
        await two.put("alice", moved.id, LARGE)
        nbytes = await moved.measure("peers", "down")
        soon(monkeypatch)
        for number, chunk in enumerate(range(limits.CHUNK, nbytes, limits.CHUNK)):
            for about in (-1, 0, 1):
                for way in WAYS if FULL else [WAYS[(number + about) % 3]]:
                    await moved.check("peers", "down", chunk + about, way)
