"""Pieces of what is queued that were sent before, but for the objects and the floats: the peer is asked to keep them.

A piece is known by the plans of its calls (repeated.py) and by which of them uses what which other makes. When it comes
for the second time the peer is asked to keep it, and from when it has said that it does, the piece is sent by its
number (SPEC.md, Stretches). Decides; sends nothing. What is kept is kept for one connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

from protocol import limits

_RECENT: Final = 8  # those used last, among which is what made a value that is awaited
_SEEN: Final = 2 * limits.MAX_STRETCHES  # pieces that came once, which are remembered

Look = tuple[Any, Sequence[bytes], Sequence[float]]
"""Of one call: its plan, the ids of its pointers and its floats, in order."""
Piece = Sequence[tuple[list[Any], int, Any, Look | None]]
"""Operations as they stand in the queue: [name, args, kwargs, outs], size, what they make, Look."""


class Kept:
    """A piece that the peer was asked to keep.

    Attributes:
        number: by which it is sent; None until the peer has said that it keeps it.
        made: what its last use made.
        wish: which of these was awaited after one; `is_taken`: after the last one, too.
        foreseen: what was asked for with the last one, because it was to be awaited (foreseen.py).
    """

    __slots__ = ("asked", "foreseen", "is_taken", "made", "number", "used", "wish")

    def __init__(self, asked: int) -> None:
        self.asked = asked
        self.number: int | None = None
        self.used = 0
        self.made: Sequence[bytes] = ()
        self.wish: int | None = None
        self.foreseen: bytes | None = None
        self.is_taken = False

    @property
    def wished(self) -> bytes | None:
        """What will be awaited of its last use, if that goes as the one before."""
        return self.made[self.wish] if self.wish is not None and self.is_taken else None

    def heard(self, result: dict[str, Any]) -> None:
        """What came of the request that asked for it."""
        if result.get("kept") is True:
            self.number = self.asked


class Stretches:
    """What one peer keeps."""

    def __init__(self) -> None:
        self._connection: object = None
        self._seen: dict[tuple[Any, ...], None] = {}
        self._kept: dict[tuple[Any, ...], Kept] = {}  # the one used longest ago first
        self._clock = 0

    def shorter(self, piece: Piece, connection: object) -> tuple[dict[str, Any], Kept] | None:
        """The arguments of `run` that stand for `operations` on this connection; with what is to hear what came of it.
        None where there are none but the operations."""
        read = _read(piece)
        if read is None:
            return None
        if connection is not self._connection:
            self._connection = connection
            self._kept.clear()
        self._clock += 1
        key = read[0]
        kept = self._kept.get(key)
        if kept is not None:
            kept.used = self._clock
            if kept.number is None:
                return None
            self._kept[key] = self._kept.pop(key)
            _, given, made, floats = read
            kept.made = made
            args = {"again": kept.number, "given": b"".join(given), "outs": b"".join(made)}
            return (args | {"floats": floats} if floats else args), kept
        if key in self._seen:
            return self._keep(key, piece)
        if len(self._seen) >= _SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = None
        return None

    def awaited(self, id: bytes) -> None:
        """The value of this object was asked for by itself."""
        for kept in islice(reversed(self._kept.values()), _RECENT):
            if id in kept.made:
                kept.wish, kept.is_taken = kept.made.index(id), True

    def _keep(self, key: tuple[Any, ...], piece: Piece) -> tuple[dict[str, Any], Kept] | None:
        if sum(entry[1] for entry in piece) > limits.MAX_STRETCH:
            return None
        number = len(self._kept)
        if number >= limits.MAX_STRETCHES:
            oldest = next(iter(self._kept))
            # Where more come round in turn than the peer keeps, those that it has are not to go before their turn.
            if self._clock - self._kept[oldest].used <= _SEEN:
                return None
            number = self._kept.pop(oldest).asked
        del self._seen[key]
        kept = self._kept[key] = Kept(number)
        kept.used = self._clock
        return {"operations": [entry[0] for entry in piece], "keep": number}, kept


def _read(piece: Piece) -> tuple[tuple[Any, ...], list[bytes], list[bytes], list[float]] | None:
    """What a piece looks like; the objects that it is given, those that it makes, and its floats. None where a call is
    among it that has no plan."""
    slots: dict[bytes, int] = {}
    key: list[Any] = []
    given: list[bytes] = []
    made: list[bytes] = []
    floats: list[float] = []
    for operation, _, _, look in piece:
        if look is None:
            return None
        plan, ids, numbers = look
        key.append(plan)
        for id in ids:
            slot = slots.get(id)
            if slot is None:
                slot = slots[id] = len(slots)
                given.append(id)
            key.append(slot)
        if numbers:
            floats += numbers
        for out in operation[3]:
            slots[out] = len(slots)
            made.append(out)
    return tuple(key), given, made, floats
