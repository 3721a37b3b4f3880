"""Gradients from peer to peer: autograd goes on where an activation was moved or copied to another peer.

Moving waits, and `backward()` cannot. So a gradient that has to go back only sets out: its pointer at the other peer is
there at once, and operations that are queued there from then on wait, in their order, until it has arrived (`Hold` in
outbox.py). What fails on the way is noted on the pointer, and surfaces where something that depends on it is awaited.
The data go from peer to peer; no byte of them passes here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from grid.handing import hand_over
from grid.handle import Handle
from grid.ids import fresh_id
from grid.outbox import Hold
from protocol.errors import GridError, LinkError, PeerLost

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer

_under_way: set[asyncio.Task[None]] = set()


def crossed(here: Pointer, there: Pointer) -> Pointer:
    """`there`, a copy of `here` at another peer, with its history: the gradient goes back to where `here` is."""
    return _Crossing.apply(here, lambda _: there)  # type: ignore[no-any-return, no-untyped-call]


def bring_soon(pointer: Pointer, target: RemotePeer) -> Pointer:
    """A copy at `target` of what is at another peer, as it is by now; the data follow."""
    source, kept = pointer.location, pointer.clone(memory_format=torch.contiguous_format)  # it may be written to soon
    made = Handle(target, fresh_id(), owns=True)
    before, hold = source.outbox.holds, target.outbox.hold(made)

    def begin() -> None:
        task = source.loop.create_task(_bring(source, before, kept._handle, target, hold))  # type: ignore[attr-defined]
        _under_way.add(task)
        task.add_done_callback(_under_way.discard)

    if asyncio._get_running_loop() is source.loop:
        begin()
    else:
        source.loop.call_soon_threadsafe(begin)
    return type(pointer).of(made, pointer.dtype, pointer.shape)


async def _bring(source: RemotePeer, before: Sequence[Hold], kept: Handle, target: RemotePeer, hold: Hold) -> None:
    """`before` is what those operations wait for that make it. What was queued there later may wait for this one."""
    what = f"a gradient on its way from {source.name} to {target.name}"
    error: GridError | None = PeerLost(f"{what} was given up", peer=target.name)
    try:
        async with kept.in_use():
            await source.outbox.settle(before)
            ends = _AheadOfQueue(source), _AheadOfQueue(target)
            await hand_over(*ends, source.asker, kept.id, hold.id, move=False, publish=False)
        error = None
    except LinkError as lost:
        error = type(lost)(f"{what} did not arrive: {lost.fields.get('why', lost.message)}", peer=lost.peer)
    except GridError as failed:
        error = failed
    finally:
        target.outbox.let_go(hold, error)


class _AheadOfQueue:
    """A peer, asked without waiting for what is queued for it: that waits for what is asked here."""

    def __init__(self, peer: RemotePeer) -> None:
        self._peer = peer
        self.id = peer.id
        self.name = peer.name

    async def request(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        return (await self._peer.outbox.link.request(op, args)).result


class _Crossing(torch.autograd.Function):
    """Forward: what `make` gives for a pointer. Backward: the gradient is brought to where that pointer is."""

    @staticmethod
    def forward(ctx: Any, here: Pointer, make: Callable[[Pointer], Pointer]) -> Pointer:
        ctx.source = here._handle.home
        return make(here)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        source = ctx.source
        if getattr(grad, "_handle", None) is None or grad._handle.home is source:
            return grad, None
        return _Crossing.apply(grad, lambda far: bring_soon(far, source)), None  # type: ignore[no-untyped-call]
