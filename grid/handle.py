"""What a pointer points to: one object at one peer, counted by Python's own references.

Several tensors may share a handle (a pointer and its `detach()`). When the last one dies, a handle that owns its
object lets it go; a pointer to a published object never owns it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final

from grid.blocking import check_loop, check_own_loop
from protocol.errors import BadRequest, GridError, NotFound, PeerLost, ReadOnly

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer


PUBLISHED: Final = "a published object is not changed in place; work on a copy of it: `x.clone()`"
LOOKED_UP: Final = (
    "x[i], where i is at a peer, is a copy and no view, as nobody here knows i: to write, assign (x[i] = value, "
    "x[i] += value, x[i, 1:] = value); else work on x[i].clone()"
)
UNSTORED: Final = BadRequest(f"this was changed by an operator like +=, and never assigned. {LOOKED_UP}")


class Memory:
    """Memory at a peer that is or was several handles', as far as it matters here.

    Attributes:
        writes: how often it was written to. torch counts that of a tensor too, but neither in inference mode nor
            through `.data`.
        failure: why it was not changed where it was to be: no object on it is what was meant.
    """

    __slots__ = ("__weakref__", "failure", "writes")

    id = b""  # no object's

    def __init__(self) -> None:
        self.writes = 0
        self.failure: GridError | None = None

    def fail(self, error: GridError) -> None:
        """An operation that changes it has failed. What is read-only there never was to change."""
        if self.failure is None and not isinstance(error, ReadOnly):
            self.failure = error

    def made_late(self, era: int) -> None:
        """As a handle's; objects on it are of their own eras."""


class Handle:
    """`id` at `home`. `record` is what the peer said of it, as far as it was asked; `target` is set for a chain.

    A temporary is good for one `era` of its peer: until that forgets what this client had there.
    """

    # What most handles have: there are many of them, each for a moment.
    owns = False
    record: dict[str, Any] | None = None
    target: Pointer | None = None
    fixed = ""  # why it is not changed in place, though it is not published itself
    looked_up: Callable[[], bool] | None = None  # whether what it was copied from is as it was
    is_detached = False  # something without a history names it too, beside what `backward()` needs
    memory: Memory | None = None  # that of its views too; made when somebody asks
    _failure: GridError | None = None
    _gone: str | None = None
    _is_late = False

    def __init__(
        self,
        home: RemotePeer,
        id: bytes,
        *,
        owns: bool,
        record: dict[str, Any] | None = None,
        target: Pointer | None = None,
    ) -> None:
        self.home = home
        self.id = id
        self.era = home.outbox.era
        self.owns = owns
        if record is not None:
            self.record = record
        if target is not None:
            self.target = target

    def __del__(self) -> None:
        if self.owns and self._gone is None:  # torch.compile makes some without __init__
            self.home.outbox.release(self.id)

    def __deepcopy__(self, memo: object) -> Handle:
        return self  # one object, one handle: it is let go once

    @property
    def is_published(self) -> bool:
        return bool(self.record and self.record.get("published"))

    @property
    def labels(self) -> frozenset[str]:
        return frozenset((self.record or {}).get("labels") or ())

    def shared_memory(self) -> Memory:
        """Its memory: all that are views of one another have the same."""
        if self.memory is None:
            self.memory = Memory()
        return self.memory

    def fail(self, error: GridError) -> None:
        """The operation that makes or changes the object has failed. The first reason is the one that counts."""
        if self._failure is None or self._failure is UNSTORED:
            self._failure = self._forgotten() if self._is_late and isinstance(error, NotFound) else error

    def made_late(self, era: int) -> None:
        """The operation that makes or changes it was queued before this era, and is asked for in it: what it is made
        of may be gone."""
        self.era = era
        self._is_late = True

    def check(self) -> None:
        """Raises why the object cannot be used any more: it was taken, moved, deleted, or never came to be."""
        if self.home.loop.is_closed():
            check_loop(self.home)
        if self._gone is not None:
            raise BadRequest(f"this pointer's object is not at {self.home.name} any more: {self._gone}")
        if self._failure is not None:
            raise self._failure.again()
        if self.owns and self.era != self.home.outbox.era:
            raise self._forgotten()
        if self.memory is not None and self.memory.failure is not None and not self.is_published:
            raise self.memory.failure.again()
        if self.looked_up is not None and not self.looked_up():
            raise BadRequest(
                f"x was changed after x[i] was looked up: what is to stay as it was is a clone(). {LOOKED_UP}"
            )

    def write(self, operation: str) -> tuple[Handle | Memory, ...]:
        """It is written to by this operation, which is about to be queued; gives who is to learn of its failure. Raises
        ReadOnly for what is known to be published, and views of it: refused at the peer, the write would spoil the
        pointer."""
        if self.fixed or self.is_published:
            raise ReadOnly(self.fixed or PUBLISHED, operation=operation)
        memory = self.memory
        if memory is None:
            return (self,)
        memory.writes += 1
        return self, memory  # whose other handles may be all that is left by then: x[0][i] = 1

    def stored(self) -> None:
        """What was UNSTORED is assigned."""
        if self._failure is UNSTORED:
            self._failure = None

    def check_awaited(self) -> None:
        """`check`, for what is awaited: also that it is awaited in the loop of its connection."""
        if asyncio._get_running_loop() is not self.home.loop:
            check_own_loop(self.home)  # says what is wrong
        self.check()

    @contextlib.asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Around what is asked of the object: raises as `check`, also where it turns out meanwhile that it is gone."""
        self.check_awaited()
        try:
            yield
        except NotFound:
            await self.recheck()
            raise

    async def recheck(self) -> None:
        """`check`, when it is known what became of all that was asked: for what its peer did not find."""
        check_own_loop(self.home)
        await self.home.outbox.settle()
        self.check()

    def _forgotten(self) -> PeerLost:
        return PeerLost(
            f"{self.home.name} was restarted, or was out of reach for too long: the temporaries of this client are "
            f"gone there, {self.id.hex()[:12]} among them. Compute it again; what is published is still there",
            peer=self.home.name,
        )

    def give_up(self, why: str) -> None:
        """The object is gone from there; `why` says so to whoever uses the pointer still."""
        self._gone = why
