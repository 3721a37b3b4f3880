"""One peer, as its users see it: `g["alice"]`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from compute.dtypes import DTYPE_OF, NAME_OF
from compute.values import header_of, tensor_bytes, tensor_from
from grid.handle import Handle
from grid.ids import fresh_id
from grid.outbox import Outbox
from grid.pointer import Pointer
from peer.calls import Response
from peer.links import Links
from peer.membership import Member
from peer.payloads import JoinedPayload
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, BadTensor, GridError
from protocol.tensors import TensorHeader
from search.tags import parse_tags

if TYPE_CHECKING:
    from grid.modules import RemoteModule

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class RemotePeer:
    """A peer of the grid. Connections are opened when they are first needed.

    Awaited: `send` (a tensor, a module), `status`, `clear`, `delete`. `name` and `id` are what it is found by.
    """

    def __init__(self, member: Member, links: Links, asker: str, loop: asyncio.AbstractEventLoop) -> None:
        self.member = member
        self.asker = asker
        self._links = links
        self.outbox = Outbox(lambda: links.to(self.member), loop)

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def id(self) -> str:
        return self.member.id

    def __repr__(self) -> str:
        return f"RemotePeer({self.name}, {self.id[:12]}, {self.member.urls[0]})"

    def __deepcopy__(self, memo: object) -> RemotePeer:
        return self  # modules that are at a peer are copied; the peer is not

    # --- sending ------------------------------------------------------------------------------------------

    @overload
    async def send(
        self,
        value: torch.Tensor,
        tags: Sequence[str] | str = ...,
        description: str = ...,
        private: bool = ...,
        name: str | None = ...,
        *,
        progress: Progress | None = ...,
    ) -> Pointer: ...

    @overload
    async def send(
        self,
        value: torch.nn.Module,
        tags: Sequence[str] | str = ...,
        description: str = ...,
        private: bool = ...,
        name: str | None = ...,
        *,
        example: Any = ...,
        progress: Progress | None = ...,
    ) -> RemoteModule: ...

    async def send(
        self,
        value: torch.Tensor | torch.nn.Module,
        tags: Sequence[str] | str = (),
        description: str = "",
        private: bool = False,
        name: str | None = None,
        *,
        example: Any = None,
        progress: Progress | None = None,
    ) -> Any:
        """Put a tensor or a module on this peer.

        Without tags it is a temporary: it goes with its last pointer. With tags it is published: durable, found by
        search, read-only. `private`: others may find it and compute on it, but only you take its value, or that of
        anything derived from it. A module becomes one whose parameters are pointers; a tagged one is stored as a
        program and its weights, and is found and called by others without its class (`example` is an input for it,
        where none can be worked out).

        Raises:
            BadTag, BadTensor (a layout that cannot travel), TooLarge, CannotCapture; StorageFull.
        """
        if isinstance(value, torch.nn.Module):
            from grid.modules import send_module

            return await send_module(self, value, parse_tags(tags), description, private, name, example, progress)
        if isinstance(value, Pointer):
            return await value.send(self, tags, description)
        if not isinstance(value, torch.Tensor):
            raise BadRequest(f"send takes a tensor or a module, not {type(value).__name__}: torch.as_tensor(...) first")
        return await self._send_tensor(value, parse_tags(tags), description, private, name, progress)

    async def _send_tensor(
        self,
        tensor: torch.Tensor,
        tags: tuple[str, ...],
        description: str,
        private: bool,
        name: str | None,
        progress: Progress | None,
    ) -> Pointer:
        header = header_of(tensor)
        fields = {"kind": "tensor", "tags": list(tags), "description": description, "private": private, "name": name}
        record = await self.put(fresh_id(), {**fields, **header.to_wire()}, [tensor_bytes(tensor)], progress)
        handle = Handle(self, record["id"], owns=not record["published"], record=record)
        made = Pointer.of(handle, tensor.dtype, header.shape, requires_grad=tensor.requires_grad and tensor.is_leaf)
        if isinstance(tensor.grad, torch.Tensor) and made.requires_grad:
            made.grad = await self._send_tensor(tensor.grad, (), "", private, None, None)
        return made

    async def put(
        self, id: bytes, fields: dict[str, Any], data: Sequence[Buffer], progress: Progress | None = None
    ) -> dict[str, Any]:
        """The request `put` of SPEC.md, its payload in pieces; the record of what is there now."""
        nbytes = sum(len(piece) for piece in data)
        is_large = nbytes > limits.INLINE_PAYLOAD
        payload = JoinedPayload(data, progress) if is_large else b"".join(data)
        connection = await self._links.to(self.member, bulk=is_large)
        answer = await connection.request("put", {"id": id, **fields}, payload)
        return _record(answer)

    # --- values -------------------------------------------------------------------------------------------

    async def fetch(self, handle: Handle, nbytes: int, progress: Progress | None = None) -> torch.Tensor:
        """The value of a tensor object; see Pointer.fetch."""
        small = self.outbox.run_and_fetch(handle.id) if nbytes <= limits.INLINE_PAYLOAD else None
        answer = await (self.read(handle.id, nbytes) if small is None else small)
        header = TensorHeader.from_wire(answer.result)
        data = await _into_memory(answer, progress)
        header.check_payload(len(data))
        return tensor_from(header, data)

    async def read(self, id: bytes, nbytes: int, part: str | None = None) -> Response:
        """The answer to `fetch`; its payload is still to be read. Large ones come over the connection for bulk."""
        args: dict[str, Any] = {"id": id} if part is None else {"id": id, "part": part}
        if nbytes <= limits.INLINE_PAYLOAD:
            return await (await self.outbox.flush()).request("fetch", args)
        await self.outbox.settle()
        return await (await self._links.to(self.member, bulk=True)).request("fetch", args)

    async def read_spec(self, id: bytes) -> bytes:
        """The program of a stored model or plan."""
        answer = await self.read(id, 0, "spec")
        return bytes(await answer.read())

    # --- other requests -----------------------------------------------------------------------------------

    async def request(self, op: str, args: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
        """Ask it, after everything queued so far; the result map."""
        return (await (await self.outbox.flush()).request(op, args, payload)).result

    async def edit(self, id: bytes, **changes: Any) -> dict[str, Any]:
        return dict((await self.request("edit", {"id": id, **changes}))["record"])

    async def describe_object(self, id: bytes) -> dict[str, Any]:
        return dict((await self.request("describe", {"id": id}))["record"])

    async def delete(self, ids: Sequence[bytes]) -> int:
        """Delete objects by id; how many there were. Only their owner may."""
        return int((await self.request("delete", {"ids": list(ids)}))["deleted"])

    async def clear(self) -> int:
        """Delete everything of yours on this peer, published objects too; how many."""
        return int((await self.request("clear", {}))["deleted"])

    async def status(self) -> dict[str, Any]:
        """What it says of itself: objects, bytes, sessions, uptime, traffic (SPEC.md, `status`)."""
        return await self.request("status", {})

    # --- pointers held by this peer -----------------------------------------------------------------------

    async def link(self, target: Pointer, tags: Sequence[str] | str = (), description: str = "") -> Pointer:
        """Have this peer hold a pointer to `target`; see Pointer.send."""
        await target.location.outbox.flush()
        fields = self._link_fields(target, fresh_id())
        fields.update(tags=list(parse_tags(tags)), description=description)
        record = _record(await (await self.outbox.flush()).request("link", fields))
        handle = Handle(self, record["id"], owns=not record["published"], record=record, target=target)
        return Pointer.of(handle, target.dtype, target.shape)

    def link_soon(self, target: Pointer) -> Pointer:
        """The same without waiting, for the result of an operation on a chain."""
        handle = Handle(self, fresh_id(), owns=True, target=target)
        task = asyncio.get_running_loop().create_task(self._link_now(handle, target))
        _background.add(task)
        task.add_done_callback(_background.discard)
        return Pointer.of(handle, target.dtype, target.shape)

    async def _link_now(self, handle: Handle, target: Pointer) -> None:
        try:
            await (await self.outbox.flush()).request("link", self._link_fields(target, handle.id))
        except GridError as error:
            handle.fail(error)

    def _link_fields(self, target: Pointer, id: bytes) -> dict[str, Any]:
        header = TensorHeader(NAME_OF[target.dtype], tuple(target.shape))
        where = {"peer": target.location.id, "name": target.location.name, "object": target._handle.id}
        return {"id": id, **where, **header.to_wire()}

    # --- to other peers -----------------------------------------------------------------------------------

    async def transfer(
        self, pointer: Pointer, target: RemotePeer, *, move: bool, publish: bool | None = None
    ) -> Pointer:
        """Move or copy an object from this peer to `target`, directly; the pointer there."""
        handle = pointer._handle
        handle.check()
        id = handle.id if move else fresh_id()
        publish = handle.is_published if publish is None else publish
        record = await self.hand_over(handle.id, target, id, move=move, publish=publish)
        made = Handle(target, record["id"], owns=not record["published"], record=record, target=handle.target)
        result = Pointer.of(made, pointer.dtype, pointer.shape, requires_grad=pointer.requires_grad and pointer.is_leaf)
        if result.requires_grad and isinstance(pointer.grad, Pointer):
            result.grad = await self.transfer(pointer.grad, target, move=move)
        return result

    async def hand_over(
        self, id: bytes, target: RemotePeer, new_id: bytes, *, move: bool, publish: bool
    ) -> dict[str, Any]:
        """offer here, pull there (SPEC.md, 10); the record of the object at `target`."""
        await self.outbox.settle()
        offer = await self.request("offer", {"id": id, "target": target.id, "move": move})
        args = {"peer": self.id, "ticket": offer["ticket"], "id": new_id, "publish": publish}
        return dict((await target.request("pull", args))["record"])


_background: set[asyncio.Task[None]] = set()


def _unfilled(nbytes: int) -> memoryview:
    """Memory for a payload that will fill all of it: clearing it first would cost as much as the copy into it."""
    array: Any = torch.empty(nbytes, dtype=torch.uint8).numpy()
    return memoryview(array)


async def _into_memory(answer: Response, progress: Progress | None) -> bytearray | memoryview:
    """The payload in memory that the tensor may keep: writable, aligned."""
    if answer.stream is None:
        return bytearray(answer.payload)
    data = _unfilled(answer.stream.nbytes)
    if progress is None:
        await answer.stream.into(data)
        return data
    at = 0
    async for chunk in answer.stream:
        data[at : at + len(chunk)] = chunk
        at += len(chunk)
        progress(at, len(data))
    return data


def _record(answer: Response) -> dict[str, Any]:
    return dict(answer.result["record"])


def pointer_to(home: RemotePeer, record: dict[str, Any], target: Pointer | None = None) -> Pointer:
    """A pointer that owns nothing, to a tensor (or a pointer) that a peer told us of."""
    dtype, shape = str(record.get("dtype")), record.get("shape")
    if dtype not in DTYPE_OF or shape is None:
        raise BadTensor(f"object {record['id'].hex()[:12]} at {home.name} has no tensor's description")
    return Pointer.of(Handle(home, record["id"], owns=False, record=record, target=target), DTYPE_OF[dtype], shape)
