"""Secure runs, as their users see them: `g.run(plan, ..., parties=["alice", "bob"], provider="carol")`.

The asker finds what the queries mean, captures the plan and lowers it to what has a secure form, all before anything is
shared; then the team's session runs it (secure_sessions.py). Of what peers hold the asker sees the result alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from grid.executing import rebuilt
from grid.jails import JailJob
from grid.jobs import Call, Job, Part
from grid.pointer import Pointer
from grid.secure_forecast import lowered_once, program_key, script_with_macs
from grid.secure_results import Phase, SecureCost
from grid.secure_sessions import Sessions, Team, foreseen_with_macs
from mpc.lowering import Lowered
from mpc.ring import PRECISION
from protocol import limits
from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.remote import RemotePeer

__all__ = ["Phase", "Prepared", "Revealed", "SecureCost", "SecureExplanation", "SecureRunner", "Team", "team"]


class Revealed:
    """What a secure run gave: `value` is a tensor or the plan's own structure of tensors, `cost` what it took.

    `await r.get()` gives the value as well, so that the same lines work for a run in the clear.
    """

    def __init__(self, value: Any, cost: SecureCost) -> None:
        self.value = value
        self.cost = cost

    async def get(self) -> Any:
        """The value, which is here."""
        return self.value

    fetch = get

    def __repr__(self) -> str:
        return f"Revealed({self.value!r}, {self.cost})"


@dataclass(frozen=True, slots=True)
class SecureExplanation:
    """What a secure run would do: who takes part, rounds, and bytes, exactly as they will be.

    Attributes:
        holders: of each secret input the argument that it belongs to, and who has it ("" is the asker).
        rounds, nbytes: online, of the parties; bytes in all, in both directions.
        dealt: offline: bytes from the dealer, or those that three parties without one send beforehand.
        prepared: for how many such runs was dealt ahead: these take nothing offline.
    """

    plan: str
    parties: tuple[str, ...]
    provider: str
    holders: tuple[tuple[str, str], ...]
    operations: int
    rounds: int
    nbytes: int
    dealt: int
    prepared: int = 0

    def to_json(self) -> dict[str, Any]:
        """The same as plain maps and lists."""
        return asdict(self)

    def __str__(self) -> str:
        held = "; ".join(f"{what} shared by {holder or 'you'}" for what, holder in dict.fromkeys(self.holders))
        dealer = f"dealt by {self.provider}" if self.provider else "who deal for themselves"
        ahead = f"dealt ahead for {self.prepared} runs" if self.prepared else f"{self.dealt} bytes dealt before"
        return (
            f"plan {self.plan} on shares at {', '.join(self.parties)}, {dealer}\n\n{held}\n\n"
            f"{self.operations} operations, {self.rounds} rounds, {self.nbytes} bytes between the parties, {ahead}"
        )


def team(grid: Grid, parties: Sequence[str | RemotePeer], provider: str | RemotePeer | None) -> Team:
    """BadRequest, UnknownPeer for what is none."""
    if isinstance(parties, str) or not 2 <= len(parties) <= limits.SECURE_PARTIES:
        raise BadRequest(f'parties are 2 to {limits.SECURE_PARTIES} peers, such as parties=["alice", "bob"]')
    if provider is None and len(parties) != _ALONE:
        raise BadRequest(
            'a run on shares needs a provider of randomness, a peer that is no party: provider="carol". Only three '
            "parties can do without one"
        )
    made = Team(tuple(_peer(grid, each) for each in parties), None if provider is None else _peer(grid, provider))
    ids = [each.id for each in made.parties]
    if len(set(ids)) < len(ids) or (made.provider is not None and made.provider.id in ids):
        raise BadRequest(
            "each party is another peer, and the provider is none of them: it knows every mask that hides a secret"
        )
    return made


_ALONE = 3


def _peer(grid: Grid, given: str | RemotePeer) -> RemotePeer:
    return grid[given] if isinstance(given, str) else given


@dataclass(frozen=True, slots=True)
class _Lowered:
    """A job, lowered. `secret`: the inputs that are shared, in order, and of each the argument that it belongs to."""

    job: Job
    lowered: Lowered
    secret: tuple[torch.Tensor, ...]
    what: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `g.prepare` has made: `runs` runs were dealt ahead, at this cost; `left` says how many are not used."""

    plan: str
    runs: int
    cost: SecureCost
    left: Callable[[], int]

    def __repr__(self) -> str:
        return f"Prepared({self.plan}, {self.left()} of {self.runs} left, {self.cost})"


