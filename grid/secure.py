"""Secure runs, as their users see them: `g.run(plan, ..., parties=["alice", "bob"], provider="carol")`.

The asker finds what the queries mean, captures the plan and lowers it to what has a secure form, all before anything is
shared; then it tells everybody the same agreement, and gets the parties' shares of the result, which it adds up. Of
what peers hold it sees nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import torch

from compute.dtypes import DTYPE_OF, NAME_OF
from compute.values import tensor_bytes, tensor_from
from grid.executing import rebuilt, references
from grid.ids import fresh_id
from grid.jails import JailJob
from grid.jobs import Call, Job, Part
from grid.pointer import Pointer
from mpc.fresh import freshly
from mpc.interpreter import run
from mpc.lowering import Lowered, lower
from mpc.masks import SEED, Masks, fresh_seed
from mpc.ring import PRECISION, decode, encode
from mpc.script import Script, script_of
from mpc.secret import Secret
from peer.agreement import program_hash
from protocol import limits
from protocol.errors import BadRequest, Cancelled, GridError, LinkError, PartyFailed
from protocol.tensors import TensorHeader

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.remote import RemotePeer


@dataclass(frozen=True, slots=True)
class Phase:
    """What one half of a secure run took, by the parties' own clocks.

    Attributes:
        seconds: of the party that took longest.
        rounds: how often the parties sent to each other and waited.
        nbytes: bytes that were sent in all, by everybody.
    """

    seconds: float
    rounds: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SecureCost:
    """What a secure run cost: `offline` is dealing, which needs no data; `online` all from the first share on."""

    offline: Phase
    online: Phase

    def to_json(self) -> dict[str, Any]:
        """The same as plain maps."""
        return asdict(self)

    def __str__(self) -> str:
        return "; ".join(
            f"{name} {phase.seconds * 1e3:.1f} ms, {phase.rounds} rounds, {phase.nbytes} bytes"
            for name, phase in (("online", self.online), ("offline", self.offline))
        )


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
        rounds, nbytes: of the parties; bytes in all, in both directions.
        dealt: bytes from the dealer.
    """

    plan: str
    parties: tuple[str, ...]
    provider: str
    holders: tuple[tuple[str, str], ...]
    operations: int
    rounds: int
    nbytes: int
    dealt: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain maps and lists."""
        return asdict(self)

    def __str__(self) -> str:
        held = "; ".join(f"{what} shared by {holder or 'you'}" for what, holder in dict.fromkeys(self.holders))
        return (
            f"plan {self.plan} on shares at {', '.join(self.parties)}, dealt by {self.provider}\n\n{held}\n\n"
            f"{self.operations} operations, {self.rounds} rounds, {self.nbytes} bytes between the parties, "
            f"{self.dealt} bytes dealt before"
        )


@dataclass(frozen=True, slots=True)
class Team:
    """Who computes and who deals."""

    parties: tuple[RemotePeer, ...]
    provider: RemotePeer


def team(grid: Grid, parties: Sequence[str | RemotePeer], provider: str | RemotePeer | None) -> Team:
    """BadRequest, UnknownPeer for what is none."""
    if isinstance(parties, str) or not 2 <= len(parties) <= limits.SECURE_PARTIES:
        raise BadRequest(f'parties are 2 to {limits.SECURE_PARTIES} peers, such as parties=["alice", "bob"]')
    if provider is None:
        raise BadRequest('a run on shares needs a provider of randomness, a peer that is no party: provider="carol"')
    made = Team(tuple(_peer(grid, each) for each in parties), _peer(grid, provider))
    ids = [each.id for each in made.parties]
    if len(set(ids)) < len(ids) or made.provider.id in ids:
        raise BadRequest(
            "each party is another peer, and the provider is none of them: it knows every mask that hides a secret"
        )
    return made


def _peer(grid: Grid, given: str | RemotePeer) -> RemotePeer:
    return grid[given] if isinstance(given, str) else given


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A job, lowered. `secret`: the inputs that are shared, in order, and of each the argument that it belongs to."""

    job: Job
    lowered: Lowered
    secret: tuple[torch.Tensor, ...]
    what: tuple[str, ...]

    def script(self, count: int) -> Script:
        meta = [
            Secret(torch.empty(each.shape, dtype=torch.int64, device="meta"), _bits(each), each.dtype)
            for each in self.secret
        ]
        return script_of(
            lambda party: freshly(party, run(party, self.lowered.program, [*meta, *self.lowered.public])), count
        )


