"""Pointers: torch tensors whose data live at a peer.

A pointer is a wrapper subclass of torch.Tensor: it has shape, strides and dtype, and no data. `__torch_dispatch__`
sees every ATen operation below autograd, works out the shapes of its results from the shapes of its inputs, queues
the operation for the peer and returns pointers at once. So autograd, nn.Module and torch.optim work on pointers as
they are. Method: https://pytorch.org/docs/stable/notes/extending.html, "Extending torch with a Tensor wrapper type".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from compute.bounds import Result
from compute.estimate import infer
from compute.operations import substitute
from compute.table import Entry, lookup
from compute.values import encode_call, inline_tensor
from grid.handle import Handle
from grid.ids import fresh_id
from protocol.errors import BadRequest, NeedsAwait, NotCollocated, NotFound
from search.tags import parse_tags

if TYPE_CHECKING:
    from grid.remote import RemotePeer


_CPU = torch.device("cpu")


class Pointer(torch.Tensor):
    """A tensor at a peer. Made by `send`, by search, and by every operation on pointers.

    Operations return at once; what fails at the peer is raised at the next await that depends on it. Awaited:

        get()       the value; the peer gives up a temporary that this pointer owns
        fetch()     the value; nothing changes there
        save(path)  the value into a file, in pieces
        move(peer)  the data go there directly; returns the pointer at that peer
        copy(peer)  the same, and the original stays
        send(peer)  that peer holds a pointer to this object: a chain
    """

    _handle: Handle

    # Without it every call would go through Python twice; all we need is below autograd.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(
        handle: Handle,
        dtype: torch.dtype,
        shape: Sequence[int],
        stride: Sequence[int] | None = None,
        requires_grad: bool = False,
    ) -> Pointer:
        """A pointer to the object of a handle. `stride` None: contiguous."""
        made: Pointer = torch.Tensor._make_wrapper_subclass(
            Pointer,
            shape if type(shape) is torch.Size else torch.Size(shape),
            strides=stride if stride is not None else _contiguous(shape),
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
        return dispatch(function, args, kwargs or {})

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
        to = f" -> {self._handle.target.location.name}" if self._handle.target is not None else ""
        grad = ", requires_grad=True" if self.requires_grad else ""
        return (
            f"Pointer({self.location.name}:{self.id_at_location[:12]}{to}, {dtype} {list(self.shape)}"
            f"{', ' + tags if tags else ''}{grad})"
        )

    def __format__(self, spec: str) -> str:
        return repr(self)

    # The base class's own is C, and would change the shape but not the object that is meant.
    @property
    def data(self) -> Pointer:
        """The same object without its history; setting it makes this pointer name another one's object."""
        return self.detach()  # type: ignore[return-value]

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        if not isinstance(other, Pointer):
            raise NotCollocated(f"the data of a pointer to {self.location.name} are there: send the tensor there first")
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]  # shape, strides and dtype
        self._handle = other._handle

    # --- values, awaited ----------------------------------------------------------------------------------

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
        if self._handle.owns:
            await self._give_up("get() took it")
        return value

    async def fetch(self, progress: Callable[[int, int], None] | None = None) -> torch.Tensor:
        """The value, as a tensor of one's own; nothing changes at the peer. A grad that it has comes along."""
        self._handle.check()
        try:
            value = await self.location.fetch(self._handle, self.numel() * self.element_size(), progress)
        except NotFound:
            self._handle.check()  # it may just have become known why
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
                a disk that is full or refuses.
            Denied: the value is private to others.
        """
        self._handle.check()
        return await self.location.save(self._handle.id, "tensor", path, overwrite, progress)

    async def move(self, peer: RemotePeer) -> Pointer:
        """Send the data to `peer` directly; the pointer there. To where it is: does nothing.

        The holder gives its copy up only when the target has it safely. Only the owner may move a published object.
        """
        if peer.id == self.location.id:
            self._handle.check()
            return self
        moved = await self.location.transfer(self, peer, move=True)
        self._handle.give_up(f"it was moved to {peer.name}; use the pointer that move() returned")
        return moved

    async def copy(self, peer: RemotePeer) -> Pointer:
        """Send a copy of the data to `peer` directly; the pointer there. A published object's copy is published."""
        return await self.location.transfer(self, peer, move=False)

    async def send(self, peer: RemotePeer, tags: Sequence[str] | str = (), description: str = "") -> Pointer:
        """Have `peer` hold a pointer to this object: a chain. No data move."""
        self._handle.check()
        return await peer.link(self, tags, description)

    async def remote_get(self) -> Pointer:
        """Of a chain: its holder pulls the data from where they are, and holds them itself from now on."""
        target = self._handle.target
        if target is None:
            raise BadRequest(f"{self!r} is no pointer to a pointer: remote_get() has nothing to pull")
        brought = await (target.move(self.location) if target._handle.owns else target._copy_to(self.location))
        await self._give_up("remote_get() replaced it")
        self._handle = brought._handle
        return self

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
        self._handle.check()
        self._handle.record = await self.location.edit(self._handle.id, **changes)
        self._handle.owns = False  # published: it outlives its pointers
        return self

    async def delete(self) -> None:
        """Remove the object from its peer."""
        self._handle.check()
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

    # --- what needs the value -----------------------------------------------------------------------------

    def _needs_await(self, call: str) -> NoReturn:
        raise NeedsAwait(
            f"{call} needs the value, which is at {self.location.name}: use (await pointer.get()) or (await "
            f"pointer.fetch()) first, or keep computing on the pointer",
            peer=self.location.name,
        )

    def __bool__(self) -> NoReturn:
        self._needs_await("bool()")

    def __float__(self) -> NoReturn:
        self._needs_await("float()")

    def __int__(self) -> NoReturn:
        self._needs_await("int()")

    def __index__(self) -> NoReturn:
        self._needs_await("an index")

    def __complex__(self) -> NoReturn:
        self._needs_await("complex()")

    def __contains__(self, item: object) -> NoReturn:
        self._needs_await("in")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._needs_await("a numpy array")

    def item(self) -> NoReturn:
        self._needs_await(".item()")

    def tolist(self) -> NoReturn:
        self._needs_await(".tolist()")

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        self._needs_await(".numpy()")

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """A copy of the data at the same peer."""
        with torch.no_grad():
            made = self.clone()
        made.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BadRequest(
            "a pointer cannot be pickled: it is good only in the session that made it. Publish the object "
            "(await pointer.tag('#...')) and search for it elsewhere"
        )