class SecureRunner:
    """Runs plans on shares for one grid."""

    def __init__(self, grid: Grid, found: Any, sessions: Sessions) -> None:
        self._grid = grid
        self._found = found  # what the queries of a call find
        self._sessions = sessions

    async def run(
        self,
        plan: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        team: Team,
        patience: float | None,
        reveal_to: str | RemotePeer | None = None,
        precision: int = PRECISION,
        checked: bool = False,
    ) -> Revealed:
        """See Grid.run."""
        made = await self._lowered(plan, args, kwargs, precision)
        to = None if reveal_to is None else _peer(self._grid, reveal_to)
        if checked:
            if to is not None or team.provider is None:
                raise BadRequest("a checked run has a provider, and reveals its result to you: leave out reveal_to")
            # What has no form with MACs is told before anything is shared.
            await asyncio.to_thread(script_with_macs, made.lowered, made.secret, len(team.parties))
        ran = await self._sessions.run(
            made.lowered, made.secret, team, to=to, patience=patience, name=made.job.name or "plan", checked=checked
        )
        value = rebuilt(made.lowered.program.outputs, iter(ran.outputs))
        if made.job.finish is not None:
            value = await made.job.finish(value)
        return Revealed(value, ran.cost)

    async def prepare(
        self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any], team: Team, runs: int, precision: int
    ) -> Prepared:
        """See Grid.prepare."""
        if type(runs) is not int or not 0 < runs <= limits.SECURE_AHEAD_RUNS:
            raise BadRequest(f"runs is a number from 1 to {limits.SECURE_AHEAD_RUNS}")
        if team.provider is None:
            raise BadRequest('only a provider deals ahead: provider="carol"')
        made = await self._lowered(plan, args, kwargs, precision)
        name = made.job.name or "plan"
        ran = await self._sessions.run(made.lowered, made.secret, team, name=name, ahead=runs)
        key = program_key(made.lowered)
        return Prepared(name, runs, ran.cost, lambda: self._sessions.prepared(team, key))

    async def explain(
        self,
        plan: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        team: Team,
        precision: int = PRECISION,
        checked: bool = False,
    ) -> SecureExplanation:
        """See Grid.explain."""
        made = await self._lowered(plan, args, kwargs, precision)
        find = foreseen_with_macs if checked else self._sessions.foreseen
        foreseen = await asyncio.to_thread(find, made.lowered, made.secret, team)
        return SecureExplanation(
            made.job.name,
            tuple(each.name for each in team.parties),
            team.provider.name if team.provider is not None else "",
            tuple((what, _holder_name(each)) for what, each in zip(made.what, made.secret, strict=True)),
            len(made.lowered.program.nodes),
            foreseen.rounds,
            foreseen.nbytes,
            foreseen.dealt,
            foreseen.prepared,
        )

    async def _lowered(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any], precision: int) -> _Lowered:
        """Found, captured and lowered, before anything is shared."""
        call = Call(plan, args, kwargs)
        job = await call.job(Part(await self._found(call)))
        if isinstance(job, JailJob):
            raise BadRequest(f"{job.name} is a jail: only plans run on shares")
        secret = [what != "a constant of the plan" for what in job.what]
        lowered = await lowered_once(job.program, job.inputs, secret, precision)
        chosen = [(each, what) for each, what, is_one in zip(job.inputs, job.what, secret, strict=True) if is_one]
        return _Lowered(job, lowered, tuple(each for each, _ in chosen), tuple(what for _, what in chosen))


def _holder_name(tensor: torch.Tensor) -> str:
    return tensor._handle.home.name if isinstance(tensor, Pointer) else ""
