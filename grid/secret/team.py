"""The secrets of one team: what is pending among them, and having it computed, one run after the other.

A run computes what is asked for and was not yet computed, as one program, and keeps at the parties what somebody holds
still. So operations in a row cost the rounds of one plan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch

from grid.blocking import check_running
from grid.secret.programs import Part, given, part_of
from grid.secret.values import Hold, Kept, Public, Step, Value, needed
from grid.secure_sessions import Team
from mpc.lowering import Lowered
from protocol import limits
from protocol.errors import BadRequest


class Engine(Protocol):
    """What computes for a team, and keeps shares between runs."""

    async def run(self, lowered: Lowered, inputs: Sequence[Any], keep: Sequence[bool], to: Any) -> list[Any]:
        """The program's outputs: where `keep` says so shares that stay at the parties (until what is returned goes),
        else values: here, or at the peer `to` (a pointer)."""


class Secrets:
    """All secrets of one team with one precision.

    Attributes:
        precision: fractional bits of reals.
    """

    def __init__(self, team: Team, precision: int, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.team = team
        self.precision = precision
        self._engine = engine
        self._loop = loop
        self._turn = asyncio.Lock()
        self._holds: WeakSet[Hold] = WeakSet()
        self._steps: WeakSet[Step] = WeakSet()
        self._ahead: asyncio.Task[Any] | None = None

    @property
    def count(self) -> int:
        """How many parties there are."""
        return len(self.team.parties)

    def __str__(self) -> str:
        parties = ", ".join(each.name for each in self.team.parties)
        dealer = self.team.provider
        return f"shared by {parties}, {f'dealt by {dealer.name}' if dealer is not None else 'without a dealer'}"

    # --- what is asked for ----------------------------------------------------------------------------------

    def hold(self, value: Value) -> Hold:
        """Keeps the value for as long as what is returned is there."""
        made = Hold(value)
        self._holds.add(made)
        return made

    def add(self, step: Step) -> None:
        """Notes an operation; of very many some are computed before anything is awaited."""
        self._steps.add(step)
        if len(self._steps) < limits.SECRET_PENDING or self._ahead is not None:
            return
        if asyncio._get_running_loop() is self._loop:
            self._ahead = self._loop.create_task(self._compute([hold.value for hold in self._holds], False, None))
            self._ahead.add_done_callback(self._went_ahead)

    def _went_ahead(self, task: asyncio.Task[Any]) -> None:
        self._ahead = None
        if not task.cancelled():
            task.exception()  # whoever awaits one of these values meets it again

    async def compute(self, wanted: Sequence[Value]) -> None:
        """Has these values kept at the parties: shared, or computed. Nothing is revealed."""
        await self._shielded(wanted, False, None)

    async def reveal(self, wanted: Sequence[Value], to: Any = None) -> list[Any]:
        """The values: here, or at a peer. Cancelling it does not stop what is under way. BadRequest: it is no peer."""
        if to is not None and not hasattr(to, "outbox"):
            raise BadRequest(f'a secret is revealed to a peer: reveal(to=g["bob"]), not {to!r}')
        return await self._shielded(wanted, True, to)

    async def _shielded(self, wanted: Sequence[Value], reveal: bool, to: Any) -> list[Any]:
        check_running(self._loop, self.team.parties[0].name)
        task = asyncio.ensure_future(self._compute(wanted, reveal, to))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    # --- runs -----------------------------------------------------------------------------------------------

    async def _compute(self, wanted: Sequence[Value], reveal: bool, to: Any) -> list[Any]:
        async with self._turn:
            steps = needed(wanted)
            while len(steps) > limits.SECRET_PENDING:
                await self._run(steps[: limits.SECRET_PENDING], (), (), None)
                steps = steps[limits.SECRET_PENDING :]
            if reveal:
                return await self._run(steps, (), wanted, to)
            await self._run(steps, wanted, (), None)
            return []

    async def _run(
        self, steps: Sequence[Step], wanted: Sequence[Value], revealed: Sequence[Value], to: Any
    ) -> list[Any]:
        kept = self._kept(steps, wanted)
        if not (kept or revealed):
            return []
        part = await asyncio.to_thread(part_of, steps, [*kept, *revealed], self.precision)
        keep = [True] * len(kept) + [False] * len(revealed)
        made = await self._outputs(part, keep, to)
        for value, shares in zip(kept, made, strict=False):
            value.source = Public(shares) if isinstance(shares, torch.Tensor) else Kept(shares)
        return made[len(kept) :]

    async def _outputs(self, part: Part, keep: Sequence[bool], to: Any) -> list[Any]:
        """What was asked for: what is public is here already."""
        secret = [each for each, place in zip(keep, part.places, strict=True) if isinstance(place, int)]
        made: list[Any] = []
        if secret:
            made = await self._engine.run(part.lowered, list(map(given, part.inputs)), secret, to)
        return [made[place] if isinstance(place, int) else place.clone() for place in part.places]

    def _kept(self, steps: Sequence[Step], wanted: Sequence[Value]) -> list[Value]:
        """What the parties keep of a run: what somebody holds, what a later step needs, and what was shared for it."""
        inside = {id(step) for step in steps}
        needed_later = {id(value) for step in self._steps if id(step) not in inside for value in step.operands}
        needed_later |= {id(hold.value) for hold in self._holds}
        needed_later |= {id(value) for value in wanted}
        touched = {id(value): value for step in steps for value in (*step.results, *step.operands)}
        touched |= {id(value): value for value in wanted}
        return [
            value
            for key, value in touched.items()
            if key in needed_later and (not isinstance(value.source, Public | Kept))
        ]
