"""The sandbox as a whole: its walls in order, which of them the kernel refused, and whether the rest is a boundary.

    in the zygote, before it imports torch     processes: it goes on as the first process of a namespace
    in the zygote, when torch is there         network, files, user, rights: it has none from here on
    in each worker                             its own nobody, landlock, the filter of system calls: sandbox.enter

A wall that is refused is noted and the others are raised. `missing` decides whether that is enough: the filter must be
there, and either an empty root or landlock, so that a hole in one does not lead to files.
`tried` raises them all in a child for the sake of the answer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Final

from peer.worker import gpu, kernel, landlock, namespaces, seccomp
from protocol import limits

PROCESSES: Final = "process namespace"
NETWORK: Final = "network namespace"
FILES: Final = "empty root"
USER: Final = "user namespace"
LANDLOCK: Final = "landlock"
FILTER: Final = "system call filter"

_ADVICE: Final = {
    FILTER: "a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64",
    LANDLOCK: "'landlock' among the kernel's lsm= parameters (Linux 5.13 or newer)",
    FILES: "user namespaces: 'sysctl user.max_user_namespaces=10000', and where they exist "
    "'kernel.unprivileged_userns_clone=1' and 'kernel.apparmor_restrict_unprivileged_userns=0'; "
    "in a container '--security-opt seccomp=unconfined' or '--cap-add SYS_ADMIN'",
}
FLAG: Final = "--unsafe-no-sandbox"

Refused = dict[str, str]


class Confinement:
    """Raises the walls; `refused` has those that could not be, and why."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.refused: Refused = {}
        self._has_users = False  # of its own

    def new_processes(self) -> bool:
        """Whether what is forked next is the first process of a namespace."""

        def unshare() -> None:
            self._has_users = namespaces.new_processes()

        return self._raised(PROCESSES, unshare)

    def leave(self) -> None:
        """No network, no files, no user, no rights. For a process of one thread that has imported what it needs."""
        namespaces.prefer_for_killing()
        if namespaces.is_root() and self._raised(FILES, self._new_files):
            self._raised(NETWORK, namespaces.new_network)
            self._raised(USER, namespaces.drop_user)
        else:
            if namespaces.is_root():
                self._raised(USER, namespaces.drop_user)
            if self._has_users or self._raised(USER, namespaces.new_users):
                self._raised(NETWORK, namespaces.new_network)
                self._raised(FILES, self._new_files)
            else:
                self.refused.setdefault(FILES, self.refused[USER])
                self.refused.setdefault(NETWORK, self.refused[USER])
        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)

    def become_nobody(self, threads: int) -> None:
        """Of a worker: no user, no rights, no process and few threads more."""
        if self._raised(USER, namespaces.nobodys):
            kernel.drop_capabilities()
            # Counted by user namespace: without one of its own, a worker's threads would be the other workers' too.
            most = threads + limits.WORKER_THREADS + (gpu.THREADS if self.device == "cuda" else 0)
            resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)

    def close(self, process: int, threads: int) -> None:
        """Of a worker: the last two walls. What is not open by now is never opened."""
        is_gpu = self.device == "cuda"
        self._raised(LANDLOCK, lambda: landlock.restrict(self._allowed() if is_gpu else ()))
        has_threads, more = threads > 1 or is_gpu, gpu.CALLS if is_gpu else ()
        self._raised(FILTER, lambda: seccomp.confine(process, has_threads=has_threads, more=more))

    def prepare(self, threads: int) -> None:
        """In the zygote: what can be made ready of the filters."""
        is_gpu = self.device == "cuda"
        seccomp.prepare(has_threads=threads > 1 or is_gpu, more=gpu.CALLS if is_gpu else ())
        if is_gpu:
            seccomp.prepare(has_threads=threads > 1)  # jails have no GPU

    def close_files(self) -> None:
        """Of a jail, before it is given anything: no file but those that come by its channel."""
        self._raised(LANDLOCK, landlock.restrict)

    def mute(self, process: int, threads: int) -> None:
        """Of a jail that has its job: the filter. From here on it writes to two files, and talks to nobody."""
        self._raised(FILTER, lambda: seccomp.confine(process, has_threads=threads > 1, is_jail=True))

    def _new_files(self) -> None:
        bound = [(path, False) for path in gpu.libraries()] + [(path, True) for path in gpu.devices()]
        namespaces.new_files(bound if self.device == "cuda" else ())

    def _allowed(self) -> list[tuple[str, int]]:
        return [(path, landlock.READ) for path in gpu.libraries()] + [(path, landlock.USE) for path in gpu.devices()]

    def _raised(self, wall: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except OSError as error:
            self.refused[wall] = error.strerror or str(error)
            return False
        return True


def missing(refused: Mapping[str, str]) -> str | None:
    """Why what is left is no boundary, and what to do about it; None where it is one."""
    if FILTER in refused:
        lacking = [FILTER]
    elif FILES in refused and LANDLOCK in refused:
        lacking = [FILES, LANDLOCK]
    else:
        return None
    reasons = " and ".join(f"no {wall} ({refused[wall]})" for wall in lacking)
    advice = "; or ".join(_ADVICE[wall] for wall in lacking)
    return (
        f"workers cannot be confined here, so that whoever computes could do what you can: the system gives {reasons}. "
        f"What helps: {advice}. {FLAG} runs them unprotected"
    )


def described(refused: Mapping[str, str]) -> str:
    """How well workers are confined, in a few words, for people."""
    return "confined" if not refused else "confined, without " + ", ".join(sorted(refused))


def tried(device: str = "cpu") -> Refused:
    """What is refused here, found out in a child that raises every wall and ends. For a process of one thread."""
    if sys.platform != "linux":
        return dict.fromkeys((FILTER, LANDLOCK, FILES), f"it is {sys.platform}, not Linux")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _try_all(device, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    try:
        refused: Refused = json.loads(said)
    except ValueError:
        return {FILTER: f"a process that tried it ended with {os.waitstatus_to_exitcode(status)}"}
    return refused


def _try_all(device: str, writing: int) -> None:
    try:
        walls = Confinement(device)
        walls.new_processes()
        walls.leave()
        walls.become_nobody(threads=1)
        walls.close(os.getpid(), threads=1)
        if device == "cpu" and FILTER not in walls.refused:
            _check(walls.refused)
        os.write(writing, json.dumps(walls.refused).encode())
    except Exception as error:
        os.write(writing, json.dumps({FILTER: f"trying it failed: {type(error).__name__}: {error}"}).encode())
    finally:
        os._exit(0)


def _check(refused: Refused) -> None:
    """A filter that bites: some systems that imitate Linux take one and forget it."""
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        return
    refused[FILTER] = "it was taken, and has no effect"
