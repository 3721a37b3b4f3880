"""What a stored model is to give of values that are at another peer: something to await.

A model is called on pointers as torch calls modules, at once; but to bring together what is at several peers takes
time, and what moves is a choice (Grid.run). So nothing has happened yet where this is given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, NoReturn

from grid.operators import refuse_all
from protocol.errors import NotCollocated


class Underway:
    """Awaited, it gives what `run` does. Whatever else is done with it raises `error`, which says so."""

    __slots__ = ("_error", "_run")

    def __init__(self, run: Callable[[], Awaitable[Any]], error: NotCollocated) -> None:
        self._run = run
        self._error = error

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run().__await__()

    def __repr__(self) -> str:
        return f"Underway(to be awaited: {self._error.message})"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise self._error

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._error

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> NoReturn:
        raise next(value for value in (*args, *(kwargs or {}).values()) if isinstance(value, cls))._error


refuse_all(Underway, lambda _: Underway._refuse)
