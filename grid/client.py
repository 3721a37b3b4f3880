"""A grid, as its users see it: who is there, what can be found, and what is to be computed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from typing import Any

from grid.explaining import Explanation
from grid.from_records import hits_of
from grid.hits import Hits, readings
from grid.mapping import Mapper
from grid.mesh import Mesh, PeerInfo
from grid.modules import fetch_state
from grid.multi import MultiPointer, at_each
from grid.opening import Opening
from grid.plans import Plan
from grid.remote import RemotePeer
from grid.running import Runner
from grid.secure import OnShares, Prepared, SecureExplanation, SecureRunner
from grid.secure_sessions import Sessions
from grid.started import Profile, Run, profiled
from peer.folders import Folders
from peer.keys import Identity
from peer.membership import Member
from peer.neighbours import Neighbours
from protocol import limits
from protocol.errors import BadRequest, GridError, UnknownPeer

__all__ = ["Grid", "PeerInfo", "connect"]


class Grid(Mesh):
    """The way into a grid. Get it with `async with grid.connect() as g`.

    g.peers()           who is there            g["alice"]             one of them, by name or id
    await g.search(q)   what there is           async for p in g.stream(q)
    await g.run(plan, name="query")             compute where the data are; g.explain says what that would do
    await g.map(plan, name="query")             at each of several peers; g.reduce combines what comes of it
    """

    def __init__(
        self,
        identity: Identity,
        name: str = "",
        neighbours: Neighbours | None = None,
        patience: float = limits.RECONNECT_TIMEOUT,
    ) -> None:
        super().__init__(identity, name, neighbours, patience)
        self._remotes: dict[str, RemotePeer] = {}  # by id
        self._first_look = threading.Lock()  # one peer is one object
        self._runner = Runner(self)
        self._mapper = Mapper(self, self._runner)
        self.sessions = Sessions(self)  # the secure ones of this client
        self._secure = SecureRunner(self, self._runner.found, self.sessions)
        self.secrets: dict[Any, Any] = {}  # the teams that tensors were shared with (grid/secret/sharing.py)

    def has_secrets(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether secrets are among the arguments of a plan."""
        return bool(self.secrets) and self._secure.has_secrets((args, kwargs))

    async def _before_leaving(self) -> None:
        await self.sessions.close()
        for remote in self._remotes.values():
            if remote.outbox.has_work:
                with contextlib.suppress(GridError):
                    await remote.outbox.flush()
            remote.outbox.close()

    # --- peers --------------------------------------------------------------------------------------------

    def __getitem__(self, name_or_id: str) -> RemotePeer:
        """The peer of that name, id or beginning of an id. UnknownPeer, AmbiguousPeer."""
        if not isinstance(name_or_id, str):
            raise BadRequest(f"a peer is asked for by its name or id, as in g['alice'], not by {name_or_id!r:.60}")
        return self._remote(self.find_member(name_or_id))

    def __iter__(self) -> Iterator[RemotePeer]:
        return iter([self._remote(member) for member in self._membership.all()])

    def _remote(self, member: Member) -> RemotePeer:
        remote = self._remotes.get(member.id)
        if remote is None:
            with self._first_look:  # whatever thread asks, and whatever loop runs there
                remote = self._remotes.get(member.id)
                if remote is None:
                    remote = RemotePeer(member, self._links, self.identity.id, self._loop, self)
                    self._remotes[member.id] = remote
        remote.member = member
        return remote

    async def wait_for(self, name: str, timeout: float = 10.0) -> RemotePeer:
        """The peer of that name, once it is there; UnknownPeer if it does not come in time."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            await self._learn_members()
            try:
                return self[name]
            except UnknownPeer:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.05)

    # --- search -------------------------------------------------------------------------------------------

    async def search(self, query: str, timeout: float = limits.SEARCH_TIMEOUT) -> Hits:
        """Ask all peers at once (docs/queries.md says how to ask). Peers that do not answer in time are listed in
        `hits.unreachable`; the others' answers count.

        Raises:
            QueryError: the query does not parse; the error points at the column.
        """
        found = await self.find_records(query, timeout)
        broken: dict[str, str] = {}
        hits = await hits_of(self, found.records, broken)
        return Hits(query, hits, {**found.unreachable, **broken}, found.truncated, found.damaged)

    async def stream(self, query: str, timeout: float = limits.SEARCH_TIMEOUT) -> AsyncIterator[Any]:
        """The same objects one by one, as the answers arrive."""
        async for records in await self._searcher.stream(query, timeout):
            for hit in await hits_of(self, records, {}):
                yield hit

    async def find(self, reference: str) -> Any:
        """One object, by a query that finds one or by the beginning of its id (4 hex digits or more).

        Raises:
            NotFound, Ambiguous, QueryError.
        """
        for query in readings(reference):
            hits = await self.search(query)
            if len(hits):
                break
        return hits.one()

    # --- values -------------------------------------------------------------------------------------------

    async def fetch(self, state: Any) -> Any:
        """The same dict, list or tuple with values for its pointers, however deep: a state dict to be saved, say
        (`torch.save(await g.fetch(net.state_dict()), path)`). Nothing changes at the peers.

        Raises:
            Denied: something is private to others.
        """
        return await fetch_state(state)

    async def settle(self) -> None:
        """Wait until all that was queued so far is done at its peer, gradients on their way between peers included.

        What failed is still told where its result is awaited.
        """
        self.check_loop()
        for remote in list(self._remotes.values()):
            await remote.outbox.settle()

    # --- computing ----------------------------------------------------------------------------------------

    async def run(
        self,
        plan: Any,
        /,
        *args: Any,
        parties: Sequence[str | RemotePeer] | None = None,
        provider: str | RemotePeer | None = None,
        reveal_to: str | RemotePeer | None = None,
        precision: int | None = None,
        checked: bool = False,
        keep: bool = False,
        patience: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a plan where its data are, as one request (docs/plans.md).

        `plan` is a plan, a function, a module, a stored plan or model, or a query that finds one. Arguments, and what
        is in lists, tuples and dicts among them, are queries (each finds one object), pointers, stored models or plans,
        or plain values. A function is captured for their shapes; the program runs at the peer to which the fewest bytes
        have to go, these go there directly, and the result is a pointer there (or a structure of pointers). With a
        multi-pointer among the arguments it runs for each of its peers, and the result is a multi-pointer.

        What queries found may change until it runs: then they are asked once more.

        With `parties` (peers) it runs on secret shares instead (docs/secure.md): each input is shared by who has it,
        the parties compute, `provider` (another peer) deals randomness and sees no data, and the result is revealed to
        you alone: a Revealed, with `.value` and `.cost`. Three parties can do without a provider. The team's processes
        stand by for later runs. `reveal_to`: a peer that learns the result in your place: `value` is then a pointer to
        it there, of which only that peer may take the value. `keep`: nobody learns it: `value` is a SecretTensor, with
        which more can be computed. `precision`: fractional bits of secret reals, 10 to 24, else 16.
        `checked`: shares have MACs, so that nobody has any result if a party, or a line, changes a bit of anything; for
        plans of sums and products, at many times the cost. Where SecretTensors are among the arguments it runs by those
        who have their shares: parties, provider and precision are left out.
        `patience`: seconds that one waits for another.

        Raises:
            NotFound, Ambiguous: a query does not find one object; it says what was perhaps meant.
            CannotCapture: the function does something that a program cannot hold; the error points at the line.
            NotCollocated: what is private would have to move.
            Changed: what the queries find changed again and again.
            On shares also: OperationNotAllowed: something has no secure form; Denied: an owner does not let you learn
            what is computed from an object (`reveal`); PartyFailed: it names who failed, and nothing was revealed.
        """
        self.check_loop()
        how = OnShares(parties, provider, reveal_to, precision, checked, keep, patience)
        if not how.is_asked:
            ready = self._runner.at_hand(plan, args, kwargs)
            if ready is not None:
                return await self._runner.run_at_hand(ready)
        if how.is_asked or self.has_secrets(args, kwargs):
            return await self._secure.run(plan, args, kwargs, how)
        if any(isinstance(value, MultiPointer) for value in (*args, *kwargs.values())):
            return await at_each(lambda *these, **named: self._runner.run(plan, these, named), args, kwargs)
        return await self._runner.run(plan, args, kwargs)

    def start(self, plan: Any, /, *args: Any, **kwargs: Any) -> Run:
        """`run` without waiting: a Run, which says how far it is (`async for`), can be cancelled, and is awaited for
        the result."""
        return Run(self, self.run(plan, *args, **kwargs))

    async def profile(self, plan: Any, /, *args: Any, **kwargs: Any) -> Profile:
        """`run`, and what each operation of the program took: time, bytes, and the most memory in use. Print it, or
        read `result` and `reports`. It runs slower so: nothing that was found out in earlier runs is used.

        Raises:
            Denied: the program reads what is private to others: how long a node takes may tell of it.
        """
        return await profiled(self.run(plan, *args, **kwargs))

    async def explain(
        self,
        plan: Any,
        /,
        *args: Any,
        parties: Sequence[str | RemotePeer] | None = None,
        provider: str | RemotePeer | None = None,
        reveal_to: str | RemotePeer | None = None,
        precision: int | None = None,
        checked: bool = False,
        keep: bool = False,
        **kwargs: Any,
    ) -> Explanation | SecureExplanation:
        """What `run` would do with these arguments: what each query finds, where it would run and why there, what would
        go where, how many bytes, and what it costs. Nothing moves and nothing runs. Print it, or read its fields.
        On secret shares (`parties`, `provider` and all that `run` takes beside them): with its exact number of rounds
        and bytes.

        Raises:
            NotFound, Ambiguous, CannotCapture: as `run`.
        """
        self.check_loop()
        how = OnShares(parties, provider, reveal_to, precision, checked, keep)
        if how.is_asked or self.has_secrets(args, kwargs):
            return await self._secure.explain(plan, args, kwargs, how)
        return await self._runner.explain(plan, args, kwargs)

    async def prepare(
        self,
        plan: Any,
        /,
        *args: Any,
        parties: Sequence[str | RemotePeer],
        provider: str | RemotePeer,
        runs: int = 1,
        precision: int | None = None,
        checked: bool = False,
        **kwargs: Any,
    ) -> Prepared:
        """Does what secure runs of this plan need of no new data, for so many runs: the provider deals ahead, inputs
        that are stored are shared, and a model's weights opened under their masks. The next `runs` runs of the same
        plan on inputs of the same shapes take it, each once, and need no provider. What was not used goes with your
        lease.

        Raises:
            TooLarge: it is more than a party keeps (`SECURE_STOCK`). What `run` raises.
        """
        self.check_loop()
        how = OnShares(parties, provider, precision=precision, checked=checked)
        return await self._secure.prepare(plan, args, kwargs, how, runs)

    async def build(self, plan: Any, /, *args: Any, **kwargs: Any) -> Plan:
        """The plan built for these arguments, which are those of `run`: `await (await g.build(plan, ...)).send(alice,
        tags=[...])` stores it for others. What it loads by tag is searched for again whenever it runs.

        Raises:
            NotFound, Ambiguous, CannotCapture: as `run`.
        """
        self.check_loop()
        return await self._runner.build(plan, args, kwargs)

    async def map(self, plan: Any, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run a plan at each of several peers, on what each of them has: {peer name: result}, a pointer there each.

        An argument whose query finds one object at each of several peers is what each of them has; several such are
        matched peer by peer, and so are multi-pointers and what an earlier `map` gave. All others go to each peer,
        directly from where they are. All peers run at the same time.

        Raises:
            Ambiguous: a query finds several objects at one peer. NotCollocated: not all arguments are at the same
            peers, or something private would have to go elsewhere. What `run` raises, before any peer runs.
            The first failure where some peers failed: it names them, and its `results` is what the others gave.
        """
        self.check_loop()
        return await self._mapper.map(plan, args, kwargs)

    async def reduce(self, results: Any, /, *args: Any, how: Any = "mean", weights: Any = None, **kwargs: Any) -> Any:
        """Combine what several peers have, from peer to peer: a pointer to one result (or a structure of them).

        Args:
            results: what `map` gave, a list or dict of pointers, or a multi-pointer; or a plan, which is mapped first,
                with the other arguments.
            how: "sum", "mean", "cat" (along the first dimension, in the order of the results), or a plan: one of one
                argument gets the list of all results, one of two combines two at a time.
            weights: for "mean": a number or a pointer for each result, such as how many rows it stands for.

        The data go directly to where the fewest bytes have to go; of more than eight results, several peers add up some
        each first. What is private to others stays where it is, and the others come to it.

        Raises:
            NotCollocated: private results are at different peers. BadRequest: shapes that have no sum.
        """
        self.check_loop()
        if callable(results) or isinstance(results, str):
            results = await self.map(results, *args, **kwargs)
        elif args or kwargs:
            raise BadRequest(
                "reduce takes further arguments for a plan only: give results, or a plan and its arguments"
            )
        return await self._mapper.reduce(results, how, weights)


def connect(
    url: str | None = None,
    *,
    identity: Identity | None = None,
    folders: Folders | None = None,
    name: str = "",
    patience: float = limits.RECONNECT_TIMEOUT,
) -> Opening[Grid]:
    """Join a grid: `async with grid.connect() as g`, or `g = await grid.connect()` and `await g.close()` later.

    Args:
        url: any one peer, like ws://127.0.0.1:7700; without it, a peer that runs on this machine.
        identity: who you are; without it, the key in your configuration folder, made on first use.
        patience: when a connection breaks, how many seconds to try for another before what waits for it fails.
    """

    def opened() -> Awaitable[Grid]:
        return Grid.open(url, identity=identity, folders=folders, name=name, patience=patience)

    return Opening("grid.connect()", opened)
