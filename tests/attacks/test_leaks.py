"""Nothing leaves a worker but what was asked for: its memory is filled with a canary, and the line is searched for it.

The canary lies in the worker's heap (tensors that were made and let go), and on both sides of what is worked on, in
one memory with it. With PEERGRID_FULL set there are 100,000 calls, of every operation of the table, in parts with a
worker each; else 2,000.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from compute import estimate, values
from compute.operations import OPERATIONS
from compute.table import Entry, lookup
from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.neighbours import Neighbours
from peer.opening import open_as_dialer
from protocol.errors import GridError, OperationNotAllowed, TooLarge, WorkerLost
from protocol.handshake import Introduction
from tests.attacks.adversary import Adversary
from tests.attacks.calls import Call, load
from tests.attacks.guard_pages import Arena
from tests.faults import FaultProxy
from tests.full import FULL

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
PARTS, CALLS = (8, 12_500) if FULL else (1, 2_000)  # of each part
CANARY = 0x5EC4E7C1  # as int32; nothing that is worked on, and no result of it, has it
PATTERN = CANARY.to_bytes(4, "little")
SIDE = 4_096  # bytes of canary on each side of what is worked on
VISIBLE = 8_192  # bytes between
BATCH = 15  # calls between two fillings of the heap
MOST = 32 << 10  # bytes of a result that is asked for
LARGE, LONG = 8 << 20, 0.3  # bytes and seconds: what takes more would take the time of hundreds of others
PATIENT = 300  # seconds for a batch on a busy machine


class Heap(Arena):
    """Without pages that must not be touched: arguments are made here only to be sent."""

    def __init__(self) -> None:
        super().__init__(small=0, large=0)

    def place(self, content: torch.Tensor, at_end: bool) -> torch.Tensor:
        return content


class Line:
    """A connection on which everything that the peer says is searched."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.canaries = 0  # two in a row, anywhere in what came over the socket
        self.nbytes = 0
        self._rest = b""

    def heard(self, data: bytes) -> None:
        data = self._rest + data
        self.canaries += data.count(PATTERN * 2)
        self.nbytes += len(data) - len(self._rest)
        self._rest = data[1 - 2 * len(PATTERN) :]

    async def run(self, operations: list[list[Any]], release: list[bytes]) -> None:
        """What is too much for one request goes in several; an operation that is so by itself is left out."""
        try:
            await self.connection.request("run", {"operations": operations, "release": release}, timeout=PATIENT)
        except TooLarge as error:
            if error.fields["limit"] not in ("MAX_ARRAY", "MAX_HEADER", "MAX_BATCH"):
                raise
            middle = len(operations) // 2
            if middle:
                await self.run(operations[:middle], release)
                await self.run(operations[middle:], [])

    async def value(self, id: bytes) -> bytes | None:
        """None where it was not made."""
        try:
            reply = await self.connection.request("fetch", {"id": id}, timeout=PATIENT)
        except WorkerLost:
            raise
        except GridError:
            return None
        if reply.stream is None:
            return bytes(reply.payload)
        return b"".join([bytes(chunk) async for chunk in reply.stream])


@asynccontextmanager
async def listening(folders: Folders) -> AsyncIterator[Line]:
    (victim,) = Neighbours(folders.peers).list()
    async with FaultProxy(victim.url) as proxy:
        connection = await open_as_dialer(proxy.url, Introduction("client", "mallory"), Identity.generate())
        line = Line(connection)
        proxy.down.watch = line.heard
        try:
            yield line
        finally:
            await connection.close()


