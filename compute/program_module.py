"""A module made from a captured model's program, and a function made from a stored plan's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compute import interpreter
from compute.dtypes import NAME_OF
from compute.model_spec import ModelSpec, Slot
from compute.program import Program
from protocol.errors import BadRequest


class ProgramModule(nn.Module):
    """A module that runs a ModelSpec on tensors of any kind: plain, meta, fake, or pointers.

    Parameters, buffers and state_dict have the names of the original. It is the evaluation form that was captured:
    dropout does nothing and batch normalisation uses its running statistics, also after `train()`. Gradients flow.

    Args:
        spec: what `capture_model` gave.
        tensors: the value of every slot by name; those that are the same as another may be left out.

    Raises:
        BadRequest: a tensor is missing, or is not of the dtype and shape that the spec names.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._spec = spec
        self._order: list[str] = [slot.name for slot in spec.slots if slot.same_as is None]
        held: dict[str, torch.Tensor] = {}
        for slot in spec.slots:
            tensor = held.get(slot.same_as or "")
            held[slot.name] = tensor = _fitting(slot, tensors) if tensor is None else tensor
            _register(self, slot, tensor)
        self.eval()

    @property
    def held(self) -> dict[str, torch.Tensor]:
        """What it is made of by name, without tensors that are the same as another."""
        return {name: _held(self, name) for name in self._order}

    @property
    def spec(self) -> ModelSpec:
        """What it was made from."""
        return self._spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The captured forward, with its arguments; those that were no tensors are as they were then."""
        given = self._spec.signature.bind(args, kwargs)
        held = [_held(self, name) for name in self._order]
        return interpreter.run(self._spec.program, [*held, *(given[name] for name in self._spec.inputs)])

    def extra_repr(self) -> str:
        return f"{len(self._spec.program.nodes)} operations, program {self._spec.program.id[:12]}"


class ProgramFunction:
    """A stored plan as a function of tensors of any kind, some of which it holds.

    Args:
        held: values of inputs that are not given with each call, by name.
        name: what people call the plan.
    """

    def __init__(self, program: Program, held: Mapping[str, torch.Tensor], name: str) -> None:
        self.program = program
        self.held = dict(held)
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run its operations here. Arguments by position or name; of lists and dicts what is in them is given.

        Raises:
            BadRequest: they are not what it takes.
        """
        names = [given.name for given in self.program.inputs]
        free = list(dict.fromkeys(name.partition(".")[0] for name in names if name not in self.held))
        given = {**dict(zip(free, args, strict=False)), **kwargs}
        found = {**self.held, **_flat(given, "")}
        if len(args) + len(kwargs) != len(given) or found.keys() != set(names):
            raise BadRequest(f"the plan {self._name} takes {', '.join(free)}")
        return interpreter.run(self.program, [found[name] for name in names])


def _flat(value: Any, path: str) -> dict[str, Any]:
    """What is in lists, tuples and dicts, by the names that programs have for it (PROGRAM.md, Inputs)."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    elif isinstance(value, nn.Module):
        items = [*value.named_parameters(remove_duplicate=False), *value.named_buffers(remove_duplicate=False)]
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in items:
        found.update(_flat(item, f"{path}.{key}" if path else str(key)))
    return found


def _fitting(slot: Slot, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    tensor = tensors.get(slot.name)
    if tensor is None:
        raise BadRequest(f"the model's {slot.kind} {slot.name!r} is missing")
    if tuple(tensor.shape) != slot.header.shape or NAME_OF.get(tensor.dtype) != slot.header.dtype:
        have = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
        raise BadRequest(f"{slot.name!r} is {slot.header.dtype} {list(slot.header.shape)}, but {have} was given")
    if slot.kind != "parameter" or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=slot.is_trainable)


def _register(root: nn.Module, slot: Slot, tensor: torch.Tensor) -> None:
    *path, leaf = slot.name.split(".")
    owner = root
    for part in path:
        child = owner._modules.get(part)
        if child is None:
            owner._modules[part] = child = nn.Module()
        owner = child
    # Into the tables themselves: the names come from elsewhere, and setattr would let them meet a method.
    if slot.kind == "parameter":
        owner._parameters[leaf] = tensor  # type: ignore[assignment]  # _fitting made it a Parameter
    else:
        owner._buffers[leaf] = tensor
        if not slot.is_persistent:
            owner._non_persistent_buffers_set.add(leaf)


def _held(root: nn.Module, name: str) -> torch.Tensor:
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        owner = owner._modules[part]  # type: ignore[assignment]  # _register put a module there
    found = owner._parameters.get(leaf)
    held = owner._buffers[leaf] if found is None else found
    assert held is not None
    return held
