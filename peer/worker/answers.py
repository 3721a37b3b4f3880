"""What a worker's answers mean, checked: the worker is not trusted. Torch-free.

Each function raises GridError, ValueError or TypeError for an answer that makes no sense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import msgpack

from peer.buffers import Buffer
from protocol import limits
from protocol.errors import GridError, WorkerLost
from protocol.tensors import TensorHeader

_SHOWN: Final = 80  # characters of a code

Result = list[TensorHeader] | GridError  # of one operation: a header for each tensor it gave, or what went wrong


class Refusal(Exception):
    """Why there is no answer, for who asked: the worker's own error, or one of its bounds. The worker may go on."""

    def __init__(self, error: GridError) -> None:
        super().__init__()
        self.error = error


class Adopts(Protocol):
    """Makes buffers of the memory files that workers give away: a BufferPool, or who counts for one (outgoing.py)."""

    def adopt(self, fd: int, nbytes: int) -> Buffer: ...


@dataclass(frozen=True, slots=True)
class Source:
    """A file that the peer provided read-only: `nbytes` of a tensor; `origin` is whatever the peer knows it by."""

    nbytes: int
    origin: Any


@dataclass(frozen=True, slots=True)
class Span:
    """Elements that are part of a file that the peer provided: nobody needs to copy them.

    Attributes:
        origin: the file, as the peer named it; None if it was dropped meanwhile.
        offset: where they begin, in bytes from that tensor's first.
    """

    origin: Any
    offset: int
    nbytes: int


@dataclass(slots=True)
class Exported:
    """A value on its way out of a worker.

    Attributes:
        header: its dtype and shape.
        data: its elements: bytes if few, a Buffer (the receiver's to release) if many, a Span of what the peer
            provided as a file, and None if they are exactly those that the peer provided under this id.
    """

    header: TensorHeader
    data: bytes | Buffer | Span | None


@dataclass(frozen=True, slots=True)
class Given:
    """What an answer about one id may refer to.

    Attributes:
        header: of what was provided under the id, if anything was.
        sources: files that the worker has, by the number that it was given with each.
        is_in_memory: the value was asked for itself, wherever else it may be.
    """

    header: TensorHeader | None
    sources: Mapping[int, Source]
    is_in_memory: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """What a program gave: a header for each result, and the value, for those that are small and were wanted; and the
    worker's report, for its asker to read, if that was wanted."""

    headers: list[TensorHeader]
    values: tuple[bytes | None, ...]
    report: bytes | None = None


class Far(NamedTuple):
    """How far a program is: at which of its nodes, and how many iterations of the loops around that are done.

    Attributes:
        node, nodes: operations of the program that are done, and all of them; a loop is one.
        done, of: iterations, where it is in a loop; `of` is 0 where nobody knows how many there will be.
    """

    node: int
    nodes: int
    done: int
    of: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker holds and has done, by its own account."""

    objects: int
    bytes_held: int
    operations: int
    seconds: float


def results(fields: list[Any], count: int) -> list[Result]:
    given = fields[0]
    if len(given) != count:
        raise ValueError(f"{len(given)} results for {count} operations")
    found: list[Result] = []
    for result in given:
        found.append(fault(result) if type(result) is dict else headers(result))
    return found


def value(given: Given, told: Any, descriptors: list[int], buffers: Adopts) -> Exported | GridError:
    """A value that was wanted, or why it is not to be had. Descriptors that are used leave the list."""
    if type(told) is dict:
        return fault(told)
    dtype, shape, data = told
    header = _header(dtype, tuple(shape))
    if descriptors:
        try:
            return Exported(header, buffers.adopt(descriptors.pop(0), header.nbytes))
        except Refusal as refusal:
            return refusal.error
    if type(data) is list:
        return Exported(header, _span(given, header, *data))
    if data is not None:
        if len(data) != header.nbytes:
            header.check_payload(len(data))
        return Exported(header, bytes(data))
    if header != given.header or given.is_in_memory:
        raise ValueError("it calls unchanged what was not provided")
    return Exported(header, None)


def fault(given: Mapping[str, Any]) -> GridError:
    """What went wrong, by the worker's account: no more than such an account takes, since it may be kept for long."""
    error = GridError.from_fault(given)
    if isinstance(error, WorkerLost):  # the one kind that is shown as it is, whatever the worker computes on
        raise ValueError("it calls itself lost")
    if len(msgpack.packb(error.to_fault(), use_bin_type=True)) <= limits.WORKER_FAULT:
        return error
    return GridError.from_fault({"code": error.code[:_SHOWN], "message": error.message[: limits.MAX_FAULT_TEXT]})


def made(fields: list[Any], count: int) -> Made:
    """What a program gave."""
    found, small = headers(fields[0]), fields[1]
    if len(found) != count or (small is not None and len(small) != count):
        raise ValueError(f"{len(found)} results of a program that gives {count}")
    report = None if fields[2] is None else bytes(fields[2])
    if small is None:
        return Made(found, (None,) * count, report)
    values: list[bytes | None] = []
    for header, value in zip(found, small, strict=True):
        if value is not None:
            header.check_payload(len(value))
        values.append(None if value is None else bytes(value))
    return Made(found, tuple(values), report)


def is_far(value: list[Any]) -> bool:
    """Whether that says how far a program is (Far)."""
    return len(value) == len(Far._fields) and all(type(each) is int and 0 <= each <= limits.MAX_ID for each in value)


def headers(given: Iterable[Any]) -> list[TensorHeader]:
    found: list[TensorHeader] = []
    for dtype, shape in given:
        found.append(_header(dtype, tuple(shape)))
    return found


_header = lru_cache(1024)(TensorHeader)  # most answers are like one before


def usage(fields: list[Any]) -> Usage:
    objects, bytes_held, operations, seconds = fields
    return Usage(int(objects), int(bytes_held), int(operations), float(seconds))


def exported(given: Given, fields: list[Any], descriptors: list[int], buffers: Adopts) -> Exported:
    """A value that was asked for alone. Refusal where it is not to be had."""
    found = value(given, fields, descriptors, buffers)
    if isinstance(found, GridError):
        raise Refusal(found)
    return found


def _span(given: Given, header: TensorHeader, number: Any, offset: Any) -> Span:
    if given.is_in_memory or type(number) is not int or type(offset) is not int or offset < 0:
        raise ValueError("it names a span of no file")
    source = given.sources.get(number)
    if source is None:  # it may have been dropped after the question: whoever asked asks again
        return Span(None, offset, header.nbytes)
    if offset + header.nbytes > source.nbytes:
        raise ValueError("it names bytes beyond the file that it was given")
    return Span(source.origin, offset, header.nbytes)
