"""`run` requests: operations, or a stretch of them that was kept (stretch.py), and perhaps the wish for a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from weakref import ref

import msgpack

from peer.batches import Fault
from peer.calls import Answer, Call
from peer.connection import Connection
from peer.execution import Execution
from peer.leases import LeaseKey
from peer.objects import check_id
from peer.spans import payload_of
from peer.stretch import Kept, Use
from protocol import limits
from protocol.errors import BadRequest, GridError

_NOTHING: Final = Kept()  # for connections over which nothing came that is kept


class RunRequests:
    """Answers them. Stretches are kept for as long as the connection over which they came.

    Args:
        name: of the peer, for errors.
        lease_of: that of a call's connection.
    """

    def __init__(self, execution: Execution, name: str, lease_of: Callable[[Call], LeaseKey]) -> None:
        self._execution = execution
        self._name = name
        self._lease_of = lease_of
        # As a WeakKeyDictionary has them; but to ask that is a call of Python, and this is done for each request.
        self._kept: dict[ref[Connection], Kept] = {}

    async def serve(self, call: Call) -> Answer:
        asked = self._kept.get(ref(call.connection), _NOTHING).asked(call.args)
        operations = asked.operations if isinstance(asked, Use) else asked
        wanted, release = call.args.get("fetch"), call.args.get("release", [])
        if type(release) is not list:
            raise BadRequest("release is a list of object ids")
        is_kept = self._keep(call)
        faults, value = await self._execution.run(
            call.connection.remote.id,
            self._lease_of(call),
            operations,
            [check_id(id) for id in release],
            None if wanted is None else check_id(wanted),
        )
        told = _told(self._name, [is_kept], faults, value)
        if isinstance(told, GridError):
            raise told
        return told

    def at_once(self, call: Call, answer: Callable[[Answer | GridError], None]) -> bool:
        """As Requests.serve_at_once."""
        args = call.args
        wanted = args.get("fetch")
        if wanted is not None and type(wanted) is not bytes:
            return False
        is_kept: list[bool] = []  # known when they are under way
        try:
            is_begun = self._execution.run_at_once(
                call.connection.remote.id,
                partial(self._lease_of, call),
                self._kept.get(ref(call.connection), _NOTHING).asked(args),
                args.get("release", ()),
                wanted,
                partial(_told, self._name, is_kept),
                answer,
            )
        except GridError:
            return False  # `serve` says what is wrong
        if is_begun and "keep" in args:
            is_kept.append(self._keep(call))
        return is_begun

    def release_at_once(self, call: Call, answer: Callable[[Answer | GridError], None]) -> bool:
        """As Requests.serve_at_once: a client lets go of what it made between its steps."""
        ids, asker = call.args.get("ids"), call.connection.remote.id
        if self._execution.is_at_work(asker) or type(ids) is not list or not all(type(id) is bytes for id in ids):
            return False
        self._execution.release_own(asker, ids)
        answer(Answer({}))
        return True

    def _keep(self, call: Call) -> bool:
        """Keep the operations of this call as a stretch, if that is asked for and can be."""
        number = call.args.get("keep")
        operations = call.args.get("operations")
        if number is None or type(operations) is not list:
            return False
        principal = call.connection.remote.id
        kept = self._kept.setdefault(ref(call.connection, self._kept.pop), Kept(principal))
        others = sum(each.nbytes for each in self._kept.values() if each.principal == principal and each is not kept)
        try:
            return kept.keep(number, operations, len(msgpack.packb(operations)), limits.STRETCH_MEMORY - others)
        except BadRequest:
            return False  # they run all the same


def _told(name: str, is_kept: list[bool], faults: Sequence[Fault | None], value: Any) -> Answer | GridError:
    """What became of the operations, and of the value if one was wanted; `name` is the peer's. `is_kept`: whether their
    stretch is, if that was asked for."""
    if isinstance(value, GridError):
        refused = _refused(faults, value)
        if refused.peer is None:
            refused.peer = name
        return refused
    result: dict[str, Any] = {"results": _shortened(faults) if any(faults) else []}
    if True in is_kept:
        result["kept"] = True
    if value is None:
        return Answer(result)
    header, data = value
    result["dtype"], result["shape"] = header.dtype, header.shape
    return Answer(result, data if type(data) is bytes else payload_of(data))


def _refused(faults: Sequence[Fault | None], error: GridError) -> GridError:
    """Why the value that was wanted is not to be had, and with it what became of the operations."""
    if not any(faults):
        return error
    told = error.again()
    told.fields["results"] = list(_shortened(faults))
    return told


def _shortened(faults: Sequence[Fault | None]) -> Sequence[Fault | None]:
    """The faults of one request, small enough to share a header."""
    room = limits.MAX_HEADER // 2 // len(faults)
    return [
        fault and {**fault, "message": fault["message"][:room], "fields": _if_small(fault, room)} for fault in faults
    ]


def _if_small(fault: Fault, room: int) -> dict[str, Any]:
    return fault["fields"] if len(repr(fault["fields"])) < room else {}
