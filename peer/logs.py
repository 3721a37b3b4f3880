"""What a peer says of itself, on stderr: sparingly, since strangers can cause much of it, as often as they like."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from protocol import limits


@dataclass(slots=True)
class _Said:
    """Of one place in the code: since when it was how often heard, and how much was left out."""

    since: float
    times: int = 0
    left_out: int = 0


class Sparing(logging.Filter):
    """Lets limits.LOG_LINES records of one place pass in limits.LOG_SECONDS; the first after that says how many did
    not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, str, int], _Said] = {}  # as many as there are places

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        said = self._said.setdefault((record.name, record.pathname, record.lineno), _Said(now))
        if now - said.since >= limits.LOG_SECONDS:
            said.since, said.times = now, 0
        said.times += 1
        if said.times > limits.LOG_LINES:
            said.left_out += 1
            return False
        if said.left_out:
            record.msg = f"{record.getMessage()} (and {said.left_out} more like it before, left out)"
            record.args, said.left_out = (), 0
        return True


def log_to_stderr(level: str = "warning") -> None:
    """`level` for what the grid says; other libraries only warn."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("peergrid").setLevel(level.upper())
    for handler in logging.getLogger().handlers:
        handler.addFilter(Sparing())