class SecureRunner:
    """Runs plans on shares for one grid."""

    def __init__(self, grid: Grid, found: Any) -> None:
        self._grid = grid
        self._found = found  # what the queries of a call find

    async def run(
        self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any], team: Team, patience: float | None
    ) -> Revealed:
        """See Grid.run."""
        prepared = await self._prepared(plan, args, kwargs)
        asking = _Asking(self._grid, prepared, team, patience or limits.SECURE_PATIENCE)
        answers = await _all_or_none([asking.ask(peer) for peer in asking.everybody])
        try:
            value = _revealed(prepared.lowered, answers[: len(team.parties)])
            cost = _cost(answers, len(team.parties))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PartyFailed(f"what the parties gave makes no sense: {type(error).__name__}") from None
        if prepared.job.finish is not None:
            value = await prepared.job.finish(value)
        return Revealed(value, cost)

    async def explain(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any], team: Team) -> SecureExplanation:
        """See Grid.explain."""
        prepared = await self._prepared(plan, args, kwargs)
        count = len(team.parties)
        script = await asyncio.to_thread(prepared.script, count)
        return SecureExplanation(
            prepared.job.name,
            tuple(each.name for each in team.parties),
            team.provider.name,
            tuple((what, _holder_name(each)) for what, each in zip(prepared.what, prepared.secret, strict=True)),
            len(prepared.lowered.program.nodes),
            script.rounds,
            script.nbytes * count * (count - 1),
            script.dealt + count * SEED,
        )

    async def _prepared(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Prepared:
        """Found, captured and lowered, before anything is shared."""
        call = Call(plan, args, kwargs)
        job = await call.job(Part(await self._found(call)))
        if isinstance(job, JailJob):
            raise BadRequest(f"{job.name} is a jail: only plans run on shares")
        secret = [what != "a constant of the plan" for what in job.what]
        shapes = [
            torch.empty(each.shape, dtype=each.dtype, device="meta") if is_secret else each
            for each, is_secret in zip(job.inputs, secret, strict=True)
        ]
        lowered = await asyncio.to_thread(lower, job.program, shapes, secret)
        chosen = [(each, what) for each, what, is_one in zip(job.inputs, job.what, secret, strict=True) if is_one]
        return _Prepared(job, lowered, tuple(each for each, _ in chosen), tuple(what for _, what in chosen))


class _Asking:
    """One run: what everybody is told, and what each is told alone."""

    def __init__(self, grid: Grid, prepared: _Prepared, team: Team, patience: float) -> None:
        self._grid = grid
        self._prepared = prepared
        self._team = team
        holders = [each._handle.home for each in prepared.secret if isinstance(each, Pointer)]
        by_id = {each.id: each for each in (*team.parties, team.provider, *holders)}
        self.everybody = list(by_id.values())
        self._program = prepared.lowered.program.to_bytes()
        self._public = b"".join(bytes(tensor_bytes(each)) for each in prepared.lowered.public)
        self._agreement = msgpack.packb(
            {
                "run": fresh_id(),
                "asker": grid.id,
                "parties": [each.id for each in team.parties],
                "provider": team.provider.id,
                "inputs": [_input(each) for each in prepared.secret],
                "public": [[NAME_OF[each.dtype], list(each.shape)] for each in prepared.lowered.public],
                "program": program_hash(self._program, self._public),
                "reveal": grid.id,
                "patience": patience,
                "name": (prepared.job.name or "plan")[: limits.MAX_OBJECT_NAME],
            }
        )
        self._seeds = [fresh_seed() for _ in team.parties[1:]]  # the first gets its shares in full
        self._shares = self._first_shares()

    def _first_shares(self) -> bytes:
        pieces = []
        for number, tensor in enumerate(self._prepared.secret):
            if not isinstance(tensor, Pointer):
                words = encode(tensor.detach(), _bits(tensor))
                for seed in self._seeds:
                    words = words - Masks(seed, number).draw(tuple(words.shape), torch.int64)
                pieces.append(bytes(tensor_bytes(words)))
        return b"".join(pieces)

    async def ask(self, peer: RemotePeer) -> tuple[dict[str, Any], bytes]:
        """Has one peer take part; what it answers when the run is over."""
        rank = self.everybody.index(peer)
        shares = self._shares if rank == 0 else b""
        args: dict[str, Any] = {"sizes": [len(self._agreement), len(self._program), len(self._public), len(shares)]}
        if 0 < rank < len(self._team.parties):
            args["seed"] = self._seeds[rank - 1]
        payload = b"".join((self._agreement, self._program, self._public, shares))
        link = await peer.outbox.flush()
        answer = await link.post("secure", args, payload, now=True)
        return answer.result, bytes(await answer.read(limits.SECURE_MESSAGE))


def _input(tensor: torch.Tensor) -> list[Any]:
    if not isinstance(tensor, Pointer):
        return ["", fresh_id(), NAME_OF[tensor.dtype], list(tensor.shape)]
    return [tensor._handle.home.id, tensor._handle.id, NAME_OF[tensor.dtype], list(tensor.shape)]


def _bits(tensor: torch.Tensor) -> int:
    return PRECISION if tensor.dtype.is_floating_point else 0


def _holder_name(tensor: torch.Tensor) -> str:
    return tensor._handle.home.name if isinstance(tensor, Pointer) else ""


async def _all_or_none(asked: Sequence[Awaitable[tuple[dict[str, Any], bytes]]]) -> list[tuple[dict[str, Any], bytes]]:
    """All answers; where one fails all others are given up, and the error that names a culprit is raised."""
    tasks = [asyncio.ensure_future(each) for each in asked]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task for task in tasks if task.done() and task.exception() is not None]
        if failed:
            raise _first([task.exception() for task in failed])
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _first(errors: Sequence[BaseException | None]) -> BaseException:
    """Of what several peers failed with at the same time: what says most."""

    def rank(error: BaseException | None) -> int:
        if isinstance(error, PartyFailed):
            return 1
        return 2 if isinstance(error, Cancelled | LinkError) else 0 if isinstance(error, GridError) else 3

    found = min(errors, key=rank)
    assert found is not None
    return found


