"""What a pointer points to: one object at one peer, counted by Python's own references.

Several tensors may share a handle (a pointer and its `detach()`). When the last one dies, a handle that owns its
object lets it go; a pointer to a published object never owns it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.errors import BadRequest, GridError

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer


class Handle:
    """`id` at `home`. `record` is what the peer said of it, as far as it was asked; `target` is set for a chain."""

    __slots__ = ("_failure", "_gone", "home", "id", "owns", "record", "target")

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
        self.owns = owns
        self.record = record
        self.target = target
        self._failure: GridError | None = None
        self._gone: str | None = None

    def __del__(self) -> None:
        if self.owns and self._gone is None:
            self.home.outbox.release(self.id)

    def __deepcopy__(self, memo: object) -> Handle:
        return self  # one object, one handle: it is let go once

    @property
    def is_published(self) -> bool:
        return bool(self.record and self.record.get("published"))

    @property
    def labels(self) -> frozenset[str]:
        return frozenset((self.record or {}).get("labels") or ())

    def fail(self, error: GridError) -> None:
        """The operation that makes or changes the object has failed. The first reason is the one that counts."""
        if self._failure is None:
            self._failure = error

    def check(self) -> None:
        """Raises why the object cannot be used any more: it was taken, moved, deleted, or never came to be."""
        if self._gone is not None:
            raise BadRequest(f"this pointer's object is not at {self.home.name} any more: {self._gone}")
        if self._failure is not None:
            raise self._failure.again()

    def give_up(self, why: str) -> None:
        """The object is gone from there; `why` says so to whoever uses the pointer still."""
        self._gone = why
