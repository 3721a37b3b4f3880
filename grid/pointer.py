"""Pointers: torch tensors whose data live at a peer.

A pointer is a wrapper subclass of torch.Tensor: it has shape, strides and dtype, and no data. `__torch_dispatch__`
sees every ATen operation below autograd, and grid/dispatch.py queues it for the peer and gives pointers at once. So
autograd, nn.Module and torch.optim work on pointers as they are. Method:
https://pytorch.org/docs/stable/notes/extending.html, "Extending torch with a Tensor wrapper type".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental import proxy_tensor

from compute.lazy import bits_of, with_bits
from grid import composites
from grid.dispatch import Dispatch
from grid.fetching import fetch
from grid.handing import check_peer
from grid.handle import Handle
from grid.layouts import Layout
from grid.local_forms import LocalForms
from grid.looked_up import Augmented, LookedUp
from grid.unsized import Unsized
from protocol.errors import BadRequest, NotCollocated, NotFound
from search.tags import parse_tags

if TYPE_CHECKING:
    from grid.remote import RemotePeer
    from grid.secret.tensor import SecretTensor


_CPU = torch.device("cpu")


class Pointer(Augmented, LocalForms, torch.Tensor):  # type: ignore[misc]  # two forms refuse more than torch's do
    """A tensor at a peer. Made by `send`, by search, and by every operation on pointers.

    Operations return at once; what fails at the peer is raised at the next await that depends on it. Awaited:

        get()       the value; the peer gives up a temporary that this pointer owns
        fetch()     the value; nothing changes there
        save(path)  the value into a file, in pieces
        move(peer)  the data go there directly; returns the pointer at that peer
        copy(peer)  the same, and the original stays
        send(peer)  that peer holds a pointer to this object: a chain (remote_get, remote_send: data move along it)
    """

    _handle: Handle
    _layout: Layout | None = None  # where it was asked for; whoever changes shape, strides or dtype forgets it

    # Without it every call would go through Python twice; all we need is below autograd.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(
        handle: Handle,
        dtype: torch.dtype,
        shape: Sequence[int],
        stride: Sequence[int] | None = None,
        requires_grad: bool = False,
        offset: int = 0,
        view_of: torch.Tensor | None = None,
    ) -> Pointer:
        """A pointer to the object of a handle. `stride` None: contiguous; `offset`: where in its memory it begins.
        `view_of`: in inference mode too a view of a tensor with a history has one."""
        if view_of is not None and torch.is_inference_mode_enabled() and not view_of.is_inference():
            with torch.inference_mode(False):
                return Pointer.of(handle, dtype, shape, stride, requires_grad, offset)
        made: Pointer = torch.Tensor._make_wrapper_subclass(
            IndexedPointer if shape else Pointer,
            shape if type(shape) is torch.Size else torch.Size(shape),
            strides=stride if stride is not None else _contiguous(shape),
            storage_offset=offset,
            dtype=dtype,
            device=_CPU,
            requires_grad=requires_grad,
        )
        made._handle = handle
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks the first argument
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if len(types) > 1:
            if Unsized in types:
                return Unsized.__torch_dispatch__(function, types, args, kwargs)
            if not _others.isdisjoint(types):
                return NotImplemented
        return _dispatch(function, args, kwargs or {})

    # --- what it is ---------------------------------------------------------------------------------------

    @property
    def location(self) -> RemotePeer:
        """The peer that holds the object."""
        return self._handle.home

    @property
    def id_at_location(self) -> str:
        """The object's id there, 32 hex digits."""
        return self._handle.id.hex()

    @property
    def owner(self) -> str:
        """The id of whoever made or published the object."""
        record = self._handle.record
        return str(record["owner"]) if record else self._handle.home.asker

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, each with '#', as far as this pointer knows."""
        return tuple(f"#{tag}" for tag in (self.record.get("tags") or ()))

    @property
    def record(self) -> dict[str, Any]:
        """What its peer last said of it: kind, tags, description, owner, size and so on."""
        known = dict(self._handle.record or {})
        known.setdefault("id", self._handle.id)
        known.setdefault("kind", "pointer" if self._handle.target is not None else "tensor")
        known.update(dtype=str(self.dtype).removeprefix("torch."), shape=list(self.shape), peer=self.location.name)
        known.setdefault("nbytes", self.numel() * self.element_size())
        return known

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch passes tensor_contents
        dtype = str(self.dtype).removeprefix("torch.")
        tags = " ".join(self.tags)
        gone = ", gone" if self._handle._gone is not None else ""
        to = f" -> {self._handle.target.location.name}" if self._handle.target is not None else ""
        grad = ", requires_grad=True" if self.requires_grad else ""
        return (
            f"Pointer({self.location.name}:{self.id_at_location[:12]}{to}, {dtype} {list(self.shape)}"
            f"{', ' + tags if tags else ''}{grad}{gone})"
        )

    # The base class's own is C, and would change the shape but not the object that is meant.
    @property
    def data(self) -> Pointer:
        """The same object without its history; setting it makes this pointer name another one's object.

        As with torch's, what is written through it is no change that `backward()` would complain of.
        """
        offset = int(self.storage_offset())
        if self.grad_fn is not None:
            self._handle.is_detached = True
        made = Pointer.of(self._handle, self.dtype, self.shape, self.stride(), offset=offset, view_of=self)
        return with_bits(made, bits_of(self)) if self.is_conj() or self.is_neg() else made

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        if not isinstance(other, Pointer):
            raise NotCollocated(f"the data of a pointer to {self.location.name} are there: send the tensor there first")
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]  # shape, strides and dtype
        self._handle = other._handle
        self._layout = None

    # --- values, awaited ----------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Pointer]:
        """Itself, when its peer has made it; raises what that failed with. For the value: `await pointer.get()`."""
        return self._made().__await__()

    async def _made(self) -> Pointer:
        await self._handle.recheck()
        return self

    async def get(self, progress: Callable[[int, int], None] | None = None) -> torch.Tensor:
        """The value; a temporary that this pointer owns is given up by its peer. Of a chain: the next pointer.

        Raises:
            Denied: the value is private to others.
            GridError: what the operation that made it failed with.
        """
        if self._handle.target is not None:
            target = self._handle.target
            await self._give_up("get() gave back what it pointed to")
            return target
        value = await self.fetch(progress)
        handle = self._handle
        if handle.owns:
            handle.check()
            handle.give_up("get() took it: use the tensor that it returned; fetch() leaves it there")
            handle.home.outbox.release(handle.id)
        return value

    async def fetch(self, progress: Callable[[int, int], None] | None = None) -> torch.Tensor:
        """The value, as a tensor of one's own; nothing changes at the peer. A grad that it has comes along."""
        handle = self._handle
        handle.check_awaited()
        if handle.target is not None:
            raise BadRequest(
                f"{self!r} points to a pointer: the value is a step further, (await (await x.get()).fetch()), or is "
                f"pulled to {handle.home.name} first, await x.remote_get()"
            )
        try:
            value = await fetch(handle, self.nbytes, progress)
        except NotFound:
            await handle.recheck()
            raise
        if self.requires_grad and self.is_leaf:
            value.requires_grad_()
            if isinstance(self.grad, Pointer):
                value.grad = await self.grad.fetch()
        return value

    async def save(
        self,
        path: str | os.PathLike[str],
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write the value to a file: .npy .npz .csv .safetensors .pt. Nothing changes at the peer.

        It may be larger than memory: it is written in pieces as they come (but for .pt). The file appears whole or not
        at all; a cancelled or broken `save` leaves nothing.

        Raises:
            BadFile: another ending, a file that is there (without `overwrite`), a dtype that the format cannot hold, or
                a disk that refuses. StorageFull: one that has no room for it.
            Denied: the value is private to others.
        """
        async with self._handle.in_use():
            return await self.location.save(self._handle, "tensor", path, overwrite, progress)

    async def move(self, peer: RemotePeer) -> Pointer:
        """Send the data to `peer` directly; the pointer there. To where it is: does nothing.

        The holder gives its copy up only when the target has it safely. Only the owner may move a published object.
        One that was computed from what requires a gradient stays as well, its detach() included: `backward()` needs it,
        and goes on from the pointer there to this one, the gradient directly from peer to peer.
        """
        check_peer(peer, "move()")
        if peer.id == self.location.id:
            self._handle.check_awaited()
            return self
        stays = self._handle.is_detached
        moved = await self.location.transfer(self, peer, move=not stays)
        if moved.grad_fn is None and not stays:
            self._handle.give_up(f"it was moved to {peer.name}; use the pointer that move() returned")
        return moved

    async def copy(self, peer: RemotePeer) -> Pointer:
        """Send a copy of the data to `peer` directly; the pointer there. A published object's copy is published."""
        check_peer(peer, "copy()")
        return await self.location.transfer(self, peer, move=False)

    async def send(self, *peers: RemotePeer, tags: Sequence[str] | str = (), description: str = "") -> Any:
        """Have `peer` hold a pointer to this object: a chain. No data move. Several peers: a chain at each of them."""
        self._handle.check()
        for peer in peers:
            check_peer(peer, "send()")
        if len(peers) == 1:
            return await peers[0].link(self, tags, description)
        from grid.multi import send_to_all

        return await send_to_all(self, peers, tags, description)

    async def remote_get(self) -> Pointer:
        """Of a chain: its holder pulls the data from where they are, and holds them itself from now on."""
        target = self._handle.target
        if target is None:
            raise BadRequest(f"{self!r} is no pointer to a pointer: remote_get() has nothing to pull")
        brought = await (target.move(self.location) if target._handle.owns else target._copy_to(self.location))
        await self._give_up("remote_get() replaced it")
        self.data = brought
        return self

    async def remote_send(self, peer: RemotePeer) -> Pointer:
        """Its holder sends the data to `peer` and keeps a pointer to them: this one is a chain from now on."""
        holder, moved = self.location, await self.move(peer)
        if moved is self:
            raise BadRequest(f"the data are at {peer.name} already: remote_send() to another peer")
        self.data = moved  # should the next step fail, this is where they are
        self.data = await holder.link(moved)
        return self

    def share(self, *parties: RemotePeer, provider: RemotePeer | None = None, **options: Any) -> SecretTensor:
        """What it names as shares at these peers, dealt randomness by `provider`: its peer splits it, and you see none
        of it. `await` it to have that done at once. See grid.share."""
        from grid.secret.sharing import share

        if hasattr(self, "_noted_precision"):
            options.setdefault("precision", self._noted_precision)
        secret: SecretTensor = share(self, *parties, provider=provider, **options)
        return secret

    async def _copy_to(self, peer: RemotePeer) -> Pointer:
        return await self.location.transfer(self, peer, move=False, publish=False)

    # --- the object, awaited ------------------------------------------------------------------------------

    async def tag(self, *tags: str) -> Pointer:
        """Add tags. A temporary becomes published by its first tag: durable, found by search."""
        return await self._edit(add=list(parse_tags(tags)))

    async def untag(self, *tags: str) -> Pointer:
        """Take tags away. A published object stays published without any: delete() removes it."""
        return await self._edit(remove=list(parse_tags(tags)))

    async def describe(self, text: str) -> Pointer:
        """Set the description that search looks into."""
        return await self._edit(description=text)

    async def _edit(self, **changes: Any) -> Pointer:
        async with self._handle.in_use():
            self._handle.record = await self.location.edit(self._handle.id, **changes)
        self._handle.owns = False  # published: it outlives its pointers
        is_plain = self.is_contiguous() and not self.storage_offset() and not bits_of(self)
        if self._handle.target is None and not is_plain:
            self.data = Pointer.of(self._handle, self.dtype, self.shape)  # what is stored is stored without gaps
        return self

    async def delete(self) -> None:
        """Remove the object from its peer."""
        async with self._handle.in_use():
            await self.location.delete([self._handle.id])
        self._handle.give_up("it was deleted")

    async def _give_up(self, why: str) -> None:
        handle = self._handle
        handle.check()
        handle.give_up(why)
        if not handle.is_published:
            handle.home.outbox.release(handle.id)
        elif handle.target is not None:
            await handle.home.delete([handle.id])


class IndexedPointer(LookedUp, Pointer):  # type: ignore[misc]  # as above
    """A pointer of one dimension or more. A class of its own, because Python's own C code takes whatever defines
    `__getitem__` for a sequence, which numbers are not: `torch.tensor([x.mean(), 1.0])`."""


_others: set[type] = set()


def defer_to(kind: type) -> None:
    """Operations on pointers and tensors of this kind together are the kind's: it says what is wrong."""
    _others.add(kind)


# What traces calls (torch.func.linearize) takes tensors of classes that are not in this list for constants, and what
# is computed from them as well. There is no other way into it.
if isinstance(getattr(proxy_tensor, "HANDLED_TYPES", None), tuple):
    proxy_tensor.HANDLED_TYPES = (*proxy_tensor.HANDLED_TYPES, Pointer, IndexedPointer)  # type: ignore[assignment]  # of any length
_dispatch = Dispatch(Pointer, frozenset({Pointer, IndexedPointer}))
composites.register(Pointer)
Unsized.dispatch = _dispatch.awaited.of_unsized
Unsized.pointer_to = lambda handle, result: Pointer.of(handle, result.dtype, result.shape, result.stride)


def _contiguous(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]
