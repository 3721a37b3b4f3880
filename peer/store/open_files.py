"""How many stored files are open to be sent, and for whom: each has a descriptor until who asked has it, or left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

from peer import machine
from protocol import limits
from protocol.sizes import check_limit


class OpenFiles:
    """A part of this process's descriptors for all who ask together, and of that a share for each.

    Who has its share open waits until one of these is closed: so many gets at once come one after the other.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = machine.descriptors(limits.SENT_FILES) if most is None else most
        self._each = max(1, self._most // limits.SENT_FILES_SHARE)
        self._count = 0
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def room(self, principal: str) -> Callable[[], None]:
        """Waits until this principal may have one more open; to be called when it is closed. Cancelling is safe.

        TooLarge: there are too many, nearly all of them others'.
        """
        share = self._shares.get(principal)
        if share is None:
            share = self._shares[principal] = asyncio.Semaphore(self._each)
        await share.acquire()
        try:
            sentence = "this peer sends {allowed} stored values at once, and all are on their way: ask again later"
            check_limit("SENT_FILES", self._count + 1, sentence, allowed=self._most)
        except BaseException:
            share.release()
            raise
        self._count += 1
        return partial(self._closed, share)

    def _closed(self, share: asyncio.Semaphore) -> None:
        self._count -= 1
        share.release()
