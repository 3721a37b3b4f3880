"""Modules that were sent to a peer: their class stays, and their parameters and buffers are pointers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compute.model import ProgramModule, capture_model
from grid.blocking import block, can_block
from grid.handle import Handle
from grid.moving import move_together, replace, together
from grid.optimizers import kept_for, watch
from grid.pointer import Pointer
from grid.stored_models import layout_of, parts_of, put_model
from peer.resuming import Progress
from protocol.errors import BadRequest, NotCollocated

if TYPE_CHECKING:
    from grid.remote import RemotePeer


class RemoteModule(nn.Module):
    """Mixed into the class of a module that was sent: everything about it works as before, at the peer.

    Awaited: `get` and `fetch` (a module with its values), `move` and `copy` (to another peer, directly). A tensor that
    is an attribute only, neither parameter nor buffer, stays where it is, as with torch's own `to()`.
    """

    _home: RemotePeer
    _stored: bytes | None = None  # the id of the stored model that its tensors are parts of

    @property
    def location(self) -> RemotePeer:
        """The peer where its parameters and buffers are."""
        return self._home

    async def get(self) -> nn.Module:
        """The module with its values; the peer gives up those that are temporaries."""
        return await self._changed(lambda pointer: pointer.get())

    async def fetch(self, progress: Progress | None = None) -> nn.Module:
        """The module with its values; nothing changes at the peer."""
        return await self._changed(lambda pointer: pointer.fetch())

    async def move(self, peer: RemotePeer, *optimizers: torch.optim.Optimizer) -> RemoteModule:
        """Move all its tensors to `peer`, directly: parameters, their grads, buffers, and what optimisers keep for the
        parameters. This very module, and its optimisers, go on there.

        Optimisers that made a step are known; give those that have a state without one (`load_state_dict`). All tensors
        are copied before the first original is let go: where that fails, everything is where it was. Let nothing
        write to the module meanwhile. What was computed with it before, and is still to run backward, cannot.

        Raises:
            Denied: something is private to others. LinkError, TooLarge.
        """
        stored = self._stored
        if stored is not None and peer.id != self._home.id:
            await self._home.hand_over(stored, peer, stored, move=True, publish=True)
            self._move_stored(peer)
        parameters = {id(parameter) for parameter in self.parameters()}
        kept = [*kept_for(parameters, optimizers)]
        await move_together([*_all_tensors(self), *kept], peer, "the module")
        self._home = peer
        return self

    def _move_stored(self, peer: RemotePeer) -> None:
        """The parts of a stored model that was moved keep their ids."""
        for tensor in {id(tensor): tensor for _, tensor in named_tensors(self)}.values():
            if isinstance(tensor, Pointer):  # else a buffer that the program does not need: it stayed here
                old = tensor._handle
                tensor.data = Pointer.of(
                    Handle(peer, old.id, owns=False, record=old.record), tensor.dtype, tensor.shape
                )
                old.give_up(f"its model was moved to {peer.name}")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's: to a dtype."""
        if any(hasattr(place, "outbox") for place in (*args, *kwargs.values())):
            raise BadRequest("to() takes a dtype: to bring the module to another peer, await net.move(peer)")
        return super().to(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        theirs = getattr(super(), "__deepcopy__", None)
        if theirs is not None:
            return theirs(memo)
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return made

    def __copy__(self) -> Any:
        made = type(self).__new__(type(self))
        made.__setstate__(self.__getstate__())  # type: ignore[no-untyped-call]
        return made

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles in its place: the user's own class, with the same tensors."""
        made: nn.Module = self.__copy__()
        set_class(made, None)
        return made

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BadRequest(
            f"a module at a peer cannot be pickled or saved: its tensors are at {self._home.name}. Save it with its "
            "values (torch.save(await net.fetch(), path)), or those alone (torch.save(await g.fetch(net.state_dict()), "
            "path)), or publish it there (await peer.send(module, tags=...))"
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's. Values that are here are sent first where that can be waited for; NotCollocated elsewhere."""
        if any(_is_data(value) for value in state_dict.values()):
            if not can_block():
                raise NotCollocated(
                    f"these values are here, and the module is at {self._home.name}: send them there first "
                    f"(net.load_state_dict(await g[{self._home.name!r}].send(state_dict)))"
                )
            state_dict = block(self._home, lambda: send_state(self._home, state_dict))
        return super().load_state_dict(state_dict, strict, assign)

    async def copy(self, peer: RemotePeer) -> nn.Module:
        """A copy of the module at `peer`, trainable, with its grads; what optimisers keep is not copied."""
        copied = await self._changed(lambda pointer: pointer._copy_to(peer))
        copied._home, copied._stored = peer, None  # type: ignore[assignment]
        return copied

    async def _changed(self, change: Callable[[Pointer], Any]) -> nn.Module:
        return await replace_tensors(self, change)


async def send_module(
    home: RemotePeer,
    module: nn.Module,
    described: Mapping[str, Any],
    example: Any,
    progress: Progress | None,
) -> RemoteModule:
    """See RemotePeer.send."""
    watch()
    if isinstance(module, RemoteModule):
        raise _sent_already(module)
    if any(nn.parameter.is_lazy(tensor) for _, tensor in named_tensors(module)):
        raise BadRequest("a lazy module has no parameters yet; run it on an example first, and send it then")
    if not described["tags"]:
        sent = await replace_tensors(module, lambda tensor: home.send(tensor, private=described["private"]))
        sent._home = home  # type: ignore[assignment]
        return sent  # type: ignore[return-value]
    spec = module.spec if isinstance(module, ProgramModule) else capture_model(module, example)
    record = await put_model(home, module, spec, {"kind": "model", **described}, progress)
    parts = parts_of(home, record, layout_of(spec))
    tensors = {**dict(named_tensors(module)), **spec.constants}
    sent = await replace_tensors(module, _looked_up({id(tensors[name]): part for name, part in parts.items()}))
    sent._home, sent._stored = home, record["id"]  # type: ignore[assignment]
    return sent  # type: ignore[return-value]


def _sent_already(module: RemoteModule) -> BadRequest:
    home = module.location.name
    here = next((name for name, tensor in named_tensors(module) if _is_data(tensor)), None)
    if here is None:
        return BadRequest(f"the module is at {home} already: use its move() or copy()")
    return BadRequest(
        f"the module is at {home} already, but its {here.rpartition('.')[0] or here!r} is here: send that part alone "
        f"(part = await g[{home!r}].send(part)), and put it in its place"
    )


async def send_state(home: RemotePeer, state: Any) -> Any:
    """A state dict (of a module, of an optimiser), or any structure of dicts and lists, with its tensors at `home`.

    Those of no dimensions (the counts of steps) stay here: they go along with what they are used in.
    """

    async def sent(tensor: Any) -> torch.Tensor:
        value: torch.Tensor = await home.send(tensor.detach()) if _is_data(tensor) else tensor
        return value

    return await replace(state, sent)


async def fetch_state(state: Any) -> Any:
    """The same structure with values for its pointers."""

    async def fetched(tensor: Any) -> torch.Tensor:
        return (await tensor.fetch()).detach() if isinstance(tensor, Pointer) else tensor

    return await replace(state, fetched)


def _is_data(value: Any) -> bool:
    """Whether it is a tensor here that must be sent before operations at a peer can take it."""
    return isinstance(value, torch.Tensor) and not hasattr(value, "_handle") and value.dim() > 0


def _all_tensors(module: nn.Module) -> list[torch.Tensor]:
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return [*(tensor for _, tensor in named_tensors(module)), *grads]


def _looked_up(parts: Mapping[int, Pointer]) -> Callable[[torch.Tensor], Any]:
    async def look_up(tensor: torch.Tensor) -> torch.Tensor:
        # A buffer that the program does not need is not stored; it stays here.
        return parts.get(id(tensor), tensor)

    return look_up


async def replace_tensors(module: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    """A copy of the module in which `change` (awaited) was applied to each parameter and buffer, shared ones once."""
    originals = {id(tensor): tensor for _, tensor in named_tensors(module)}

    async def changed(tensor: torch.Tensor) -> torch.Tensor:
        made = await change(tensor)
        if isinstance(tensor, nn.Parameter):
            parameter = nn.Parameter(made.detach(), tensor.requires_grad)
            parameter.grad = made.grad
            return parameter
        return made  # type: ignore[no-any-return]

    new = await together(list(originals.values()), changed)
    # deepcopy takes what the memo has for an object instead of copying it.
    result = copy.deepcopy(module, computed(module) | dict(zip(originals, new, strict=True)))
    pointers = [tensor for tensor in new if isinstance(tensor, Pointer)]
    set_class(result, pointers[0].location if pointers else None)
    return result


def set_class(module: nn.Module, home: RemotePeer | None) -> None:
    """The class is the user's own, with RemoteModule mixed in while its tensors are at a peer."""
    kind = type(module)
    plain = getattr(kind, "_plain", kind)
    if home is None:
        module.__class__ = plain
        module.__dict__.pop("_home", None)
        return
    module.__class__ = mixed("Remote", RemoteModule, plain)
    module._home = home  # type: ignore[assignment]


def mixed(prefix: str, kind: type, plain: type) -> type:
    """The class `plain` with `kind` mixed in, one for each: modules of one class are of one class at peers too."""
    bases = (kind, plain)
    known: list[type] = type.__subclasses__(plain)
    found = (each for each in known if each.__bases__ == bases and "_plain" in vars(each))
    return next(found, None) or type(f"{prefix}{plain.__name__}", bases, {"_plain": plain})


def computed(module: nn.Module) -> dict[int, torch.Tensor]:
    """By id, the tensors with a history that are attributes, or in lists and the like that are.

    Normalised weights, hidden states, log probabilities of an episode: torch copies none, so that a copy of the module
    has the very same.
    """
    values = [value for part in module.modules() for value in vars(part).values()]
    tensors = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor))
    torchs_own = (tensor for tensor in tensors if type(tensor).__deepcopy__ is torch.Tensor.__deepcopy__)
    return {id(tensor): tensor for tensor in torchs_own if tensor.grad_fn is not None}


def named_tensors(module: nn.Module) -> Sequence[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
