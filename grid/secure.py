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

from compute.outputs import references
from grid.calls import Call
from grid.finishing import Finishing
from grid.jails import JailJob
from grid.jobs import Job
from grid.parts import Part
from grid.pointer import Pointer
from grid.run_results import rebuilt
from grid.secret.given import (
    as_secrets,
    at_parties,
    is_of_secret,
    is_public,
    public,
    secret_of,
    secrets_among,
    shares_or_tensor,
)
from grid.secret.sessions import secrets_of
from grid.secret.team import Secrets
from grid.secret.tensor import SecretTensor
from grid.secure_forecast import check_on_shares, lowered_once, program_key, script_with_macs
from grid.secure_results import Phase, SecureCost
from grid.secure_sessions import KeptShares, Sessions, Team, foreseen_with_macs
from grid.secure_teams import OnShares, named, team
from mpc.lowering import Lowered
from mpc.ring import PRECISION
from protocol import limits
from protocol.errors import BadRequest, NotCollocated

if TYPE_CHECKING:
    from grid.client import Grid

__all__ = [
    "OnShares",
    "Phase",
    "Prepared",
    "Revealed",
    "SecureCost",
    "SecureExplanation",
    "SecureRunner",
    "Team",
    "team",
]


class Revealed:
    """What a secure run gave: `value` is a tensor or the plan's own structure of tensors, `cost` what it took. They are
    SecretTensors where they were to be kept, pointers where they were revealed to a peer.

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
        learns: who learns the result: "you", a peer, "nobody" where it is kept.
        rounds, nbytes: online, of the parties; bytes in all, in both directions.
        dealt: offline: bytes from the dealer, or those that three parties without one send beforehand.
        prepared: for how many such runs was dealt ahead: these take nothing offline.
    """

    plan: str
    parties: tuple[str, ...]
    provider: str
    holders: tuple[tuple[str, str], ...]
    learns: str
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
            f"plan {self.plan} on shares at {', '.join(self.parties)}, {dealer}\n\n"
            f"{held}; the result is revealed to {self.learns}\n\n"
            f"{self.operations} operations, {self.rounds} rounds, {self.nbytes} bytes between the parties, {ahead}"
        )


