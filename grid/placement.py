"""Where a computation runs: where its inputs are, moving the fewest bytes that may move. Decides; waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import BadRequest, NotCollocated


@dataclass(frozen=True, slots=True)
class Input:
    """One input: what people call it, the peer that has it (an id; None: it is here) and that one's name, its size in
    bytes, and whose leave a copy of it needs."""

    what: str
    peer: str | None
    nbytes: int
    labels: frozenset[str] = frozenset()
    peer_name: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """`peer` runs it; the inputs with these indices are brought there first; `nbytes` is what travels."""

    peer: str
    brought: tuple[int, ...]
    nbytes: int


def place(inputs: Sequence[Input], asker: str) -> Placement:
    """The cheapest peer that every input is at or may be copied to.

    Raises:
        NotCollocated: data that may not leave are at different peers.
        BadRequest: no input is at any peer.
    """
    peers = sorted({each.peer for each in inputs if each.peer is not None})
    if not peers:
        raise BadRequest(
            "nothing is at a peer: give at least one argument as a query or a pointer, or call the function itself"
        )
    possible = [_at(peer, inputs) for peer in peers if all(_may_come(each, peer, asker) for each in inputs)]
    if not possible:
        raise _not_collocated(inputs, asker)
    return min(possible, key=lambda placement: placement.nbytes)


def _at(peer: str, inputs: Sequence[Input]) -> Placement:
    brought = tuple(index for index, each in enumerate(inputs) if each.peer != peer)
    return Placement(peer, brought, sum(inputs[index].nbytes for index in brought))


def _may_come(each: Input, peer: str, asker: str) -> bool:
    return each.peer in (peer, None) or each.labels <= {asker}


def _not_collocated(inputs: Sequence[Input], asker: str) -> NotCollocated:
    fixed = [each for each in inputs if each.peer is not None and not each.labels <= {asker}]
    where = ", ".join(f"{each.what} at {each.peer_name}" for each in fixed)
    return NotCollocated(
        f"private data are at different peers and may not leave them: {where}. Ask an owner to copy theirs to the "
        "other peer (await pointer.copy(peer))"
    )
