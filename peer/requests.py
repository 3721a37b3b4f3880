"""What can be asked of a peer: one method for each `op` of SPEC.md section 10, found in one table.

Arguments are checked here; what they lead to is decided in the parts that do it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from peer import permissions
from peer.arrivals import Arrival
from peer.calls import Answer, Call, GiveUp
from peer.elsewhere import check_content
from peer.execution import Execution
from peer.exports import Position, offset_of
from peer.jails import Asked as JailAsked
from peer.jails import Jails
from peer.leases import LeaseKey
from peer.links import Links
from peer.membership import Member, Membership
from peer.moves import Moves
from peer.neighbours import Neighbours
from peer.objects import Held, Objects, Published, Temporary, check_id, show_id
from peer.payloads import MemoryPayload
from peer.program_requests import ProgramRequests
from peer.programs import Programs
from peer.pulls import Pulls
from peer.run_requests import RunRequests
from peer.runs import Runs
from peer.secure import SecureRuns
from peer.store.store import Store
from peer.transfers import Transfers
from peer.upkeep import Upkeep
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import BadRequest, GridError, LinkError
from protocol.rows import pack_rows
from search.records import check_description
from search.tags import parse_tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a running peer that requests reach."""

    id: str
    name: str
    version: str
    started: float
    objects: Objects
    store: Store
    execution: Execution
    programs: Programs
    jails: Jails
    runs: Runs
    secure: SecureRuns
    transfers: Transfers
    moves: Moves
    pulls: Pulls
    workers: WorkerPool
    membership: Membership
    neighbours: Neighbours
    links: Links
    sessions: Callable[[], int]
    upkeep: Upkeep


