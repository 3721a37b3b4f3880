"""Values that need no second look: indices that a pooling made, used by its gradient, with nobody in between.

A gradient kernel trusts its indices, so they are checked at each call (value_guards.py). Those of a pooling lie within
its input by the way they were made. Where a block of operations that is known by its looks has both, on the same input,
and nothing in between can have written to what the pooling made, the check would find nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

# A window that is dilated may lie beside the input, and then its index does, too.
_DILATION: Final = {"aten.max_pool2d_with_indices.default": 4, "aten.max_pool3d_with_indices.default": 4}
_MAKERS: Final = {  # gradient: the pooling whose second result its indices are, their position, and the input's in both
    "aten.max_pool2d_with_indices_backward.default": ("aten.max_pool2d_with_indices.default", 7, 1),
    "aten.max_pool3d_with_indices_backward.default": ("aten.max_pool3d_with_indices.default", 7, 1),
    "aten.adaptive_max_pool2d_backward.default": ("aten.adaptive_max_pool2d.default", 2, 1),
    "aten.adaptive_max_pool3d_backward.default": ("aten.adaptive_max_pool3d.default", 2, 1),
}
_POOLINGS: Final = frozenset(maker for maker, _, _ in _MAKERS.values())


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of a block.

    Attributes:
        args: what is given by position; a value of the block by what names it there.
        is_plain: nothing is given by name.
        gives: the names of its results.
        writes: the names of what it writes; None where that is not known.
    """

    name: str
    args: Sequence[Any]
    is_plain: bool
    gives: tuple[Hashable, ...]
    writes: Sequence[Hashable] | None


def proven(calls: Sequence[Call], given: frozenset[Hashable]) -> list[int]:
    """The numbers of the calls whose values need no look. `given` names what was there before the block began, and so
    shares no memory with anything that it makes."""
    found: list[int] = []
    made: dict[Hashable, Call] = {}  # by the name of the indices
    for number, call in enumerate(calls):
        if call.writes:
            written = call.writes
            made = {name: by for name, by in made.items() if by.args[0] not in written and given.issuperset(written)}
        elif call.writes is None:
            made.clear()
        if call.name in _POOLINGS and call.is_plain and call.args and len(call.gives) > 1 and _is_dense(call):
            made[call.gives[1]] = call
        if call.name in _MAKERS and call.is_plain:
            maker, at, pooled = _MAKERS[call.name]
            indices = call.args[at] if len(call.args) > at else None
            of = made.get(indices) if isinstance(indices, Hashable) else None
            if of is not None and of.name == maker and of.args[0] == call.args[pooled]:
                found.append(number)
    return found


def _is_dense(call: Call) -> bool:
    position = _DILATION.get(call.name)
    if position is None or len(call.args) <= position:
        return True
    dilation = call.args[position]
    return dilation == 1 or (isinstance(dilation, list | tuple) and all(each == 1 for each in dilation))
