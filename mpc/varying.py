"""What all parties know in a loop, and what differs from iteration to iteration: computed for each, beforehand.

Of every such tensor one stands for all, that of the first iteration; operations on it are done for all. So whatever is
lowered sees one tensor, and what becomes of it is right for each. Whoever looks at a value gets it where it is the same
in all iterations; where it is not, the loop is written out (`Differs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes


class Differs(Exception):
    """How an iteration is lowered hangs on values that differ: the loop cannot be kept as one."""


class Varying:
    """The public tensors of one loop that differ, each by the identity of the first iteration's."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._values: dict[int, list[torch.Tensor]] = {}
        self._viewed: set[int] = set()  # tensors of which there are views
        self._alive: list[Any] = []
        self._is_busy = False

    def note(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Values of all iterations; gives what stands for them."""
        self._values[id(values[0])] = list(values)
        self._alive.append(values)
        return values[0]

    def of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Its value in each iteration; one alone where it is the same in all."""
        found = self._values.get(id(tensor))
        if found is None:
            return [tensor]
        with _disable_current_modes():
            return found if any(not _is_same(each, found[0]) for each in found[1:]) else found[:1]

    def has(self, value: Any) -> bool:
        """Whether something in it may differ."""
        return any(isinstance(leaf, torch.Tensor) and id(leaf) in self._values for leaf in pytree.tree_leaves(value))

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        found = self._values.get(id(tensor))
        if found is None:
            return tensor.clone()
        with _disable_current_modes():
            return self.note([each.clone() for each in found])

    def run(self, function: Callable[..., Any], overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation on what all know, in each iteration where it may differ. `function` does it."""
        is_random = torch.Tag.nondeterministic_seeded in overload.tags
        if self._is_busy or not (is_random or self.has((args, kwargs))):
            made = function(*args, **kwargs)
            self._note_views(made, args)
            return made
        if overload._schema.is_mutable:
            self._make_own(args[0])
        self._is_busy = True
        try:
            made = [function(*self._at(at, list(args)), **self._at(at, dict(kwargs))) for at in range(self.count)]
        finally:
            self._is_busy = False
        return self._together(made)

    def _note_views(self, made: Any, args: Sequence[Any]) -> None:
        bases = {id(each._base) for each in pytree.tree_leaves(made) if isinstance(each, torch.Tensor)}
        self._viewed |= {id(each) for each in pytree.tree_leaves(list(args)) if id(each) in bases}

    def _make_own(self, changed: torch.Tensor) -> None:
        """What is written to becomes one tensor for each iteration."""
        if id(changed) in self._values:
            return
        if changed._base is not None or id(changed) in self._viewed:
            raise Differs("a view of what all know is written to in a loop")
        with _disable_current_modes():
            self.note([changed, *(changed.clone() for _ in range(self.count - 1))])

    def _at(self, at: int, value: Any) -> Any:
        return pytree.tree_map(
            lambda leaf: (
                self._values[id(leaf)][at] if isinstance(leaf, torch.Tensor) and id(leaf) in self._values else leaf
            ),
            value,
        )

    def _together(self, made: list[Any]) -> Any:
        """The first iteration's results, which stand for all."""
        leaves = [pytree.tree_leaves(each) for each in made]
        for column in zip(*leaves, strict=True):
            if isinstance(column[0], torch.Tensor):
                if id(column[0]) not in self._values:
                    self.note(column)
            elif any(each != column[0] for each in column):
                raise Differs("a number that is not the same in all iterations decides what is computed")
        return made[0]


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