# --- dispatch ---------------------------------------------------------------------------------------------


def dispatch(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One ATen operation on pointers: queued at their peer, its results returned as pointers.

    Raises:
        NotCollocated: the pointers are at different peers, or one argument is here.
        NeedsAwait: the result is a plain value, or its shape depends on data.
        OperationNotAllowed, BadRequest, OperationFailed: as the peer would refuse it.
    """
    name = _name(function)
    shared = _SAME_OBJECT.get(name)
    if shared is not None and isinstance(args[0], Pointer):
        return shared(args[0])
    pointers = _pointers(args, kwargs)
    if name in _PLAIN_VALUES:
        pointers[0]._needs_await(_PLAIN_VALUES[name])
    home = pointers[0]._handle.home
    for pointer in pointers:
        handle = pointer._handle
        if handle.target is not None:
            return _through_chain(function, args, kwargs, pointers)
        if handle.home is not home:
            home = _home(name, pointers)
    if kwargs:
        kwargs = {key: value for key, value in kwargs.items() if key not in _PLACES}
    name, args, kwargs = substitute(name, args, kwargs)
    entry = lookup(name)
    bound, named = entry.bind(args, kwargs)
    estimate = infer(entry, bound, named)
    if not estimate.is_exact:
        raise NeedsAwait(
            f"the shape of what {name} gives depends on the data, which are at {home.name}: compute it inside a plan "
            "(grid.run), or await the values first",
            operation=name,
        )
    wire_args, wire_kwargs = encode_call(args, kwargs, _Reference(home))
    if entry.is_inplace:
        changed = args[0]
        _check_keeps_shape(name, changed, estimate.results[0])
        home.outbox.post([name, wire_args, wire_kwargs, []], (changed._handle,))
        return changed
    if entry.n_results == 1 and not entry.writes and not entry.gives_list and (result := estimate.results[0]):
        handle = Handle(home, fresh_id(), owns=True)
        home.outbox.post([name, wire_args, wire_kwargs, [handle.id]], (handle,))
        return Pointer.of(handle, result.dtype, result.shape, result.stride)
    made = [_result(home, result) for result in estimate.results]
    handles = [pointer._handle for pointer in made if pointer is not None]
    written = [pointer._handle for pointer in _written(entry, args, kwargs)]
    home.outbox.post([name, wire_args, wire_kwargs, [handle.id for handle in handles]], (*handles, *written))
    if entry.gives_list:
        return made
    return made[0] if entry.n_results == 1 else tuple(made)


def _check_keeps_shape(name: str, changed: Pointer, result: Result | None) -> None:
    if result is not None and (result.shape != tuple(changed.shape) or result.dtype != changed.dtype):
        plain = name.split(".")[1].rstrip("_")
        raise BadRequest(
            f"{plain}_() would change the shape of a pointer in place: write x = x.{plain}(...) instead", operation=name
        )


def _result(home: RemotePeer, result: Result | None) -> Pointer | None:
    if result is None:
        return None
    return Pointer.of(Handle(home, fresh_id(), owns=True), result.dtype, result.shape, result.stride)


def _written(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Pointer]:
    if not entry.writes:
        return []
    call = entry.named(args, kwargs)
    values = [call[entry.parameters[position].name] for position in entry.writes]
    return [value for value in values if isinstance(value, Pointer)]


class _Reference:
    """How a tensor among the arguments is written: a pointer by its id, a local tensor of no dimensions by value."""

    def __init__(self, home: RemotePeer) -> None:
        self._home = home

    def __call__(self, tensor: torch.Tensor) -> Any:
        if isinstance(tensor, Pointer):
            tensor._handle.check()
            return tensor._handle.id
        if tensor.dim() == 0:
            return inline_tensor(tensor)
        raise NotCollocated(
            f"one tensor, {list(tensor.shape)}, is here and the others are at {self._home.name}: send it there first "
            f"(await g[{self._home.name!r}].send(tensor))"
        )


def _through_chain(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], pointers: list[Pointer]) -> Any:
    """On pointers to pointers: the operation runs where the data are, and each hop points to its result."""
    hop = _home(_name(function), pointers)
    inner = dispatch(function, _map(args, _target), {key: _map(value, _target) for key, value in kwargs.items()})
    if _name(function).split(".")[1].endswith("_"):
        return args[0]
    return _map(inner, lambda value: hop.link_soon(value) if isinstance(value, Pointer) else value)


def _target(value: Any) -> Any:
    if not isinstance(value, Pointer):
        return value
    if value._handle.target is None:
        raise NotCollocated(
            f"{value!r} holds its data itself, the others are pointers to pointers: pull those first "
            "(await pointer.remote_get())"
        )
    return value._handle.target


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_map(item, change) for item in value)
    return change(value)


def _pointers(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Pointer]:
    found: list[Pointer] = []
    for value in args:
        if isinstance(value, Pointer):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(item for item in value if isinstance(item, Pointer))
    for value in kwargs.values():
        if isinstance(value, Pointer):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(item for item in value if isinstance(item, Pointer))
    return found


def _home(name: str, pointers: list[Pointer]) -> RemotePeer:
    first = pointers[0]
    for other in pointers:
        if other._handle.home is not first._handle.home:
            here, there = first.location.name, other.location.name
            raise NotCollocated(
                f"{first!r} is at {here}, {other!r} is at {there}: bring them together first, for example "
                f"'y = await y.move(g[{here!r}])'",
                operation=name,
            )
    return first._handle.home


def _share(pointer: Pointer) -> Pointer:
    """A second tensor for the same object: what detach() and alias() are."""
    return Pointer.of(pointer._handle, pointer.dtype, pointer.shape, pointer.stride())


_SAME_OBJECT: dict[str, Callable[[Pointer], Pointer]] = {
    "aten.detach.default": _share,
    "aten.alias.default": _share,
    "aten.lift_fresh.default": _share,
}
_PLAIN_VALUES = {
    "aten._local_scalar_dense.default": ".item()",
    "aten.item.default": ".item()",
    "aten.is_nonzero.default": "bool()",
    "aten.equal.default": "torch.equal()",
    "aten.allclose.default": "torch.allclose()",
}
_PLACES = frozenset({"device", "layout", "pin_memory", "non_blocking"})  # the peer decides where and how
_names: dict[Any, str] = {}


def _name(function: Any) -> str:
    name = _names.get(function)
    if name is None:
        name = _names[function] = f"{function.namespace}.{function._opname}.{function._overloadname}"
    return name


def _contiguous(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]
