"""Many tensors from their peers to one, together: all of them are there in the end, or all are where they were.

First they are copied, several at a time, from peer to peer. When the last copy is there, the pointers name the copies,
all in one step without waiting, and the originals are let go. Of published objects a peer gives up its own only when
the other has it, so each of those is moved by itself (docs/decisions/0007-moves.md), after the copies.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from grid.handle import Handle
from grid.ids import fresh_id
from grid.pointer import Pointer
from protocol.errors import GridError

if TYPE_CHECKING:
    from grid.remote import RemotePeer

AT_ONCE = 8  # tensors under way at the same time
T = TypeVar("T")
Made = TypeVar("Made")


async def move_together(tensors: Iterable[torch.Tensor], peer: RemotePeer, what: str) -> None:
    """Every pointer among `tensors` names its object at `peer` afterwards; tensors that are here stay here.

    Raises:
        GridError: then temporaries are where they were; the message says where published objects are.
    """
    objects = _objects(tensors, peer)
    temporary = [handle for handle in objects if not (handle.is_published or handle.target)]
    published = [handle for handle in objects if handle.is_published or handle.target]
    ids = {handle: fresh_id() for handle in temporary}

    async def copied(handle: Handle) -> Handle:
        async with handle.in_use():
            record = await handle.home.hand_over(handle.id, peer, ids[handle], move=False, publish=False)
        return Handle(peer, record["id"], owns=True, record=record)

    try:
        copies = await together(temporary, copied)
        await _move_published(published, objects, peer, what)
    except BaseException:
        for id in ids.values():
            peer.outbox.release(id)
        raise
    for handle, there in zip(temporary, copies, strict=True):
        _rename(handle, objects[handle], there, f"{what} was moved to {peer.name}")


def _objects(tensors: Iterable[torch.Tensor], peer: RemotePeer) -> dict[Handle, list[Pointer]]:
    """The objects that are elsewhere, each with the pointers that name it."""
    found: dict[Handle, list[Pointer]] = {}
    for pointer in {id(tensor): tensor for tensor in tensors if isinstance(tensor, Pointer)}.values():
        handle = pointer._handle
        handle.check()
        if handle.home is not peer:
            found.setdefault(handle, []).append(pointer)
    return found


async def _move_published(
    published: Sequence[Handle], objects: dict[Handle, list[Pointer]], peer: RemotePeer, what: str
) -> None:
    for number, handle in enumerate(published):
        try:
            there = await handle.home.transfer(objects[handle][0].detach(), peer, move=True)  # type: ignore[arg-type]
        except GridError as error:
            if number:
                where = f"{number} of {len(published)} published tensors of {what} are at {peer.name} already"
                error.message = f"{error.message} ({where}: move it again)"
            raise
        _rename(handle, objects[handle], there._handle, f"{what} was moved to {peer.name}")


def _rename(old: Handle, pointers: Sequence[Pointer], new: Handle, why: str) -> None:
    """These pointers name the object of another handle from now on; the old one is given up."""
    for pointer in pointers:
        pointer.data = Pointer.of(new, pointer.dtype, pointer.shape)
    if old._gone is None:
        old.give_up(why)
        if old.owns:
            old.home.outbox.release(old.id)


async def together(items: Sequence[T], do: Callable[[T], Awaitable[Made]]) -> list[Made]:
    """`do` with each, several at a time; where one fails the others are given up, and its error is raised."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> Made:
        async with limit:
            return await do(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


# --- structures of tensors: state dicts ---------------------------------------------------------------------


async def replace(value: Any, change: Callable[[Any], Awaitable[torch.Tensor]]) -> Any:
    """The same structure of dicts, lists and tuples, with `change` (awaited) applied to each of its tensors, once."""
    from grid.optimizers import tensors_in

    found = list({id(tensor): tensor for tensor in tensors_in(value)}.values())
    made = await together(found, change)
    return _rebuilt(value, {id(tensor): new for tensor, new in zip(found, made, strict=True)})


def _rebuilt(value: Any, new: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return new[id(value)]
    if isinstance(value, dict):
        made = copy.copy(value)  # with what else it has: the versions of modules, which load_state_dict looks at
        made.update((key, _rebuilt(item, new)) for key, item in value.items())
        return made
    if isinstance(value, list | tuple):
        items = [_rebuilt(item, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
