"""Every operation of the table with hostile arguments, through the door that a worker uses, in processes that may die.

    python -m tests.attacks.fuzz --calls 600 --seed 1 [--only cumsum] [--part 0/4] [--heap-checks]

Tensors lie between pages that must not be touched (guard_pages.py), and each call is made twice, with other bytes in
the rest of the heap and around the tensors: a result that differs holds what nobody computed. A finding is a call

    signal        that killed its process (SIGSEGV, SIGFPE, SIGABRT...)
    hang          that took more than 3 seconds of the processor
    foreign       that ended in an error which is none of ours
    undetermined  whose result is not the same twice: uninitialised or foreign memory
    written       that changed an argument which the table says it does not write

Prints a line for each finding and the sums; ends with 1 if there is any. `--heap-checks` has the C library look at the
ends of all blocks (a write beyond a result is then a SIGABRT), in place of the second call with other bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import resource
import signal
import struct
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from compute import interpreter, values
from compute.cost import ALLOWED as ALLOWANCE
from compute.estimate import check_size
from compute.operations import OPERATIONS
from compute.table import Entry, lookup
from peer.worker import process
from peer.worker.execution import check_describable, tensors_in
from protocol import limits
from protocol.errors import GridError, InternalError, OperationNotAllowed
from tests.attacks.adversary import Adversary
from tests.attacks.calls import Call, load
from tests.attacks.guard_pages import Arena

CPU_SECONDS: Final = 3.0  # a call that takes more is a hang, however busy the machine is
WALL_SECONDS: Final = 60.0  # and one that sleeps
MEMORY: Final = 3 << 30  # that a child may have besides what is shared
ALLOWED: Final = 8 * limits.MIB  # larger results are no finding and would take the time of many others
_PERTURB: Final = -6  # mallopt: what malloc and free fill blocks with
_BYTES: Final = (0x5A, 0xC3)
_libc: Final = ctypes.CDLL(None)
# Without the small caches of blocks, which malloc hands out as they were left, and with everything in the heap.
HEAP: Final = "glibc.malloc.tcache_count=0:glibc.malloc.mmap_threshold=33554432:glibc.malloc.mxfast=0"
HEAP_CHECKS: Final = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"}


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    number: int
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name} call {self.number}: {self.what}"


# --- one call ---------------------------------------------------------------------------------------------


class Caller:
    """Makes hostile calls in this process and judges those that it survives."""

    def __init__(self, seed: int, is_twice: bool = True) -> None:
        self._seed = seed
        self._is_twice = is_twice
        self._arena = Arena()
        self._honest = load()
        self.passed = 0

    def arguments(self, entry: Entry, number: int, slack: int = 0) -> Call:
        self._arena.reset(slack)
        seed = f"{self._seed} {entry.name} {number}"
        return Adversary(self._arena, entry, seed, self._honest.get(entry.name, ())).call()

    def judge(self, entry: Entry, number: int) -> Finding | None:
        """Makes the call; what is wrong with it, if it returns at all."""
        try:
            first = self._outcome(entry, number, _BYTES[0])
            second = self._outcome(entry, number, _BYTES[1]) if self._is_twice else first
        except _Written as written:
            return Finding(entry.name, number, "written", str(written))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:150]!r} at {Path(where.filename).name}:{where.lineno}"
            return Finding(entry.name, number, "foreign", what)
        self.passed += isinstance(first, list)
        if first != second:
            return Finding(entry.name, number, "undetermined", _difference(first, second))
        return None

    def _outcome(self, entry: Entry, number: int, filling: int) -> list[bytes] | str:
        """The bytes of the results as they would leave the worker, or the kind of error."""
        args, kwargs = self.arguments(entry, number, filling)
        torch.manual_seed(number)
        before = None if entry.writes else _contents([args, kwargs])
        _libc.mallopt(_PERTURB, filling)
        try:
            bound, named = entry.bind(args, kwargs)
            check_size(entry, bound, named, allowed=ALLOWED)
            value = interpreter.execute(entry, args, kwargs)
            results = [_exported(tensor) for tensor in tensors_in(value)]
        except InternalError:
            raise
        except GridError as error:
            return type(error).__name__
        finally:
            _libc.mallopt(_PERTURB, 0)
        if before is not None and before != _contents([args, kwargs]):
            raise _Written("an argument is not what it was")
        return results


class _Written(Exception):
    pass


def _exported(tensor: torch.Tensor) -> bytes:
    check_describable(tensor)
    if tensor.numel() * tensor.element_size() > ALLOWED:
        return b"expanded"
    return bytes(values.tensor_bytes(tensor))


def _contents(value: Any) -> list[bytes]:
    if isinstance(value, torch.Tensor):
        return [bytes(values.tensor_bytes(value))] if value.numel() * value.element_size() <= 1 << 20 else []
    if isinstance(value, dict):
        value = list(value.values())
    return [each for item in value for each in _contents(item)] if isinstance(value, list) else []


def _difference(first: list[bytes] | str, second: list[bytes] | str) -> str:
    if isinstance(first, str) or isinstance(second, str):
        return f"{first if isinstance(first, str) else 'a result'}, then {second if isinstance(second, str) else 'one'}"
    counts = [sum(x != y for x, y in zip(a, b, strict=True)) for a, b in zip(first, second, strict=True)]
    return f"{counts} bytes of {[len(each) for each in first]}"


def shown(value: Any) -> Any:
    """Arguments, for who reads of a finding."""
    if isinstance(value, torch.Tensor):
        content = value.tolist() if 0 < value.numel() <= 8 else ""
        dense = "" if value.is_contiguous() else f" stride {list(value.stride())}"
        return f"{str(value.dtype)[6:]}{list(value.shape)}{dense}{content}"
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    return [shown(item) for item in value] if isinstance(value, list) else value


# --- processes that may die -------------------------------------------------------------------------------


class _Board:
    """What a child has done so far, in memory that outlives it: (entry, call, passed)."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 24)

    def write(self, entry: int, call: int, passed: int) -> None:
        struct.pack_into("QQQ", self._memory, 0, entry, call, passed)

    def read(self) -> tuple[int, int, int]:
        return struct.unpack_from("QQQ", self._memory, 0)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Sums:
    entries: int
    calls: int
    passed: int
    findings: list[Finding]


