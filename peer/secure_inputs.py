"""The inputs of a secure run that are at this peer: how its process gets them, and what their owners allow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from peer import permissions
from peer.agreement import Agreement
from peer.buffers import Buffer
from peer.execution import Execution
from peer.objects import Held, Published, Temporary, show_id
from peer.secure_rules import Rule, Rules
from peer.spans import StoredSpan, release
from peer.worker.seat import Seat
from protocol.errors import BadRequest


class Given:
    """What is here of a run's inputs: how the process gets it, whose private data it is, what the owners said."""

    def __init__(self) -> None:
        self.provided: list[Callable[[Seat], Any]] = []
        self.labels: frozenset[str] = frozenset()
        self.rules: dict[int, Rules] = {}


async def given_here(agreement: Agreement, here: str, execution: Execution, undo: AsyncExitStack) -> Given:
    """What gives a process the inputs that this peer has (`here` is its id), until `undo`.

    Denied: an owner does not let the result be revealed to whom it is for.
    """
    own = {at: each for at, each in enumerate(agreement.inputs) if each.peer == here}
    given = Given()
    if not own:
        return given
    async with execution.lane(agreement.asker):
        held = await execution.inputs(agreement.asker, [each.id for each in own.values()])
        for at, each in own.items():
            given.rules[at] = _rules_of(held[each.id], agreement.asker)
            for rule in given.rules[at] if agreement.reveals else ():
                permissions.check_reveal(agreement.reveal, rule, f"object {show_id(each.id)}")
        takings = {
            id: execution.snapshot(one, in_memory=True)
            for id, one in held.items()
            if isinstance(one, Temporary) and _is_no_pointer(one)
        }
        for taking in takings.values():
            undo.callback(taking.close)
    for id, one in held.items():
        given.labels |= one.labels - {agreement.asker}
        if isinstance(one, Published):
            given.provided.append(_stored(execution, one))
            header = one.tensor.header
        else:
            header, value = await takings[id]
            undo.callback(release, value)
            assert not isinstance(value, StoredSpan)
            given.provided.append(_in_memory(id, header, value))
        if any(each.header != header for each in own.values() if each.id == id):
            raise BadRequest(f"object {show_id(id)} is {header}, not what was agreed on")
    return given


def _rules_of(held: Held, asker: str) -> Rules:
    """What its owner said of it; who asks has given leave for data of its own."""
    labels = held.labels - {asker}
    return frozenset({Rule(held.owner, labels, held.reveal)}) if labels else frozenset()


def _is_no_pointer(held: Temporary) -> bool:
    if held.target is not None:
        raise BadRequest(f"{show_id(held.id)} points to an object at {held.target.name}: name that one")
    return True


def _stored(execution: Execution, held: Published) -> Callable[[Seat], Any]:
    return lambda seat: execution.bring_published(held, seat)


def _in_memory(id: bytes, header: Any, value: bytes | Buffer) -> Callable[[Seat], Any]:
    async def provide(seat: Seat) -> None:
        seat.provide(id, header, value if isinstance(value, bytes) else value.share())

    return provide
