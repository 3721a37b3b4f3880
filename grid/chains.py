"""Pointers that a peer holds to objects at other peers: chains. Operations on one run where the data are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from compute.dtypes import NAME_OF
from compute.lazy import bits_of, with_bits
from grid.blocking import block, can_block, check_own_loop
from grid.handle import Handle
from grid.ids import fresh_id
from grid.pointer import Pointer
from protocol.errors import GridError
from protocol.tensors import TensorHeader
from search.tags import parse_tags

if TYPE_CHECKING:
    from grid.remote import RemotePeer

_under_way: Final[set[asyncio.Task[None]]] = set()


async def link(home: RemotePeer, target: Pointer, tags: Sequence[str] | str = (), description: str = "") -> Pointer:
    """Have `home` hold a pointer to `target`; see Pointer.send."""
    check_own_loop(home)
    await target.location.outbox.flush()
    fields = _fields(target, fresh_id())
    fields.update(tags=list(parse_tags(tags)), description=description)
    record = dict((await (await home.outbox.flush()).request("link", fields)).result["record"])
    handle = Handle(home, record["id"], owns=not record["published"], record=record, target=target)
    return _like(target, handle)


def link_soon(home: RemotePeer, target: Pointer) -> Pointer:
    """The same without waiting, for the result of an operation on a chain."""
    handle = Handle(home, fresh_id(), owns=True, target=target)
    if can_block():
        block(home, lambda: _link_now(home, handle, target))
    else:
        check_own_loop(home)
        task = home.loop.create_task(_link_now(home, handle, target))
        _under_way.add(task)
        task.add_done_callback(_under_way.discard)
    return _like(target, handle)


async def all_linked() -> None:
    """Waits until every `link_soon` so far was answered."""
    if _under_way:
        await asyncio.wait(set(_under_way))


async def _link_now(home: RemotePeer, handle: Handle, target: Pointer) -> None:
    try:
        await (await home.outbox.flush()).request("link", _fields(target, handle.id))
    except GridError as error:
        handle.fail(error)
    if handle._gone is not None:
        home.outbox.release(handle.id)  # it was given up before it was there


def _fields(target: Pointer, id: bytes) -> dict[str, Any]:
    header = TensorHeader(NAME_OF[target.dtype], tuple(target.shape))
    where = {"peer": target.location.id, "name": target.location.name, "object": target._handle.id}
    return {"id": id, **where, **header.to_wire()}


def _like(target: Pointer, handle: Handle) -> Pointer:
    """A pointer to a pointer: operations run on the object that it leads to, as that lies in its memory."""
    offset = int(target.storage_offset())
    made = Pointer.of(handle, target.dtype, target.shape, target.stride(), offset=offset, view_of=target)
    return with_bits(made, bits_of(target))
