"""Every error a user or a peer can meet, by blame.

    GridError
    ├── RequestError            what was asked cannot be done as it was asked
    │   ├── BadRequest              arguments missing or of the wrong type
    │   ├── NotFound                no such object, peer-side record or search result
    │   │   └── UnknownPeer         no peer of that name or id
    │   ├── Ambiguous               several where one was wanted
    │   │   └── AmbiguousPeer
    │   ├── NotCollocated           the data are on different peers
    │   ├── NeedsAwait              a plain value asked of a pointer
    │   │   └── PrivateValue        the same, of a secret
    │   ├── QueryError              a search query that does not parse (points at the column)
    │   ├── BadTag                  a tag outside the grammar
    │   ├── BadTensor               a tensor header that lies, or a dtype that cannot travel
    │   ├── BadProgram              a program that does not check
    │   ├── CannotCapture           a function that cannot become a program
    │   ├── BadJail                 a function that cannot be shipped as source
    │   ├── JailFailed              what was shipped raised, or was ended
    │   ├── OperationNotAllowed     an operation outside the table
    │   ├── OperationFailed         the operation itself raised at the peer
    │   ├── ReadOnly                a published object would be written in place
    │   ├── TooLarge                beyond a named limit
    │   ├── AlreadyExists           an object of that id is there
    │   ├── Cancelled               somebody who may ended it before it was done
    │   ├── Changed                 the object is not any more what it was when this began
    │   └── BadFile                 a file that is not what its ending says
    ├── Denied                  the owner's rules refuse it
    ├── PeerError               the peer could not do its part
    │   ├── WorkerLost              the worker that held the value died
    │   ├── PartyFailed             a party of a secure run died, stalled or lied
    │   ├── StorageError            the disk refused
    │   │   ├── StorageFull
    │   │   └── Corrupt             bytes are not those that were stored
    │   └── InternalError           a defect of the peer; the peer's log has the traceback
    ├── LinkError               two ends could not talk
    │   ├── Unreachable             nobody answers at the address
    │   ├── HandshakeFailed         keys, versions or identity do not fit
    │   ├── PeerLost                the connection broke with requests under way
    │   ├── TimedOut                no answer, or no progress, in time
    │   └── ProtocolError           bytes that SPEC.md forbids
    └── SetupError              a peer cannot start here
        ├── NameTaken
        ├── PortInUse
        ├── DataFolderInUse
        ├── DataFolderMismatch      newer version, or another peer's
        └── NothingRunning          no peer on this machine to join

An error crosses the wire as a fault: its code (the class's `code`), message, the operation, the peer, and
its fields. `GridError.from_fault` gives back the class. A stranger's exception never crosses: it becomes
OperationFailed (with the foreign type's name) or InternalError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class GridError(Exception):
    """Root of all errors of the grid.

    Attributes:
        message: one sentence or two: what is wrong and what to do next.
        operation: the request or ATen operation that failed, where known.
        peer: the name (or short id) of the peer where it failed, where known.
        fields: further facts, msgpack-able, which cross the wire with the error.
        results: where several peers were asked and some failed, what the others gave, by name; it does not cross.
    """

    results: Mapping[str, Any] | None = None
    code: ClassVar[str] = "error"
    by_code: ClassVar[dict[str, type[GridError]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        GridError.by_code[cls.code] = cls

    def __init__(
        self,
        message: str,
        *,
        operation: str | None = None,
        peer: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.operation = operation
        self.peer = peer
        self.fields: dict[str, Any] = fields

    def __str__(self) -> str:
        where = [part for part in (self.operation, self.peer and f"at {self.peer}") if part]
        return f"{self.message} [{' '.join(where)}]" if where else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword-only arguments cannot be copied by the default rule.
        return _rebuild, (type(self), self.to_fault())

    def to_fault(self) -> dict[str, Any]:
        """The error as a plain map, ready for the wire (SPEC.md, Fault)."""
        return {
            "code": self.code,
            "message": self.message,
            "operation": self.operation,
            "peer": self.peer,
            "fields": self.fields,
        }

    @classmethod
    def from_fault(cls, fault: Mapping[str, Any]) -> GridError:
        """The error that a fault describes; an unknown code gives a plain PeerError that keeps the code."""
        kind = GridError.by_code.get(str(fault.get("code")))
        fields = {str(name): value for name, value in dict(fault.get("fields") or {}).items()}
        for taken in ("message", "operation", "peer", "self"):
            fields.pop(taken, None)
        if kind is None:
            kind, fields["code"] = PeerError, str(fault.get("code"))
        error = kind.__new__(kind)
        GridError.__init__(
            error,
            str(fault.get("message", "")),
            operation=_text_or_none(fault.get("operation")),
            peer=_text_or_none(fault.get("peer")),
            **fields,
        )
        return error

    def again(self) -> GridError:
        """A fresh copy to raise once more, so that tracebacks of earlier raises do not pile up."""
        return GridError.from_fault(self.to_fault())


def _rebuild(_kind: type[GridError], fault: dict[str, Any]) -> GridError:
    return GridError.from_fault(fault)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


class RequestError(GridError):
    code = "request"


class BadRequest(RequestError):
    code = "bad_request"


class NotFound(RequestError, LookupError):
    code = "not_found"


class UnknownPeer(NotFound):
    code = "unknown_peer"


class Ambiguous(RequestError, LookupError):
    code = "ambiguous"


class AmbiguousPeer(Ambiguous):
    code = "ambiguous_peer"


class NotCollocated(RequestError, ValueError):
    code = "not_collocated"


class NeedsAwait(RequestError, TypeError):
    code = "needs_await"


class PrivateValue(NeedsAwait):
    code = "private_value"


class QueryError(RequestError, ValueError):
    """A query that does not parse. `fields`: query (str), column (int, from 0)."""

    code = "query"

    @property
    def column(self) -> int:
        column = self.fields.get("column")
        return column if type(column) is int else 0

    def __str__(self) -> str:
        query = self.fields.get("query")
        if not isinstance(query, str):
            return super().__str__()
        # Both may come from a stranger: a column beyond the query would be a line of any length.
        return f"{self.message}\n  {query}\n  {' ' * min(max(self.column, 0), len(query))}^"


class BadTag(RequestError, ValueError):
    code = "bad_tag"


class BadTensor(RequestError, ValueError):
    code = "bad_tensor"


class BadProgram(RequestError, ValueError):
    code = "bad_program"


class CannotCapture(RequestError, ValueError):
    code = "cannot_capture"


class BadJail(RequestError, ValueError):
    """A function that cannot be shipped as source. `fields`: line (of the user's file), where there is one."""

    code = "bad_jail"


class JailFailed(RequestError, RuntimeError):
    """A jail's code raised, or its process was ended. `fields`: type (name of the exception), traceback (the user's own
    lines), printed (what it had printed by then), signal (that ended it); of data private to others none of them."""

    code = "jail_failed"


class OperationNotAllowed(RequestError):
    code = "operation_not_allowed"


class OperationFailed(RequestError, RuntimeError):
    """The operation raised at the peer. `fields`: type (name of the exception raised there)."""

    code = "operation_failed"


class ReadOnly(RequestError):
    code = "read_only"


class TooLarge(RequestError):
    """Beyond a named limit. `fields`: limit (name in protocol/limits.py), size, allowed."""

    code = "too_large"


class AlreadyExists(RequestError):
    code = "already_exists"


class Changed(RequestError):
    code = "changed"


class Cancelled(RequestError):
    """What was under way was ended on request. What it had changed in place by then stays changed."""

    code = "cancelled"


class BadFile(RequestError, ValueError):
    code = "bad_file"


class Denied(GridError, PermissionError):
    """Refused by the owner's rules. `fields`: owners (ids whose leave is needed)."""

    code = "denied"

    __str__ = GridError.__str__


class PeerError(GridError):
    code = "peer"


class WorkerLost(PeerError):
    code = "worker_lost"


class PartyFailed(PeerError):
    """Somebody in a secure run failed or broke the rules; `peer` names it where that is known. Nothing was revealed."""

    code = "party_failed"


class StorageError(PeerError):
    code = "storage"


class StorageFull(StorageError):
    code = "storage_full"


class Corrupt(StorageError):
    """Bytes are not those that were stored. `fields`: blob (the name of the contents), where they have one."""

    code = "corrupt"


class InternalError(PeerError):
    code = "internal"


class LinkError(GridError):
    code = "link"


class Unreachable(LinkError):
    code = "unreachable"


class HandshakeFailed(LinkError):
    """Keys, versions or identity do not fit. `fields`: versions (those of the end that refused), if they are why."""

    code = "handshake_failed"


class PeerLost(LinkError):
    code = "peer_lost"


class TimedOut(LinkError, TimeoutError):
    code = "timed_out"

    __str__ = GridError.__str__


class ProtocolError(LinkError):
    """Bytes that SPEC.md forbids. The connection that carried them is closed."""

    code = "protocol"


class SetupError(GridError):
    code = "setup"


class NameTaken(SetupError):
    code = "name_taken"


class PortInUse(SetupError):
    code = "port_in_use"


class DataFolderInUse(SetupError):
    code = "data_folder_in_use"


class DataFolderMismatch(SetupError):
    code = "data_folder_mismatch"


class NothingRunning(SetupError):
    code = "nothing_running"