class Requests:
    """The handler of one peer: `serve` answers a call of an authenticated end."""

    def __init__(self, parts: Parts, lease_of: Callable[[Call], LeaseKey]) -> None:
        self._parts = parts
        self._lease_of = lease_of
        self._run_requests = RunRequests(parts.execution, parts.name, lease_of)
        self._program_requests = ProgramRequests(parts.programs, parts.runs, parts.name, lease_of)
        self._neighbours_seen: set[str] = set()  # ids of peers that ran on this machine once

    async def serve(self, call: Call) -> Answer:
        handler = _TABLE.get(call.op)
        if handler is None:
            raise BadRequest(f"{call.op!r} is no request that this peer knows; see SPEC.md, section 10")
        try:
            return await handler(self, call)
        except GridError as error:
            if error.peer is None:
                error.peer = self._parts.name
            raise

    def serve_at_once(self, call: Call, answer: Callable[[Answer | GridError], None]) -> bool | GiveUp:
        """Serve a call without a task: `answer` is called, now or later (see AtOnce); False: nothing was done.

        Only for a call that came when no earlier one of its connection was being served by a task.
        """
        if call.op == "run":
            return self._run_requests.at_once(call, answer)
        if call.op == "execute":
            return self._program_requests.at_once(call, answer)
        return call.op == "release" and self._run_requests.release_at_once(call, answer)

    # --- the grid -----------------------------------------------------------------------------------------

    def _members(self) -> list[dict[str, Any]]:
        """Everyone known, with the peers of this machine as they are now."""
        membership = self._parts.membership
        here = {n.id: Member(n.id, n.name, (n.url,)) for n in self._parts.neighbours.list()}
        membership.learn(here.values())
        for gone in self._neighbours_seen - here.keys():
            membership.failed(gone)  # its process has ended: nobody needs to dial it to know
        self._neighbours_seen |= here.keys()
        return [member.to_wire() for member in membership.all()]

    async def peers(self, call: Call) -> Answer:
        return Answer({}, MemoryPayload(pack_rows(self._members())))

    async def introduce(self, call: Call) -> Answer:
        member = Member.from_wire(call.args.get("peer"))
        if member.id != call.connection.remote.id:
            raise BadRequest("a peer introduces itself; this is another's record")
        await self._check_answers(member)
        self._parts.membership.learn([member])
        return Answer({}, MemoryPayload(pack_rows(self._members())))

    async def _check_answers(self, member: Member) -> None:
        """Whoever calls itself a peer must answer as one, at the address that it gives, with the key that it proved."""
        try:
            await self._parts.links.to(member)
        except LinkError as error:
            raise BadRequest(f"{member.name} does not answer as a peer at {member.urls[0]}: {error.message}") from None

    async def status(self, call: Call) -> Answer:
        parts = self._parts
        stored = await parts.store.statistics()
        workers = parts.workers.statistics()
        return Answer(
            {
                "id": parts.id,
                "name": parts.name,
                "version": parts.version,
                "uptime": time.time() - parts.started,
                "objects": stored.objects,
                "bytes": stored.bytes,
                "temporaries": parts.objects.count,
                "sessions": parts.sessions(),
                "workers": len(workers.workers),
                "sandbox": parts.workers.protection,
                "jails": parts.jails.allowed(call.connection.remote.id),
                "principals": [each.to_wire() for each in workers.principals[-_SHOWN_PRINCIPALS:]],
                "traffic": [asdict(traffic) for traffic in parts.links.traffic.all()[:_SHOWN_TRAFFIC]],
            }
        )

    # --- objects ------------------------------------------------------------------------------------------

    async def put(self, call: Call) -> Answer:
        arrival, offset = _arrival(call), offset_of(call.args)
        if offset is None:
            return await self._receive(call, arrival)
        return Answer({"record": await self._parts.transfers.put(arrival, self._lease_of(call), call, offset)})

    async def resume(self, call: Call) -> Answer:
        return Answer(await self._parts.transfers.resume(call.connection.remote.id, _arrival(call)))

    async def link(self, call: Call) -> Answer:
        asker = call.connection.remote.id
        target = {"peer": call.args.get("peer"), "object": call.args.get("object"), "name": call.args.get("name", "")}
        member = self._parts.membership.get(str(target["peer"]))
        if member is not None:
            target["name"] = member.name
        fields = {**call.args, "kind": "pointer", "target": target, "name": None}
        return await self._receive(call, Arrival.of(fields, asker, frozenset()))

    async def _receive(self, call: Call, arrival: Arrival) -> Answer:
        parts = self._parts
        record = await parts.transfers.receive(arrival, self._lease_of(call), call, call.nbytes)
        return Answer({"record": record})

    async def fetch(self, call: Call) -> Answer:
        part = call.args.get("part")
        if part is not None and not isinstance(part, str):
            raise BadRequest("part is text")
        asker, at = call.connection.remote.id, Position.of(call.args)
        return await self._parts.transfers.fetch(asker, check_id(call.args.get("id")), part, at)

    async def fetched(self, call: Call) -> Answer:
        self._parts.transfers.fetched(call.connection.remote.id, call.args.get("token"))
        return Answer({})

    async def describe(self, call: Call) -> Answer:
        asker, prefix = call.connection.remote.id, call.args.get("prefix")
        if "content" in call.args:
            held: Held = await self._parts.objects.by_content(asker, check_content(call.args["content"]))
        elif prefix is None:
            held = await self._parts.objects.find(asker, check_id(call.args.get("id")))
        elif isinstance(prefix, str) and 0 < len(prefix) <= 32 and set(prefix) <= _HEX:
            held = await self._parts.objects.by_prefix(asker, prefix)
        else:
            raise BadRequest("prefix is 1 to 32 lowercase hex digits")
        if isinstance(held, Temporary) and held.header is None and held.target is None:
            async with self._parts.execution.lane(asker):
                await self._parts.execution.header(held)
        token = self._parts.transfers.token(asker, held)
        return Answer({"record": held.record()} | ({} if token is None else {"token": token}))

    async def edit(self, call: Call) -> Answer:
        asker, id = call.connection.remote.id, check_id(call.args.get("id"))
        add, remove = parse_tags(call.args.get("add") or []), parse_tags(call.args.get("remove") or [])
        description = call.args.get("description")
        if description is not None:
            check_description("description", description)
        parts, publications = self._parts, self._parts.transfers.publications
        async with publications.lane(asker, [id]):
            held = await parts.objects.find(asker, id)
            permissions.check_edit(asker, held, f"object {show_id(id)}")
            if isinstance(held, Temporary):
                if not add:
                    raise BadRequest(
                        f"{show_id(id)} has no tags: give it one, then it is published and can be described"
                    )
                publishing = await publications.begin(held, add, description)
            else:
                return Answer({"record": await self._edit_published(held, add, remove, description)})
        return Answer({"record": await publishing})  # outside the lane: writing it may take a while

    async def _edit_published(
        self, held: Published, add: tuple[str, ...], remove: tuple[str, ...], description: str | None
    ) -> dict[str, Any]:
        if held.part is not None:
            raise BadRequest(f"{held.part} is one tensor of a model: tag the model")
        try:
            if add or remove:
                await self._parts.store.retag(held.id, add, remove)
            if description is not None:
                await self._parts.store.describe(held.id, description)
        finally:
            self._parts.objects.store_changed(held.id)
        edited = await self._parts.objects.find(held.owner, held.id)
        return edited.record()

    async def release(self, call: Call) -> Answer:
        """Only temporaries, and only the asker's: a vanished client never takes a published object along."""
        asker = call.connection.remote.id
        ids = _ids(call.args.get("ids"))
        async with self._parts.execution.lane(asker):
            self._parts.execution.release_own(asker, ids)
        return Answer({})

    async def delete(self, call: Call) -> Answer:
        asker, parts = call.connection.remote.id, self._parts
        deleted, ids = 0, _ids(call.args.get("ids"))
        async with parts.transfers.publications.lane(asker, ids):
            held = [await parts.objects.to_delete(asker, id) for id in ids]
            for one in held:
                permissions.check_edit(asker, one, f"object {show_id(one.id)}")
                if isinstance(one, Published) and one.part is not None:
                    raise BadRequest(f"{one.part} is one tensor of a model: delete the model")
            for one in held:
                deleted += await parts.transfers.remove(one)
        await parts.store.settled()  # outside the lane: the files of large objects take a while to go
        return Answer({"deleted": deleted})

    async def clear(self, call: Call) -> Answer:
        asker, parts = call.connection.remote.id, self._parts
        async with parts.transfers.publications.lane(asker):
            deleted = parts.execution.release(parts.objects.owned_by(asker))
            deleted += await parts.store.clear(asker, is_hurried=True)
            parts.objects.store_cleared()
        await parts.store.settled()
        return Answer({"deleted": deleted})

    async def mine(self, call: Call) -> Answer:
        """What the asker has here: temporaries first, then what is published."""
        asker, parts, limit = call.connection.remote.id, self._parts, call.args.get("limit", limits.MAX_HITS)
        if type(limit) is not int or limit < 1:
            raise BadRequest("limit is a positive integer")
        async with parts.execution.lane(asker):
            count = parts.objects.count_of(asker)
            rows = [
                temporary.record() for temporary in parts.objects.temporaries_of(asker, min(limit, limits.MAX_HITS))
            ]
        room = min(limit, limits.MAX_HITS) - len(rows)
        found = await parts.store.find(f"owner:{asker}", max(room, 1))
        is_cut = found.truncated or len(found.records) > room or count > len(rows)
        result = {"temporaries": count, "truncated": is_cut, "damaged": found.damaged}
        return Answer(result, MemoryPayload(pack_rows([*rows, *found.records[:room]])))

    async def search(self, call: Call) -> Answer:
        query, limit = call.args.get("query", ""), call.args.get("limit", limits.MAX_HITS)
        if not isinstance(query, str) or type(limit) is not int or limit < 1:
            raise BadRequest("query is text, limit a positive integer")
        found = await self._parts.store.find(query, min(limit, limits.MAX_HITS))
        result = {"truncated": found.truncated, "damaged": found.damaged}
        return Answer(result, MemoryPayload(pack_rows(found.records)))

    # --- computing ----------------------------------------------------------------------------------------

    async def run(self, call: Call) -> Answer:
        return await self._run_requests.serve(call)

    async def execute(self, call: Call) -> Answer:
        return await self._program_requests.execute(call)

    async def running(self, call: Call) -> Answer:
        return await self._program_requests.running(call)

    async def cancel(self, call: Call) -> Answer:
        return await self._program_requests.cancel(call)

    async def secure(self, call: Call) -> Answer:
        return await self._parts.secure.serve(call, self._lease_of(call))

    async def secure_drop(self, call: Call) -> Answer:
        return self._parts.secure.drop(call)

    async def jail(self, call: Call) -> Answer:
        asked = JailAsked.of(call.args)
        if call.nbytes > limits.JAIL_REQUEST:
            raise BadRequest(f"a jail of {call.nbytes} bytes; at most {limits.JAIL_REQUEST}")
        work = bytes(call.payload) if call.stream is None else b"".join([bytes(c) async for c in call.stream])
        made = await self._parts.jails.run(call.connection.remote.id, self._lease_of(call), asked, work)
        return Answer(made.to_wire(), made.printed)

    # --- from peer to peer --------------------------------------------------------------------------------

    async def offer(self, call: Call) -> Answer:
        return Answer(
            await self._parts.moves.offer(
                call.connection.remote.id,
                check_id(call.args.get("id")),
                str(call.args.get("target")),
                bool(call.args.get("move")),
            )
        )

    async def pull(self, call: Call) -> Answer:
        record = await self._parts.pulls.pull(call.connection.remote.id, self._lease_of(call), call.args)
        return Answer({"record": record})

    async def collect(self, call: Call) -> Answer:
        return await self._parts.moves.collect(call.connection.remote.id, call.args)

    async def collected(self, call: Call) -> Answer:
        await self._parts.moves.collected(call.connection.remote.id, call.args)
        return Answer({})

    # --- for the operator ---------------------------------------------------------------------------------

    async def verify(self, call: Call) -> Answer:
        return await self._parts.upkeep.verify(call.connection.remote.id)

    async def verifying(self, call: Call) -> Answer:
        return self._parts.upkeep.verifying(call.connection.remote.id)

    async def compact(self, call: Call) -> Answer:
        return await self._parts.upkeep.compact(call.connection.remote.id)


