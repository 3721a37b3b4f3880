"""The arguments of a captured function: tensors by path; modules and optimisers with other tensors in their places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from compute.dtypes import NAME_OF
from compute.left import Before, inner
from protocol.errors import CannotCapture


@dataclass(frozen=True, slots=True)
class Tensor:
    path: str


@dataclass(frozen=True, slots=True)
class Module:
    """A module among the arguments: the paths of its tensors by name; tied ones have one path."""

    path: str
    module: nn.Module
    names: dict[str, str]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimiser among the arguments: the paths of what it steps, in order, and of what it keeps for each."""

    path: str
    optimizer: torch.optim.Optimizer
    parameters: list[str]
    state: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scheduler:
    path: str
    scheduler: LRScheduler


@dataclass(frozen=True, slots=True)
class Plain:
    value: Any


class Given:
    """Arguments, flattened: `tensors` by path, and `templates` of everything by name (or place).

    Attributes:
        state: the paths of tensors of modules and optimisers, which the function may change.
        gradients: the paths of those that have a gradient, with the gradient.
    """

    def __init__(self, arguments: Any, loads: Mapping[str, Any], prefix: str) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.state: set[str] = set()
        self.modules: list[Module] = []
        self.optimizers: list[Optimizer] = []
        self.schedulers: list[Scheduler] = []
        self.trained: set[str] = set()
        self.gradients: dict[str, torch.Tensor] = {}
        self._known: dict[int, str] = {}
        self._same: dict[str, str] = {}  # arguments that are a module's or an optimiser's tensor
        self._stack: list[Before] = []
        self._later: list[tuple[Optimizer, torch.optim.Optimizer]] = []
        try:
            self.arguments = self._flat(dict(arguments) if isinstance(arguments, Mapping) else list(arguments), "")
            self.loads = {query: self._flat(example, prefix + query) for query, example in loads.items()}
        except RecursionError:
            raise CannotCapture("the arguments are nested too deeply") from None
        for template, optimizer in self._later:
            self._fill(template, optimizer)
        for path, tensor in list(self.tensors.items()):
            known = self._known.get(id(tensor), path)
            if known != path:
                self._same[path] = known
                del self.tensors[path]
        self._check_schedulers()

    def _flat(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, nn.Module):
            return self._module(value, path)
        if isinstance(value, torch.optim.Optimizer):
            template = Optimizer(path, value, [], [])
            self.optimizers.append(template)
            self._later.append((template, value))
            return template
        if isinstance(value, LRScheduler):
            self.schedulers.append(Scheduler(path, value))
            return self.schedulers[-1]
        if isinstance(value, Mapping):
            return {key: self._flat(item, joined(path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return same_kind(value, [self._flat(item, joined(path, str(at))) for at, item in enumerate(value)])
        return Plain(value)

    def _tensor(self, value: torch.Tensor, path: str) -> Tensor:
        if value.dtype not in NAME_OF or value.layout != torch.strided:
            raise CannotCapture(f"input {path!r}: only dense tensors go into a program, not {value.dtype}")
        if path in self.tensors:
            raise CannotCapture(
                f"two arguments have the path {path!r}, by which a program names its inputs: call one of them otherwise"
            )
        self.tensors[path] = value
        if value.requires_grad:
            self.trained.add(path)
        return Tensor(path)

    def _state(self, value: torch.Tensor, path: str) -> str:
        """The path of a tensor of a module or optimiser: that of the first place where it stands."""
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = path
            self._tensor(value, path)
            self.state.add(path)
            if value.is_leaf and value.grad is not None:
                self.gradients[path] = value.grad
        return known

    def _check_schedulers(self) -> None:
        optimizers = [found.optimizer for found in self.optimizers]
        for found in self.schedulers:
            if not all(any(each.optimizer is one for one in optimizers) for each in inner(found.scheduler)):
                raise CannotCapture(
                    f"{found.path!r} sets the rates of an optimiser that is not among the arguments: give that too"
                )

    def _module(self, module: nn.Module, path: str) -> Module:
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        if any(nn.parameter.is_lazy(tensor) for _, tensor in named):
            raise CannotCapture(f"{path!r} is a lazy module and has no parameters yet; run it on an example first")
        found = Module(path, module, {name: self._state(tensor, joined(path, name)) for name, tensor in named})
        self.modules.append(found)
        return found

    def _fill(self, template: Optimizer, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                number = len(template.parameters)
                template.parameters.append(self._state(parameter, joined(template.path, f"parameters.{number}")))
                kept = optimizer.state.get(parameter, {})
                template.state.append(
                    {
                        key: self._state(value, joined(template.path, f"state.{number}.{key}"))
                        if isinstance(value, torch.Tensor)
                        else Plain(value)
                        for key, value in kept.items()
                    }
                )

    # --- with other tensors -------------------------------------------------------------------------------

    def rebuilt(self, template: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
        if isinstance(template, Tensor):
            return tensors[self._same.get(template.path, template.path)]
        if isinstance(template, Module):
            return template.module
        if isinstance(template, Optimizer):
            return template.optimizer
        if isinstance(template, Scheduler):
            return template.scheduler
        if isinstance(template, dict):
            return {key: self.rebuilt(value, tensors) for key, value in template.items()}
        if isinstance(template, list | tuple):
            return same_kind(template, [self.rebuilt(item, tensors) for item in template])
        return template.value

    @contextmanager
    def swapped(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Modules and optimisers with these tensors in place of their own, for a while. All of what they are comes back
        afterwards, also what the function made them keep."""
        states = [found.optimizer.state for found in self.optimizers]
        before = Before(
            [(found.path, found.module) for found in self.modules],
            [(found.path, found.optimizer) for found in self.optimizers],
            [(found.path, found.scheduler) for found in self.schedulers],
        )
        self._stack.append(before)
        try:
            for found in self.modules:
                for name, path in found.names.items():
                    owner, leaf = _place(found.module, name)
                    if leaf in owner._parameters:
                        tensors[path]._is_param = True  # what isinstance asks for
                    (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = tensors[path]  # type: ignore[assignment]
            for template in self.optimizers:
                _swap_optimizer(template, tensors)
            yield
        finally:
            self._stack.pop()
            before.restore()
            for template, state in zip(self.optimizers, states, strict=True):
                template.optimizer.state = state

    @property
    def before(self) -> Before:
        """What the arguments were like before they were swapped."""
        return self._stack[-1]

    def held(self) -> Iterator[tuple[str, str | None, torch.Tensor]]:
        """What modules and optimisers hold now, while they are swapped: (path, the path of what stood there before or
        None where nothing did, tensor)."""
        for found in self.modules:
            for name, tensor in named_tensors(found.module):
                yield joined(found.path, name), found.names.get(name), tensor
        for template in self.optimizers:
            parameters = [p for group in template.optimizer.param_groups for p in group["params"]]
            for number, parameter in enumerate(parameters):
                if number < len(template.parameters):
                    yield template.parameters[number], template.parameters[number], parameter
                for key, value in template.optimizer.state.get(parameter, {}).items():
                    if isinstance(value, torch.Tensor):
                        before = template.state[number].get(key) if number < len(template.state) else None
                        path = joined(template.path, f"state.{number}.{key}")
                        yield path, before if isinstance(before, str) else None, value


def _swap_optimizer(template: Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    made = iter([tensors[path] for path in template.parameters])
    state: Any = defaultdict(dict)
    at = 0
    for group in template.optimizer.param_groups:
        group["params"] = [next(made) for _ in group["params"]]
        for parameter in group["params"]:
            values = template.state[at]
            if values:
                state[parameter] = {k: tensors[v] if isinstance(v, str) else v.value for k, v in values.items()}
            at += 1
    template.optimizer.state = state


def named_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return module.get_submodule(owner), leaf


def joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def same_kind(example: Any, items: list[Any]) -> Any:
    """The items in a list, a tuple, or a named tuple as the example is."""
    if hasattr(example, "_fields"):
        return type(example)(*items)
    return tuple(items) if isinstance(example, tuple) else items
