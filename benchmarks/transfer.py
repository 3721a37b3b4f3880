"""How fast tensors go to a peer, come back, and move from peer to peer, and what that costs in memory and waiting.

Temporaries (`_tmp`) and published objects (`_pub`, durable when they are there), 256 MiB and 1 GiB, each from the call
to the acknowledged or finished tensor, with every block's hash checked. References, in the same run: those of
benchmarks.references that are installed. Then the memory that a published object's way takes in each process, and
how long small calls wait beside a large move.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType

import torch

import grid
from benchmarks.harness import Figure, options, report
from benchmarks.memory import descendants, memory_of
from benchmarks.references import MIB, Reference, installed, rate
from grid.local_grid import LocalGrid
from grid.pointer import Pointer
from grid.remote import RemotePeer
from peer.process import run_loop, steady_allocator

Measured = Mapping[str, Callable[[], Awaitable[float]]]
_WHAT = {
    "send_tmp": "a tensor to a peer",
    "send_pub": "the same, published",
    "fetch": "its value into a new tensor",
    "move_tmp": "directly from peer to peer",
    "move_pub": "the same, published",
}
_BARS = {"fetch": "0.35 tcp", "move_tmp": "0.75 tcp", "move_pub": "0.70 disk"}
_SMALL = 64  # bytes of a small call's answer


async def measure(quick: bool) -> list[Figure]:
    steady_allocator()
    async with grid.local("alice", "bob") as g:
        memory = await _memory(
            g, (512 if quick else 2048) * MIB
        )  # first: later on there are buffers that are kept warm
        figures = await _rates(g, 256 * MIB, "", 3 if quick else 9)
        if not quick:
            figures += await _rates(g, 1024 * MIB, "_1g", 5)
        return [*figures, memory, *await _waiting(g, (512 if quick else 2048) * MIB)]


# --- rates ------------------------------------------------------------------------------------------------


async def _rates(g: LocalGrid, nbytes: int, suffix: str, rounds: int) -> list[Figure]:
    with contextlib.ExitStack() as undo:
        await _ready(g)
        where = g.folders.data
        where.mkdir(parents=True, exist_ok=True)
        references: dict[str, Reference] = {}
        for name in installed():
            references[name] = undo.enter_context(contextlib.closing(Reference(name, nbytes, where)))
        ours, theirs = await _interleaved(rounds, _ways(g["alice"], g["bob"], nbytes), references)
    size = f"{nbytes // MIB} MiB: "
    return [
        Figure(f"{name}{suffix}", size + what, "MB/s", ours[name], theirs, _BARS.get(name, ""))
        for name, what in _WHAT.items()
    ]


async def _interleaved(
    rounds: int, measured: Measured, references: dict[str, Reference]
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians. The first round only warms up; a reference that fails is left out."""
    samples: dict[str, list[float]] = {name: [] for name in [*measured, *references]}
    for number in range(rounds + 1):
        for name, reference in list(references.items()):
            try:
                samples[name].append(await asyncio.to_thread(reference.measure))
            except (RuntimeError, OSError):
                del references[name], samples[name]
        for name, way in measured.items():
            samples[name].append(await way())
        if not number:
            for values in samples.values():
                values.clear()
    medians = {name: statistics.median(values) for name, values in samples.items()}
    return {name: medians[name] for name in measured}, {name: medians[name] for name in references}


