"""What a worker holds: tensors by object id, and for those that could not be made, the error that says why."""

from __future__ import annotations

import array
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from compute import interpreter
from compute.cost import ALLOWED
from compute.dtypes import DTYPE_OF
from peer.worker.device import Device
from peer.worker.guards import BlockHashes, Guard
from peer.worker.mapped import Files, Guarded, Mapped, check_bools
from protocol.errors import AlreadyExists, BadTensor, GridError, NotFound, ReadOnly
from protocol.tensors import TensorHeader


class _Provided:
    """Memory that came from the peer, while a tensor uses it.

    Attributes:
        number: by which the peer knows the file that these are the very pages of; None where they are no such thing.
        guard: checks what is read of it, where it is a stored file with hashes.
        is_ours: it takes memory of this process: it is no file, or was written to.
    """

    __slots__ = ("guard", "is_ours", "is_read_only", "is_written", "number", "reference")

    def __init__(
        self,
        reference: weakref.ref[Any],
        is_read_only: bool,
        is_ours: bool,
        number: int | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.reference = reference
        self.is_read_only = is_read_only
        self.is_ours = is_ours
        self.number = number
        self.guard = guard
        self.is_written = False


class Objects:
    """Tensors and failures by id. An id names one thing until it is dropped.

    Attributes:
        execute: how an operation runs where these tensors are.
        factored: what the last factorisation gave; its last result says whether the others are good, and the next
            operation looks (torch.linalg.inv and others are two operations).
        is_on_cpu: whether they are where the process has its memory.
        tensors: by id; to be read only.
        roots: address of each tensor that was provided, by id; to be read only.
    """

    def __init__(self, device: Device | None = None) -> None:
        self._device = device
        self.factored: tuple[bytes, ...] = ()
        self.execute = interpreter.execute if device is None else device.execute
        self.is_on_cpu = device is None
        self.tensors: dict[bytes, torch.Tensor] = {}
        self._failures: dict[bytes, GridError] = {}
        self._unmade: dict[bytes, list[int]] = {}  # of views among those: what of `_storages` they would be on
        self._provided: dict[int, _Provided] = {}  # by address: a view of the tensor has the same storage
        self.roots: dict[bytes, int] = {}  # id of a provided tensor -> its address
        self._files = Files()
        self._storages: dict[int, list[int]] = {}  # of tensors with an id: how many share it, and its bytes of memory
        self.held = 0  # bytes of memory behind all tensors, shared memory counted once; mapped files count when written
        self.guards = 0  # pieces of memory here that must be checked before they are read; mostly none

    def __len__(self) -> int:
        return len(self.tensors) + len(self._failures)

    def get(self, object_id: bytes) -> torch.Tensor:
        """The tensor; the error of the operation that should have made it; NotFound."""
        tensor = self.tensors.get(object_id)
        if tensor is not None:
            return tensor
        failure = self._failures.get(object_id)
        if failure is not None:
            raise failure.again()
        raise NotFound(f"no object {_shown(object_id)} is here; it was dropped, or never sent")

    def put(self, object_id: bytes, tensor: torch.Tensor) -> None:
        """AlreadyExists if the id names another tensor."""
        found = self.tensors.get(object_id)
        if found is None:
            self.tensors[object_id] = tensor
            storage = tensor.untyped_storage()
            counted = self._storages.get(storage._cdata)
            if counted is not None:
                counted[0] += 1
            else:
                provided = self._provided.get(storage.data_ptr()) if self._provided else None
                nbytes = storage.nbytes() if provided is None or provided.is_ours else 0
                self._storages[storage._cdata] = [1, nbytes]
                self._count(nbytes)
        elif found is not tensor:
            raise AlreadyExists(f"{_shown(object_id)} is the id of another object; results need ids of their own")
        if self._failures:
            self._failures.pop(object_id, None)
            self._unmade.pop(object_id, None)

    def fail(self, object_id: bytes, error: GridError, viewed: bytes | None = None) -> None:
        """A result that was not made. An object that has this id already stays what it is.

        `viewed`: the id of what it would have been a view of. What is to be changed through it is to be changed there.
        """
        if object_id in self.tensors:
            return
        self._failures[object_id] = error
        memory = self._memory_of(viewed)
        if memory is not None:
            self._unmade[object_id] = memory

    def spoil(self, ids: Iterable[bytes], error: GridError) -> None:
        """Objects that should have been changed in place and were not. Their values are no longer what was meant, nor
        are those of all that share their memory: views, and what they are views of.

        What is read-only stays good: it never was to change.
        """
        self._spoil(map(self._memory_of, ids), error)

    def spoil_memory(self, tensors: Iterable[torch.Tensor], error: GridError) -> None:
        """`spoil`, for tensors that may have no ids themselves: whatever shares their memory."""
        self._spoil((self._storages.get(tensor.untyped_storage()._cdata) for tensor in tensors), error)

    def _spoil(self, memories: Iterable[list[int] | None], error: GridError) -> None:
        spoiled = {id(memory) for memory in memories if memory is not None}
        if not spoiled:
            return
        ids = [
            object_id
            for object_id, tensor in self.tensors.items()
            if id(self._storages[tensor.untyped_storage()._cdata]) in spoiled and not self._is_read_only(tensor)
        ]
        self.drop(ids)
        self._failures.update(dict.fromkeys(ids, error))

    def _memory_of(self, object_id: bytes | None) -> list[int] | None:
        """What `_storages` has of the memory that this object is on, or would be on: no other memory has the same."""
        if object_id is None:
            return None
        tensor = self.tensors.get(object_id)
        return self._unmade.get(object_id) if tensor is None else self._storages[tensor.untyped_storage()._cdata]

    def drop(self, ids: Iterable[bytes]) -> None:
        for object_id in ids:
            tensor = self.tensors.pop(object_id, None)
            if tensor is not None:
                self._release(tensor)
            if self._failures:
                self._failures.pop(object_id, None)
                self._unmade.pop(object_id, None)
            if self.roots:
                self.roots.pop(object_id, None)

    def provide(
        self,
        object_id: bytes,
        header: TensorHeader,
        source: Any,
        *,
        read_only: bool,
        hashes: BlockHashes | None = None,
        number: int | None = None,
    ) -> None:
        """A tensor on memory of the peer's.

        Args:
            source: bytes, or (descriptor, offset) of a file; it is mapped, not read. None of it for no elements.
            read_only: it is not to be written; a file is then mapped so that nobody can.
            hashes: of the blocks of a read-only file: what operations read of it is then checked (`guarded`).
            number: by which the peer will know this file (`place`).

        Raises:
            BadTensor: what is there is not such a tensor.
            Corrupt: nor is it what was stored, where it had to be read.
            MemoryError: the system does not map more.
        """
        dtype = DTYPE_OF.get(header.dtype)
        if dtype is None:
            raise BadTensor(f"torch {torch.__version__}, which runs here, has no {header.dtype}")
        self.drop([object_id])
        if not header.numel:
            self.put(object_id, torch.zeros(header.shape, dtype=dtype))
            return
        if isinstance(source, bytes):
            header.check_payload(len(source))
            mapped = Mapped(array.array("B", source), 0)
        else:
            mapped = self._files.map(object_id, header, source, read_only, hashes if read_only else None)
        tensor = torch.frombuffer(mapped.memory, dtype=dtype, count=header.numel, offset=mapped.lead).view(header.shape)
        if dtype is torch.bool and mapped.guard is None:
            check_bools(tensor.view(torch.uint8))
        number, memory, guard, is_ours = (
            number if mapped.is_file else None,
            mapped.memory,
            mapped.guard,
            not mapped.is_file,
        )
        if self._device is not None:
            tensor = _copied(tensor, guard, self._device)
            memory, guard, is_ours = tensor.untyped_storage(), None, True
        address = tensor.untyped_storage().data_ptr()
        # The memory is given back when the last tensor on it is gone; its address may then be another's.
        reference = weakref.ref(memory, lambda _: self._ended(address))
        self._provided[address] = _Provided(reference, read_only, is_ours, number, guard)
        self.guards += guard is not None
        self.put(object_id, tensor)
        self.roots[object_id] = address

    def _ended(self, address: int) -> None:
        provided = self._provided.pop(address, None)
        if provided is not None and provided.guard is not None:
            self.guards -= 1
            provided.guard.end()

    # --- what operations read -----------------------------------------------------------------------------

    def guarded(self, values: Iterable[Any]) -> list[Guarded]:
        """The tensors among these (and in lists of them) that lie on memory which must be checked first."""
        found: list[Guarded] = []
        for value in values:
            if isinstance(value, torch.Tensor):
                provided = self._provided.get(value.untyped_storage().data_ptr())
                if provided is not None and provided.guard is not None:
                    found.append(Guarded(value, provided.guard))
            elif isinstance(value, list | tuple):
                found += self.guarded(value)
        return found

    def place(self, tensor: torch.Tensor) -> list[int] | None:
        """Where the peer has a tensor's very bytes itself, in one piece: the number of what it provided, and the
        offset in that."""
        provided = self._provided.get(tensor.untyped_storage().data_ptr())
        if provided is None or provided.number is None or not provided.is_read_only:
            return None
        if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            return None
        return [provided.number, int(tensor.storage_offset()) * tensor.element_size()]

    # --- what they write ----------------------------------------------------------------------------------

    def check_writable(self, tensor: torch.Tensor) -> None:
        """Before `tensor` is written to. ReadOnly if it, or what it is a view of, is a published object.

        TooLarge where the copy that the system makes of what is written would be more than this process may have.
        """
        provided = self._provided.get(tensor.untyped_storage().data_ptr())
        if provided is None:
            return
        if provided.is_read_only:
            raise ReadOnly("a published object is not changed in place; work on a copy of it: `x.clone()`")
        if not provided.is_ours:
            self._own(tensor, provided)
        provided.is_written = True

    def copied_when_written(self, tensors: Iterable[torch.Tensor | None]) -> int:
        """Bytes of memory that this process does not have yet, and would have if all of these were written to."""
        if not self._provided:
            return 0
        storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
        nbytes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        found = ((self._provided.get(address), size) for address, size in nbytes.items())
        return sum(size for provided, size in found if provided is not None and not provided.is_ours)

    def is_as_provided(self, object_id: bytes) -> bool:
        """Whether the peer has these very bytes itself."""
        address = self.roots.get(object_id)
        return address is not None and not self._provided[address].is_written

    # --- how much it is -----------------------------------------------------------------------------------

    def _release(self, tensor: torch.Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        found = self._storages[key]
        found[0] -= 1
        if not found[0]:
            del self._storages[key]
            self._count(-found[1])

    def _own(self, tensor: torch.Tensor, provided: _Provided) -> None:
        storage = tensor.untyped_storage()
        ALLOWED.check_memory("changing it in place", storage.nbytes())
        provided.is_ours = True
        found = self._storages.get(storage._cdata)
        if found is not None:
            found[1] = storage.nbytes()
            self._count(storage.nbytes())

    def _count(self, nbytes: int) -> None:
        self.held += nbytes
        ALLOWED.held += nbytes

    def _is_read_only(self, tensor: torch.Tensor) -> bool:
        provided = self._provided.get(tensor.untyped_storage().data_ptr())
        return provided is not None and provided.is_read_only


def _copied(tensor: torch.Tensor, guard: Guard | None, device: Device) -> torch.Tensor:
    """A copy on the device, of which all was checked that had to be: nothing of the original is needed any more."""
    ALLOWED.check_memory("bringing it to the device", tensor.numel() * tensor.element_size())
    if guard is None:
        return device.bring(tensor)
    guarded = Guarded(tensor, guard)
    guarded.check()
    copy = device.bring(tensor)
    guarded.was_read()
    guard.end()
    return copy


def _shown(object_id: object) -> str:
    return object_id.hex() if isinstance(object_id, bytes) else repr(object_id)[:40]
