"""How a worker came to its end: from two signs that come in any order, and what that is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from peer.worker.channel import LoopChannel
from peer.worker.pending import Pending
from peer.worker.zygote_process import ending, signal_name
from protocol import limits
from protocol.errors import WorkerLost

KILLED: Final = "was ended by its peer"
STOPPED: Final = "was killed, because what was to end there did not end by itself within a second,"


class Ending:
    """The signs are the closed channel and the zygote's word. With both, or late, `over` is told how and the status."""

    def __init__(self, channel: LoopChannel, over: Callable[[str, int | None], None]) -> None:
        self.defect: str | None = None  # what it said of itself
        self._channel = channel
        self._over = over
        self._status: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    def note(self, defect: str) -> None:
        """Its own account. A stranger's text, which comes into the log: cut, and on one line."""
        text = defect[: limits.MAX_FAULT_TEXT]
        self.defect = "".join(sign if sign.isprintable() else " " for sign in text)

    def exited(self, status: int) -> None:
        """The zygote's word that the process is dead. What it said before that is still read."""
        self._status = status
        self.settle()

    def settle(self) -> None:
        """There may be a sign."""
        if self._is_stopped:
            return
        if self._channel.is_closed and self._status is not None:
            self._as_it_ended()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(limits.WORKER_EXIT, self._as_it_ended)

    def stop(self) -> None:
        """It is over; `over` hears nothing more."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _as_it_ended(self) -> None:
        defect = f" after a defect of its own ({self.defect})" if self.defect else ""
        self._over(ending(self._status) + defect, self._status)


def lost(how: str, status: int | None, pid: int | None, pending: Sequence[Pending]) -> WorkerLost:
    """What its values and the requests under way have become."""
    doing = f" while it ran {pending[0].what}" if pending and how != KILLED else ""
    fields = {"signal": signal_name(status)} if status is not None and status < 0 else {}
    who = f" {pid}" if pid is not None and pid > 0 else ""  # below 0: it was dead before its number could be read
    return WorkerLost(
        f"the worker process{who} {how}{doing}; the temporaries that it held are gone, "
        "published objects are not: send or compute what you need again",
        **fields,
    )
