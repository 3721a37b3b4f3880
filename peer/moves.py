"""The direct way from one peer to another: move and copy.

It takes three steps: the asker gets a ticket from the holder (`offer`), gives it to the target (`pull`), and the
target collects the value over a connection of its own (`collect`), says when it is safe (`collected`), and only
then does the holder give up its copy. Cut anywhere, at least one of them has the object.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from peer import permissions
from peer.arrivals import Arrival
from peer.calls import Answer, Response
from peer.execution import Execution
from peer.leases import LeaseKey
from peer.links import Links
from peer.membership import Membership
from peer.objects import Objects, Published, Temporary, check_id, show_id
from peer.tickets import Tickets
from peer.transfers import Transfers, payload_of
from protocol.errors import BadRequest, Denied, NotFound
from protocol.identity import is_peer_id


class Moves:
    """Gets its parts from the peer that wires it."""

    def __init__(
        self,
        objects: Objects,
        execution: Execution,
        transfers: Transfers,
        tickets: Tickets,
        links: Links,
        membership: Membership,
    ) -> None:
        self._objects = objects
        self._execution = execution
        self._transfers = transfers
        self._tickets = tickets
        self._links = links
        self._membership = membership

    async def offer(self, asker: str, id: bytes, target: str, is_move: bool) -> dict[str, Any]:
        """Let `target` collect the object; the ticket that it needs."""
        if not is_peer_id(target):
            raise BadRequest("target is the id of a peer")
        held = await self._objects.find(asker, id)
        what = f"object {show_id(id)}"
        permissions.check_take(asker, held, what)
        if isinstance(held, Published) and held.part is not None and is_move:
            raise BadRequest(f"{what} is one tensor of a model: move the model, or copy the tensor")
        if is_move:
            permissions.check_edit(asker, held, what)
        ticket = self._tickets.issue(id, asker, target, is_move, time.monotonic())
        return {"ticket": ticket, "record": held.record()}

    async def pull(self, asker: str, lease: LeaseKey, args: Mapping[str, Any]) -> dict[str, Any]:
        """Collect an object from the peer that offered it to us; its record here."""
        member = self._membership.get(str(args.get("peer")))
        if member is None:
            raise NotFound(f"peer {str(args.get('peer'))[:12]} is not known here: it must join this grid first")
        id, publish = check_id(args.get("id")), bool(args.get("publish"))
        holder = await self._links.to(member, bulk=True)
        answer = await holder.request("collect", {"ticket": args.get("ticket")})
        try:
            if answer.result.get("asker") != asker:
                raise Denied("that transfer was asked for by somebody else")
            record = await self._take_in(answer, id, asker, lease, publish)
        finally:
            if answer.stream is not None:
                answer.stream.abort()
        await holder.request("collected", {"ticket": args.get("ticket")})
        return record

    async def _take_in(self, answer: Response, id: bytes, asker: str, lease: LeaseKey, publish: bool) -> dict[str, Any]:
        theirs = answer.result.get("record")
        if not isinstance(theirs, dict):
            raise BadRequest("the holder did not describe the object")
        keeps = publish and id == theirs.get("id")  # the same object in a new place keeps its owner
        owner = theirs.get("owner") if keeps else asker
        labels = theirs.get("labels")
        if not isinstance(labels, list) or not all(map(is_peer_id, labels)) or not is_peer_id(owner):
            raise BadRequest("the holder's description lacks owner or labels")
        fields = {**theirs, **answer.result, "id": id, "publish": publish}
        if not publish:
            fields["tags"] = []
        nbytes = answer.stream.nbytes if answer.stream is not None else len(answer.payload)
        arrival = Arrival.of(fields, str(owner), frozenset(labels))
        return await self._transfers.receive(arrival, lease, answer, nbytes)

    async def collect(self, peer: str, token: object) -> Answer:
        """The target comes for what it was offered."""
        ticket = self._tickets.check(_token(token), peer, time.monotonic())
        answer_to = {"asker": ticket.asker}
        async with self._execution.lane(ticket.asker):
            held = await self._objects.find(ticket.asker, ticket.object)
            permissions.check_take(ticket.asker, held, f"object {show_id(held.id)}")
            if isinstance(held, Temporary) and held.target is None:
                value = self._execution.snapshot(held)
        record = held.record()
        if held.kind == "pointer":
            return Answer({**answer_to, "record": record})
        if isinstance(held, Published):
            answer = await self._transfers.stored_value(held)
            return Answer({**answer_to, **answer.result, "record": record}, answer.payload)
        header, data = await value
        return Answer({**answer_to, **header.to_wire(), "record": {**record, **header.to_wire()}}, payload_of(data))

    async def collected(self, peer: str, token: object) -> None:
        """The target has it safely: after a move, ours goes."""
        ticket = self._tickets.check(_token(token), peer, time.monotonic())
        self._tickets.spend(_token(token))
        if ticket.is_move:
            await self._transfers.remove(await self._objects.find(ticket.asker, ticket.object))


def _token(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise BadRequest("a ticket is bytes")
    return value
