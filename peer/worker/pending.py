"""A request to a worker that is under way: who asked, how its answer is read, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, Protocol

from peer.worker import answers
from peer.worker.answers import Far, Refusal
from peer.worker.operation import name_of
from protocol.errors import GridError


class Asker(Protocol):
    """Who is told, at once, what became of a request: a future is one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...
    def exception(self) -> Any: ...


Parse = Callable[[list[Any], list[int]], Any]
"""Makes the result from the fields and descriptors of an answer."""


@dataclass(slots=True)
class Pending:
    """A request that was not answered yet.

    Attributes:
        kind: what it asks, in a word.
        operations: those that it is about, if it is.
        done: how many of them are done, by the worker's account.
        far: how far a program is, by that account, where it said so.
        told: gets what is settled before the end, once; None where nothing is to be.
    """

    asker: Asker
    kind: str
    parse: Parse
    operations: Sequence[Any] = ()
    done: int = 0
    far: Far | None = None
    told: Callable[[Any], None] | None = None

    @property
    def what(self) -> str:
        """What the worker does for it now."""
        if not self.operations:
            return self.kind
        name = name_of(self.operations[self.done]) or "an operation"
        count = len(self.operations)
        return name if count == 1 else f"{name} (or one soon after it: {count - self.done} of {count} are left)"

    def fail(self, error: GridError) -> None:
        fail(self.asker, error)

    def give_up(self) -> Asker:
        """Nobody hears of it any more; who would have."""
        asker, self.asker = self.asker, _NOBODY
        if self.told is not None:
            self.told = _NOBODY.set_result
        return asker

    def settle(self, fields: list[Any]) -> Callable[[], None]:
        """What its answer would have been at its end: to be called to tell it. At the end there is nothing more."""
        told, self.told = self.told, None
        assert told is not None
        value = self.parse(fields, [])
        self.parse = over
        return partial(told, value)


class _Nobody:
    def done(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def set_result(self, result: Any, /) -> None:
        return None

    def set_exception(self, exception: Any, /) -> None:
        return None


_NOBODY: Final = _Nobody()


def refuse(fields: list[Any], _: list[int]) -> NoReturn:
    """How a fault is read, whatever was asked."""
    raise Refusal(answers.fault(fields[0]))


def over(fields: list[Any], _: list[int]) -> None:
    """How the end of what was settled before is read."""
    if fields != [None, None, None]:
        raise ValueError("it tells twice what a program gave")


def fail(asker: Asker, error: GridError) -> None:
    if not asker.done():
        asker.set_exception(error)
        asker.exception()  # an answer that nobody awaits is no news for the log