@dataclass(frozen=True, slots=True)
class _Lowered:
    """A job, lowered, for a team. `secret`: the inputs that are shared, in order, and of each the argument that it
    belongs to; `of`: the secrets among the arguments."""

    job: Job
    lowered: Lowered
    secret: tuple[torch.Tensor, ...]
    what: tuple[str, ...]
    team: Team
    of: Secrets | None

    @property
    def name(self) -> str:
        return self.job.name or "plan"


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

    def has_secrets(self, arguments: Any) -> bool:
        """Whether secrets are among the arguments of a plan."""
        return secrets_among(arguments) is not None

    async def run(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any], how: OnShares) -> Revealed:
        """See Grid.run."""
        how.check()
        made = await self._lowered(plan, args, kwargs, how)
        to = None if how.reveal_to is None else named(self._grid, how.reveal_to)
        if how.checked:
            if made.of is not None:
                raise BadRequest("secrets have no MACs: run the plan checked on tensors, pointers and queries")
            # What has no form with MACs is told before anything is shared.
            await asyncio.to_thread(script_with_macs, made.lowered, made.secret, len(made.team.parties))
        else:
            # So is what fails on shares; it would end the session, and all that it keeps.
            await check_on_shares(made.lowered, made.secret, len(made.team.parties))
        inputs = made.secret if made.of is None else await at_parties(made.secret)
        finish = made.job.finish
        ran = await self._sessions.run(
            made.lowered,
            inputs,
            made.team,
            keep=_stays(made.lowered.program.outputs, how.keep, finish),
            to=to,
            patience=how.patience,
            name=made.name,
            checked=how.checked,
        )
        of = made.of or secrets_of(self._grid, made.team, made.lowered.precision)
        outputs: list[Any] = [secret_of(of, each) if isinstance(each, KeptShares) else each for each in ran.outputs]
        value = rebuilt(made.lowered.program.outputs, iter(outputs))
        return Revealed(value if finish is None else await finish(value), ran.cost)

    async def prepare(
        self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any], how: OnShares, runs: int
    ) -> Prepared:
        """See Grid.prepare."""
        if type(runs) is not int or not 0 < runs <= limits.SECURE_AHEAD_RUNS:
            raise BadRequest(f"runs is a number from 1 to {limits.SECURE_AHEAD_RUNS}")
        made = await self._lowered(plan, args, kwargs, how)
        team = made.team
        if team.provider is None:
            raise BadRequest('only a provider deals ahead: provider="carol"')
        if how.checked:
            raise BadRequest("runs with MACs are not dealt for ahead: leave out checked, or prepare")
        if made.of is not None:
            raise BadRequest("runs on secrets are not dealt for ahead: leave their shares out, or run the plan")
        ran = await self._sessions.run(made.lowered, made.secret, team, name=made.name, ahead=runs)
        key = program_key(made.lowered)
        return Prepared(made.name, runs, ran.cost, lambda: self._sessions.prepared(team, key))

    async def explain(
        self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any], how: OnShares
    ) -> SecureExplanation:
        """See Grid.explain."""
        how.check()
        made = await self._lowered(plan, args, kwargs, how)
        team = made.team
        if how.checked:
            foreseen = await asyncio.to_thread(foreseen_with_macs, made.lowered, made.secret, team)
        else:
            stays = _stays(made.lowered.program.outputs, how.keep, made.job.finish)
            inputs = [shares_or_tensor(each) for each in made.secret]
            foreseen = await asyncio.to_thread(self._sessions.foreseen, made.lowered, inputs, team, stays)
        return SecureExplanation(
            made.job.name,
            tuple(each.name for each in team.parties),
            team.provider.name if team.provider is not None else "",
            tuple((what, _holder_name(each)) for what, each in zip(made.what, made.secret, strict=True)),
            _learns(self._grid, how),
            len(made.lowered.program.nodes),
            foreseen.rounds,
            foreseen.nbytes,
            foreseen.dealt,
            foreseen.prepared,
        )

    async def _lowered(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any], how: OnShares) -> _Lowered:
        """Found, captured and lowered, before anything is shared."""
        precision = PRECISION if how.precision is None else how.precision
        args, kwargs = as_secrets(self._grid, (tuple(args), dict(kwargs)), precision)
        self._team(how, secrets_among((args, kwargs)))
        call = Call(plan, args, kwargs)
        job = await call.job(Part(await self._found(call)))
        if isinstance(job, JailJob):
            raise BadRequest(f"{job.name} is a jail: only plans run on shares")
        of = secrets_among(job.inputs)  # what the function closes over, too
        chosen = self._team(how, of)
        secret = [
            (what != "a constant of the plan" or isinstance(each, Pointer | SecretTensor)) and not is_public(each)
            for what, each in zip(job.what, job.inputs, strict=True)
        ]
        inputs = list(map(public, job.inputs))
        lowered = await lowered_once(job.program, inputs, secret, precision if of is None else of.precision)
        taken = [(each, what) for each, what, is_one in zip(inputs, job.what, secret, strict=True) if is_one]
        return _Lowered(job, lowered, tuple(each for each, _ in taken), tuple(what for _, what in taken), chosen, of)

    def _team(self, how: OnShares, of: Secrets | None) -> Team:
        """Who computes: whom the call names, or those who have the shares of the secrets among the arguments."""
        if of is None:
            return team(self._grid, how.parties or (), how.provider)
        is_theirs = how.precision in (None, of.precision)
        if how.parties is not None or how.provider is not None:
            is_theirs &= team(self._grid, how.parties or (), how.provider).key == of.team.key
        if not is_theirs:
            raise NotCollocated(
                f"a secret among the arguments is {of}, with {of.precision} fractional bits: a run on it is by these. "
                "Leave out parties, provider and precision"
            )
        return of.team


def _stays(template: Any, keep: bool, finish: Finishing | None) -> list[bool]:
    """Of each output whether it stays with the parties: all, or what becomes of secrets that the function changes."""
    if keep or finish is None or not finish.captured.state:
        return [keep] * sum(1 for _ in references(template))
    entries = template["map"]
    stays = [False] * sum(1 for _ in references(entries["result"]))
    for path, each in sorted(entries["state"]["map"].items()):
        stays += [is_of_secret(finish, path)] * sum(1 for _ in references(each))
    return stays


def _learns(grid: Grid, how: OnShares) -> str:
    """Who learns the result."""
    if how.keep:
        return "nobody"
    return "you" if how.reveal_to is None else named(grid, how.reveal_to).name


def _holder_name(tensor: torch.Tensor) -> str:
    if isinstance(tensor, SecretTensor):
        return ", ".join(each.name for each in tensor.parties)
    return tensor._handle.home.name if isinstance(tensor, Pointer) else ""
