"""An object handed from its peer to another one, as its asker sees it. Without torch."""

from __future__ import annotations

from typing import Any, Protocol

from protocol.errors import BadRequest, GridError, LinkError, NotFound, Unreachable

Record = dict[str, Any]


class Holder(Protocol):
    """A peer of which something is asked: what the asker's earlier requests there lead to comes first."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    async def request(self, op: str, args: dict[str, Any]) -> dict[str, Any]: ...


def check_peer(given: object, call: str) -> None:
    """BadRequest for what is no peer: a name, as a rule."""
    if not hasattr(given, "outbox"):
        what = "" if given is None else f", not {given!r:.60}"
        raise BadRequest(f"{call} takes a peer{what}: for example {call[:-1]}g['alice'])")


async def hand_over(
    holder: Holder, target: Holder, asker: str, id: bytes, new_id: bytes, *, move: bool, publish: bool
) -> Record:
    """offer there, pull at `target` (SPEC.md, 10); the record of the object at `target`.

    A move that was cut and is asked for again goes on where it was, or finds that it is done. While it is under way the
    target may be restarted: it is waited for (limits.RESUME_TIMEOUT).

    Raises:
        LinkError: it was cut off; the message says where the object is, and what to do.
    """
    doing = "move" if move else "copy"
    try:
        offer = await holder.request("offer", {"id": id, "target": target.id, "move": move})
    except NotFound:
        arrived = await _arrived(id, target, asker) if move else None
        if arrived is None:
            raise
        return arrived
    except LinkError as error:
        where = f"It is at {holder.name}, as it was: {doing} it when that peer is there"
        raise _told(error, doing, _name_of({"id": id}), holder, target, where) from None
    args = {"peer": holder.id, "ticket": offer["ticket"], "id": new_id, "publish": publish}
    try:
        return dict((await target.request("pull", args))["record"])
    except LinkError as error:
        if move and not isinstance(error, Unreachable):  # it was sent, and may have taken effect
            where = f"It is whole, at {holder.name} still or at {target.name}: move it again when both are there"
        else:
            where = f"It is at {holder.name}, as it was: {doing} it again when both are there"
        raise _told(error, doing, _name_of({"id": id, **offer.get("record", {})}), holder, target, where) from None


def _told(error: LinkError, doing: str, what: str, holder: Holder, target: Holder, where: str) -> LinkError:
    """The same in the words of who asked: what was cut off and why, where the object is now, and what to do."""
    why = error.fields.get("why", error.message)
    message = f"the {doing} of {what} from {holder.name} to {target.name} was cut off: {why}. {where}"
    return type(error)(message, peer=error.peer)


def _name_of(record: Record) -> str:
    """What its user calls an object."""
    tags = record.get("tags")
    return str(record.get("name") or (f"#{tags[0]}" if tags else f"object {record['id'].hex()[:12]}"))


async def _arrived(id: bytes, target: Holder, asker: str) -> Record | None:
    """The object's record at `target`, if it came there by a move of ours whose answer was lost."""
    try:
        record = dict((await target.request("describe", {"id": id}))["record"])
    except GridError:
        return None
    return record if record["owner"] == asker else None
