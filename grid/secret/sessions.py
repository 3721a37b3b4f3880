"""Runs of one team at peers: all in the session of its kept shares, so that what one run keeps the next can use; and
the teams of a grid."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grid.secret.team import Secrets
from grid.secure_sessions import Team
from mpc.lowering import Lowered
from protocol import limits

if TYPE_CHECKING:
    from grid.client import Grid


def secrets_of(grid: Grid, team: Team, precision: int) -> Secrets:
    """The secrets of this team with this precision: the same for the same peers in the same order."""
    known: dict[Any, Secrets] = grid.secrets
    key = (*team.key, precision)
    if key not in known:
        known[key] = Secrets(team, precision, Session(grid, team), team.parties[0].loop)
    return known[key]


class Session:
    """What computes for one team at its peers."""

    def __init__(self, grid: Grid, team: Team) -> None:
        self._grid = grid
        self._team = team
        self._reminder: asyncio.TimerHandle | None = None

    async def run(self, lowered: Lowered, inputs: Sequence[Any], keep: Sequence[bool], to: Any) -> list[Any]:
        """See team.Engine."""
        ran = await self._grid.sessions.run(lowered, inputs, self._team, keep=keep, to=to, name="secrets")
        if self._reminder is None and any(keep):
            self._remind_later()
        return ran.outputs

    def _remind_later(self) -> None:
        self._reminder = self._grid.sessions.loop.call_later(limits.SECURE_IDLE / 4, self._remind)

    def _remind(self) -> None:
        """As long as somebody holds secrets, their session stands, also while nothing is asked of it."""
        self._reminder = None
        for session in self._grid.sessions.of(self._team):
            if session.alive:
                session.stay()
                if self._reminder is None:
                    self._remind_later()
