"""Memory that crosses a process: sealed memory files, and private copy-on-write mappings of them.

Torch-free: the peer and its workers both use it. A buffer given to a worker is sealed against writing, so even
a worker that was taken over cannot alter what the peer holds; a buffer taken from a worker must be sealed
against shrinking too, or reading it could kill the peer (SIGBUS).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import sys
import tempfile
import weakref
from typing import Final

from protocol.errors import BadTensor, InternalError

HAS_SEALS: Final = sys.platform == "linux"

# The numbers of <linux/fcntl.h>; Python 3.11 names only the first four.
_SEAL_SEAL: Final = 0x1
_SEAL_SHRINK: Final = 0x2
_SEAL_GROW: Final = 0x4
_SEAL_WRITE: Final = 0x8
_SEAL_FUTURE_WRITE: Final = 0x10
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034

_FIXED: Final = _SEAL_SHRINK | _SEAL_GROW | _SEAL_SEAL
_MAP_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_PYBUF_WRITE: Final = 0x200
_MADV_WILLNEED: Final = 3
_MADV_DONTNEED: Final = 4
_MADV_POPULATE_READ: Final = 22  # Linux 5.14
_EHWPOISON: Final = 133
_STAT_BLOCK: Final = 512  # what st_blocks counts in, on Linux

_M_TRIM_THRESHOLD: Final = -1  # <malloc.h> of glibc
_M_MMAP_THRESHOLD: Final = -3
_IN_PLACE: Final = 32 << 20  # bytes of a block that is used again; glibc takes no more than that
_AT_HAND: Final = 64 << 20  # freed bytes that are not given back

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.restype = ctypes.c_int
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.restype = ctypes.c_int
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_view_of_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of_memory.restype = ctypes.py_object
_view_of_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]


def keep_freed() -> None:
    """From now on this process uses what it has freed again, instead of giving it back to the system: fresh pages cost
    as much as the arithmetic on them. Where the system's malloc can be told."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, _IN_PLACE)
        _libc.mallopt(_M_TRIM_THRESHOLD, _AT_HAND)


def new_file(name: str) -> int:
    """An anonymous file in memory; the caller closes the descriptor."""
    if HAS_SEALS:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile(prefix="grid-") as file:
        return os.dup(file.fileno())


def seal_for_readers(fd: int) -> None:
    """From now on nobody can write, grow or shrink it; a shared mapping that its maker has stays writable."""
    if HAS_SEALS:
        fcntl.fcntl(fd, _F_ADD_SEALS, _FIXED | _SEAL_FUTURE_WRITE)


def seal(fd: int) -> None:
    """From now on the content is fixed. Fails (OSError) while a writable shared mapping exists."""
    if HAS_SEALS:
        fcntl.fcntl(fd, _F_ADD_SEALS, _FIXED | _SEAL_WRITE)


def fix_size(fd: int, nbytes: int) -> None:
    """It has so many bytes from now on, zeros at first, whoever writes to it."""
    os.ftruncate(fd, nbytes)
    if HAS_SEALS:
        fcntl.fcntl(fd, _F_ADD_SEALS, _FIXED)


def is_sealed(fd: int) -> bool:
    """Whether nobody can change its content any more. False for what is no memory file."""
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS) & (_SEAL_SHRINK | _SEAL_WRITE) == _SEAL_SHRINK | _SEAL_WRITE
    except OSError:
        return False


def check_sealed(fd: int, nbytes: int) -> None:
    """InternalError unless `fd`, which came from a worker, is a sealed memory file of exactly `nbytes`, all there.

    A hole would be filled when it is read: memory that nobody accounted for and, where there is none, SIGBUS.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != nbytes:
        raise InternalError(f"a worker gave {status.st_size} bytes where its header says {nbytes}")
    if not HAS_SEALS:
        return
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & (_SEAL_SHRINK | _SEAL_WRITE) != _SEAL_SHRINK | _SEAL_WRITE:
        raise InternalError("a worker gave memory that it can still change")
    if status.st_blocks * _STAT_BLOCK < nbytes:
        raise InternalError(f"a worker gave a file with holes: {status.st_blocks * _STAT_BLOCK} of {nbytes} bytes")


def write_all(fd: int, data: memoryview, offset: int = 0) -> None:
    """All of `data` at `offset`. On fresh memory this beats writing through a mapping: no zeroing, no faults."""
    while data.nbytes:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def map_private(fd: int, offset: int, nbytes: int, *, is_read_only: bool = False) -> memoryview:
    """A private view of `nbytes` of a file from any offset on: pages written to become our own copies.

    One that is read-only says that it is writable (torch warns of others), but whoever writes to it dies: nothing of
    it is ever ours to account for, so that a file of any size can be mapped whatever the system grants to processes.

    The memory is unmapped when the view is collected, so whatever reads it must keep this very object (a tensor
    made from it by torch.frombuffer does). No descriptor is held, unlike with mmap.mmap: a worker maps thousands.
    """
    size = os.fstat(fd).st_size
    if not (0 <= offset and 0 < nbytes and offset + nbytes <= size):
        # Beyond the end of the file a read kills the process.
        raise BadTensor(f"{nbytes} bytes from {offset} on, in a file of {size}")
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    length = offset - start + nbytes
    access = mmap.PROT_READ if is_read_only else mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE  # else a model larger than memory could not be mapped
    address = _libc.mmap(None, length, access, flags, fd, start)
    if address is None or address == _MAP_FAILED:
        raise MemoryError(f"cannot map {nbytes} bytes: {os.strerror(ctypes.get_errno())}")
    view: memoryview = _view_of_memory(address + offset - start, nbytes, _PYBUF_WRITE)
    weakref.finalize(view, _libc.munmap, address, length).atexit = False
    return view


def map_shared(fd: int, nbytes: int, *, is_writable: bool) -> ctypes.Array[ctypes.c_char]:
    """The first bytes of a file, shared with whoever else maps it; memoryview(...) gives views. OSError.

    It is unmapped when the last view of it is gone. No descriptor is held, unlike with mmap.mmap.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE if is_writable else mmap.PROT_READ
    address = _libc.mmap(None, nbytes, access, mmap.MAP_SHARED, fd, 0)
    if address is None or address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    pages = (ctypes.c_char * nbytes).from_address(address)
    weakref.finalize(pages, _libc.munmap, address, nbytes).atexit = False
    return pages


def view_at(address: int, nbytes: int) -> memoryview:
    """A view, to be read, of memory that somebody else keeps: beyond use when that is gone."""
    view: memoryview = _view_of_memory(address, nbytes, _PYBUF_WRITE)
    return view


def populate(address: int, nbytes: int) -> bool:
    """Read the pages of a mapped file in, and no others; False where that fails: to touch them would kill us."""
    if sys.platform != "linux":
        return True
    _libc.madvise(*_pages(address, nbytes), _MADV_WILLNEED)  # else the system reads what lies around them as well
    done = _libc.madvise(*_pages(address, nbytes), _MADV_POPULATE_READ)
    return not (done and ctypes.get_errno() in (errno.EFAULT, _EHWPOISON))


def let_go(address: int, nbytes: int) -> None:
    """These pages of a read-only mapping leave the process; the system may keep them, for the next reader."""
    if sys.platform == "linux":
        _libc.madvise(*_pages(address, nbytes), _MADV_DONTNEED)


def _pages(address: int, nbytes: int) -> tuple[int, int]:
    start = address - address % mmap.PAGESIZE
    return start, address + nbytes - start
