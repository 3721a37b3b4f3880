"""What a worker was sent and has not come to yet; and the values in it that need not wait for their turn.

A value that somebody awaits is often there long before all that was asked ahead of it is done: the loss of a training
step, while the gradients are still being computed. So a worker that is at something long looks now and then at what has
come, and gives such a value as soon as it is there, provided that nothing which was asked before the wish, and is still
to run, may write to its memory. So it is the value that it would be in its turn, and only answers change places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from peer.worker.framing import Message
from peer.worker.objects import Objects
from peer.worker.steps import written_by
from peer.worker.stretches import Stretch
from protocol.errors import GridError
from protocol.ids import split_ids

_KNOWN: Final = frozenset({"run", "again", "drop"})  # messages of which it is known what they may write
_MOST: Final = 16  # messages that wait here before no more are read: the others wait in the socket, with who sends them


class Ahead:
    """Messages in the order in which they came.

    Attributes:
        messages: what comes is added at the end; whose turn it is leaves at the front.
        broken: what came after them was no message: that is to be said when its turn comes.

    Args:
        receive: what has come meanwhile, without waiting for it.
        answer: gives a value: (number of the request, id); False where that cannot be done out of turn.
    """

    def __init__(
        self,
        objects: Objects,
        stretches: dict[int, Stretch],
        receive: Callable[[], Sequence[Message]],
        answer: Callable[[int, bytes], bool],
    ) -> None:
        self._objects = objects
        self._stretches = stretches
        self._receive = receive
        self._answer = answer
        self.messages: deque[Message] = deque()
        self.broken: GridError | None = None

    def look(self, rest: Callable[[], Iterable[bytes | None]], dropped: Sequence[bytes]) -> None:
        """Between two operations: give what can be given.

        Args:
            rest: the ids of what the other operations of the request that is being worked at may write; None for one
                that may be anything.
            dropped: what that request lets go of at its end.
        """
        if self.broken is None and self._has_room():
            try:
                self.messages += self._receive()
            except GridError as error:
                self.broken = error
        for at, (message, descriptors) in enumerate(self.messages):
            if not _is_wish(message):
                continue
            _, seq, _, wanted, dropped_then = message
            # An id that is let go of may come back as another object's.
            is_there = wanted in self._objects.tensors and wanted not in dropped
            if is_there and self._is_settled(wanted, at, rest()) and self._answer(seq, wanted):
                self.messages[at] = (["drop", dropped_then], descriptors)

    def _has_room(self) -> bool:
        """Whether more is to be read: behind what may be large, and may change anything, nothing can be given."""
        waiting = self.messages
        return not waiting or (len(waiting) < _MOST and waiting[-1][0][0] in _KNOWN)

    def _is_settled(self, id: bytes, at: int, rest: Iterable[bytes | None]) -> bool:
        """Whether an object that is there stays as it is until the message at this place has its turn."""
        objects = self._objects
        if objects.guards or not objects.is_on_cpu:
            return False
        memory = objects.tensors[id].untyped_storage()._cdata
        for written in self._written(id, at, rest):
            changed = None if written is None else objects.tensors.get(written)
            if changed is None or changed.untyped_storage()._cdata == memory:
                return False
        return True

    def _written(self, id: bytes, at: int, rest: Iterable[bytes | None]) -> Iterator[bytes | None]:
        """The ids of all that may be written before the message at this place, None for what is not known, or where
        the object itself is let go of."""
        yield from rest
        for number in range(at):
            message, _ = self.messages[number]
            kind, dropped = message[0], message[-1]
            if kind not in _KNOWN or id in dropped:
                yield None
            elif kind == "run":
                yield from written_by(message[2])
            elif kind == "again":
                stretch, given, made = message[2:5]
                yield from self._stretches[stretch].written(0, split_ids(given + made))


def _is_wish(message: Any) -> bool:
    """Whether it asks for a value, and for nothing else but to let go of something afterwards."""
    return message[0] == "run" and len(message) == 5 and not message[2] and message[3] is not None
