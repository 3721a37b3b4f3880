"""Modules whose parameters and buffers are secrets: a model that its owner does not show, computed with by others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import nn

from grid.modules import RemoteModule, computed, mixed, named_tensors, set_class
from grid.optimizers import kept_for
from grid.pointer import Pointer
from grid.remote import RemotePeer
from grid.replacing import exchange, exchange_tensors
from grid.secret.tensor import SecretTensor

Share = Callable[[torch.Tensor], SecretTensor]


class SecretModule(nn.Module):
    """Mixed into the class of a module that was shared: everything about it works as before, on shares.

    Awaited: itself, when all of it is shared; `get` (a module with its values) and `reveal` (one at a peer), both with
    its gradients.
    """

    _in_place = False  # whether `get` changes this very module, as those of old tutorials do

    @property
    def parties(self) -> tuple[RemotePeer, ...]:
        """The peers that have a share each."""
        return self._secrets[0].parties

    @property
    def provider(self) -> RemotePeer | None:
        """The peer that deals randomness to them, and sees nothing; None where three parties do without."""
        return self._secrets[0].provider

    @property
    def _secrets(self) -> list[SecretTensor]:
        return [tensor for _, tensor in named_tensors(self) if isinstance(tensor, SecretTensor)]

    def __await__(self) -> Generator[Any, None, SecretModule]:
        return self._shared().__await__()

    async def _shared(self) -> SecretModule:
        secrets = self._secrets
        if not secrets:  # nothing of it is a value: it takes secrets as it is
            return self
        await secrets[0]._secrets.compute([each._value() for each in secrets])
        return self

    async def get(self) -> nn.Module:
        """The module with its values, revealed to you; see SecretTensor.get."""
        if not self._in_place:
            return await self._revealed(None)
        kept = [each for each in kept_for({id(each) for each in self.parameters()}) if isinstance(each, SecretTensor)]
        here = await self._revealed(None)
        values = await kept[0]._secrets.reveal([each._value() for each in kept]) if kept else []
        exchange_tensors(self, here)
        for tensor, value in zip(kept, values, strict=True):
            exchange(tensor, value)
        _set_secret(self, is_secret=False)
        return self

    fetch = get

    async def reveal(self, to: RemotePeer | None = None) -> nn.Module:
        """A module with its values at the peer `to`, which alone learns them; without `to`, as `get`."""
        if to is None:
            return await self.get()
        made = await self._revealed(to)
        set_class(made, to)
        return made

    async def _revealed(self, to: RemotePeer | None) -> nn.Module:
        secrets = {id(each): each for each in self._secrets}
        grads = {key: each.grad for key, each in secrets.items() if isinstance(each.grad, SecretTensor)}
        wanted = [*secrets.values(), *grads.values()]
        values = await wanted[0]._secrets.reveal([each._value() for each in wanted], to) if wanted else []
        if to is not None:
            values = [each if isinstance(each, Pointer) else await to.send(each) for each in values]
        new = dict(zip(secrets, values, strict=False))
        for key, grad in zip(grads, values[len(secrets) :], strict=True):
            new[key].grad = grad
        made = _replaced(self, lambda tensor: new.get(id(tensor), tensor))
        _set_secret(made, is_secret=False)
        return made


def share_module(module: nn.Module, share: Share) -> nn.Module:
    """A copy of the module whose parameters and buffers are secrets; what of it is not a real stays one of whole
    numbers. Grads stay behind."""
    made = _replaced(module, share)
    if isinstance(made, RemoteModule):
        set_class(made, None)
    _set_secret(made, is_secret=True)
    return made


def share_in_place(module: nn.Module, share: Share, kept: Sequence[torch.Tensor]) -> nn.Module:
    """The same, of this very module, and of what optimisers keep for it: its parameters stay the same objects."""
    shared = share_module(module, share)
    along = [share(tensor) for tensor in kept]
    exchange_tensors(module, shared)
    for tensor, secret in zip(kept, along, strict=True):
        exchange(tensor, secret)
    _set_secret(module, is_secret=True)
    module._in_place = True  # type: ignore[assignment]
    return module


def _replaced(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of the module with `change` of each parameter and buffer, of one that stands at several places once."""
    new: dict[int, Any] = {}
    for _, tensor in named_tensors(module):
        if id(tensor) in new:
            continue
        made = change(tensor)
        if isinstance(tensor, nn.Parameter):
            parameter = nn.Parameter(made.detach(), tensor.requires_grad)
            parameter.grad = made.grad if made is not tensor else tensor.grad
            made = parameter
        new[id(tensor)] = made
    return copy.deepcopy(module, computed(module) | new)


def _set_secret(module: nn.Module, *, is_secret: bool) -> None:
    """The class is the user's own, with SecretModule mixed in while its tensors are secrets."""
    kind = type(module)
    plain = getattr(kind, "_plain", kind)
    module.__class__ = mixed("Secret", SecretModule, plain) if is_secret else plain
    module.__dict__.pop("_in_place", None)
