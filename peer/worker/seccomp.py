"""The filter of system calls: what a worker may still ask of the kernel, as a small program that the kernel runs.

Three answers. What the runtime and torch need is allowed, some of it with certain arguments only. What honest code
stumbles over (it looks for a file, asks for a process) fails with EPERM, so that it can go on. Everything else ends the
process, calls of foreign architectures and of the x32 ABI among them.

Memory may be made executable: oneDNN, without which convolutions take twice and bfloat16 a hundred times as long, and
FBGEMM write their code while they run. What runs there has the same filter before it: nothing here relies on which
code it is that asks.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from peer.worker import kernel
from peer.worker.syscalls import NUMBERS

_AUDIT_ARCH: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32_BIT: Final = 0x4000_0000

_KILL: Final = 0x8000_0000
_ERRNO: Final = 0x0005_0000
_ALLOW: Final = 0x7FFF_0000
_SET_MODE_FILTER: Final = 1

# Where things are in `struct seccomp_data`.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16

# Opcodes of classic BPF.
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_AT_LEAST = 0x15, 0x35

_MAP_TYPE: Final = 0xF
_MAP_PRIVATE: Final = 0x2
_MAP_UNCOUNTED: Final = 0x100 | 0x2000 | 0x4_0000  # GROWSDOWN, LOCKED, HUGETLB: memory that limits do not see
# What glibc makes a thread with. Exactly this: no flag that would make it a process, or give it a namespace.
_THREAD_FLAGS: Final = 0x003D_0F00
_CLONE_DETACHED: Final = 0x0040_0000  # has no effect; other C libraries set it
_MFD_FLAGS: Final = 0x3  # CLOEXEC, ALLOW_SEALING
_ADD_SEALS, _GET_SEALS, _DUPFD_CLOEXEC = 1033, 1034, 1030
_MSG_FLAGS: Final = (
    0x4000_4040  # DONTWAIT, NOSIGNAL, CMSG_CLOEXEC: none that changes what the kernel does with the data
)
_SOL_SOCKET: Final = 1
_ABOUT_SOCKETS: Final = (3, 4, 38, 39)  # SO_TYPE, SO_ERROR, SO_PROTOCOL, SO_DOMAIN: not who is at the other end
_FUTEX: Final = (0, 1, 3, 4, 5, 9, 10)  # WAIT, WAKE, their forms: none of those that inherit priorities
_FUTEX_FLAGS: Final = 0x180  # PRIVATE, CLOCK_REALTIME
_CLOCKS: Final = 0xF  # of the machine and of the caller: those below 0 are the clocks of other processes
# NORMAL to WILLNEED, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP, POPULATE_READ, GUARD_INSTALL, and its
# REMOVE: nothing that writes other processes' pages out, or looks for pages that are like theirs.
_ADVICE: Final = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 22, 102, 103)

ALLOWED: Final = (
    # the channel, and what comes by it
    "write writev poll ppoll close fstat pread64 pwrite64 getsockname ftruncate "
    # memory
    "munmap brk mremap mprotect "
    # time and chance
    "nanosleep gettimeofday time getrandom "
    # itself
    "getpid gettid getppid getuid geteuid getgid getegid getrusage times sysinfo uname getcpu "
    "sched_yield getrlimit rt_sigreturn rt_sigprocmask rt_sigaction sigaltstack restart_syscall membarrier rseq "
    "set_robust_list exit exit_group"
).split()

REFUSED: Final = (
    # files
    "open openat openat2 creat stat lstat statx access faccessat faccessat2 readlink readlinkat getcwd getdents "
    "getdents64 unlink unlinkat mkdir mkdirat rmdir rename renameat renameat2 link linkat symlink symlinkat mknod "
    "mknodat chmod fchmod fchmodat chown fchown fchownat lchown utimensat truncate statfs fstatfs umask chdir fchdir "
    "flock fsync fdatasync ioctl dup dup2 dup3 inotify_init1 "
    # where an open file is read next, which all who have it open share; which of its pages others have read
    "read readv lseek mincore "
    # other ends
    "socket socketpair connect bind listen accept accept4 setsockopt getpeername shutdown pipe pipe2 eventfd eventfd2 "
    "epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait select pselect6 signalfd4 timerfd_create shmget "
    # processes
    "fork vfork execve execveat wait4 waitid prctl arch_prctl sched_setaffinity sched_setscheduler sched_getscheduler "
    "sched_getparam sched_setparam sched_get_priority_max sched_get_priority_min getpriority setpriority setrlimit "
    "setitimer getitimer alarm timer_create mlock munlock mlock2 mlockall mbind get_mempolicy set_mempolicy "
    "setuid setgid setreuid setresuid setresgid setgroups setsid setpgid getpgid getsid getpgrp getgroups getresuid "
    "getresgid capget capset set_tid_address get_robust_list"
).split()


@dataclass(frozen=True, slots=True)
class If:
    """A condition on one argument: `argument & mask` is one of `values`. `is_high`: on its upper 32 bits."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF
    is_high: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What is answered to one call: `then` where all conditions hold, else `otherwise`."""

    name: str
    then: int = _ALLOW
    conditions: tuple[If, ...] = ()
    otherwise: int = _ERRNO | errno.EPERM


def rules(*, has_threads: bool, more: Iterable[str] = (), is_jail: bool = False) -> list[Rule]:
    """What a worker may ask, in the order in which it is looked up, but for what depends on which worker it is.

    Args:
        has_threads: it may make threads. Never processes.
        more: further calls, allowed with any arguments.
        is_jail: it has two files to write to, and no channel: nothing is sent or received, and no file is made.
    """
    answers = [*(_mute() if is_jail else _talking()), *(Rule(name) for name in (*ALLOWED, *more))]
    answers += [
        # Nothing is shared, nor hidden from the limit of memory. What is mapped may be run: torch writes machine code
        # for products of int64 matrices and dies where it cannot, and mprotect would let anybody have it all the same.
        Rule("mmap", conditions=(If(3, (_MAP_PRIVATE,), _MAP_TYPE | _MAP_UNCOUNTED),)),
        *([] if is_jail else [Rule("memfd_create", conditions=(If(1, (0,), ~_MFD_FLAGS & 0xFFFF_FFFF),))]),
        Rule("fallocate", conditions=(If(1, (0,)),)),  # not beyond the end, where nobody would count it
        Rule("madvise", conditions=(If(2, _ADVICE),)),
        *(
            Rule(name, conditions=(If(0, (0,), ~_CLOCKS & 0xFFFF_FFFF),))
            for name in ("clock_gettime", "clock_getres", "clock_nanosleep")
        ),
        Rule("fcntl", conditions=(If(1, (_ADD_SEALS, _GET_SEALS, _DUPFD_CLOEXEC, 1, 2, 3)),)),
        # Its C library asks for the file that is open by an empty path; there are no paths that it could ask about.
        Rule("newfstatat"),
        Rule("prlimit64", conditions=(If(0, (0,)), If(2, (0,)), If(2, (0,), is_high=True))),  # its own, to read
        Rule("clone3", then=_ERRNO | errno.ENOSYS),  # a filter cannot see its flags; so clone is used
        _cloning(has_threads),
    ]
    return answers + [Rule(name, then=_ERRNO | errno.EPERM) for name in REFUSED]


def _talking() -> list[Rule]:
    """Over the channel, and between threads: the plain forms, not the corners of the kernel that few ever call."""
    flags = ~_MSG_FLAGS & 0xFFFF_FFFF
    messages = {"sendmsg": 2, "recvmsg": 2, "sendto": 3, "recvfrom": 3}
    return [
        *(Rule(name, conditions=(If(argument, (0,), flags),)) for name, argument in messages.items()),
        Rule("getsockopt", conditions=(If(1, (_SOL_SOCKET,)), If(2, _ABOUT_SOCKETS))),
        _WAITING,
    ]


_WAITING: Final = Rule("futex", conditions=(If(1, _FUTEX, ~_FUTEX_FLAGS & 0xFFFF_FFFF),))
_MUTED: Final = "sendmsg recvmsg sendto recvfrom getsockopt getsockname memfd_create ftruncate fallocate".split()


def _mute() -> list[Rule]:
    """Instead, for who has nobody to talk to. The first rule of a call is the one that holds."""
    return [_WAITING, *(Rule(name, then=_ERRNO | errno.EPERM) for name in _MUTED)]


def _cloning(has_threads: bool) -> Rule:
    if not has_threads:
        return Rule("clone", then=_ERRNO | errno.EPERM)
    return Rule("clone", conditions=(If(0, (_THREAD_FLAGS,), ~_CLONE_DETACHED & 0xFFFF_FFFF),))


def _opening() -> bytes:
    """Calls of other architectures end here. OSError (ENOSYS) for a machine that there is no filter for."""
    if kernel.MACHINE not in NUMBERS:
        raise OSError(errno.ENOSYS, f"no filter is written for {kernel.MACHINE}")
    program = [_load(_ARCH), _jump(_IF_EQUAL, _AUDIT_ARCH[kernel.MACHINE], 1, 0), _give(_KILL), _load(_NUMBER)]
    return b"".join([*program, _jump(_IF_AT_LEAST, _X32_BIT, 0, 1), _give(_KILL)])


def _instructions(answers: Iterable[Rule]) -> bytes:
    """These rules, for a program whose accumulator has the number of the call; what none is for falls through."""
    numbers, program = NUMBERS[kernel.MACHINE], []
    for rule in answers:
        if rule.name in numbers:  # newer architectures have not all the old ones
            body = _body(rule)
            program += [_jump(_IF_EQUAL, numbers[rule.name], 0, len(body)), *body]
    return b"".join(program)


def install(program: bytes) -> None:
    """From here on it holds for this thread and all that it makes. OSError where the kernel has no such filters."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    instructions = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    kernel.call(NUMBERS[kernel.MACHINE]["seccomp"], _SET_MODE_FILTER, 0, described)


