"""What each node of a program took: time, memory, how often it ran. Kept only for who asks for it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from compute.nested import tensors_in


@dataclass(slots=True)
class Taken:
    """By one node, in all its runs.

    Attributes:
        body: the number of the body that it is in; None for a node of the program itself.
        node: its number there.
        seconds: of the clock; those of a loop or branch with all that ran in it.
        nbytes: memory that its results took that was not there before.
        peak: bytes that the program had in use at most when one of its runs ended, inputs not counted.
    """

    body: int | None
    node: int
    operation: str
    runs: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    peak: int = 0


class Report:
    """Give it to compute.interpreter.run, then read `nodes`, `peak` and `seconds`. For one run."""

    def __init__(self) -> None:
        self.peak = 0
        self._taken: dict[tuple[int | None, int], Taken] = {}
        self._running: list[tuple[Taken, float]] = []
        self._live = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    @property
    def nodes(self) -> list[Taken]:
        """Those that ran, the program's own first."""
        return [
            self._taken[key] for key in sorted(self._taken, key=lambda key: (-1 if key[0] is None else key[0], key[1]))
        ]

    @property
    def seconds(self) -> float:
        """Of all nodes of the program itself."""
        return sum(taken.seconds for taken in self._taken.values() if taken.body is None)

    def given(self, values: Any) -> None:
        """What was there before the run: it is not counted."""
        for tensor in tensors_in(values):
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage, self._forget(storage._cdata, 0))

    def begins(self, body: int | None, node: int, operation: str) -> None:
        taken = self._taken.setdefault((body, node), Taken(body, node, operation))
        self._running.append((taken, perf_counter()))

    def ends(self, value: Any) -> None:
        """The node that began last is done, and gave this."""
        taken, begun = self._running.pop()
        taken.seconds += perf_counter() - begun
        taken.runs += 1
        for tensor in tensors_in([value]):
            taken.nbytes += self._count(tensor)
        self.peak = max(self.peak, self._live)
        taken.peak = max(taken.peak, self._live)

    def _count(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return 0
        nbytes = int(storage.nbytes())
        self._live += nbytes
        self._known[storage._cdata] = weakref.ref(storage, self._forget(storage._cdata, nbytes))
        return nbytes

    def _forget(self, key: int, nbytes: int) -> Any:
        def forget(_: Any) -> None:
            self._known.pop(key, None)
            self._live -= nbytes

        return forget
