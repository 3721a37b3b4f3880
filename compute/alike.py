"""Arguments that look alike to a capture: tensors by dtype and shape, modules and optimisers by all that they are but
the values of their tensors."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from types import FunctionType
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as hooks_of_all
from torch.optim.optimizer import _global_optimizer_post_hooks as _AFTER_STEPS
from torch.optim.optimizer import _global_optimizer_pre_hooks as _BEFORE_STEPS

from compute.closed import NotClosed, Reader, plain
from compute.dtypes import NAME_OF
from compute.model_spec import ModelSpec
from compute.program_module import ProgramFunction, ProgramModule
from compute.unpatched import version


class Arguments:
    """Reads all arguments of one function: which of them are one tensor counts too."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._numbers: dict[int, int] = {}  # of tensors of modules and optimisers, by identity
        self._modules: dict[int, int] = {}
        self._plain: list[int] = []  # of tensors that are arguments
        self._classes: set[type] = set()

    def read(self, value: Any) -> Hashable:
        """Raises NotClosed where a capture may go by something that is not read."""
        if isinstance(value, torch.Tensor):
            self._plain.append(id(value))
            return isinstance(value, nn.Parameter), self._tensor(value)
        kind = type(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, torch.optim.Optimizer):
            return self._optimizer(value)
        if kind is dict:
            return kind, tuple([(plain(key), self.read(item)) for key, item in value.items()])
        if kind is list or kind is tuple or _is_named_tuple(kind):
            return kind, tuple([self.read(item) for item in value])
        if kind is ProgramFunction and not value.held:
            return kind, value.program
        return plain(value)

    def ties(self) -> Hashable:
        """Which of the tensors among the arguments are a module's or an optimiser's."""
        return tuple([self._numbers.get(each) for each in self._plain])

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        if tensor.layout != torch.strided or tensor.dtype not in NAME_OF:
            raise NotClosed
        return tensor.dtype, tuple(tensor.shape), tensor.requires_grad

    def _held(self, tensor: torch.Tensor) -> Hashable:
        """A tensor of a module or an optimiser."""
        number = self._numbers.setdefault(id(tensor), len(self._numbers))
        has_gradient = tensor.is_leaf and tensor.grad is not None
        return number, isinstance(tensor, nn.Parameter), has_gradient, self._tensor(tensor)

    # --- modules ------------------------------------------------------------------------------------------

    def _module(self, module: nn.Module) -> Hashable:
        if any(vars(hooks_of_all)[name] for name in _OF_ALL):
            raise NotClosed
        if id(module) in self._modules:
            return "again", self._modules[id(module)]
        self._modules[id(module)] = len(self._modules)
        found: list[Any] = [type(module), self._class(type(module))]
        own = dict(vars(module))
        for name in ("_parameters", "_buffers"):
            tensors: Mapping[str, torch.Tensor | None] = own.pop(name)
            found.append(tuple([(key, each if each is None else self._held(each)) for key, each in tensors.items()]))
        inner: Mapping[str, nn.Module | None] = own.pop("_modules")
        for key, each in inner.items():
            found.append((key, each if each is None else self._module(each)))
        found += [(name, self._attribute(name, item)) for name, item in own.items()]
        return tuple(found)

    def _class(self, kind: type) -> Hashable:
        """What a class of the user's does, with those that are mixed in after torch's; torch's own are what they are
        as long as nobody changes them."""
        if kind in self._classes:
            return ()
        self._classes.add(kind)
        found: list[Hashable] = []
        for each in kind.__mro__:
            if each.__module__.startswith(_TORCH):
                found.append(_version(each))
            elif each not in _KNOWN and not self._reader.is_trusted(each) and not vars(each).keys() <= _OF_MIXED:
                found += [(name, self._member(name, item)) for name, item in vars(each).items()]
        return tuple(found)

    def _member(self, name: str, item: Any) -> Hashable:
        if name in _SAYS_NOTHING:
            return None
        if name.startswith("__") and name != "__repr__":
            raise NotClosed  # it may change what anything on the object means
        return self._reader.function(item) if type(item) is FunctionType else self._reader.value(item)

    def _attribute(self, name: str, item: Any) -> Hashable:
        """An attribute of a module, or of an optimiser, that is no tensor of its own."""
        if isinstance(item, ModelSpec):
            return item.program, repr((item.slots, item.inputs, item.signature))
        if "_hooks" in name and isinstance(item, dict):
            if item:
                raise NotClosed
            return type(item)
        if isinstance(item, weakref.ref):
            item = item()
        if isinstance(item, torch.Tensor):
            if id(item) not in self._numbers:
                raise NotClosed  # what is in it counts
            return self._numbers[id(item)]
        if type(item) is set or type(item) is frozenset:
            return type(item), tuple([plain(each) for each in item])  # in the order in which a loop meets them
        if type(item) is list or type(item) is tuple:
            return type(item), self._reader.number(item), tuple([self._attribute("", each) for each in item])
        return self._reader.value(item)

    # --- optimisers ---------------------------------------------------------------------------------------

    def _optimizer(self, optimizer: torch.optim.Optimizer) -> Hashable:
        kind, own = type(optimizer), dict(vars(optimizer))
        if not kind.__module__.startswith("torch.optim."):
            raise NotClosed
        if not all(map(self._reader.is_trusted, [*_BEFORE_STEPS.values(), *_AFTER_STEPS.values()])):
            raise NotClosed
        found: list[Any] = [kind, *[_version(each) for each in kind.__mro__ if each is not object]]
        for group in own.pop("param_groups"):
            found += [self._held(each) for each in group["params"]]
            found += [(key, self._reader.value(item)) for key, item in group.items() if key != "params"]
        for parameter, state in own.pop("state").items():
            kept = [
                (key, self._held(item) if isinstance(item, torch.Tensor) else plain(item))
                for key, item in state.items()
            ]
            found.append((self._numbers.get(id(parameter)), tuple(kept)))
        found += [(name, self._attribute(name, item)) for name, item in own.items()]
        return tuple(found)


def _version(kind: type) -> int:
    number = version(kind)
    if number is None:
        raise NotClosed
    return number


def _is_named_tuple(kind: type) -> bool:
    """Whether it is one that has names, and nothing else of its own."""
    fields = getattr(kind, "_fields", ())
    if kind.__mro__ != (kind, tuple, object) or not vars(kind).keys() <= _OF_NAMED | set(fields):
        return False
    return all(type(vars(kind)[name]) is type(_EXAMPLE.x) for name in fields)


class _Example(NamedTuple):
    x: int


_EXAMPLE: Final[Any] = _Example
_OF_NAMED: Final = (vars(_Example).keys() - {"x"}) | {"__orig_bases__", "__annotations__"}
_KNOWN: Final = frozenset({object, ProgramModule})
_OF_ALL: Final = [name for name in vars(hooks_of_all) if name.startswith("_global_")]
_TORCH: Final = "torch.nn.modules."
_OF_MIXED: Final = frozenset({"_plain", "__module__", "__doc__", "__firstlineno__", "__static_attributes__"})
_SAYS_NOTHING: Final = frozenset(
    "__init__ __module__ __doc__ __qualname__ __firstlineno__ __static_attributes__ __annotations__ __parameters__ "
    "__annotate_func__ __annotations_cache__".split()
)
