"""Requests of operations that are under way to a peer, and the handles that are to hear what became of them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from grid.handle import Handle, Memory
from grid.stretches import Kept
from peer.asking import Asked
from peer.calls import Response
from protocol.errors import GridError, LinkError

Made = list[weakref.ref[Handle | Memory]]
"""What an operation makes or changes, and the memory that it changes, where that is others' too. It is not kept for
being waited for: whose last pointer is gone is let go of with the very request that makes it, and its memory is used
again by the operations after."""


class Settling:
    """Tells the handles of one request what became of them; is in `underway` until then."""

    __slots__ = ("_has_fetch", "_kept", "_over", "_underway", "asked", "made")

    def __init__(self, underway: set[Settling], made: list[Made], kept: Kept | None, *, has_fetch: bool) -> None:
        self._underway = underway
        self.made = made
        self.asked: Asked | None = None
        self._kept = kept
        self._has_fetch = has_fetch
        self._over: asyncio.Future[None] | None = None
        underway.add(self)

    @property
    def is_sent(self) -> bool:
        return self.asked is not None and self.asked.is_sent

    def over(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Done when it is known what became of them."""
        if self._over is None:
            self._over = loop.create_future()
        return self._over

    def __call__(self, answer: Response | GridError) -> None:
        self._underway.discard(self)
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        if not isinstance(answer, GridError):
            results = answer.result.get("results")
            if results:
                self._note(results)
            if self._kept is not None:
                self._kept.heard(answer.result)
        # What a fetch that went along was refused with says nothing of the operations but what stands beside it.
        elif self._has_fetch and not isinstance(answer, LinkError):
            results = answer.fields.pop("results", None)
            if isinstance(results, list):
                self._note(results)
        else:
            for handle in alive(self.made):
                handle.fail(answer)
        # Or else the two keep each other, and the handles, until the collector comes.
        self.asked = None
        self.made = []

    def _note(self, results: list[Any]) -> None:
        for made, fault in zip(self.made, results, strict=False):
            for handle in alive([made]) if fault else ():
                handle.fail(GridError.from_fault(fault))


def alive(made: Iterable[Made]) -> Iterator[Handle | Memory]:
    for each in made:
        for reference in each:
            handle = reference()
            if handle is not None:
                yield handle