# --- what comes back --------------------------------------------------------------------------------------


def _revealed(lowered: Lowered, answers: Sequence[tuple[dict[str, Any], bytes]]) -> Any:
    """The program's outputs, of the parties' shares of them."""
    listed = answers[0][0]["outputs"]
    if any(result["outputs"] != listed for result, _ in answers[1:]):
        raise PartyFailed("the parties do not agree on what came out")
    if len(listed) != sum(1 for _ in references(lowered.program.outputs)):
        raise PartyFailed("the parties gave another number of results than the program has")
    return rebuilt(lowered.program.outputs, _values(listed, [memoryview(shares) for _, shares in answers]))


def _values(listed: Sequence[Any], shares: Sequence[memoryview]) -> Iterator[Any]:
    at = 0
    for bits, dtype, shape in listed:
        if bits == "plain":
            yield dtype
            continue
        header = TensorHeader("int64" if bits is not None else dtype, tuple(shape))
        end = at + header.nbytes
        parts = [tensor_from(header, bytearray(each[at:end])) for each in shares]
        at = end
        yield parts[0] if bits is None else decode(sum(parts[1:], parts[0]), bits, DTYPE_OF[dtype])


def _cost(answers: Sequence[tuple[dict[str, Any], bytes]], parties: int) -> SecureCost:
    told = [result for result, _ in answers]
    computed = told[:parties]
    return SecureCost(
        Phase(max(float(each["offline"]) for each in told), 0, sum(int(each["dealt"]) for each in told)),
        Phase(
            max(float(each["online"]) for each in computed),
            max(int(each["rounds"]) for each in computed),
            sum(int(each["sent"]) for each in computed),
        ),
    )
