"""A stretch of operations that a worker was told, and what its answers about that mean. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from peer.worker.answers import Result
from protocol.errors import GridError
from protocol.tensors import TensorHeader

if TYPE_CHECKING:  # it knows objects, and they the worker
    from peer.stretch import Stretch


class Taught:
    """The worker has it under this number."""

    __slots__ = ("_stretch", "headers", "number")

    def __init__(self, stretch: Stretch, number: int) -> None:
        self.number = number
        self._stretch = stretch
        self.headers: tuple[TensorHeader, ...] | None = None  # of what it made the last time that it said so

    def results(
        self, fields: list[Any], read: Callable[[list[Any], int], list[Result]]
    ) -> list[Result] | tuple[TensorHeader, ...]:
        """What the operations of one use gave; a tuple with a header for each object, where they gave it before.

        ValueError: it says so, and never told what that was.
        """
        if fields[0] is None:
            if self.headers is None:
                raise ValueError("it refers to results that it did not tell")
            return self.headers
        results = read(fields, len(self._stretch.operations))
        self.headers = self._of_all(results)
        return results

    def _of_all(self, results: list[Result]) -> tuple[TensorHeader, ...] | None:
        headers: list[TensorHeader] = []
        for operation, result in zip(self._stretch.operations, results, strict=True):
            if isinstance(result, GridError):
                return None
            headers += [header for _, header in zip(operation[3], result, strict=False)]
        return tuple(headers) if len(headers) == self._stretch.made else None
