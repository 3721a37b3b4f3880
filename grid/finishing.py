"""What a captured function gave, made of what its program gave: modules and optimisers that it returned, and changes of
those that it was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compute.capture import Captured, Returned
from compute.left import put
from grid.given import walk
from grid.modules import replace_tensors
from grid.pointer import Pointer


@dataclass(frozen=True, slots=True)
class Finishing:
    """Of one run: the captured function, and its arguments as it got them."""

    captured: Captured
    arguments: Any

    async def __call__(self, outputs: Any) -> Any:
        for path, value in self.captured.changes(outputs).items():
            await self._change(path, value)
        arguments = dict(walk(self.arguments))
        for left in self.captured.left:
            put(left, arguments[left.path])
        returned: list[tuple[Returned, Mapping[str, Any]]] = []
        self.captured.result(outputs, lambda *one: returned.append(one))
        made = iter([await _remade(one, tensors) for one, tensors in returned])
        return self.captured.result(outputs, lambda *_: next(made))

    async def _change(self, path: str, value: Any) -> None:
        """A module or an optimiser among the arguments holds what it would hold after the function had run here: a
        pointer at the same peer where it had one, else the value. (What a run on shares gave is here.)"""
        old = self.captured.given.get(path)
        if isinstance(old, Pointer):
            there = await (value.move(old.location) if isinstance(value, Pointer) else old.location.send(value))
            old.data = there.detach()
        elif old is not None:
            with torch.no_grad():
                old.copy_(await value.get() if isinstance(value, Pointer) else value)
        else:
            await self._add(path, value)

    async def _add(self, path: str, value: Any) -> None:
        """An optimiser's first step makes what it keeps: `opt.state.0.exp_avg`, of its parameter 0."""
        for item, parameter, key in self._kept_at(path):
            keeps_here = not isinstance(parameter, Pointer) and isinstance(value, Pointer)
            item.state[parameter][key] = await value.get() if keeps_here else value

    def parameter(self, path: str) -> torch.Tensor | None:
        """The parameter for which an optimiser among the arguments is to keep something at this path."""
        return next((parameter for _, parameter, _ in self._kept_at(path)), None)

    def _kept_at(self, path: str) -> Iterator[tuple[torch.optim.Optimizer, torch.Tensor, str]]:
        for name, item in walk(self.arguments):
            if isinstance(item, torch.optim.Optimizer) and path.startswith(f"{name}.state."):
                number, _, key = path.removeprefix(f"{name}.state.").partition(".")
                parameters = [parameter for group in item.param_groups for parameter in group["params"]]
                yield item, parameters[int(number)], key


async def _remade(returned: Returned, tensors: Mapping[str, Any]) -> Any:
    """A module of these tensors: at the peer, like one that was sent. Of an optimiser the dict of what it keeps."""
    module = returned.value
    if not isinstance(module, nn.Module):
        return dict(tensors)
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    new = {id(tensor): tensors[name] for name, tensor in named}

    async def changed(tensor: torch.Tensor) -> Any:
        return new[id(tensor)]

    return await replace_tensors(module, changed)
