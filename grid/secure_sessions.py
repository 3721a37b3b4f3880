"""Secure sessions at the asker: teams whose processes stand between runs, and shares that stay with them.

    ran = await g.sessions.run(lowered, [x, pointer, kept], team, keep=[True, False])
    ran.outputs                          # KeptShares where `keep` says so, else values
    await reveal(grid, [a, b])           # opens shares to the asker; `to=` a peer: pointers to what that has then

All that is kept for one team stands in one session, so that it can meet; runs in that go one after the other. What
runs beside it has a session of its own. KeptShares that are collected are let go at the parties. A session whose run
fails is over, and all that it kept with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from compute.dtypes import NAME_OF
from compute.outputs import references
from compute.program import Input, Program
from grid.pointer import Pointer
from grid.secure_asking import Asking, Ran, entries, stock_key
from grid.secure_forecast import program_key, script, script_alone, script_with_macs
from grid.secure_standing import KeptShares, SecureSession, Team
from mpc.lowering import Lowered
from mpc.masks import SEED
from protocol import limits
from protocol.errors import BadRequest, Cancelled, PartyFailed

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.remote import RemotePeer

__all__ = [
    "Foreseen",
    "KeptShares",
    "Ran",
    "SecureSession",
    "Sessions",
    "Team",
    "foreseen_with_macs",
    "reveal",
    "revealing",
]

_IDLE: Final = limits.SECURE_IDLE / 2


class Sessions:
    """All secure sessions of one grid."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.loop = asyncio.get_running_loop()
        self._all: list[SecureSession] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[asyncio.Future[None]] = []  # runs, for a session to be free

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that nobody waits for."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends them all."""
        for session in self._all:
            session.end(Cancelled("who asked for the session has left"))
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=1.0)

    # --- which session ------------------------------------------------------------------------------------

    def of(self, team: Team) -> list[SecureSession]:
        """Those of a team that stand; the first is where shares are kept."""
        self._all = [each for each in self._all if each.failure is None]
        return [each for each in self._all if each.team.key == team.key]

    async def one(self, team: Team, program: bytes, *, is_bound: bool, holders: Collection[str] = ()) -> SecureSession:
        """The session for a run of a program: that of the team's shares, where it `is_bound` to these, or an idle one;
        else a new one, as soon as all peers of it have room for one more of ours. `holders`: ids of those beside the
        team."""
        while True:
            found = self._main(team) if is_bound else self._idle(team, program)
            if found is not None:
                return found
            if not self._is_full({*team.key, *holders} - {""}):
                return self._opened(team)
            freed: asyncio.Future[None] = self.loop.create_future()
            self._waiting.append(freed)
            await freed

    def _is_full(self, ids: Collection[str]) -> bool:
        """Whether one of these peers has as many sessions of ours as it takes, all of which are needed, and some of
        them are busy: then there will be room."""
        for id in ids:
            ours = [each for each in self._all if each.failure is None and id in (*each.team.key, *each.peers)]
            if len(ours) >= limits.SECURE_AT_ONCE and all(each.lock.locked() or each.alive for each in ours):
                return any(each.lock.locked() for each in ours)
        return False

    def _freed(self) -> None:
        """A run is over: those that wait look again."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    def _main(self, team: Team) -> SecureSession | None:
        """Where the shares of this team are kept. Plans on other inputs do not run there: where one fails, all that
        its session kept is gone."""
        found = self.of(team)
        holds = [each for each in found if each.alive]
        free = [each for each in found if not each.lock.locked()]
        return next(iter(holds or free), None)

    def _idle(self, team: Team, program: bytes) -> SecureSession | None:
        """One that does nothing now: where something was dealt ahead for this program, where there is one."""
        now = time.monotonic()
        free = [each for each in self.of(team) if not each.lock.locked() and not each.alive]
        for each in free[1:]:
            if now - each.used > _IDLE and not each.stock:
                each.end(Cancelled("the session was not used for long"))
        free = [each for each in free if each.failure is None]
        free.sort(key=lambda each: not each.has_stock(program))
        return free[0] if free else None

    def _make_room(self, team: Team) -> None:
        """Ends sessions of other teams, in which nothing is kept that could not be had again, where a peer of this team
        has as many of ours as it takes. Those first for which nothing was dealt ahead, and the one used first."""
        for id in filter(None, team.key):
            ours = [each for each in self._all if each.failure is None and id in (*each.team.key, *each.peers)]
            free = [each for each in ours if not each.lock.locked() and not each.alive]
            if len(ours) >= limits.SECURE_AT_ONCE and free:
                free.sort(key=lambda each: (any(each.stock.values()), each.used))
                free[0].end(Cancelled("the session made room for another"))

    def _opened(self, team: Team) -> SecureSession:
        self._make_room(team)
        session = SecureSession(self.loop, self.soon, team)
        self._all.append(session)
        return session

    # --- runs ---------------------------------------------------------------------------------------------

    async def run(
        self,
        lowered: Lowered,
        inputs: Sequence[Any],
        team: Team,
        *,
        keep: Sequence[bool] | bool = False,
        to: RemotePeer | None = None,
        patience: float | None = None,
        name: str = "plan",
        ahead: int = 0,
        checked: bool = False,
    ) -> Ran:
        """Runs a program that was lowered.

        Args:
            inputs: its secret ones: tensors of the asker's, pointers, KeptShares of this team.
            keep: which outputs stay with the parties, as KeptShares, and are not revealed.
            to: whom the others are revealed to; None: to the asker.
            ahead: for how many runs is to be dealt, instead of running.
            checked: with MACs, in a session that keeps nothing.
        """
        kept = [each.session for each in inputs if isinstance(each, KeptShares)]
        if any(each is not kept[0] for each in kept):
            raise BadRequest("these shares stand in different sessions, one of which is over: share them anew")
        key = program_key(lowered)
        is_kept = [keep] * sum(1 for _ in references(lowered.program.outputs)) if isinstance(keep, bool) else list(keep)
        is_bound = bool(kept) or any(is_kept)
        holders = {each._handle.home.id for each in inputs if isinstance(each, Pointer)}
        while True:
            session = kept[0] if kept else await self.one(team, key, is_bound=is_bound, holders=holders)
            async with self._alone(session):
                if session.failure is not None:
                    if kept:
                        raise PartyFailed(f"the shares are gone: {session.failure.message}", peer=session.failure.peer)
                    continue
                is_new = not session.peers
                asking = Asking(self._grid, session, lowered, key, inputs, is_kept, to, patience, name, ahead, checked)
                try:
                    return await asking.run()
                except PartyFailed as error:
                    if is_new or kept or error.fields.get("session") != "over":
                        raise
                    # It ended while nobody looked; nothing of this run has begun.

    @contextlib.asynccontextmanager
    async def _alone(self, session: SecureSession) -> AsyncIterator[None]:
        """Nothing else runs in it meanwhile."""
        try:
            async with session.lock:
                yield
        finally:
            self._freed()

    # --- what is known before -----------------------------------------------------------------------------

    def prepared(self, team: Team, program: bytes) -> int:
        """For how many runs of this program was dealt ahead."""
        return sum(len(stock) for each in self.of(team) for of, stock in each.stock.items() if of.startswith(program))

    def foreseen(self, lowered: Lowered, inputs: Sequence[Any], team: Team, stays: Sequence[bool] = ()) -> Foreseen:
        """What the next run of this would take, as the sessions stand. `stays`: which of its outputs do."""
        key, count = program_key(lowered), len(team.parties)
        kept = [each.session for each in inputs if isinstance(each, KeptShares)]
        free = [each for each in self.of(team) if not each.lock.locked() and not each.alive]
        free.sort(key=lambda each: not each.has_stock(key))
        session = (kept or free or [SecureSession(self.loop, self.soon, team)])[0]
        given = entries(session, lowered, inputs)
        shapes = tuple((each.dtype, each.shape, each.bits) for each in given)
        keep = tuple(stays) if any(stays) else ()
        taken = script(lowered, shapes, tuple(each.is_fixed for each in given), count, keep)
        fresh = [each for each in given if each.is_fixed and (each.keep or each.id not in session.fixed)]
        words = sum(torch.Size(each.shape).numel() for each in fresh)
        rounds, nbytes = taken.rounds + bool(fresh), taken.nbytes + words * torch.int64.itemsize
        deals = 1 + bool(fresh)
        if team.provider is None:
            dealt = script_alone(taken).nbytes * count * (count - 1)
        else:
            dealt = taken.dealt + deals * count * SEED
        stock = session.stock.get(stock_key(key, given, stays))
        return Foreseen(rounds, nbytes * count * (count - 1), dealt, len(stock or ()))


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a run will take: rounds and bytes online, bytes offline; for how many such runs was dealt ahead."""

    rounds: int
    nbytes: int
    dealt: int
    prepared: int


def foreseen_with_macs(lowered: Lowered, inputs: Sequence[torch.Tensor], team: Team) -> Foreseen:
    """What a checked run of this would take."""
    count = len(team.parties)
    taken = script_with_macs(lowered, inputs, count)
    return Foreseen(taken.rounds, taken.nbytes * count * (count - 1), taken.dealt + count * SEED, 0)


def revealing(kept: Sequence[KeptShares]) -> Lowered:
    """A program that gives what it is given."""
    inputs = tuple(Input(f"x{at}", NAME_OF[each.dtype], tuple(each.shape)) for at, each in enumerate(kept))
    return Lowered(Program(inputs, (), [{"node": at} for at in range(len(kept))]), ())


async def reveal(
    sessions: Sessions, kept: Sequence[KeptShares], to: RemotePeer | None = None, patience: float | None = None
) -> Ran:
    """Opens kept shares to the asker, or to a peer. Denied: where the owner of a private object that they derive from
    does not let them be revealed to it."""
    return await sessions.run(revealing(kept), kept, kept[0].session.team, to=to, patience=patience, name="reveal")
