"""A module at several peers: its parameters are multi-pointers, and it runs, trains and is fetched at all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grid.modules import RemoteModule, computed, mixed, named_tensors, set_class
from grid.multi import MultiPointer, add_up, as_parameter
from grid.pointer import Pointer
from grid.several import ask_all, check_apart, raise_failures, settled
from protocol.errors import BadRequest, NotCollocated

if TYPE_CHECKING:
    from grid.remote import RemotePeer


class MultiModule(nn.Module):
    """Mixed into the class of a module that is at several peers: called on multi-pointers, it runs at each of them.

    Awaited: `get` and `fetch` (the modules with their values, or one with their sums), `move` (all to one peer).
    """

    _homes: tuple[RemotePeer, ...]

    @property
    def location(self) -> tuple[RemotePeer, ...]:
        """The peers."""
        return self._homes

    def at(self, peer: RemotePeer) -> RemoteModule:
        """The module at that peer: the very parameters that this one has there."""
        if peer.id not in [home.id for home in self._homes]:
            raise NotCollocated(f"this module is at {', '.join(home.name for home in self._homes)}, not at {peer.name}")
        made = with_tensors(self, lambda tensor: tensor.at(peer) if isinstance(tensor, MultiPointer) else tensor)
        set_class(made, peer)
        return made  # type: ignore[return-value]

    async def get(self, sum_results: bool = False) -> Any:
        """The modules with their values, in the order of the peers, or one with the sums; the peers give theirs up."""
        found = await self.fetch(sum_results)
        for tensor in _unique(self):
            if isinstance(tensor, MultiPointer):
                await tensor.let_go()
        return found

    async def fetch(self, sum_results: bool = False) -> Any:
        """The same; nothing changes at the peers."""
        modules = await self._ask("fetch()", lambda module: module.fetch())
        if not sum_results:
            return modules
        tensors = [dict(named_tensors(module)) for module in modules]
        summed = {id(tensor): add_up([each[name].detach() for each in tensors]) for name, tensor in tensors[0].items()}
        return with_tensors(modules[0], lambda tensor: _like(tensor, summed[id(tensor)]))

    async def move(self, peer: RemotePeer) -> list[RemoteModule]:
        """All to one peer, directly, for example to be averaged there: the modules there, in the order of the peers.

        Where some fail, the others are at `peer` already: the `children` of the parameters say where each is.
        """
        moved = await settled([self.at(home).move(peer) for home in self._homes])
        tensors = dict(named_tensors(self))
        for number, module in enumerate(moved):
            for name, there in () if isinstance(module, BaseException) else named_tensors(module):
                if isinstance(multi := tensors[name], MultiPointer):
                    children = list(multi.children)
                    children[number] = there  # type: ignore[call-overload]
                    multi._children = tuple(children)
        names = [home.name for home in self._homes]
        raise_failures(f"move() to {peer.name}", names, moved, f"the others are at {peer.name} now")
        return moved

    async def copy(self, peer: RemotePeer) -> list[RemoteModule]:
        """Copies of all to one peer, directly: the modules there."""
        return await self._ask(f"copy() to {peer.name}", lambda module: module.copy(peer))

    async def _ask(self, doing: str, call: Callable[[RemoteModule], Any]) -> list[Any]:
        names = [home.name for home in self._homes]
        return await ask_all(doing, names, [call(self.at(home)) for home in self._homes])


def combine_modules(modules: Sequence[nn.Module]) -> MultiModule:
    """See grid.combine: each of these was sent to another peer; they have the same parameters and buffers."""
    for module in modules:
        if not isinstance(module, RemoteModule):
            raise BadRequest("combine takes modules that were sent, each to another peer: await alice.send(module)")
    homes = [module.location for module in modules]
    check_apart(homes)  # type: ignore[arg-type]
    tensors = [dict(named_tensors(module)) for module in modules]
    if any(each.keys() != tensors[0].keys() for each in tensors):
        raise BadRequest("these modules do not have the same parameters and buffers: combine copies of one")
    together = {id(tensor): _combined([each[name] for each in tensors]) for name, tensor in tensors[0].items()}
    made = with_tensors(modules[0], lambda tensor: together[id(tensor)])
    made.__dict__.pop("_stored", None)  # no two of them are one stored model
    mix_in(made, homes)  # type: ignore[arg-type]
    return made  # type: ignore[return-value]


def mix_in(module: nn.Module, homes: Sequence[RemotePeer]) -> None:
    """Its tensors are at these peers now."""
    set_class(module, None)
    plain = type(module)
    module.__class__ = mixed("Multi", MultiModule, plain)
    module._homes = tuple(homes)  # type: ignore[assignment]


def with_tensors(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of the module with other tensors for its parameters and buffers, for shared ones the same."""
    # deepcopy takes what the memo has for an object instead of copying it.
    return copy.deepcopy(module, computed(module) | {id(tensor): change(tensor) for tensor in _unique(module)})


def _unique(module: nn.Module) -> list[torch.Tensor]:
    return list({id(tensor): tensor for _, tensor in named_tensors(module)}.values())


def _combined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if not all(isinstance(tensor, Pointer) for tensor in tensors):
        return tensors[0]  # a buffer that stayed here
    made = MultiPointer.of(tensors)  # type: ignore[arg-type]
    return as_parameter(made) if isinstance(tensors[0], nn.Parameter) else made


def _like(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