async def bases_between_canaries(line: Line) -> dict[torch.dtype, bytes]:
    """For each of these types small numbers, which lie between canaries in one memory."""
    side, bases = PATTERN * (SIDE // 4), {}
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.bfloat16, torch.complex64):
        bases[dtype] = id = os.urandom(16)
        visible = torch.arange(VISIBLE // dtype.itemsize).remainder(5).to(dtype)
        shape = [(2 * SIDE + VISIBLE) // dtype.itemsize]
        args = {"id": id, "kind": "tensor", "dtype": str(dtype).removeprefix("torch."), "shape": shape}
        await line.connection.request("put", args, side + bytes(values.tensor_bytes(visible)) + side)
    return bases


def filled_heap() -> tuple[list[list[Any]], list[bytes]]:
    """Operations that make canaries of many sizes, and their ids: once they are let go, the heap is made of them."""
    sizes = [elements for power in range(2, 17, 2) for elements in (1 << power, (1 << power) + 3)]
    ids = [os.urandom(16) for _ in sizes]
    dtype = {"dtype": {"dtype": "int32"}}
    return [["aten.full.default", [[n], CANARY], dtype, [id]] for n, id in zip(sizes, ids, strict=True)], ids


class Writer:
    """Writes calls as operations; some tensors as views of the base, others beside the operation."""

    def __init__(self, bases: dict[torch.dtype, bytes]) -> None:
        self._bases = bases
        self._copies: dict[torch.dtype, bytes] = {}  # of bases, for one call: what it fails to write no other can read
        self.before: list[list[Any]] = []  # operations that make the views
        self.ids: list[bytes] = []

    def operation(self, entry: Entry, call: Call, is_viewed: bool) -> list[bytes] | None:
        """Adds it; the ids of those of its results that are to be asked for, or None where it cannot be sent."""
        args, kwargs = call
        expected = _results(entry, args, kwargs)
        if expected is None:
            return None
        count, is_wanted = expected
        outs = [os.urandom(16) for _ in range(count)]
        self._copies.clear()
        try:
            written = values.encode_call(args, kwargs, self._view if is_viewed else values.inline_tensor)
        except GridError:
            return None
        self.before.append([entry.name, *written, outs])
        self.ids += outs
        return outs if is_wanted else []

    def _view(self, tensor: torch.Tensor) -> Any:
        """A view of a base that looks like this tensor, made at the peer: canaries lie right before or behind it."""
        base, count, size = self._bases.get(tensor.dtype), tensor.numel(), tensor.element_size()
        if base is None or not 0 < count * size <= VISIBLE:
            return values.inline_tensor(tensor)
        if tensor.dtype not in self._copies:
            self._copies[tensor.dtype] = copy = os.urandom(16)
            self.before.append(["aten.clone.default", [base], {}, [copy]])
            self.ids.append(copy)
        start = SIDE // size + (VISIBLE // size - count if len(self.ids) % 2 else 0)
        part, shaped = made = [os.urandom(16), os.urandom(16)]
        self.before += [
            ["aten.slice.Tensor", [self._copies[tensor.dtype], 0, start, start + count], {}, [part]],
            ["aten.view.default", [part, list(tensor.shape)], {}, [shaped]],
        ]
        self.ids += made
        return shaped


def _results(entry: Entry, args: list[Any], kwargs: dict[str, Any]) -> tuple[int, bool] | None:
    """How many there will be, and whether they are small enough to be asked for; None of a call that is left out."""
    try:
        found = estimate.infer(entry, *entry.bind(args, kwargs))
    except TooLarge:
        return entry.n_results, False
    except GridError:
        return 1, True
    if found.largest > LARGE or found.cost.seconds > LONG:
        return None
    count = sum(result is not None for result in found.results) if found.is_exact else entry.n_results
    return count, found.largest <= MOST


def hostile_calls(seed: int) -> Iterator[tuple[Entry, Call]]:
    """Of every operation in turn, without end."""
    honest, heap, number = load(), Heap(), 0
    while True:
        for name, category in OPERATIONS.items():
            try:
                entry = lookup(name)
            except OperationNotAllowed:
                continue
            if category != "size":
                yield entry, Adversary(heap, entry, f"{seed} {name} {number}", honest.get(name, ())).call()
        number += 1


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("part", range(PARTS))
async def test_no_canary_crosses_the_line(victim: Folders, part: int) -> None:
    async with listening(victim) as line:
        bases, fetched, canaries = await bases_between_canaries(line), 0, 0
        calls, release = hostile_calls(7 + part), list[bytes]()
        for number in range(0, CALLS, BATCH):
            writer = Writer(bases)
            outs = [writer.operation(*next(calls), is_viewed=at % 2 == 0) for at in range(BATCH)]
            wanted = [id for ids in outs for id in ids or ()]
            fill, filling = filled_heap()
            await line.run(fill, release)
            try:
                await line.run(writer.before, filling)
                found = [value for value in await asyncio.gather(*map(line.value, wanted)) if value is not None]
            except WorkerLost as error:
                raise AssertionError(f"{error}: {[operation[:3] for operation in writer.before]}") from None
            fetched += len(found)
            canaries += sum(PATTERN in value for value in found)
            assert not canaries and not line.canaries, f"in the calls from {number} on"
            release = writer.ids
        assert fetched > CALLS / 4, "too little came back for this to say anything"
        # What is asked for is heard: else no canary would say nothing.
        assert (await line.value(bases[torch.int32]) or b"").count(PATTERN) == 2 * SIDE // 4
        assert line.canaries >= SIDE // 4


async def test_a_view_leaves_alone(victim: Folders) -> None:
    """Of a tensor whose memory is a canary but for its first number, that number and nothing else."""
    async with listening(victim) as line:
        x, first, row, column, expanded = (os.urandom(16) for _ in range(5))
        data = b"\0\0\x80\x3f" + PATTERN * 1_023
        await line.connection.request("put", {"id": x, "kind": "tensor", "dtype": "float32", "shape": [32, 32]}, data)
        operations: list[list[Any]] = [
            ["aten.select.int", [x, 0, 0], {}, [row]],
            ["aten.slice.Tensor", [row, 0, 0, 1], {}, [first]],
            ["aten.view.default", [first, [1, 1]], {}, [column]],
            ["aten.expand.default", [first, [3]], {}, [expanded]],
        ]
        await line.run(operations, [])
        assert await line.value(first) == await line.value(column) == data[:4]
        assert await line.value(expanded) == data[:4] * 3
        assert line.canaries == 0
