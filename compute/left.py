"""What a function leaves in its arguments besides tensors: settings of optimisers, the epochs of schedulers, attributes
of modules. The function runs here for its program's sake, several times perhaps; so all of it is undone, and told.
"""

from __future__ import annotations

import copy
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.lr_scheduler import LRScheduler

from compute.frames import Call, Frame, Ref, Source, storage_of, values_in
from compute.refusals import refusal

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), torch.dtype)
_CONTAINERS: Final = (list, dict, set, deque)
_DEEP: Final = 3


@dataclass(frozen=True, slots=True)
class Left:
    """A plain value that stands somewhere in an argument after the function has run.

    Attributes:
        path: the argument.
        part: of a module the name of one in it, of an optimiser the number of a group, of a scheduler the number of
            one in it.
    """

    path: str
    part: str
    name: str
    value: Any


@dataclass(slots=True)
class _Holder:
    """Something with attributes or items: `holds` gives them as they are now."""

    path: str
    part: str
    holds: Callable[[], dict[str, Any]]
    before: dict[str, Any]
    contents: dict[str, Any]  # of the containers among them


class Before:
    """What these arguments were like."""

    def __init__(
        self,
        modules: Sequence[tuple[str, nn.Module]],
        optimizers: Sequence[tuple[str, torch.optim.Optimizer]],
        schedulers: Sequence[tuple[str, LRScheduler]],
    ) -> None:
        self._groups = [(path, optimizer, list(optimizer.param_groups)) for path, optimizer in optimizers]
        self._modules = [
            _holder(path, name, part.__dict__) for path, module in modules for name, part in module.named_modules()
        ]
        self._settings = [
            _holder(path, str(number), group)
            for path, optimizer in optimizers
            for number, group in enumerate(optimizer.param_groups)
        ]
        self._schedulers = [
            _holder(path, str(number), each.__dict__)
            for path, scheduler in schedulers
            for number, each in enumerate(inner(scheduler))
        ]

    def left(self) -> tuple[Left, ...]:
        """What is otherwise now, and is no tensor.

        Raises:
            CannotCapture: an optimiser has another group, or a tensor among its settings that it had not.
        """
        for path, optimizer, groups in self._groups:
            if len(optimizer.param_groups) != len(groups):
                raise refusal(
                    f"the function adds parameters to the optimiser {path!r}: add them before, or make it here"
                )
        found: list[Left] = []
        for holder in self._modules:
            found += [one for one in _changes(holder) if isinstance(one.value, _PLAIN)]
        for holder in (*self._settings, *self._schedulers):
            for one in _changes(holder):
                if one.name == "params":
                    continue
                if next(fakes(one.value), None) is not None:
                    raise refusal(
                        f"the function puts a tensor into {one.name!r} of {one.path!r}: a number can be kept there"
                    )
                found.append(one)
        return tuple(found)

    def stashed(self, is_data: Callable[[torch.Tensor], bool]) -> dict[tuple[str, str, str], Any]:
        """Tensors that modules keep by attributes that are none of their tensors, by (path, part, attribute): those
        that hang on what they were called with (`is_data`). Others, a table of angles, come out the same again."""
        return {
            (holder.path, holder.part, name): copy.copy(value) if type(value) in _CONTAINERS else value
            for holder in self._modules
            for name, value in holder.holds().items()
            if name not in _TABLES and any(map(is_data, fakes(value)))
        }

    def stash(self, stashed: Mapping[tuple[str, str, str], Any]) -> None:
        """Modules keep these again."""
        for holder in self._modules:
            for (path, part, name), value in stashed.items():
                if (path, part) == (holder.path, holder.part):
                    holder.holds()[name] = value

    def restore(self) -> None:
        """They are like that again."""
        for _, optimizer, groups in self._groups:
            optimizer.param_groups[:] = groups
        for holder in (*self._modules, *self._settings, *self._schedulers):
            own = holder.holds()
            for name, content in holder.contents.items():
                _refill(holder.before[name], content)
            own.clear()
            own.update(holder.before)


_TABLES: Final = frozenset({"_parameters", "_buffers", "_modules"})


def inner(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    """A scheduler, and those that it goes through."""
    yield scheduler
    for each in getattr(scheduler, "_schedulers", ()):
        yield from inner(each)


def fakes(value: Any, depth: int = 0) -> Iterator[FakeTensor]:
    """The tensors of a capture in something."""
    if isinstance(value, torch.Tensor):
        if isinstance(value, FakeTensor):
            yield value
    elif depth <= _DEEP and isinstance(value, list | tuple | dict | set | deque):
        for each in value.values() if isinstance(value, dict) else value:
            yield from fakes(each, depth + 1)


def hangs_on(frame: Frame, tensor: torch.Tensor, sources: Collection[int]) -> bool:
    """Whether a tensor was made of one of these inputs of the frame (by their ids), or of random numbers; or nobody
    knows of what."""
    found = frame.own(tensor)
    if found is None:
        return True
    writers: dict[int, list[Call]] = {}
    for call in frame.calls:
        for storage in call.written:
            writers.setdefault(storage, []).append(call)
    left, seen = [found], set[int]()
    while left:
        value = left.pop()
        if not isinstance(value, Ref) or id(value.of) in seen:
            continue
        seen.add(id(value.of))
        if isinstance(value.of, Source):
            if id(value.of) in sources:
                return True
            made: Sequence[Any] = [value.of.tensor]
        else:
            if _RANDOM.search(value.of.operation):
                return True
            made = value.of.tensors
            left += values_in([value.of.args, value.of.kwargs])
        for each in made:
            if isinstance(each, torch.Tensor):
                left += [Ref(call) for call in writers.get(storage_of(each), ())]
    return False


_RANDOM: Final = re.compile("rand|normal|bernoulli|multinomial|exponential|poisson|dropout|flow")


def _holder(path: str, part: str, own: dict[str, Any]) -> _Holder:
    contents = {name: _copied(value) for name, value in own.items() if type(value) in _CONTAINERS or name in _TABLES}
    return _Holder(path, part, lambda: own, dict(own), contents)


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(content)


def _changes(holder: _Holder) -> Iterator[Left]:
    for name, value in holder.holds().items():
        before = holder.before.get(name, holder)
        if value is not before and not (type(value) is type(before) and isinstance(value, _PLAIN) and value == before):
            yield Left(holder.path, holder.part, name, value)


def put(left: Left, argument: Any) -> None:
    """Into the argument of that path."""
    if isinstance(argument, nn.Module):
        setattr(argument.get_submodule(left.part), left.name, left.value)
    elif isinstance(argument, torch.optim.Optimizer):
        argument.param_groups[int(left.part)][left.name] = left.value
    elif isinstance(argument, LRScheduler):
        setattr(list(inner(argument))[int(left.part)], left.name, left.value)
