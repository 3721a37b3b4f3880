"""Values on their way from here to a peer: tensors with their gradients, and bytes under an id."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from compute.values import header_of, tensor_bytes
from grid.blocking import block, can_block, check_own_loop
from grid.handle import Handle
from grid.ids import fresh_id
from grid.pointer import Pointer
from peer.asking import forget
from peer.calls import Response
from peer.lasting import Lasting
from peer.payloads import JoinedPayload, Payload, read_all
from peer.resuming import Progress, upload
from peer.uploading import undoing
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, GridError

if TYPE_CHECKING:
    from grid.remote import RemotePeer

Described = dict[str, Any]
"""Tags, description, name, and whether it is private."""


async def send_tensor(
    home: RemotePeer, tensor: torch.Tensor, described: Described, progress: Progress | None = None
) -> Pointer:
    """See RemotePeer.send. The gradient of a leaf goes along."""
    header = header_of(tensor)
    fields = {"kind": "tensor", **described, **header.to_wire()}
    record = await put(home, fresh_id(), fields, [tensor_bytes(tensor)], progress)
    handle = Handle(home, record["id"], owns=not record["published"], record=record)
    made = Pointer.of(handle, tensor.dtype, header.shape, requires_grad=tensor.requires_grad and tensor.is_leaf)
    if made.requires_grad and isinstance(tensor.grad, torch.Tensor):
        try:
            made.grad = await send_tensor(home, tensor.grad, describing())
        except asyncio.CancelledError:
            if described["tags"]:  # a temporary goes with its pointer
                home.outbox.link.post("delete", {"ids": [handle.id]}).add_done_callback(forget)
            raise
    return made


def describing(
    tags: Sequence[str] = (),
    description: str = "",
    private: bool = False,
    name: str | None = None,
    reveal: Sequence[str] | str = (),
) -> Described:
    """What is said of an object, without anything: of a temporary."""
    described = {"tags": list(tags), "description": description, "private": private, "name": name}
    if reveal:
        described["reveal"] = [reveal] if isinstance(reveal, str) else list(reveal)
    return described


async def put(
    home: RemotePeer, id: bytes, fields: Described, data: Sequence[Buffer] | Payload, progress: Progress | None = None
) -> dict[str, Any]:
    """See RemotePeer.put."""
    check_own_loop(home)
    payload: Payload = JoinedPayload(data) if isinstance(data, Sequence) else data
    args = {"id": id, **fields}
    if payload.nbytes > limits.INLINE_PAYLOAD:
        try:
            await home.reach()
        except BaseException:
            payload.close()
            raise
        answer = await upload(home.connect, args, payload, home.name, progress)
    else:
        try:
            body = bytes(await read_all(payload))
        finally:
            payload.close()
        answer = await _put_small(home, args, body)
    return dict(answer.result["record"])


async def _put_small(home: RemotePeer, args: dict[str, Any], body: bytes) -> Response:
    link = await home.outbox.flush()
    asked = link.post("put", args, body)
    try:
        return await asyncio.shield(asked)
    except asyncio.CancelledError:
        if not asked.is_sent:
            asked.cancel()
        else:  # only when it is answered there is surely something to be deleted, or nothing
            asked.add_done_callback(lambda _: _undo(link, asked, args))
        raise


def _undo(link: Lasting, asked: asyncio.Future[Response], args: dict[str, Any]) -> None:
    """A put that nobody waits for was answered."""
    if not asked.cancelled() and asked.exception() is None:
        link.post(*undoing(args)).add_done_callback(forget)


def put_soon(home: RemotePeer, handle: Handle, fields: dict[str, Any], data: bytes) -> None:
    """A small value put there before every operation that is queued after this. Its failure is its handle's."""

    def heard(answer: Response | GridError) -> None:
        if isinstance(answer, GridError):
            handle.fail(answer)

    async def post() -> None:
        asked = home.outbox.link.post("put", {"id": handle.id, **fields}, data, heard)
        asked.add_done_callback(forget)

    if can_block():
        block(home, post)
    else:
        check_own_loop(home)
        with contextlib.suppress(StopIteration):
            post().send(None)


def no_value(value: object) -> BadRequest:
    """The error for what is no tensor, module or dict of tensors: what to send instead."""
    if isinstance(value, torch.optim.Optimizer):
        instead = "make it of net.parameters() when the module is there (await net.move(peer) takes it along)"
    elif isinstance(tensors := getattr(value, "tensors", value), list | tuple) and _has_tensors(tensors):
        instead = "send each of its tensors ([await peer.send(each) for each in ...]) and make it of the pointers"
    else:
        instead = "torch.as_tensor(...) first"
    return BadRequest(f"send takes a tensor, a module or a dict of tensors, not {type(value).__name__}: {instead}")


def _has_tensors(values: Sequence[object]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in values)
