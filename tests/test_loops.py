"""The loop of the tests: what is over is over there too, and a pause of the machine ends nothing."""

from __future__ import annotations

import asyncio
import time

import pytest


async def test_a_pause_of_the_process_ends_no_wait() -> None:
    async with asyncio.timeout(0.2):
        time.sleep(0.5)  # noqa: ASYNC251 - as a machine does that is busy with other things
        await asyncio.sleep(0.05)


async def test_time_passes_while_nothing_happens() -> None:
    began = time.monotonic()
    await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.Event().wait()
    assert time.monotonic() - began > 0.09


async def test_time_passes_while_there_is_always_something_to_do() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            while True:  # noqa: ASYNC110 - it is what the claim is about
                await asyncio.sleep(0)
