"""`grid.hook()`: what old tutorials call on tensors and modules that are here: `x.send(alice)`, `model.send(bob)`.

It adds names to torch's classes and changes none that is there; `grid.unhook()` takes them away again. A tensor's
`send` gives a pointer. A module's changes the module itself, and so do its `get` and `move` then: its parameters stay
the same Python objects, so that an optimiser made before goes on with them; what it keeps for them goes along.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from grid import fixed
from grid.chained import Chained
from grid.hints import for_argument_of_send
from grid.modules import RemoteModule, mixed, set_class
from grid.moving import together
from grid.multi import send_to_all
from grid.multi_modules import MultiModule, mix_in
from grid.optimizers import kept_for, watch
from grid.pointer import Pointer
from grid.remote import RemotePeer
from grid.replacing import exchange, exchange_tensors
from protocol.errors import BadRequest
from search.records import check_description
from search.tags import parse_tags


def hook() -> None:
    """Add `send`, `send_`, `tag`, `describe`, `fix_prec`, `fix_precision`, `float_prec`, `float_precision` and `share`
    to torch.Tensor, the same (but `send_`) and `copy` to nn.Module, `fix_prec` and `fix_precision` to optimisers,
    `get_` and `move_` to pointers, `clear_objects` to peers.

    Calling it again changes nothing. Whoever imports torch in this process sees the names until `unhook()`; a module's
    own parameters, buffers and submodules of these names go first.

    Raises:
        BadRequest: one of these classes has such a name already, from somebody else.
    """
    for kind, name, added in _ADDED:
        if vars(kind).get(name, added) is not added:
            raise BadRequest(f"{kind.__name__} has a {name!r} already, and grid.hook() replaces nothing")
    for kind, name, added in _ADDED:
        setattr(kind, name, added)
    watch()


def unhook() -> None:
    """Take away what `hook()` added."""
    for kind, name, added in _ADDED:
        if vars(kind).get(name) is added:
            delattr(kind, name)


# --- tensors and modules ----------------------------------------------------------------------------------


def _tag(self: Any, *tags: str) -> Any:
    """Remember tags for when this is sent: `await x.tag("#a").describe("...").send(alice)` publishes it."""
    self._noted_tags = tuple(dict.fromkeys((*getattr(self, "_noted_tags", ()), *parse_tags(tags))))
    return self


def _describe(self: Any, text: str) -> Any:
    """Remember a description for when this is sent with tags."""
    check_description("description", text)
    self._noted_description = text
    return self


def _send(
    self: torch.Tensor, *peers: RemotePeer, tags: Sequence[str] | str = (), description: str = "", **others: Any
) -> Chained:
    """A pointer to it at that peer (`RemotePeer.send`), or at several: a multi-pointer. With tags it is published."""
    _check_no_others(others)
    return Chained(send_to_all(self, peers, *_noted(self, tags, description)))


def _check_no_others(others: Mapping[str, Any]) -> None:
    """TypeError for the first argument that `send` has not: old programs give it some."""
    for name in others:
        hint = for_argument_of_send(name)
        raise TypeError(f"send() takes no argument {name!r}{hint and ': '}{hint}")


def _noted(of: Any, tags: Sequence[str] | str, description: str) -> tuple[tuple[str, ...], str]:
    noted: tuple[str, ...] = getattr(of, "_noted_tags", ())
    return (*noted, *parse_tags(tags)), description or getattr(of, "_noted_description", "")


# --- in place ---------------------------------------------------------------------------------------------


async def _send_in_place(self: torch.Tensor, *peers: RemotePeer) -> torch.Tensor:
    """As `send`, but this tensor itself becomes the pointer."""
    exchange(self, await send_to_all(self, peers, *_noted(self, (), "")))
    return self


async def _get_in_place(self: Pointer) -> torch.Tensor:
    """As `get`, but this pointer itself becomes the value, or where it was a chain, what that pointed to."""
    if (target := self._handle.target) is not None:
        await self._give_up("get_() gave back what it pointed to")
        self._handle = target._handle
    else:
        exchange(self, await self.fetch())  # the pointer goes, and its temporary with it
    return self


async def _move_in_place(self: Pointer, peer: RemotePeer) -> Pointer:
    """As `move`, but this pointer itself is the one at that peer."""
    moved = await self.move(peer)
    if moved is not self:
        exchange(self, moved)
    return self


class SentModule(RemoteModule):
    """A module whose own tensors were sent: `get` changes it itself, and gives it back; so does `move`."""

    async def get(self) -> nn.Module:
        kept = [tensor for tensor in _kept_for(self) if isinstance(tensor, Pointer)]
        here, values = await self.fetch(), await together(kept, lambda tensor: tensor.fetch())
        exchange_tensors(self, here)
        for tensor, value in zip(kept, values, strict=True):
            exchange(tensor, value)
        set_class(self, None)
        return self


def _kept_for(module: nn.Module) -> list[torch.Tensor]:
    """What optimisers that made a step keep for its parameters: it goes where they go."""
    return list(kept_for({id(parameter) for parameter in module.parameters()}))


def _send_module(
    self: nn.Module, *peers: RemotePeer, tags: Sequence[str] | str = (), description: str = "", **others: Any
) -> Chained:
    """Its parameters and buffers are at that peer from now on, or at several; gives back the module itself.

    With tags it is published, and stays as it is: what is published is a module of its own, and read-only.
    """
    _check_no_others(others)
    return Chained(_sent(self, peers, *_noted(self, tags, description)))


async def _sent(module: nn.Module, peers: Sequence[RemotePeer], tags: Sequence[str], description: str) -> nn.Module:
    sent: nn.Module = await send_to_all(module, peers, tags, description)
    if tags:
        return sent
    # Counts of steps stay here.
    kept = [tensor for tensor in _kept_for(module) if tensor.dim() and not isinstance(tensor, Pointer)]
    along = await together(kept, lambda tensor: send_to_all(tensor, peers, (), ""))
    exchange_tensors(module, sent)
    for tensor, there in zip(kept, along, strict=True):
        exchange(tensor, there)
    if isinstance(sent, MultiModule):
        mix_in(module, peers)
        return module
    plain = type(module)
    module.__class__ = mixed("Remote", SentModule, plain)
    module._home = peers[0]  # type: ignore[assignment]
    return module


def _copy_module(self: nn.Module) -> nn.Module:
    """A copy of the module, here."""
    return copy.deepcopy(self)


# --- what is added ----------------------------------------------------------------------------------------


_REGISTERING: Final = frozenset(
    function.__code__ for function in (nn.Module.register_parameter, nn.Module.register_buffer, nn.Module.add_module)
)


class _Behind:
    """A function as an attribute of nn.Module, behind the parameters, buffers and submodules of its name."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function = function
        self._name = name

    def __get__(self, module: nn.Module | None, kind: type | None = None) -> Any:
        if module is None:
            return self._function
        for own in (module._parameters, module._buffers, module._modules):
            if self._name in own:
                return own[self._name]
        if sys._getframe(1).f_code in _REGISTERING:
            raise AttributeError(self._name)  # torch asks whether the name is free for what is the module's own: it is
        return self._function.__get__(module, kind)


