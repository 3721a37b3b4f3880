"""Where a computation runs: where its inputs are, moving the fewest bytes that may move. Decides; waits for nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocol.errors import BadRequest, NotCollocated


@dataclass(frozen=True, slots=True)
class Input:
    """One input.

    Attributes:
        what: what people call it.
        peer: the id of the peer that has it; None: it is here.
        nbytes: its size in bytes.
        labels: whose leave a copy of it needs.
        peer_name: that peer's name.
        key: the object that it is, where several inputs are one: that is brought once.
        copies: other peers that have it too, names by ids.
    """

    what: str
    peer: str | None
    nbytes: int
    labels: frozenset[str] = frozenset()
    peer_name: str = ""
    key: object = None
    copies: Mapping[str, str] = field(default_factory=dict)

    def is_at(self, peer: str) -> bool:
        return peer == self.peer or peer in self.copies


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that could run it.

    Attributes:
        peer, name: its id and name.
        brought: the indices of the inputs that have to be brought there, each object once.
        nbytes: what travels then.
        forbidden: why it may not: the inputs that must not leave where they are. Empty: it may.
        is_ready: it is there, and knows the program already.
    """

    peer: str
    name: str
    brought: tuple[int, ...]
    nbytes: int
    forbidden: tuple[str, ...] = ()
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What else is known when a place is chosen.

    Attributes:
        ready: ids of the peers that are there and know the program.
        at: id and name of the one peer that comes into question.
        otherwise: of the one that does where no input is at any: who has the plan.
    """

    ready: Collection[str] = ()
    at: tuple[str, str] | None = None
    otherwise: tuple[str, str] | None = None


FREE: Final = Choice()


def candidates(inputs: Sequence[Input], asker: str, choice: Choice = FREE) -> list[Candidate]:
    """All peers that an input is at, the cheapest first: those that may run it, in the order of the bytes that travel,
    and with as many bytes those that are ready.

    Args:
        asker: the id of who asks, who may copy what is its own.
    """
    names = {each.peer: each.peer_name for each in inputs if each.peer is not None}
    names.update(copy for each in inputs for copy in each.copies.items())
    peers = sorted(names.items())
    if choice.at is not None:
        peers = [choice.at]
    elif not peers and choice.otherwise is not None:
        peers = [choice.otherwise]
    found = [_at(peer, name, inputs, asker, peer in choice.ready) for peer, name in peers]
    return sorted(found, key=lambda one: (bool(one.forbidden), one.nbytes, not one.is_ready))


def place(inputs: Sequence[Input], asker: str, choice: Choice = FREE) -> Candidate:
    """The cheapest peer that every input is at or may be copied to. Arguments as for `candidates`.

    Raises:
        NotCollocated: data that may not leave are at different peers.
        BadRequest: no input is at any peer.
    """
    found = candidates(inputs, asker, choice)
    if not found:
        raise BadRequest(
            "nothing is at a peer: give at least one argument as a query or a pointer, or call the function itself"
        )
    if found[0].forbidden:
        raise not_collocated(inputs, asker, choice.at)
    return found[0]


def not_collocated(inputs: Sequence[Input], asker: str, at: tuple[str, str] | None = None) -> NotCollocated:
    """Why there is no peer for it, and what to do about it."""
    fixed = [each for each in inputs if each.peer is not None and not each.labels <= {asker}]
    where = ", ".join(dict.fromkeys(f"{each.what} at {each.peer_name}" for each in fixed))
    if at is not None:
        return NotCollocated(
            f"it is to run at {at[1]}, and what is private to others may not go there: {where}. Ask its owner to copy "
            f"it to {at[1]}"
        )
    return NotCollocated(
        f"private data are at different peers and may not leave them: {where}. Ask an owner to copy theirs to the "
        "other peer (await pointer.copy(peer)), or run a plan at each (g.map) that gives what may leave"
    )


def _at(peer: str, name: str, inputs: Sequence[Input], asker: str, is_ready: bool) -> Candidate:
    brought: dict[object, int] = {}
    for index, each in enumerate(inputs):
        if not each.is_at(peer):
            brought.setdefault(("alone", index) if each.key is None else each.key, index)
    forbidden = dict.fromkeys(
        f"{inputs[index].what} is private and stays at {inputs[index].peer_name}"
        for index in brought.values()
        if not _may_come(inputs[index], asker)
    )
    indices = tuple(brought.values())
    nbytes = sum(inputs[index].nbytes for index in indices)
    return Candidate(peer, name, indices, nbytes, tuple(forbidden), is_ready)


def _may_come(each: Input, asker: str) -> bool:
    return each.peer is None or each.labels <= {asker}