def _ways(alice: RemotePeer, bob: RemotePeer, nbytes: int) -> Measured:
    tensor = torch.randn(nbytes // 4)

    async def sent(tags: tuple[str, ...] = ()) -> Pointer:
        tensor[0] += 1  # the same contents would be stored once
        return await alice.send(tensor, tags=tags)

    async def timed(step: Awaitable[Pointer | torch.Tensor]) -> tuple[float, Pointer | torch.Tensor]:
        started = time.perf_counter()
        result = await step
        return rate(nbytes, time.perf_counter() - started), result

    async def send(tags: tuple[str, ...] = ()) -> float:
        speed, pointer = await timed(sent(tags))
        await _drop(pointer)
        return speed

    async def fetch() -> float:
        pointer = await sent()
        speed, value = await timed(pointer.fetch())
        assert torch.equal(value, tensor)
        await _drop(pointer)
        return speed

    async def move(tags: tuple[str, ...] = ()) -> float:
        pointer = await sent(tags)
        speed, moved = await timed(pointer.move(bob))
        await _drop(moved)
        return speed

    return {
        "send_tmp": send,
        "send_pub": lambda: send(("#bench",)),
        "fetch": fetch,
        "move_tmp": move,
        "move_pub": lambda: move(("#bench",)),
    }


async def _drop(pointer: object) -> None:
    assert isinstance(pointer, Pointer)
    await pointer.delete()


# --- memory -----------------------------------------------------------------------------------------------


class Peaks:
    """The most memory of its own that each process of this run had while the block ran, looked at every 5 ms.

    Anonymous and shared memory as it is mapped (RssAnon, RssShmem): files that are mapped are the system's to keep.
    """

    def __init__(self) -> None:
        self._pids = [os.getpid(), *descendants(os.getpid())]
        self.idle = {pid: memory_of(pid) for pid in self._pids}
        self.most = dict(self.idle)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.005):
            for pid in self._pids:
                self.most[pid] = max(self.most[pid], memory_of(pid))

    @property
    def over_idle(self) -> int:
        """Of the process where that is most, in bytes."""
        return max(self.most[pid] - self.idle[pid] for pid in self._pids)


async def _settled() -> None:
    """Processes that have just started still load what they need."""
    before = 0
    for _ in range(20):
        now = sum(map(memory_of, descendants(os.getpid())))
        if abs(now - before) < MIB:
            return
        before = now
        await asyncio.sleep(0.5)


async def _ready(g: LocalGrid) -> None:
    """Peers that have just started load torch for their workers, which takes seconds of both processors."""
    for peer in (g["alice"], g["bob"]):
        pointer = await peer.send(torch.zeros(MIB // 4))
        total = pointer + pointer
        assert isinstance(total, Pointer)
        await total.fetch()
        await pointer.delete()
    await _settled()


async def _memory(g: LocalGrid, nbytes: int) -> Figure:
    """Send and move a published object, its source tensor being there before; all connections are, too."""
    tensor = torch.randn(nbytes // 4)
    await _ready(g)
    with Peaks() as peaks:
        pointer = await g["alice"].send(tensor, tags=["#bench"])
        moved = await pointer.move(g["bob"])
    await moved.delete()
    what = f"most memory of any process over idle, {nbytes // MIB} MiB published and moved (RssAnon + RssShmem)"
    return Figure("rss_over_idle", what, "MiB", peaks.over_idle / MIB, bar="at most 64")


# --- waiting ----------------------------------------------------------------------------------------------


async def _waiting(g: LocalGrid, nbytes: int) -> list[Figure]:
    """Small calls to the peer that sends and to the one that receives, by themselves and beside a large move."""
    alice, bob = g["alice"], g["bob"]
    small = [await peer.send(torch.ones(_SMALL // 4)) for peer in (alice, bob)]
    idle = await _calls(small, until=asyncio.create_task(asyncio.sleep(1.0)))
    large = await alice.send(torch.randn(nbytes // 4))
    busy: list[float] = []
    for target in (bob, alice):
        moving = asyncio.create_task(large.move(target))
        busy += await _calls(small, until=moving)
        large = await moving
    await large.delete()
    calm, beside = _p99(idle), _p99(busy)
    size = f"{_SMALL}-byte calls beside a move of {nbytes // MIB} MiB"
    allowed = 5 + 10 / calm
    return [
        Figure("small_p99_ratio", f"p99 of {size}, by that of idle ones", "x", beside / calm, {"allowed": allowed}),
        Figure("small_p99_idle", f"p99 of {_SMALL}-byte calls, idle", "ms", calm),
        Figure("small_p99_busy", f"p99 of {len(busy)} {size}", "ms", beside),
    ]


async def _calls(pointers: list[Pointer], until: asyncio.Task[object]) -> list[float]:
    """The seconds of one call after another, to each peer in turn, until that is over."""
    seconds: list[float] = []
    while not until.done():
        for pointer in pointers:
            started = time.perf_counter()
            await pointer.fetch()
            seconds.append(time.perf_counter() - started)
    return seconds


def _p99(seconds: list[float]) -> float:
    """In milliseconds."""
    return 1e3 * sorted(seconds)[int(0.99 * (len(seconds) - 1))]


def main() -> None:
    chosen = options(__doc__)
    report("transfer", run_loop(measure(chosen.quick)), chosen)


if __name__ == "__main__":
    main()
