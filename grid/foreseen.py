"""Values that are asked for before anybody awaits them: with the stretch of operations that makes them.

Who trains awaits the loss of each step, when all of the step is queued. To ask for it then costs a request of its own,
and client and peer are at that while the worker could have the next step already. So where the value of one result was
awaited after a stretch (stretches.py), the next use of that stretch asks for it at once: in the same request, or in
one right behind it where much is to be done after it is made. And no longer, when it was asked for and not awaited.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from grid.handle import Handle, Memory
from grid.stretches import Kept
from peer.calls import Response
from peer.lasting import Lasting


@dataclass(frozen=True, slots=True)
class _Value:
    """One on its way, or here.

    Attributes:
        memory: what it is the value of; `writes`: how often that was written to by then.
        others: requests to its peer, by then, that were no operations.
        thread: what is another object whenever another thread has queued something.
    """

    answer: asyncio.Future[Response]
    kept: Kept
    memory: Memory
    writes: int
    others: int
    thread: object


class Foreseen:
    """The values of one peer's objects, by id.

    One is right as long as no operation was queued since that writes to its memory, and the peer was asked nothing but
    operations: what a program writes, nobody knows here. Nor is it known, of what another thread queues, whether it was
    counted as a write before or after the value was asked for.
    """

    def __init__(self, link: Lasting) -> None:
        self._link = link
        self._values: dict[bytes, _Value] = {}
        self._connection: object = None  # over which these were asked for
        self._asked = 0
        self._thread = self._seen = object()

    def __bool__(self) -> bool:
        return bool(self._values)

    def asked(self) -> None:
        """A request more that is operations, or lets go of objects."""
        self._asked += 1

    def begins(self) -> object | None:
        """A request is about to be made of what is queued: for `note`. None where another thread has queued something
        since the last one; then nothing is to be foreseen."""
        seen, self._seen = self._seen, self._thread
        return seen if seen is self._seen else None

    def note(self, handle: Handle, kept: Kept, answer: asyncio.Future[Response], begun: object) -> None:
        """The value of this object is what the request gives that was just asked, and nothing was queued behind that
        when it `begins`. It takes the place of the one that the last use of its stretch gave."""
        if self._link.connection is not self._connection:
            self._connection = self._link.connection
            self._values.clear()
        if kept.foreseen is not None:
            self._values.pop(kept.foreseen, None)
        memory = handle.shared_memory()
        self._values[handle.id] = _Value(answer, kept, memory, memory.writes, self._others(), begun)
        kept.foreseen, kept.is_taken = handle.id, False

    def take(self, id: bytes) -> asyncio.Future[Response] | None:
        """The answer with the value, if that is right: it is awaited now."""
        value = self._values.pop(id, None)
        if value is None:
            return None
        value.kept.is_taken = True
        answer = value.answer
        if answer.done() and (answer.cancelled() or answer.exception() is not None):
            return None  # whether that is so still is asked anew
        is_right = value.memory.writes == value.writes and self._others() == value.others
        return answer if is_right and value.thread is self._thread else None

    def in_thread(self) -> None:
        """Another thread has just queued something."""
        self._thread = object()

    def forget(self, id: bytes) -> None:
        """Nobody can await it any more. Called from any thread."""
        self._values.pop(id, None)

    def clear(self) -> None:
        """Any of them may yet be of no use."""
        self._values.clear()

    def _others(self) -> int:
        return self._link.asked - self._asked
