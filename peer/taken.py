"""A temporary as it was when a move of it began, and whether it still is.

What is taken is kept with the ticket, so that the target gets the same bytes however often it comes. Writes are noticed
by the count of in-place operations in its worker; where that has moved, the value is taken once more and compared, so
that writing to other tensors hinders no move.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from xxhash import xxh3_128_digest

from peer.buffers import Buffer
from peer.execution import Execution
from peer.objects import Temporary
from peer.spans import StoredSpan, Value, release
from protocol.errors import GridError, WorkerLost
from protocol.tensors import TensorHeader

_VERSION_BYTES = 16


@dataclass(frozen=True, slots=True)
class Taken:
    """`value` is that of `held` when `version` was drawn; ours to release."""

    held: Temporary
    version: bytes
    writes: object  # see Execution.writes
    header: TensorHeader | None  # None of a pointer, which has no value of its own
    value: Value


async def take(execution: Execution, asker: str, held: Temporary) -> Taken:
    """Take it as it is after everything that was asked so far. Raises what its operation failed with; WorkerLost."""
    version = os.urandom(_VERSION_BYTES)
    if held.target is not None:
        return Taken(held, version, None, None, b"")
    async with execution.lane(asker):
        writes = execution.writes(held)
        taking = execution.snapshot(held)
    header, value = await taking
    return Taken(held, version, writes, header, value)


async def is_as_taken(execution: Execution, taken: Taken) -> bool:
    """Whether nobody wrote to it since. For a caller that has its owner's lane: nobody can meanwhile."""
    if taken.held.is_being_published:
        return False  # that was asked before: it stays here, as one that is published
    if taken.header is None or execution.writes(taken.held) == taken.writes:
        return True
    try:
        header, value = await execution.snapshot(taken.held)
    except WorkerLost:
        return True  # nothing of it is left here: the target's is the one to keep
    except GridError:
        return False
    try:
        return header == taken.header and await _are_equal(value, taken.value)
    finally:
        release(value)


def let_go(taking: asyncio.Future[Taken]) -> None:
    """Give back the memory of what was taken, if it was."""
    if not taking.cancelled() and taking.exception() is None:
        release(taking.result().value)


async def _are_equal(one: Value, other: Value) -> bool:
    if one is other:
        return True
    if isinstance(one, StoredSpan) or isinstance(other, StoredSpan):
        return isinstance(one, StoredSpan) and isinstance(other, StoredSpan) and one.place == other.place
    return await asyncio.to_thread(_digest, one) == await asyncio.to_thread(_digest, other)


def _digest(value: bytes | Buffer) -> bytes:
    return xxh3_128_digest(value if isinstance(value, bytes) else value.view())
