"""What a function does besides giving a result: found, and refused with its line.

A program is run somewhere else, and later: what the function writes to variables of others, and the random numbers that
Python draws, would happen once, here.
"""

from __future__ import annotations

import dis
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from compute.refusals import at_line, is_users, refusal, user_line
from protocol.errors import CannotCapture

_KEPT = "return it instead, and keep what the plan gives"


def check_code(function: Callable[..., Any]) -> None:
    """Refuses what can be seen without running: generators, and assignments to variables of others."""
    plain = inspect.unwrap(function)
    code = getattr(plain, "__code__", None)
    if not isinstance(code, CodeType):
        return
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        kind = "is awaited" if code.co_flags & inspect.CO_COROUTINE else "yields"
        raise at_line(
            f"a plan is a plain function; this one {kind}: return a list or a tuple",
            code.co_filename,
            code.co_firstlineno,
        )
    for inner in _codes(code):
        for found in dis.get_instructions(inner):
            is_global = found.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
            if is_global or (found.opname == "STORE_DEREF" and found.argval in code.co_freevars):
                line = (found.positions.lineno if found.positions else None) or inner.co_firstlineno
                raise at_line(
                    f"the function assigns to {found.argval!r}, a variable from outside: {_KEPT}",
                    inner.co_filename,
                    line,
                )


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def check_kept(function: Callable[..., Any]) -> None:
    """Refuses tensors of the capture that variables from outside hold now: an appended list, a filled dict."""
    plain = inspect.unwrap(function)
    code = getattr(plain, "__code__", None)
    if not isinstance(code, CodeType):
        return
    known = dict(inspect.getclosurevars(plain).nonlocals) | {
        name: plain.__globals__[name] for name in code.co_names if name in plain.__globals__
    }
    for name, value in known.items():
        if _holds(value, 0):
            raise at_line(
                f"the function keeps a tensor in {name!r}, which is from outside: {_KEPT}",
                code.co_filename,
                code.co_firstlineno,
            )


def _holds(value: Any, depth: int) -> bool:
    if isinstance(value, FakeTensor):
        return True
    if depth > 2:
        return False
    if isinstance(value, list | tuple | set):
        return any(_holds(item, depth + 1) for item in list(value)[:1000])
    return isinstance(value, dict) and any(_holds(item, depth + 1) for item in list(value.values())[:1000])


@contextmanager
def watched(find_line: bool) -> Iterator[None]:
    """In it the function runs: CannotCapture where it draws random numbers that are Python's or numpy's, or seeds
    torch's. `find_line`: it runs again, to say where.
    """
    before, generators = _state(), (random.getstate(), torch.get_rng_state())

    def undo() -> None:
        """It is as if the function had not run; and a second time the same is seen."""
        random.setstate(generators[0])
        torch.set_rng_state(generators[1])

    if not find_line:
        yield
        if _state() != before:
            undo()
            raise _Drawn
        return
    found: list[CannotCapture] = []

    def look(frame: FrameType | None, event: str, argument: Any) -> None:
        if found or event not in ("return", "c_return") or _state() == before:
            return
        while frame is not None and not is_users(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None:
            found.append(at_line(_RANDOM, frame.f_code.co_filename, frame.f_lineno))

    previous = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(previous)
        undo()
    raise found[0] if found else CannotCapture(_RANDOM)


class _Drawn(Exception):
    """The function drew random numbers that a program would not."""


Drawn = _Drawn
_RANDOM = (
    "a random number of Python's or numpy's is drawn once, while the plan is captured; use torch.rand and its like, "
    "which draw where the plan runs, and seed them there (alice.manual_seed(0)), not in the plan"
)


def _state() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else ()
    return (
        random.getstate(),
        [part.tobytes() if hasattr(part, "tobytes") else part for part in drawn],
        torch.initial_seed(),
    )


__all__ = ["Drawn", "check_code", "check_kept", "refusal", "user_line", "watched"]
