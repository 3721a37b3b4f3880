"""The kernel's calls that Python has no names for, as functions that raise OSError. Linux on x86_64 and aarch64.

Nothing here decides anything: `namespaces`, `landlock` and `seccomp` do.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Final

MACHINE: Final = os.uname().machine

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x4_0000
MNT_DETACH: Final = 0x2

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}  # its number
_CAPABILITY_VERSION_3: Final = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call that libc has no function for."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *words)), f"system call {number}")


def prctl(option: int, argument: int = 0) -> None:
    if sys.platform == "linux":
        _checked(_libc.prctl(option, *(ctypes.c_ulong(word) for word in (argument, 0, 0, 0))), "prctl")


def set_slice(thread: int, seconds: float) -> None:
    """How long a thread of the usual policy runs before another's turn, 0.1 to 100 ms; 0: as the kernel has it."""
    if MACHINE not in _SCHED_SETATTR:
        return
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, round(seconds * 1e9), 0, 0)
    call(_SCHED_SETATTR[MACHINE], thread, attributes, 0)


def unshare(flags: int) -> None:
    """Namespaces of its own for this process; of processes (CLONE_NEWPID) for its children."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [None if text is None else text.encode() for text in (source, target, kind)]
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), options.encode()), "mount")


def unmount(target: str, flags: int) -> None:
    _checked(_libc.umount2(target.encode(), flags), "umount")


def pivot_root(new: str, old: str) -> None:
    _checked(_libc.pivot_root(new.encode(), old.encode()), "pivot_root")


def drop_capabilities() -> None:
    """None are left, whoever this process is, and none can come back."""
    capability = 0
    try:
        while True:
            prctl(PR_CAPBSET_DROP, capability)
            capability += 1
    except OSError:
        pass  # beyond the last one; or it has not the capability to drop any, and so none to gain either
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, bytes(24)), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
