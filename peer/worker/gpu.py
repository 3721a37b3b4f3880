"""The one place that says what a worker on a CUDA device is left with that others are not. It is a weaker boundary.

The driver is spoken to by ioctl on its device files, and its libraries are opened when they are needed: so these files
are there, read-only, calls that open and map files are allowed, and ioctl is. What the driver makes of an ioctl is its
own affair: a hole in it is a hole in the boundary (SECURITY.md). There are still no network, no processes, no user's
files, and nothing to write to but the devices.
"""

from __future__ import annotations

import glob
import os
import sys
from typing import Final

_DEVICES: Final = ("/dev/nvidia*", "/dev/dri", "/dev/urandom", "/dev/null")
_LIBRARIES: Final = ("/usr", "/lib", "/lib64", "/opt/cuda", "/etc/ld.so.cache", "/etc/alternatives", "/sys/devices")

# Beside those of every worker.
CALLS: Final = (
    "open openat stat lstat statx access faccessat faccessat2 readlink readlinkat getcwd getdents64 fstatfs statfs "
    "read readv lseek madvise mmap mprotect msync mlock munlock ioctl dup dup3 pipe2 eventfd2 epoll_create1 "
    "epoll_ctl epoll_wait epoll_pwait select pselect6 prctl sched_setaffinity sched_getscheduler sched_getparam "
    "sched_get_priority_max sched_get_priority_min getpriority mbind get_mempolicy set_mempolicy get_robust_list "
    "timerfd_create"
).split()
THREADS: Final = 64  # that the driver makes for itself


def devices() -> list[str]:
    return sorted(path for pattern in _DEVICES for path in glob.glob(pattern))


def libraries() -> list[str]:
    """Where Python, torch and the driver's libraries are, none of them inside another."""
    found = {os.path.realpath(path) for path in (*_LIBRARIES, *sys.path, sys.prefix, sys.base_prefix)}
    present = sorted(path for path in found if os.path.exists(path) and path != "/")
    return [path for path in present if not any(path.startswith(f"{other}/") for other in present)]
