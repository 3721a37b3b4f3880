"""Namespaces: processes that see no other processes, no network, no files, and are nobody.

A process that is root uses its rights for that and gives them up; one that is not makes itself a user namespace, in
which it has such rights and nothing outside. Each function raises OSError where the kernel, or the container around,
refuses.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final

from peer.worker import kernel
from peer.worker.kernel import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS

_NOBODY: Final = 65_534
# Users that no machine gives to anybody; one of them for each peer of root's, so that they are strangers to each other.
_STRANGERS: Final = range(1_900_000_000, 2_100_000_000)
_HOST: Final = "worker"
_MOUNT_POINTS: Final = ("/tmp", "/run", "/mnt", "/proc", "/dev")
_BARE: Final = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC


def is_root() -> bool:
    return os.geteuid() == 0


def new_users(flags: int = 0) -> None:
    """A user namespace, in which we are who we are, with all rights over what else is new (`flags`)."""
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(CLONE_NEWUSER | flags)
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        _write(f"/proc/self/{file}", text)


def nobodys() -> None:
    """A user namespace without users: whoever we are outside, here nobody is anybody."""
    kernel.unshare(CLONE_NEWUSER)


def new_processes() -> bool:
    """What we fork next is the first process of a namespace, and all end with it. Whether it took new users."""
    if is_root():
        kernel.unshare(CLONE_NEWPID)
        return False
    new_users(CLONE_NEWPID)
    return True


def new_network() -> None:
    """One without devices; of System V objects, message queues and host names too, with a name that says nothing."""
    kernel.unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    socket.sethostname(_HOST)


def new_files(bound: Sequence[tuple[str, bool]] = ()) -> None:
    """An empty root that cannot be written to.

    Args:
        bound: paths that stay there, and whether they are devices (to be used) or read-only.
    """
    kernel.unshare(CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    new = next(path for path in _MOUNT_POINTS if os.path.isdir(path))
    flags = _BARE & ~(kernel.MS_NODEV | kernel.MS_NOEXEC) if bound else _BARE
    kernel.mount("tmpfs", new, "tmpfs", flags, "size=256k,nr_inodes=256,mode=0555")
    for path, is_device in bound:
        _bind(path, new, is_device)
    os.chdir(new)
    kernel.pivot_root(".", ".")  # the old root lies on top of the new one now
    kernel.unmount(".", kernel.MNT_DETACH)
    os.chdir("/")
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | flags)


def _bind(path: str, root: str, is_device: bool) -> None:
    target = root + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    kernel.mount(path, target, None, kernel.MS_BIND | kernel.MS_REC)
    if not is_device:
        flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("none", target, None, flags)


def drop_user() -> None:
    """Root becomes a stranger: a user whom nothing on this machine belongs to."""
    stranger = _STRANGERS[os.getppid() % len(_STRANGERS)]
    os.setgroups([])
    for user in (stranger, _NOBODY):  # a container may know few users
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:
            if user == _NOBODY:
                raise
        else:
            break
    # The kernel took our /proc/self away with that; a user namespace is described in it.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)


def prefer_for_killing() -> None:
    """Where the machine runs out of memory, we go before others do."""
    with contextlib.suppress(OSError):
        _write("/proc/self/oom_score_adj", "500")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
