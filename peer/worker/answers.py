"""What a worker's answers mean, checked: the worker is not trusted. Torch-free.

Each function raises GridError, ValueError or TypeError for an answer that makes no sense.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peer.buffers import Buffer, BufferPool
from protocol.errors import GridError
from protocol.tensors import TensorHeader

Result = list[TensorHeader] | GridError  # of one operation: a header for each tensor it gave, or what went wrong


@dataclass(frozen=True, slots=True)
class Exported:
    """A value on its way out of a worker.

    Attributes:
        header: its dtype and shape.
        data: its elements: bytes if few, a Buffer (the receiver's to release) if many, and None if they are
            exactly those that the peer provided.
    """

    header: TensorHeader
    data: bytes | Buffer | None


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
    return [GridError.from_fault(result) if type(result) is dict else headers(result) for result in given]


def value(
    given: TensorHeader | None, fields: list[Any], descriptors: list[int], buffers: BufferPool
) -> Exported | GridError:
    """The value that was wanted with the results, or why it is not to be had; `given` as for `exported`."""
    wanted = fields[1]
    if type(wanted) is dict:
        return GridError.from_fault(wanted)
    return exported(given, wanted, descriptors, buffers)


def headers(given: Iterable[Any]) -> list[TensorHeader]:
    return [TensorHeader(dtype, tuple(shape)) for dtype, shape in given]


def usage(fields: list[Any]) -> Usage:
    objects, bytes_held, operations, seconds = fields
    return Usage(int(objects), int(bytes_held), int(operations), float(seconds))


def exported(given: TensorHeader | None, fields: list[Any], descriptors: list[int], buffers: BufferPool) -> Exported:
    """`given` is what was provided under this id, if anything; descriptors that are used leave the list."""
    dtype, shape, data = fields
    header = TensorHeader(dtype, tuple(shape))
    if descriptors:
        return Exported(header, buffers.adopt(descriptors.pop(0), header.nbytes))
    if data is not None:
        header.check_payload(len(data))
        return Exported(header, bytes(data))
    if header != given:
        raise ValueError("it calls unchanged what was not provided")
    return Exported(header, None)
