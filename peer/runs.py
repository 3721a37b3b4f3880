"""What is running for whom: listed, and ended, for those who may. Decides; what runs is somebody else's.

A principal sees and ends what it asked for; the operator of the peer's machine, all there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from peer.objects import show_id
from protocol.errors import AlreadyExists, NotFound


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        node, nodes: operations that are done, and all of them, where a loop is one.
        done, of: iterations of the loops that it is in; 0 `of` where nobody knows how many there will be.
    """

    node: int
    nodes: int
    done: int
    of: int


@dataclass(slots=True, eq=False)
class Run:
    """One thing that runs.

    Attributes:
        id: which its asker chose.
        principal: who asked for it.
        kind: "program", "jail" or "secure".
        what: what tells one from another: of a program its hash.
        name: what people call it, where somebody said so.
        stop: ends it soon; harmless where it is over.
        progress: how far it is; None where that is not known, or not for anybody to know.
        process: the pid that works on it, where there is one.
        is_stopped: whether it was to end before it was done.
        told: who is to hear that it has ended.
    """

    id: bytes
    principal: str
    kind: str
    what: str
    name: str | None
    stop: Callable[[], object]
    progress: Callable[[], Progress | None] = lambda: None
    process: Callable[[], int | None] = lambda: None
    began: float = field(default_factory=time.monotonic)
    is_stopped: bool = False
    told: list[Callable[[], None]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What is told of it (SPEC.md, `running`)."""
        progress = self.progress()
        return {
            "id": self.id,
            "principal": self.principal,
            "kind": self.kind,
            "what": self.what,
            "name": self.name,
            "seconds": time.monotonic() - self.began,
            "process": self.process(),
            "progress": None if progress is None else list(progress),
        }


class Runs:
    """All that runs at one peer, in the order in which it began. `is_operator` says of a principal whether it is."""

    def __init__(self, is_operator: Callable[[str], bool]) -> None:
        self._is_operator = is_operator
        self._runs: dict[tuple[str, bytes], Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def began(self, run: Run) -> None:
        """AlreadyExists where one of that principal's has this id."""
        key = run.principal, run.id
        if key in self._runs:
            raise AlreadyExists(f"a run {show_id(run.id)} of yours is under way: ids are random and used once")
        self._runs[key] = run

    def ended(self, run: Run) -> None:
        """It is over, however it ended. One that never began: nothing."""
        key = run.principal, run.id
        if self._runs.get(key) is run:
            del self._runs[key]
            told, run.told = run.told, []
            for tell in told:
                tell()

    def seen_by(self, asker: str) -> list[Run]:
        """What this principal may see of it, and end."""
        is_operator = self._is_operator(asker)
        return [run for run in self._runs.values() if is_operator or run.principal == asker]

    def stop(self, asker: str, id: bytes, told: Callable[[], None]) -> None:
        """End what has this id; `told` is called when it has ended. NotFound where nothing has, or not for this one."""
        found = [run for run in self.seen_by(asker) if run.id == id]
        if not found:
            raise NotFound(f"nothing of the id {show_id(id)} runs here: it is over, or somebody else's")
        run = next((run for run in found if run.principal == asker), found[0])
        run.told.append(told)
        run.is_stopped = True
        run.stop()
