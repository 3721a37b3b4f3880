"""How a tensor is given to a process by its channel: the message, and what the process does with it. Torch-free.

["provide", id, dtype, shape, offset, read_only, bytes|nil, hashes|nil, number|nil] + fd where there are no bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peer.worker.channel import LoopChannel
from peer.worker.guards import BlockHashes
from protocol.tensors import TensorHeader

if TYPE_CHECKING:  # it has torch
    from peer.worker.objects import Objects


def provided(
    object_id: bytes,
    header: TensorHeader,
    data: int | bytes,
    offset: int,
    hashes: BlockHashes | None,
    *,
    read_only: bool,
    number: int | None = None,
) -> tuple[list[Any], list[int]]:
    """The message that gives a value, and its descriptors (remote.Worker.provide). BadTensor: bytes that do not fit."""
    fields = ["provide", object_id, header.dtype, list(header.shape), offset, read_only]
    if isinstance(data, int):
        parts = None if hashes is None or not header.nbytes else hashes.of(offset, header.nbytes).to_wire()
        return [*fields, None, parts, number], [data]
    header.check_payload(len(data))
    return [*fields, bytes(data), None, None], []


class Given:
    """The peer's end of a process that is given tensors which it can never write."""

    _channel: LoopChannel

    def provide(
        self,
        object_id: bytes,
        header: TensorHeader,
        data: int | bytes,
        offset: int = 0,
        read_only: bool = True,
        *,
        hashes: BlockHashes | None = None,
        origin: Any = None,
    ) -> None:
        """A tensor, as a worker gets it (remote.Worker.provide), but read-only in any case."""
        self._channel.send(*provided(object_id, header, data, offset, hashes, read_only=True))


def take(objects: Objects, fields: Sequence[Any], descriptors: Sequence[int]) -> None:
    """Keeps what a message gives, never to be written; `fields` are those behind its kind. The descriptors stay the
    caller's."""
    object_id, dtype, shape, offset, _, data, hashes, number = fields
    source: Any = data if data is not None else (descriptors[0], offset)
    known = None if hashes is None else BlockHashes.from_wire(hashes)
    header = TensorHeader(dtype, tuple(shape))
    objects.provide(object_id, header, source, read_only=True, hashes=known, number=number)
