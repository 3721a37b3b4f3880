"""Whose jails a peer runs, and what one may take: as its owner said. Decides."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from protocol import limits
from protocol.errors import BadRequest, Denied

_ID = frozenset("abcdefghijklmnopqrstuvwxyz234567")


@dataclass(frozen=True, slots=True)
class JailRules:
    """What the owner said; without a word, no jails.

    Attributes:
        for_all: whoever may compute here may run them.
        principals: and these may in any case, by id.
        seconds: of the clock that one may take.
        memory: bytes of its own that it may have; None: as many as its principal's workers.
    """

    for_all: bool = False
    principals: tuple[str, ...] = ()
    seconds: float = limits.JAIL_SECONDS
    memory: int | None = None

    def __post_init__(self) -> None:
        for id in self.principals:
            if not isinstance(id, str) or len(id) < 32 or not _ID.issuperset(id):
                raise BadRequest(f"{id!r} is no principal's id: in Python g.id is one's own")
        if type(self.seconds) not in (int, float) or not 0 < self.seconds < float("inf"):
            raise BadRequest(f"a jail has a positive number of seconds, not {self.seconds!r}")
        if self.memory is not None and (type(self.memory) is not int or self.memory < limits.MIN_MEMORY):
            raise BadRequest(f"a jail has {limits.MIN_MEMORY} bytes of memory or more, not {self.memory!r}")

    @property
    def has_any(self) -> bool:
        """Whether there are jails at all."""
        return self.for_all or bool(self.principals)

    def check(self, asker: str, peer_name: str) -> None:
        """Denied unless this principal's jails run here; it says what the owner must do."""
        if sys.platform != "linux":
            raise Denied(f"{peer_name} runs on {sys.platform}, where nothing confines a jail: they run on Linux only")
        if not self.for_all and asker not in self.principals:
            others = "" if self.has_any else f", or 'grid start {peer_name} --jails' for everybody"
            raise Denied(
                f"{peer_name} runs no jails of yours: its owner has to say so, with "
                f"'grid start {peer_name} --jails-for {asker}'{others}. A plan (@grid.plan) needs no such leave"
            )

    def told(self, asker: str) -> dict[str, Any] | None:
        """What one of this principal's may take: `seconds`, and `memory` where the owner said so; None: none run."""
        try:
            self.check(asker, "")
        except Denied:
            return None
        return {"seconds": float(self.seconds), "memory": self.memory}

    def to_plain(self) -> dict[str, Any]:
        return {**asdict(self), "principals": list(self.principals)}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> JailRules:
        return cls(**{**value, "principals": tuple(value.get("principals", ()))})
