"""How many stored files are open to be sent: a share for each who asks, and nobody waits for others."""

from __future__ import annotations

import asyncio

import pytest

from peer.payloads import MemoryPayload, Watched
from peer.store.open_files import OpenFiles
from protocol import limits
from protocol.errors import TooLarge

SHARE = 2
MOST = SHARE * limits.SENT_FILES_SHARE


async def test_who_has_its_share_open_waits_until_one_is_closed() -> None:
    files = OpenFiles(MOST)
    closed = [await files.room("ann") for _ in range(SHARE)]
    third = asyncio.ensure_future(files.room("ann"))
    await files.room("bob")
    assert not third.done()
    closed[0]()
    await third


async def test_who_stops_waiting_takes_no_room() -> None:
    files = OpenFiles(MOST)
    closed = [await files.room("ann") for _ in range(SHARE)]
    third = asyncio.ensure_future(files.room("ann"))
    await asyncio.sleep(0)
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    closed[0]()
    await files.room("ann")


async def test_all_together_have_a_bound_and_who_is_refused_has_nothing_open() -> None:
    files = OpenFiles(MOST)
    closed = [await files.room(f"principal {number}") for number in range(MOST)]
    for _ in range(SHARE + 1):
        with pytest.raises(TooLarge, match="ask again later") as caught:
            await files.room("one more")
    assert caught.value.fields == {"limit": "SENT_FILES", "size": MOST + 1, "allowed": MOST}
    closed[0]()
    await files.room("one more")


async def test_who_closes_a_payload_twice_is_counted_once() -> None:
    heard: list[str] = []
    payload = Watched(MemoryPayload(b"1234"), lambda: heard.append("closed"))
    payload.close()
    payload.close()
    assert heard == ["closed"]
