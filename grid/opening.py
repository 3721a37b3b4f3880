"""What `grid.connect` and `grid.local` return: awaited it is a grid; `async with` closes it at the end of the block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, NoReturn, TypeVar

from grid.mesh import Mesh
from protocol.errors import NeedsAwait

G = TypeVar("G", bound=Mesh)


class Opening(Generic[G]):
    """Nothing has happened yet; `call` is what to write before it, for whoever uses it as the grid that it is not."""

    def __init__(self, call: str, open: Callable[[], Awaitable[G]]) -> None:
        self._call = call
        self._open = open
        self._grid: G | None = None

    def __await__(self) -> Generator[Any, None, G]:
        return self._open().__await__()

    async def __aenter__(self) -> G:
        self._grid = await self._open()
        return self._grid

    async def __aexit__(self, *_: object) -> None:
        if self._grid is not None:
            await self._grid.close()

    def _needs_await(self) -> str:
        return f"this is no grid before it is awaited: 'async with {self._call} as g:', or 'g = await {self._call}'"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(self._needs_await(), name=name, obj=self)

    def __getitem__(self, name: object) -> NoReturn:
        raise NeedsAwait(self._needs_await())

    def __enter__(self) -> NoReturn:
        raise NeedsAwait(self._needs_await())

    def __exit__(self, *_: object) -> None: ...
