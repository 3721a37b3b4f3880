"""What is on its way, and what is asked of it before it is there: `await x.send(bob).send(alice)`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any


class Chained:
    """What is on its way: `await` it, or go on with what it will be."""

    def __init__(self, made: Awaitable[Any]) -> None:
        self._made = made

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._made.__await__()

    def __getattr__(self, name: str) -> Callable[..., Chained]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: Chained(self._then(name, args, kwargs))

    async def _then(self, name: str, args: Any, kwargs: Any) -> Any:
        made = getattr(await self._made, name)(*args, **kwargs)
        return await made if isinstance(made, Awaitable) else made


class ChainedCoroutine(Chained, Coroutine[Any, Any, Any]):
    """The same, of a coroutine: `asyncio.create_task` takes it as well."""

    _made: Coroutine[Any, Any, Any]

    def send(self, value: Any) -> Any:
        return self._made.send(value)

    def throw(self, *error: Any) -> Any:
        return self._made.throw(*error)

    def close(self) -> None:
        self._made.close()
