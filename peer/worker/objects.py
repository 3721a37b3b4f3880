"""What a worker holds: tensors by object id, and for those that could not be made, the error that says why."""

from __future__ import annotations

import array
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from compute.dtypes import DTYPE_OF
from peer.worker import memory
from protocol.errors import AlreadyExists, BadTensor, GridError, NotFound, ReadOnly
from protocol.tensors import TensorHeader


class _Provided:
    """Memory that came from the peer, while a tensor uses it."""

    __slots__ = ("is_read_only", "is_written", "reference")

    def __init__(self, reference: weakref.ref[Any], is_read_only: bool) -> None:
        self.reference = reference
        self.is_read_only = is_read_only
        self.is_written = False


class Objects:
    """Tensors and failures by id. An id names one thing until it is dropped."""

    def __init__(self) -> None:
        self._tensors: dict[bytes, torch.Tensor] = {}
        self._failures: dict[bytes, GridError] = {}
        self._provided: dict[int, _Provided] = {}  # by address: a view of the tensor has the same storage
        self._roots: dict[bytes, int] = {}  # id of a provided tensor -> its address

    def __len__(self) -> int:
        return len(self._tensors) + len(self._failures)

    def get(self, object_id: bytes) -> torch.Tensor:
        """The tensor; the error of the operation that should have made it; NotFound."""
        tensor = self._tensors.get(object_id)
        if tensor is not None:
            return tensor
        failure = self._failures.get(object_id)
        if failure is not None:
            raise failure.again()
        raise NotFound(f"no object {_shown(object_id)} is here; it was dropped, or never sent")

    def put(self, object_id: bytes, tensor: torch.Tensor) -> None:
        """AlreadyExists if the id names another tensor."""
        if self._tensors.setdefault(object_id, tensor) is not tensor:
            raise AlreadyExists(f"{_shown(object_id)} is the id of another object; results need ids of their own")
        if self._failures:
            self._failures.pop(object_id, None)

    def fail(self, object_id: bytes, error: GridError) -> None:
        """A result that was not made. An object that has this id already stays what it is."""
        if object_id not in self._tensors:
            self._failures[object_id] = error

    def spoil(self, object_id: bytes, error: GridError) -> None:
        """An object that should have been changed in place and was not: its value is no longer what was meant.

        A read-only one stays good: it never was to change.
        """
        tensor = self._tensors.get(object_id)
        if tensor is None or self._is_read_only(tensor):
            return
        self.drop([object_id])
        self._failures[object_id] = error

    def drop(self, ids: Iterable[bytes]) -> None:
        for object_id in ids:
            self._tensors.pop(object_id, None)
            self._failures.pop(object_id, None)
            self._roots.pop(object_id, None)

    def provide(self, object_id: bytes, header: TensorHeader, source: Any, *, read_only: bool) -> None:
        """A tensor on memory of the peer's.

        Args:
            source: bytes, or (descriptor, offset) of a file; it is mapped, not read. None of it for no elements.

        Raises:
            BadTensor: what is there is not such a tensor.
            MemoryError: the system does not map more.
        """
        dtype = DTYPE_OF.get(header.dtype)
        if dtype is None:
            raise BadTensor(f"torch {torch.__version__}, which runs here, has no {header.dtype}")
        self.drop([object_id])
        if not header.numel:
            self._tensors[object_id] = torch.zeros(header.shape, dtype=dtype)
            return
        view = _view(header, source)
        tensor = torch.frombuffer(view, dtype=dtype).view(header.shape)
        if dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise BadTensor("a bool is the byte 0 or 1")  # kernels trust that, some as an index
        address = tensor.untyped_storage().data_ptr()
        forget = self._provided
        # The memory is given back when the last tensor on it is gone; its address may then be another's.
        self._provided[address] = _Provided(weakref.ref(view, lambda _: forget.pop(address, None)), read_only)
        self._tensors[object_id] = tensor
        self._roots[object_id] = address

    def check_writable(self, tensor: torch.Tensor) -> None:
        """Before `tensor` is written to. ReadOnly if it, or what it is a view of, is a published object."""
        provided = self._provided.get(tensor.untyped_storage().data_ptr())
        if provided is None:
            return
        if provided.is_read_only:
            raise ReadOnly("a published object is not changed in place; work on a copy of it: `x.clone()`")
        provided.is_written = True

    def is_as_provided(self, object_id: bytes) -> bool:
        """Whether the peer has these very bytes itself."""
        address = self._roots.get(object_id)
        return address is not None and not self._provided[address].is_written

    def bytes_held(self) -> int:
        """Bytes of memory behind all tensors, shared memory counted once."""
        storages = (tensor.untyped_storage() for tensor in self._tensors.values())
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def _is_read_only(self, tensor: torch.Tensor) -> bool:
        provided = self._provided.get(tensor.untyped_storage().data_ptr())
        return provided is not None and provided.is_read_only


def _view(header: TensorHeader, source: Any) -> Any:
    """Writable memory of exactly the tensor's bytes that dies with the last user of this very object."""
    if isinstance(source, bytes):
        header.check_payload(len(source))
        return array.array("B", source)
    descriptor, offset = source
    view = memory.map_private(descriptor, offset, header.nbytes)
    if offset % header.itemsize:
        return array.array("B", view)  # kernels expect aligned elements
    return view


def _shown(object_id: object) -> str:
    return object_id.hex() if isinstance(object_id, bytes) else repr(object_id)[:40]
