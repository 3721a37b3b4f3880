"""Ctrl-C: the first one ends a command tidily and says what came of it, the second one ends it at once.

run(main)                               asyncio.run, with that
with leaving(lambda: "...", at_once):   around work that is not to be cut silently
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, Final, NoReturn, TypeVar

from grid.commands.errors import EXIT_CODES, note, safe

T = TypeVar("T")
Sentence = Callable[[], str]

_CODE: Final = EXIT_CODES[KeyboardInterrupt]
_BARE_LINE: Final = b"\r\x1b[K\x1b[?25h"  # a terminal's line without a half-drawn bar, and its cursor
_left: list[Sentence] = []  # what may be left if the process ends now


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns.

    Raises:
        KeyboardInterrupt: Ctrl-C cancelled it. From now on Ctrl-C ends the process at once.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return _run_loop(main)  # ignored, as in the background of a script
    watch = _Watch()
    watched = watch.over(main)
    signal.signal(signal.SIGINT, watch.interrupted)
    try:
        return _run_loop(watched)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        watched.close()  # where it was never begun
        main.close()
        _left.clear()
        if not watch.is_interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _run_loop(main: Coroutine[Any, Any, T]) -> T:
    from peer.process import run_loop  # slow to import, and Ctrl-C may come meanwhile

    return run_loop(main)


@contextlib.contextmanager
def leaving(stopped: Sentence, at_once: Sentence | None = None) -> Iterator[None]:
    """Says `stopped` when the block is cancelled and tidied up; `at_once`, or the same, when a second Ctrl-C leaves it
    no time for that."""
    _left.append(at_once or stopped)
    try:
        yield
    except asyncio.CancelledError:
        note(f"stopped: {stopped()}")
        raise  # it stays in _left: the connections that tell the peer are still open
    except BaseException:
        _left.pop()
        raise
    else:
        _left.pop()


def end_at_once(*_: object) -> NoReturn:
    """For a signal that comes when the process is about to end anyway: no traceback, no waiting."""
    text = "".join(f"ended at once: {safe(sentence())}\n" for sentence in _left[-1:])
    # Not by way of sys.stderr: the signal may have come in the middle of its work.
    os.write(2, (_BARE_LINE if os.isatty(2) else b"") + text.encode())
    os._exit(_CODE)


class _Watch:
    """The handler of the signal while a command runs. Python calls it between two steps of whatever goes on: the loop
    need not be free for it."""

    def __init__(self) -> None:
        self.is_interrupted = False
        self._cancel: Callable[[], object] | None = None

    def interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.is_interrupted:
            end_at_once()
        self.is_interrupted = True
        if self._cancel is None:
            raise KeyboardInterrupt  # there is nothing to cancel yet, or any more
        self._cancel()

    async def over(self, main: Coroutine[Any, Any, T]) -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await main
        finally:
            self._cancel = None
