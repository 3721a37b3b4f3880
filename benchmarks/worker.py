"""A worker as a peer has it, confined, asked from this process: what operations cost there without a peer before it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from peer.pool_settings import PoolSettings
from peer.worker.remote import Worker
from peer.workers import WorkerPool
from protocol.tensors import TensorHeader

GIVEN, MADE = bytes(16), bytes(15) + b"\1"  # ids


@contextlib.asynccontextmanager
async def ready(floats: int) -> AsyncIterator[Worker]:
    """One that has so many zeros as GIVEN; what it is told to make may be MADE."""
    pool = WorkerPool(PoolSettings())
    await pool.start()
    try:
        await pool.ready()
        worker = pool.worker("somebody")
        worker.provide(GIVEN, TensorHeader("float32", (floats,)), bytes(4 * floats))
        yield worker
    finally:
        await pool.close()
