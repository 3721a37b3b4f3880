"""Waiting for what says nothing of itself: a test that is slow waits, one that waits in vain says for what."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import select
import time
from collections.abc import Callable, Iterator

PATIENCE = 60.0  # seconds: less than a test may take, more than any machine needs
SHORTEST, LONGEST = 0.001, 0.01  # seconds between two looks: more of them at first


async def until(condition: Callable[[], object], shown: Callable[[], object] | None = None) -> None:
    """Wait until it is so. `shown` gives what to say of the matter where it never is."""
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + PATIENCE, SHORTEST
    while not condition():
        if loop.time() > deadline:
            state = f"; it stands at {shown()!r}" if shown is not None else ""
            raise AssertionError(f"not so within {PATIENCE} s: {_words_of(condition)}{state}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST)


def process_ended(pid: int) -> None:
    """Wait until the process is dead; it need not be our child."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            assert select.select([handle], [], [], PATIENCE)[0], f"process {pid} is still there"
        finally:
            os.close(handle)


def descriptors(pid: int | str = "self") -> int:
    """How many are open in that process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """What is done in it has closed all that it opened: soon after, where other threads have a part in it."""
    before = descriptors()
    yield
    deadline = time.monotonic() + PATIENCE
    while (left := descriptors() - before) > 0:
        assert time.monotonic() < deadline, f"{left} descriptors are left open"
        time.sleep(LONGEST)


def _words_of(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