def confine(process: int, *, has_threads: bool, more: Sequence[str] = (), is_jail: bool = False) -> None:
    """A worker's filter, for the calling process; `process` is its id, as it sees it."""
    opening = _opening()
    its_own = [
        Rule("tgkill", conditions=(If(0, (process,)),), otherwise=_KILL),  # abort() signals the thread that calls it
        Rule("sched_getaffinity", conditions=(If(0, (0, process)),)),  # of others it tells that they are there
    ]
    install(opening + _instructions(its_own) + _common(has_threads, tuple(more), is_jail))


def prepare(*, has_threads: bool, more: Sequence[str] = ()) -> None:
    """In the zygote: the filters of workers and jails, put together once for all that are forked."""
    for is_jail in (False, True):
        _common(has_threads, () if is_jail else tuple(more), is_jail)


@functools.cache  # a zygote's workers differ in nothing but their ids
def _common(has_threads: bool, more: tuple[str, ...], is_jail: bool) -> bytes:
    return _instructions(rules(has_threads=has_threads, more=more, is_jail=is_jail)) + _give(_KILL)


def _body(rule: Rule) -> list[bytes]:
    """What follows the comparison of the number; ends with an answer on every way."""
    body: list[bytes] = []
    for condition in rule.conditions:
        body += _test(condition, _give(rule.otherwise))
    return [*body, _give(rule.then)]


def _test(condition: If, otherwise: bytes) -> Sequence[bytes]:
    at = _ARGUMENTS + 8 * condition.argument + (4 if condition.is_high else 0)
    count = len(condition.values)
    # Each comparison that succeeds leaps over the others and over the answer that they lead to.
    tests = [_jump(_IF_EQUAL, value, count - index, 0) for index, value in enumerate(condition.values)]
    return [_load(at), _instruction(_AND, condition.mask), *tests, otherwise]


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _jump(code: int, value: int, yes: int, no: int) -> bytes:
    return _instruction(code, value, yes, no)


def _give(answer: int) -> bytes:
    return _instruction(_RETURN, answer)