def fuzz(names: Sequence[str], calls: int, seed: int, is_twice: bool, tell: Callable[[Finding], None]) -> Sums:
    """`calls` hostile calls of each operation; a child that dies costs the call that killed it."""
    entries = list(_entries(names))
    caller = Caller(seed, is_twice)
    board, findings, passed = _Board(), list[Finding](), 0
    at, number = 0, 0
    while at < len(entries):
        board.write(at, number, 0)
        told, status = _in_child(lambda: _work(caller, entries, at, number, calls, board))  # noqa: B023
        for line in told:
            findings.append(Finding(**json.loads(line)))
            tell(findings[-1])
        at, number, more = board.read()
        passed += more
        if status == 0:
            break
        kind = "hang" if status in (signal.SIGPROF, signal.SIGALRM) else "signal"
        what = signal.Signals(status).name if status > 0 else f"exit {-status}"
        findings.append(Finding(entries[at].name, number, kind, what))
        tell(findings[-1])
        number += 1
        if number >= calls:
            at, number = at + 1, 0
    return Sums(len(entries), len(entries) * calls, passed, findings)


def _entries(names: Sequence[str]) -> Iterator[Entry]:
    for name in names:
        try:
            yield lookup(name)
        except OperationNotAllowed:
            continue  # optional, and not in this release


def _work(caller: Caller, entries: list[Entry], at: int, number: int, calls: int, board: _Board) -> Iterator[Finding]:
    caller.passed = 0
    while at < len(entries):
        for call in range(number, calls):
            board.write(at, call, caller.passed)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
            finding = caller.judge(entries[at], call)
            if finding is not None:
                yield finding
        at, number = at + 1, 0
        board.write(at, 0, caller.passed)


def _in_child(work: Callable[[], Iterator[Finding]]) -> tuple[list[str], int]:
    """Its findings as lines, and the signal that ended it (0: none; negative: an exit that is none of ours)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            _confine()
            for finding in work():
                fields = {name: getattr(finding, name) for name in Finding.__slots__}
                os.write(writing, json.dumps(fields).encode() + b"\n")
            os._exit(0)
        except BaseException:
            os.write(
                writing,
                json.dumps({"name": "?", "number": 0, "kind": "defect", "what": traceback.format_exc()}).encode(),
            )
        os._exit(99)
    os.close(writing)
    with open(reading, "rb") as stream:
        lines = stream.read().decode().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return lines, -status


def _confine() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    ALLOWANCE.seconds = CPU_SECONDS / 10  # what is said to take longer, or more memory, is no bad surprise
    ALLOWANCE.memory = MEMORY / 4
    with open(os.devnull, "w") as null:
        for standard in (1, 2):  # numeric libraries complain of what they are given
            os.dup2(null.fileno(), standard)


# --- the command ------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    wanted = HEAP_CHECKS if options.heap_checks else {"GLIBC_TUNABLES": HEAP}
    wanted = {**wanted, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):  # malloc reads them at its start
        command = [sys.executable, "-m", "tests.attacks.fuzz", *(sys.argv[1:] if arguments is None else arguments)]
        os.execve(sys.executable, command, {**os.environ, **wanted})
    names = [name for name in OPERATIONS if OPERATIONS[name] != "size"]
    if options.only:
        names = [name for name in names if options.only in (name, *name.split("."), name.removeprefix("aten."))]
    part, parts = map(int, options.part.split("/"))
    process.warm()
    warnings.simplefilter("ignore")
    if options.show is not None:
        return _show(names, options)
    sums = fuzz(names[part::parts], options.calls, options.seed, not options.heap_checks, _tell)
    kinds = Counter(finding.kind for finding in sums.findings)
    print(f"{sums.entries} entries, {sums.calls} calls, {sums.passed} gave results; findings: {dict(kinds) or 'none'}")
    return 1 if sums.findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.attacks.fuzz", description="Hostile calls of the whole table.")
    parser.add_argument("--calls", type=int, default=600, help="of each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="one operation, with or without its overload")
    parser.add_argument("--part", default="0/1", help="every n-th operation: 0/4, 1/4...")
    parser.add_argument("--heap-checks", action="store_true", help="find writes beyond a result")
    parser.add_argument("--show", type=int, help="show the arguments of this call, and make it in this process")
    return parser


def _tell(finding: Finding) -> None:
    print(finding, flush=True)


def _show(names: Sequence[str], options: argparse.Namespace) -> int:
    caller = Caller(options.seed)
    for entry in _entries(names):
        args, kwargs = caller.arguments(entry, options.show)
        print(entry.name, shown(args), shown(kwargs), flush=True)
        print(caller.judge(entry, options.show) or f"no finding; {caller.passed} passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
