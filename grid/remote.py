"""One peer, as its users see it: `g["alice"]`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

import torch

from compute.dtypes import DTYPE_OF
from grid import chains, hints, sending
from grid.blocking import check_loop, check_own_loop, noted
from grid.came import Came
from grid.fetching import into_memory
from grid.handing import hand_over
from grid.handle import Handle
from grid.multi import MultiPointer
from grid.outbox import Outbox
from grid.pointer import Pointer
from grid.saving import Source, save_object
from grid.transfers import transfer
from peer.calls import Statistics
from peer.connection import Connection
from peer.elsewhere import Elsewhere
from peer.links import Links
from peer.membership import Member
from peer.payloads import Payload
from peer.resuming import Download, Others, Progress
from peer.seeds import SEED
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, BadTensor
from protocol.rows import unpack_rows
from search.tags import parse_tags

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.modules import RemoteModule


class RemotePeer:
    """A peer of the grid. Connections are opened when they are first needed.

    Awaited: `send` (a tensor, a module), `objects`, `status`, `clear`, `delete`. It is found by `name` and `id`.
    """

    def __init__(self, member: Member, links: Links, asker: str, loop: asyncio.AbstractEventLoop, grid: Grid) -> None:
        self.member = member
        self.grid = grid
        self.asker = asker
        self.loop = loop
        self._links = links
        self.elsewhere = Elsewhere(links, asker, links.members)
        self.outbox = Outbox(links.lasting(member, loop), loop)
        self.came = Came(self.outbox.link)
        noted(self)

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def id(self) -> str:
        return self.member.id

    def run_plan(self, plan: Any, /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """`grid.run`, for the plans that it holds. On secrets it gives secrets: nothing is revealed unasked."""
        if self.grid.has_secrets(args, kwargs):
            return self._run_on_secrets(plan, *args, **kwargs)
        return self.grid.run(plan, *args, **kwargs)

    async def _run_on_secrets(self, plan: Any, /, *args: Any, **kwargs: Any) -> Any:
        return (await self.grid.run(plan, *args, keep=True, **kwargs)).value

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
        reveal: Sequence[str] | str = ...,
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
        reveal: Sequence[str] | str = ...,
        example: Any = ...,
        progress: Progress | None = ...,
    ) -> RemoteModule: ...

    @overload
    async def send(self, value: Mapping[str, Any]) -> Any: ...

    async def send(
        self,
        value: torch.Tensor | torch.nn.Module | Mapping[str, Any],
        tags: Sequence[str] | str = (),
        description: str = "",
        private: bool = False,
        name: str | None = None,
        *,
        reveal: Sequence[str] | str = (),
        example: Any = None,
        progress: Progress | None = None,
    ) -> Any:
        """Put a tensor, a module, or a dict of tensors (a state dict) on this peer.

        Without tags it is a temporary: it goes with its last pointer. With tags it is published: durable, found by
        search, read-only. `private`: others may find it and compute on it, but only you take its value, or that of
        anything derived from it. `reveal`: ids of principals (`g.id` is one's own), or "*" for everybody, who may
        learn what secure runs compute from it though it is private (docs/secure.md). A module becomes one whose
        parameters are pointers; a tagged one is stored as a program and its weights, and is found and called by
        others without its class (`example` is an input for it, where none can be worked out). A peer keeps equal
        contents once, however often they are published. When the line breaks, a large value goes on where it was;
        cancelled, nothing of it stays.

        Raises:
            BadTag, BadTensor (a layout that cannot travel), TooLarge, CannotCapture; StorageFull.
        """
        if isinstance(value, torch.nn.Module):
            from grid.modules import send_module

            return await send_module(
                self, value, sending.describing(parse_tags(tags), description, private, name, reveal), example, progress
            )
        if isinstance(value, Mapping):
            from grid.modules import send_state

            if tags or description or private or name or reveal:
                raise BadRequest("a dict of tensors is sent as temporaries: to publish a model, send the module")
            return await send_state(self, value)
        if isinstance(value, Pointer):
            return await value.send(self, tags=tags, description=description)
        if isinstance(value, MultiPointer):
            return await value.send(self)
        if not isinstance(value, torch.Tensor):
            raise sending.no_value(value)
        described = sending.describing(parse_tags(tags), description, private, name, reveal)
        return await sending.send_tensor(self, value, described, progress)

    def manual_seed(self, seed: int) -> None:
        """The random numbers of your operations at this peer begin anew: from here on they are those that local torch
        draws after `torch.manual_seed(seed)`. It takes its place among the operations, and is not awaited.

        Dropout, `normal_`, `rand_like`, `bernoulli` and all else there draw from the one sequence, whichever of your
        sessions asks; numbers drawn for others' private data come from a sequence of their own, of the same seed.
        """
        if type(seed) is not int or not 0 <= seed <= limits.MAX_ID:
            raise BadRequest(f"a seed is an integer from 0 to 2**63 - 1, not {seed!r}")
        check_loop(self)
        self.outbox.post([SEED, [seed], {}, []], ())

    async def put(
        self, id: bytes, fields: dict[str, Any], data: Sequence[Buffer] | Payload, progress: Progress | None = None
    ) -> dict[str, Any]:
        """The request `put` of SPEC.md; the record of what is there now.

        The bytes are given in pieces, or as a payload (peer/payloads.py), which may read them from a file and have more
        of them than memory. When the line breaks a large one goes on over another (peer/resuming.py). The id is this
        call's alone: cancelled, it deletes what came of it, and waits for nothing.
        """
        return await sending.put(self, id, fields, data, progress)

    async def connect(self) -> Connection:
        """An open connection for large payloads. LinkError."""
        return await self._links.to(self.member, bulk=True)

    async def reach(self) -> None:
        """Before a large transfer begins: where the line is down, and was there before, wait for it as requests do."""
        await self._links.reach(self.member, bulk=True)

    # --- values -------------------------------------------------------------------------------------------

    async def download(self, id: bytes, progress: Progress | None = None, others: Others | None = None) -> Download:
        """The answer to `fetch` of any object, when all that was asked before is done; to be read to its end."""
        await self.outbox.settle()
        await self.reach()
        return await Download.begin(self.connect, "fetch", {"id": id}, self.name, progress, others=others)

    async def save(
        self, handle: Handle, kind: str, path: str | os.PathLike[str], overwrite: bool, progress: Progress | None
    ) -> Path:
        """An object's value into a file; see Pointer.save."""
        await self.outbox.settle()
        await self.reach()
        others = self.elsewhere.of_record(handle.record)
        source = Source(self.connect, self.name, handle.id, kind, others=others)
        return await save_object(source, path, overwrite, progress)

    async def read_spec(self, id: bytes) -> bytes:
        """The program of a stored model or plan."""
        args = {"id": id, "part": "spec"}
        spec = await Download.begin(lambda: self._links.to(self.member), "fetch", args, self.name)
        return bytes(await spec.read(limits.MAX_PROGRAM))

    # --- other requests -----------------------------------------------------------------------------------

    async def request(self, op: str, args: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
        """Ask it, after everything queued so far; the result map."""
        check_own_loop(self)
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

    async def objects(self) -> list[dict[str, Any]]:
        """What you have on this peer, of all your sessions: what it says of each (as `pointer.record`), temporaries
        first; at most limits.MAX_HITS. `dtype` and `shape` of what was computed there are None where they were never
        asked for. `clear()` deletes all of it."""
        await chains.all_linked()
        await self.outbox.settle()  # results that nobody wants any more are let go when they are there
        answer = await (await self.outbox.flush()).request("mine", {})
        rows = answer.payload if answer.stream is None else await into_memory(answer)
        return [{**row, "peer": self.name} for row in unpack_rows(rows, limits.MAX_HITS)]

    def statistics(self) -> Statistics:
        """What the connections between this client and that peer carried so far, those that are over included.

        `sent_bytes`, `received_bytes`: of all WebSocket messages, without TLS, TCP and WebSocket headers.
        `sent_messages`, `received_messages`: how many. `payload_sent`, `payload_received`: tensor bytes among them.
        Counts only grow: take the difference of two for what happened in between. What peers carry between them is
        in their own `status()`.
        """
        return self._links.traffic.statistics().get(self.id, Statistics())

    async def status(self) -> dict[str, Any]:
        """What it says of itself: objects, bytes, sessions, uptime, traffic (SPEC.md, `status`)."""
        return await self.request("status", {})

    # --- pointers held by this peer -----------------------------------------------------------------------

    async def link(self, target: Pointer, tags: Sequence[str] | str = (), description: str = "") -> Pointer:
        """Have this peer hold a pointer to `target`; see Pointer.send."""
        return await chains.link(self, target, tags, description)

    def link_soon(self, target: Pointer) -> Pointer:
        """The same without waiting, for the result of an operation on a chain."""
        return chains.link_soon(self, target)

    def put_soon(self, handle: Handle, fields: dict[str, Any], data: bytes) -> None:
        """A small value put there before every operation that is queued after this. Its failure is its handle's."""
        sending.put_soon(self, handle, fields, data)

    # --- to other peers -----------------------------------------------------------------------------------

    async def transfer(
        self, pointer: Pointer, target: RemotePeer, *, move: bool, publish: bool | None = None
    ) -> Pointer:
        """Move or copy an object from this peer to `target`, directly; the pointer there."""
        return await transfer(self, pointer, target, move=move, publish=publish)

    async def hand_over(
        self, id: bytes, target: RemotePeer, new_id: bytes, *, move: bool, publish: bool
    ) -> dict[str, Any]:
        """See grid/handing.py; what was asked here before comes first."""
        await self.outbox.settle()
        return await hand_over(self, target, self.asker, id, new_id, move=move, publish=publish)


def _without(self: RemotePeer, name: str) -> NoReturn:
    hint = hints.for_name_of_peer(name)
    raise AttributeError(f"a peer has no {name!r}{hint and f': {hint}'}", name=name, obj=self)


setattr(RemotePeer, "__getattr__", _without)  # noqa: B010  # in the class it would tell mypy that there is every name


def pointer_to(home: RemotePeer, record: dict[str, Any], target: Pointer | None = None) -> Pointer:
    """A pointer that owns nothing, to a tensor (or a pointer) that a peer told us of."""
    dtype, shape = str(record.get("dtype")), record.get("shape")
    if dtype not in DTYPE_OF or shape is None:
        raise BadTensor(f"object {record['id'].hex()[:12]} at {home.name} has no tensor's description")
    return Pointer.of(Handle(home, record["id"], owns=False, record=record, target=target), DTYPE_OF[dtype], shape)