async def _clear_objects(self: RemotePeer) -> RemotePeer:
    """As `clear`: everything of yours goes."""
    await self.clear()
    return self


_OF_TENSORS: Final[dict[str, Callable[..., Any]]] = {
    "tag": _tag,
    "describe": _describe,
    "send": _send,
    "send_": _send_in_place,
    "fix_prec": fixed.fix_tensor,
    "fix_precision": fixed.fix_tensor,
    "float_prec": fixed.float_tensor,
    "float_precision": fixed.float_tensor,
    "share": fixed.share_tensor,
}
_OF_MODULES: Final[dict[str, Callable[..., Any]]] = {
    "tag": _tag,
    "describe": _describe,
    "send": _send_module,
    "copy": _copy_module,
    "fix_prec": fixed.fix_module,
    "fix_precision": fixed.fix_module,
    "float_prec": fixed.float_module,
    "float_precision": fixed.float_module,
    "share": fixed.share_whole_module,
}
_ADDED: Final[list[tuple[type, str, Any]]] = [
    *((torch.Tensor, name, function) for name, function in _OF_TENSORS.items()),
    *((nn.Module, name, _Behind(function, name)) for name, function in _OF_MODULES.items()),
    (torch.optim.Optimizer, "fix_prec", fixed.fix_optimizer),
    (torch.optim.Optimizer, "fix_precision", fixed.fix_optimizer),
    (Pointer, "get_", _get_in_place),
    (Pointer, "move_", _move_in_place),
    (RemotePeer, "clear_objects", _clear_objects),
]
