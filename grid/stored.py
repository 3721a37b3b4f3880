"""What stored models and plans have in common: where they are, what is said of them, and changing that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from grid.handle import Handle
from grid.ids import fresh_id
from search.tags import parse_tags

if TYPE_CHECKING:
    from grid.remote import RemotePeer


class Stored:
    """Mixin of a published object that is no tensor. `record` is what its peer last said of it."""

    _handle: Handle

    @property
    def location(self) -> RemotePeer:
        """The peer that holds it."""
        return self._handle.home

    @property
    def record(self) -> dict[str, Any]:
        return {**(self._handle.record or {}), "peer": self.location.name}

    @property
    def id_at_location(self) -> str:
        """Its id there, 32 hex digits."""
        return self._handle.id.hex()

    @property
    def owner(self) -> str:
        return str(self.record["owner"])

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, each with '#'."""
        return tuple(f"#{tag}" for tag in self.record.get("tags") or ())

    async def load(self) -> Self:
        """Get its program."""
        raise NotImplementedError

    def _elsewhere(self, peer: RemotePeer, record: dict[str, Any]) -> Self:
        """The same kind of object, at another peer."""
        raise NotImplementedError

    def _copy_id(self) -> bytes:
        return fresh_id()

    async def move(self, peer: RemotePeer) -> Self:
        """Move it to `peer` directly; what is there now. To where it is: does nothing. Only its owner may."""
        if peer is self.location:
            self._handle.check()
            return self
        return await self._transfer(peer, self._handle.id, move=True)

    async def copy(self, peer: RemotePeer) -> Self:
        """Copy it to `peer` directly, published there with the same tags; the copy."""
        return await self._transfer(peer, self._copy_id(), move=False)

    async def _transfer(self, peer: RemotePeer, id: bytes, *, move: bool) -> Self:
        self._handle.check()
        record = await self.location.hand_over(self._handle.id, peer, id, move=move, publish=True)
        if move:
            self._handle.give_up(f"it was moved to {peer.name}; use what move() returned")
        return await self._elsewhere(peer, record).load()

    async def tag(self, *tags: str) -> Self:
        """Add tags."""
        return await self._edit(add=list(parse_tags(tags)))

    async def untag(self, *tags: str) -> Self:
        """Take tags away. It stays published without any: delete() removes it."""
        return await self._edit(remove=list(parse_tags(tags)))

    async def describe(self, text: str) -> Self:
        """Set the description that search looks into."""
        return await self._edit(description=text)

    async def _edit(self, **changes: Any) -> Self:
        self._handle.check()
        self._handle.record = await self.location.edit(self._handle.id, **changes)
        return self

    async def delete(self) -> None:
        """Remove it from its peer."""
        self._handle.check()
        await self.location.delete([self._handle.id])
        self._handle.give_up("it was deleted")
