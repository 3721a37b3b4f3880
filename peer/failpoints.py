"""Places where a test can end this process: the named steps of a move, so that a peer can be killed at each of them.

`hit(STEP)` does nothing unless `arm` was called, and only the program of a peer calls it (peer/process.py), with what
the environment variable PEERGRID_FAILPOINTS says: `pull:published=kill`, several with commas between, `=kill@3` for
the third time that the place is passed. `kill` is SIGKILL, as a power cut would be; `stop` is SIGSTOP, as a machine
that hangs. Whoever sets a process's environment can end it anyway. Why this is in the program and not in the tests:
docs/decisions/0007-moves.md.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from protocol.errors import SetupError

VARIABLE: Final = "PEERGRID_FAILPOINTS"
STEPS: Final = (
    # at the holder, in the order of a move
    "offer:kept",  # the ticket is durable, the asker does not know it yet
    "collect:asked",
    "collected:asked",
    "collected:given-up",  # our copy is gone, the target does not know it yet
    # at the target
    "pull:begun",
    "pull:described",  # we know what comes, no byte of it is here
    "pull:receiving",  # a piece came
    "pull:received",  # all of it came, and nothing is durable
    "pull:published",  # durable here, and the holder does not know it
    "pull:confirmed",  # the holder has given up its copy; our note of it is still there
    "pull:done",  # the note is gone, the asker has no answer
)
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

_armed: dict[str, tuple[signal.Signals, int]] = {}  # step -> what happens there, after how many more times


def arm(text: str) -> None:
    """What is to happen where, as PEERGRID_FAILPOINTS says it; "" is nothing. SetupError for what is none."""
    _armed.clear()
    for entry in filter(None, text.split(",")):
        step, _, action = entry.partition("=")
        action, _, time = action.partition("@")
        if step not in STEPS or action not in _SIGNALS or not (time or "1").isdecimal():
            raise SetupError(f"{VARIABLE}: {entry!r} is no step=kill or step=stop; steps: {', '.join(STEPS)}")
        _armed[step] = (_SIGNALS[action], int(time or "1"))


def hit(step: str) -> None:
    """This place is passed. Nothing, in a program that is not under test."""
    if _armed:
        _act(step)


def _act(step: str) -> None:
    assert step in STEPS, step
    if step not in _armed:
        return
    action, left = _armed[step]
    _armed[step] = (action, left - 1)
    if left == 1:
        os.kill(os.getpid(), action)
