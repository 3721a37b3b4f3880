"""An object moved or copied from peer to peer, with its gradient, or what it was made by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from grid.crossing import crossed
from grid.handle import Handle
from grid.ids import fresh_id
from grid.pointer import Pointer

if TYPE_CHECKING:
    from grid.remote import RemotePeer


async def transfer(
    home: RemotePeer, pointer: Pointer, target: RemotePeer, *, move: bool, publish: bool | None = None
) -> Pointer:
    """Move or copy an object from `home` to `target`, directly; the pointer there."""
    handle = pointer._handle
    id = handle.id if move else fresh_id()
    publish = handle.is_published if publish is None else publish
    if pointer.requires_grad and not pointer.is_leaf and torch.is_grad_enabled():
        # What it was made by needs it still, to run backward: it stays, and the gradient comes back to it.
        there = await transfer(home, pointer.detach(), target, move=False, publish=False)  # type: ignore[arg-type]
        return crossed(pointer, there)
    async with handle.in_use():
        record = await home.hand_over(handle.id, target, id, move=move, publish=publish)
    made = Handle(target, record["id"], owns=not record["published"], record=record, target=handle.target)
    result = Pointer.of(made, pointer.dtype, pointer.shape, requires_grad=pointer.requires_grad and pointer.is_leaf)
    if result.requires_grad and isinstance(pointer.grad, Pointer):
        result.grad = await transfer(home, pointer.grad, target, move=move)
    return result
