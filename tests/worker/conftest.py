"""One pool of workers for all tests here (importing torch in a zygote costs a second), and what a test says to it."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import torch

from peer.buffers import Buffer
from peer.pool_settings import PoolSettings
from peer.worker import memory
from peer.workers import Result, Worker, WorkerPool
from protocol.errors import GridError
from protocol.tensors import TensorHeader
from tests import zygotes
from tests.waiting import until

T = TypeVar("T")
_numbers = itertools.count(1)


class Workplace:
    """A pool in a loop of its own thread, which outlives the loop of any one test."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="workplace")
        self._thread.start()
        self.pool = WorkerPool(settings)
        self.do(self.pool.start())

    def do(self, work: Coroutine[Any, Any, T], timeout: float = 100) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def asker(self) -> Asker:
        return Asker(self, f"principal-{next(_numbers)}")

    def close(self) -> None:
        self.do(self.pool.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Asker:
    """A principal: sends tensors, runs operations, takes values; every call waits for its answer."""

    def __init__(self, workplace: Workplace, principal: str) -> None:
        self.workplace = workplace
        self.principal = principal
        self.pool = workplace.pool

    @property
    def worker(self) -> Worker:
        return self.pool.worker(self.principal)

    @property
    def pid(self) -> int:
        """Its worker's; waits for the zygote's word on it, which may come after the worker's first answer."""

        async def wait() -> int:
            await until(lambda: self.worker.pid is not None)
            assert self.worker.pid is not None
            return self.worker.pid

        return self.do(wait())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.workplace.do(work)

    def send(self, tensor: torch.Tensor, *, read_only: bool = False, fd: int | None = None, offset: int = 0) -> bytes:
        object_id = new_id()
        header = header_of(tensor)

        async def work() -> None:
            data = content(tensor) if fd is None else fd
            self.worker.provide(object_id, header, data, offset, read_only)

        self.do(work())
        return object_id

    def run(self, *operations: list[Any]) -> list[Result]:
        async def work() -> list[Result]:
            return await self.worker.run(operations)

        return self.do(work())

    def op(self, name: str, *args: Any, outs: int = 1, **kwargs: Any) -> Any:
        """Runs one operation that must succeed; gives the id of its result, or their ids."""
        ids = [new_id() for _ in range(outs)]
        (result,) = self.run([name, list(args), kwargs, ids])
        if isinstance(result, GridError):
            raise result
        assert len(result) == outs
        return ids[0] if outs == 1 else ids

    def value(self, object_id: bytes) -> torch.Tensor:
        """What it exports. Fails with the error that made it; AssertionError if it is as it was provided."""

        async def work() -> torch.Tensor:
            exported = await self.worker.export(object_id)
            assert exported.data is not None, "unchanged"
            data = exported.data
            if isinstance(data, Buffer):
                data = bytes(data.view())
                exported.data.release()  # type: ignore[union-attr]
            assert isinstance(data, bytes), "a part of a file"
            return tensor_of(exported.header, data)

        return self.do(work())

    def drop(self, *ids: bytes) -> None:
        async def work() -> None:
            self.worker.drop(ids)
            await self.worker.usage()

        self.do(work())

    def end(self) -> None:
        """Ends its worker, if it has one."""

        async def work() -> None:
            found = self.pool.find((self.principal, frozenset()))
            if found is not None:
                found.kill()

        self.do(work())

    def is_as_provided(self, object_id: bytes) -> bool:
        async def work() -> bool:
            return (await self.worker.export(object_id)).data is None

        return self.do(work())


def new_id() -> bytes:
    return next(_numbers).to_bytes(16, "big")


def header_of(tensor: torch.Tensor) -> TensorHeader:
    return TensorHeader(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def content(tensor: torch.Tensor) -> bytes:
    if not tensor.numel():
        return b""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def tensor_of(header: TensorHeader, data: bytes) -> torch.Tensor:
    dtype = getattr(torch, header.dtype)
    if not data:
        return torch.empty(header.shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(header.shape)


@pytest.fixture(scope="session")
def workplace() -> Iterator[Workplace]:
    with zygotes.real():
        place = Workplace()
    yield place
    place.close()


@pytest.fixture
def asker(workplace: Workplace) -> Iterator[Asker]:
    """Somebody new, with a worker of their own."""
    someone = workplace.asker()
    yield someone

    someone.end()


@pytest.fixture
def memory_file() -> Iterator[Any]:
    """Makes a memory file with this content; closed after the test."""
    made: list[int] = []

    def make(data: bytes) -> int:
        fd = memory.new_file("test")
        os.write(fd, data)
        made.append(fd)
        return fd

    yield make
    for fd in made:
        os.close(fd)