_SHOWN_PRINCIPALS: Final = 32  # of those who compute, the last to come
_SHOWN_TRAFFIC: Final = 200  # of the others a peer has exchanged data with; more would not fit a header
_HEX: Final = frozenset("0123456789abcdef")
_TABLE: Final[dict[str, Callable[[Requests, Call], Awaitable[Answer]]]] = {
    "peers": Requests.peers,
    "introduce": Requests.introduce,
    "status": Requests.status,
    "put": Requests.put,
    "resume": Requests.resume,
    "link": Requests.link,
    "fetch": Requests.fetch,
    "fetched": Requests.fetched,
    "describe": Requests.describe,
    "edit": Requests.edit,
    "release": Requests.release,
    "delete": Requests.delete,
    "clear": Requests.clear,
    "mine": Requests.mine,
    "search": Requests.search,
    "run": Requests.run,
    "execute": Requests.execute,
    "jail": Requests.jail,
    "secure": Requests.secure,
    "secure_drop": Requests.secure_drop,
    "running": Requests.running,
    "cancel": Requests.cancel,
    "offer": Requests.offer,
    "pull": Requests.pull,
    "collect": Requests.collect,
    "collected": Requests.collected,
    "verify": Requests.verify,
    "verifying": Requests.verifying,
    "compact": Requests.compact,
}


def _arrival(call: Call) -> Arrival:
    """What a put announces."""
    asker = call.connection.remote.id
    return Arrival.of(call.args, asker, frozenset({asker}) if call.args.get("private") else frozenset())


def _ids(value: object) -> list[bytes]:
    if not isinstance(value, list):
        raise BadRequest("a list of object ids is needed")
    return [check_id(id) for id in value]
