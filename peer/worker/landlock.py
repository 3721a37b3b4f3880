"""Landlock: from here on this process opens no file, connects and listens nowhere, and signals nobody outside.

Three raw system calls, with all the rights that the running kernel knows: more of them with each version of its ABI.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Final

from peer.worker import kernel

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_VERSION: Final = 1  # a flag of create_ruleset: "which ABI is it?"
_RULE_PATH_BENEATH: Final = 1

_EXECUTE, _WRITE, _READ, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_IOCTL_DEV: Final = 1 << 15
# By ABI: how many of the rights to files there are (REFER, TRUNCATE and IOCTL_DEV came later), whether TCP is covered
# (bind and connect), and how many scopes (abstract unix sockets, signals).
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_RIGHTS: Final = 0b11
_SCOPES: Final = 0b11

READ: Final = _EXECUTE | _READ | _READ_DIR
USE: Final = _READ | _WRITE | _IOCTL_DEV


def abi() -> int:
    """The kernel's version of it, 1 and up. OSError where it has none, or was started without."""
    return kernel.call(_CREATE, None, 0, _VERSION)


def restrict(allowed: Iterable[tuple[str, int]] = ()) -> None:
    """Forbids this thread, and all that it makes, whatever landlock can forbid; nothing that is open is closed.

    Args:
        allowed: paths, each with the rights (READ, USE) to what is beneath; those that are not there are left out.
    """
    version = abi()
    files = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    words = [files]
    if version >= 4:
        words.append(_NET_RIGHTS)
    if version >= 6:
        words.append(_SCOPES)
    attributes = struct.pack(f"{len(words)}Q", *words)
    ruleset = kernel.call(_CREATE, attributes, len(attributes), 0)
    try:
        for path, rights in allowed:
            _allow(ruleset, path, rights & files)
        kernel.call(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= ~_READ_DIR
        kernel.call(_ADD, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, beneath), 0)
    finally:
        os.close(beneath)
