"""A stored plan on objects that are all at one peer, as most runs by hash are: nothing is to be found, placed, brought.

What placement would choose is that peer, as no other has an input. All else goes the usual way (running.py), what is to
be refused among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compute.capture import LOADED
from compute.dtypes import NAME_OF
from compute.program import Input
from grid.given import walk
from grid.jobs import Job, check_sizes
from grid.plans import RemotePlan
from grid.pointer import Pointer
from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.remote import RemotePeer


def at_hand(plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Job, RemotePeer] | None:
    """The job, and where; if the plan's program is here, and it is given a pointer for each of its inputs, all to one
    peer."""
    if type(plan) is not RemotePlan or not plan.is_loaded or not (args or kwargs):
        return None
    inputs = plan.program.inputs
    given = _in_order(inputs, args, kwargs)
    if given is None or not isinstance(given[0], Pointer):
        return None
    home = given[0]._handle.home
    for each, value in zip(inputs, given, strict=True):
        if not isinstance(value, Pointer) or value._handle.home is not home or not _fits(each, value):
            return None
    try:
        check_sizes(plan.program, given)
    except BadRequest:
        return None
    names = tuple(each.name for each in inputs)
    return Job(plan.called, plan.program, tuple(given), names, plan.location), home


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


def _fits(wanted: Input, pointer: Pointer) -> bool:
    """Whether the pointer itself can be this input, whatever its sizes."""
    handle = pointer._handle
    if handle.target is not None or not handle.is_good(handle.home.outbox.era) or handle.home.loop.is_closed():
        return False
    if wanted.content is not None or wanted.name.startswith(LOADED):
        return False
    return wanted.dtype is None or NAME_OF.get(pointer.dtype) == wanted.dtype
