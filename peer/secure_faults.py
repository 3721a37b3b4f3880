"""Why a secure session is over, as those who take part tell each other."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgpack

from peer.agreement import HEARSAY
from protocol import limits
from protocol.errors import Cancelled, GridError, InternalError, PartyFailed

_MAX_FAULT: Final = limits.WORKER_FAULT


def packed_fault(error: GridError) -> bytes:
    """What the others are told, cut short where it is too long."""
    packed: bytes = msgpack.packb(error.to_fault(), default=str)
    if len(packed) > _MAX_FAULT:
        packed = msgpack.packb({"code": error.code, "message": error.message[: limits.MAX_FAULT_TEXT]})
    return packed


def fault_of(piece: Any, name: str) -> GridError:
    """What the peer of this name ends the session for. The error is that peer's, whomever it names: whoever is asked
    first-hand says it again."""
    try:
        if len(piece) > _MAX_FAULT:
            raise ValueError("too much")
        error = GridError.from_fault(msgpack.unpackb(bytes(piece), raw=False))
    except Exception:  # whatever it says
        return PartyFailed(f"{name} ended the run, and gave no reason that makes sense", peer=name)
    for said_here in ("session", HEARSAY):
        error.fields.pop(said_here, None)
    if error.peer not in (None, name):
        error.message = f"{name} says: {error.message}"
        error.fields[HEARSAY] = error.peer[: limits.MAX_OBJECT_NAME]
    error.peer = name
    return error


def told(error: BaseException, name: str) -> GridError:
    """The error as all others hear of it."""
    if isinstance(error, GridError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Cancelled(f"{name} was given up by who had asked for it")
    return InternalError(f"{name} met a defect")
