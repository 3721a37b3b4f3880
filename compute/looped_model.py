"""A module whose forward has loops or branches that are to stay such (grid.repeat, torch.cond): captured as a function
is (capture.py), since torch.export writes loops out, and then named as a model is.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compute.capture import Captured, capture
from compute.dtypes import NAME_OF
from compute.given import joined
from compute.model_spec import ModelSpec, Slot, named_tensors
from compute.program import Input, Node, Program
from compute.signature import Signature
from compute.tracing import unique
from compute.values import header_of
from protocol.errors import BadTensor, CannotCapture


def looped_spec(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ModelSpec:
    """The module, which is in evaluation mode, as a model; for an example of what its forward takes.

    Raises:
        CannotCapture: it does what programs cannot, or changes itself when it runs; the message says what.
    """
    declared = inspect.signature(module.forward)
    bound = declared.bind(*args, **kwargs)
    bound.apply_defaults()
    own = unique("module", bound.arguments)

    def forward(**given: Any) -> Any:
        rest = OrderedDict((name, value) for name, value in given.items() if name != own)
        called = inspect.BoundArguments(declared, rest)
        return module(*called.args, **called.kwargs)

    captured = capture(forward, {own: module, **bound.arguments}, dynamic=None)
    if captured.state:
        raise CannotCapture(f"the module changes {captured.state[0].removeprefix(own + '.')} when it runs")
    slots, paths = _slots(module, captured, own)
    users = _users(bound.arguments)
    names = _names(users, [slot.name for slot in slots])
    paths.update({path: names[path] for path in users})
    known = {given.name: given for given in captured.program.inputs}
    examples = {names[path]: header_of(tensor) for path, tensor in users.items()}
    inputs = [Input(slot.name, slot.header.dtype, slot.header.shape) for slot in slots if slot.same_as is None]
    for path, tensor in users.items():
        shape = known[path].shape if path in known else tuple(tensor.shape)
        inputs.append(Input(names[path], NAME_OF[tensor.dtype], shape))
    program = _reordered(captured.program, inputs, [paths[given.name] for given in captured.program.inputs])
    constants = {paths[path]: tensor.detach() for path, tensor in captured.constants.items()}
    signature = _signature(declared, bound.arguments, names)
    return ModelSpec(program, tuple(slots), tuple(names.values()), signature, examples, constants)


def _slots(module: nn.Module, captured: Captured, own: str) -> tuple[list[Slot], dict[str, str]]:
    """The tensors of the model, and the names of slots by the paths that capture has for them."""
    kept = set(module.state_dict(keep_vars=True))
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    slots: list[Slot] = []
    paths: dict[str, str] = {}
    first: dict[int, str] = {}
    try:
        for name, tensor in named_tensors(module):
            same = first.setdefault(id(tensor), name)
            paths[joined(own, name)] = same
            kind = "parameter" if name in parameters else "buffer"
            twin = None if same == name else same
            slots.append(Slot(name, header_of(tensor), kind, tensor.requires_grad, name in kept, twin))
        for path, tensor in captured.constants.items():
            paths[path] = unique("constant", [slot.name for slot in slots])
            slots.append(Slot(paths[path], header_of(tensor), "constant", False, False))
    except BadTensor as error:
        raise CannotCapture(f"the module holds a tensor that cannot travel: {error.message}") from None
    return slots, paths


def _users(arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors among the arguments, by path, in their order."""
    leaves, _ = pytree.tree_flatten_with_path(dict(arguments))
    found = ((".".join(str(_key(key)) for key in path), leaf) for path, leaf in leaves)
    return {path: leaf for path, leaf in found if isinstance(leaf, torch.Tensor)}


def _key(key: Any) -> Any:
    return key.key if isinstance(key, pytree.MappingKey) else key.idx


def _names(users: Mapping[str, Any], taken: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for path in users:
        names[path] = unique(path.replace(".", "_"), [*taken, *names.values()])
    return names


def _signature(declared: inspect.Signature, arguments: Mapping[str, Any], names: Mapping[str, str]) -> Signature:
    def written(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return {"input": names[path]}
        if isinstance(value, dict):
            return {key: written(item, joined(path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([written(item, joined(path, str(at))) for at, item in enumerate(value)])
        return value

    return Signature.of_call(declared, {name: written(value, name) for name, value in arguments.items()})


def _reordered(program: Program, inputs: Sequence[Input], old: Sequence[str]) -> Program:
    """The same with these inputs; `old` are the names, among those, of the inputs that it has."""
    places = {given.name: at for at, given in enumerate(inputs)}
    shift = len(inputs) - len(old)

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "node" in value:
                at = value["node"]
                return {**value, "node": places[old[at]] if at < len(old) else at + shift}
            return {key: moved(item) for key, item in value.items()}
        return [moved(item) for item in value] if isinstance(value, list) else value

    nodes = [
        Node(node.operation, moved(node.args), {name: moved(item) for name, item in node.kwargs.items()})
        for node in program.nodes
    ]
    return Program(tuple(inputs), tuple(nodes), moved(program.outputs), program.constants, program.bodies)
