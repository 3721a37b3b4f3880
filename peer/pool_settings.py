"""What a peer lets its workers use: how many of them, and how much each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from peer.jail_rules import JailRules
from peer.worker.confinement import FLAG
from peer.worker.sandbox import Settings
from protocol import limits
from protocol.errors import BadRequest


def default_threads() -> int:
    """Half of the cores for one operation: a peer has several workers, and itself to run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def _settings() -> Settings:
    return Settings(threads=default_threads())


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How many workers, what each may use, and how long one is kept that holds nothing.

    Attributes:
        worker: what each is allowed. Its memory is that of all workers of one principal together; where that is None,
            they have a part of the machine's (limits.MEMORY_SHARE).
        cpu: cores that the workers of one principal may keep busy in the long run; None: as many as they can.
        burst: seconds of processors that they may take before that counts.
        jails: whose jails run here.
    """

    worker: Settings = field(default_factory=_settings)
    max_workers: int = limits.MAX_WORKERS
    idle: float = limits.WORKER_IDLE
    cpu: float | None = None
    burst: float = limits.CPU_BURST
    jails: JailRules = field(default_factory=JailRules)

    def __post_init__(self) -> None:
        if self.max_workers < 1 or self.idle <= 0:
            raise BadRequest("a pool needs at least one worker, and a positive idle time")
        if (self.cpu is not None and not 0 < self.cpu < float("inf")) or not 0 < self.burst < float("inf"):
            given = f"not {'none' if self.cpu is None else f'{self.cpu:g}'} and {self.burst:g}"
            raise BadRequest(f"a principal's share of the processors, and its burst, are positive numbers, {given}")
        if self.jails.has_any and not self.worker.is_sandboxed:
            raise BadRequest(
                f"jails run behind the sandbox's walls or not at all: {FLAG} and --jails exclude each other"
            )

    def to_plain(self) -> dict[str, Any]:
        """As values that JSON holds; `from_plain` takes them back."""
        return {**asdict(self), "jails": self.jails.to_plain()}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> PoolSettings:
        fields = dict(value)
        if "worker" in fields:
            fields["worker"] = Settings(**fields["worker"])
        if "jails" in fields:
            fields["jails"] = JailRules.from_plain(fields["jails"])
        return cls(**fields)
