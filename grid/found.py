"""Published objects of any kind, by what their peers say of them: changed, deleted, moved, copied. Without torch, and
so for commands; `grid.client.Grid` has pointers and models for the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grid.handing import hand_over
from grid.ids import fresh_id, fresh_model_id
from grid.mesh import Mesh
from grid.searching import Record
from peer.membership import Member
from search.tags import parse_tags


@dataclass(frozen=True, slots=True)
class _Asked:
    """A peer, as the requests of a Mesh see it."""

    mesh: Mesh
    member: Member

    @property
    def id(self) -> str:
        return self.member.id

    @property
    def name(self) -> str:
        return self.member.name

    async def request(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        return await self.mesh.request(self.member, op, args)


class Found:
    """A published object of any kind at its peer. `record` is what that said of it last; `peer` its name."""

    def __init__(self, mesh: Mesh, record: Record) -> None:
        self._mesh = mesh
        self._home = _Asked(mesh, mesh.find_member(record["peer_id"]))
        self.record = record

    @classmethod
    async def find(cls, mesh: Mesh, reference: str) -> Found:
        """By a query that finds one, or the beginning of its id. NotFound, Ambiguous, QueryError."""
        return cls(mesh, await mesh.find_record(reference))

    @property
    def id(self) -> bytes:
        return bytes(self.record["id"])

    @property
    def peer(self) -> str:
        return self._home.name

    async def edit(self, add: Sequence[str] = (), remove: Sequence[str] = (), description: str | None = None) -> None:
        """Change its tags and its description, in this order. Only its owner may: Denied."""
        args: dict[str, Any] = {"id": self.id, "add": list(parse_tags(add)), "remove": list(parse_tags(remove))}
        if description is not None:
            args["description"] = description
        self.record = _at(self._home, (await self._home.request("edit", args))["record"])

    async def delete(self) -> None:
        """Remove it from its peer. Only its owner may: Denied."""
        await self._home.request("delete", {"ids": [self.id]})

    async def move(self, target: Member) -> Found:
        """Move it to `target` directly; what is there now. To where it is: does nothing. Only its owner may."""
        return self if target.id == self._home.id else await self._transfer(target, self.id, move=True)

    async def copy(self, target: Member) -> Found:
        """Copy it to `target` directly, published there with the same tags; the copy."""
        id = fresh_model_id() if self.record["kind"] == "model" else fresh_id()
        return await self._transfer(target, id, move=False)

    async def _transfer(self, member: Member, new_id: bytes, *, move: bool) -> Found:
        target = _Asked(self._mesh, member)
        record = await hand_over(self._home, target, self._mesh.id, self.id, new_id, move=move, publish=True)
        return Found(self._mesh, _at(target, record))


def _at(home: _Asked, record: Record) -> Record:
    return {**record, "peer": home.name, "peer_id": home.id}
