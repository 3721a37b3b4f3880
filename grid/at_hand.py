"""A stored plan on objects that are all at one peer, as most runs by hash are: nothing is to be found, placed, brought.

What placement would choose is that peer, as no other has an input. All else goes the usual way (running.py), what is to
be refused among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compute.capture import LOADED
from compute.dtypes import NAME_OF
from compute.program import Input, Program
from grid.given import joined, walk
from grid.jobs import check_sizes
from grid.plans import Fitted, RemotePlan
from grid.pointer import Pointer
from grid.repeated import home_of
from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.remote import RemotePeer


@dataclass(slots=True)
class AtHand:
    """A run at `home`, where all is.

    Attributes:
        given: for each of the program's inputs.
        ids: of these.
        labels: what is private of them.
    """

    home: RemotePeer
    name: str
    program: Program
    given: Sequence[Pointer]
    ids: list[bytes]
    labels: frozenset[str]


def at_hand(plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AtHand | None:
    """The run; if the plan's program is here, and it is given a pointer for each of its inputs, all to one peer."""
    if type(plan) is not RemotePlan or plan._program is None or not (args or kwargs):
        return None
    given = _as_before(plan.fitted, args, kwargs) or _that_fit(plan, args, kwargs)
    if given is None:
        return None
    home = home_of(given)
    if home is None:
        return None
    ids, labels = [], frozenset[str]()
    for each in given:
        handle = each._handle
        if handle.record is not None:
            labels |= handle.labels
        ids.append(handle.id)
    return AtHand(home, plan.called, plan._program, given, ids, labels)


def _as_before(before: Fitted | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Pointer] | None:
    """What is given for each input, if these are arguments such as fitted before."""
    if before is None or len(args) + len(kwargs) != len(before.arguments):
        return None
    values: list[Any] = []
    for number, (name, keys) in enumerate(before.arguments):
        value = args[number] if number < len(args) else kwargs.get(name)
        if keys is None:
            values.append(value)
        elif type(value) is dict and tuple(value) == keys:
            values += value.values()
        else:
            return None
    given = [values[at] for at in before.order]
    for each, (dtype, shape) in zip(given, before.looks, strict=True):
        if not isinstance(each, Pointer) or each.dtype is not dtype or each.shape != shape:
            return None
    return given


def _that_fit(plan: RemotePlan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Pointer] | None:
    """A pointer for each of the plan's inputs; None where something else is given."""
    inputs = plan.program.inputs
    given = _in_order(inputs, args, kwargs)
    if given is None:
        return None
    for wanted, value in zip(inputs, given, strict=True):
        if not isinstance(value, Pointer) or wanted.content is not None or wanted.name.startswith(LOADED):
            return None
        if wanted.dtype is not None and NAME_OF.get(value.dtype) != wanted.dtype:
            return None
    try:
        check_sizes(plan.program, given)
    except BadRequest:
        return None
    plan.fitted = _remembered(inputs, args, kwargs, given)
    return given


def _remembered(
    inputs: Sequence[Input], args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[Pointer]
) -> Fitted | None:
    """That these arguments fit; None where more is in them than pointers and dicts of pointers."""
    takes = list(dict.fromkeys(each.name.partition(".")[0] for each in inputs))
    values = [*args, *(kwargs.get(name) for name in takes[len(args) :])]
    keys = [tuple(value) if type(value) is dict else None for value in values]
    paths: list[str] = []
    for name, of_one in zip(takes, keys, strict=True):
        if of_one is not None and any(type(key) is not str for key in of_one):
            return None
        paths += [name] if of_one is None else [joined(name, key) for key in of_one]
    names = [each.name for each in inputs]
    if sorted(paths) != sorted(names):
        return None
    looks = tuple((value.dtype, value.shape) for value in given)
    return Fitted(tuple(zip(takes, keys, strict=True)), tuple(map(paths.index, names)), looks)


def _in_order(inputs: Sequence[Input], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """What is given for each input; None where more or less is given, or something has another name."""
    if len(args) + len(kwargs) == len(inputs) and not any("." in each.name for each in inputs):
        return [*args, *(kwargs.get(each.name) for each in inputs[len(args) :])]
    takes = list(dict.fromkeys(each.name.partition(".")[0] for each in inputs))
    if len(args) + len(kwargs) != len(takes):
        return None
    found = dict(walk({**dict(zip(takes, args, strict=False)), **kwargs}))
    given = [found.pop(each.name, None) for each in inputs]
    return None if found else given
