"""How the command line shows that something goes on: on standard error, and only where that is a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from grid.show import clean

if TYPE_CHECKING:
    from peer.resuming import Wait


@contextlib.contextmanager
def progress(title: str, after: str = "") -> Iterator[Bar]:
    """A bar with rate and time left on standard error, where that is a terminal. `after` says what is waited for when
    all bytes are done."""
    foldable = Column(no_wrap=False)
    columns = (TextColumn("{task.description}", table_column=foldable), BarColumn(20), DownloadColumn(), _Pace())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        yield Bar(bars, escape(clean(title)), after)


class Bar:
    """Shows how far a transfer is: call it with (bytes done, bytes in all), and `waiting` when nothing moves."""

    def __init__(self, bars: Progress, title: str, after: str) -> None:
        self._bars = bars
        self._title = title
        self._after = after
        self._task = bars.add_task(title, total=None, wait=None)

    def __call__(self, done: int, total: int) -> None:
        now = f"{self._title}, {self._after}" if self._after and done >= total else self._title
        self._bars.update(self._task, completed=done, total=total, description=now, wait=None)

    def waiting(self, wait: Wait | None) -> None:
        """The peer is away; None: it is there again."""
        self._bars.update(self._task, wait=wait)


class _Pace(ProgressColumn):
    """Rate and time left; while a peer is away, how long it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._rate, self._left = TransferSpeedColumn(), TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        wait: Wait | None = task.fields["wait"]
        if wait is not None:
            return Text(wait_text(wait, time.monotonic()), style="progress.remaining")
        return Text(" ").join((self._rate.render(task), self._left.render(task)))


def wait_text(wait: Wait, now: float) -> str:
    """waiting for bob, 12 s of 60"""
    return f"waiting for {clean(wait.name)}, {min(now - wait.since, wait.patience):.0f} s of {wait.patience:g}"


@contextlib.contextmanager
def waiting(title: str) -> Iterator[None]:
    """A sign of life and the time so far on standard error, where that is a terminal, while something goes on elsewhere
    of which nobody says how far it is."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        bars.add_task(escape(clean(title)), total=None)
        yield
