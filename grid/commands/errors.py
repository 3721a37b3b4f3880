"""How a command ends that went wrong: a line on standard error, and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.errors import (
    Ambiguous,
    BadJail,
    BadProgram,
    BadRequest,
    Cancelled,
    CannotCapture,
    Denied,
    GridError,
    JailFailed,
    LinkError,
    NeedsAwait,
    NotCollocated,
    NotFound,
    OperationFailed,
    OperationNotAllowed,
    PeerError,
    ReadOnly,
    RequestError,
    SetupError,
    StorageError,
    WorkerLost,
)

# The nearest base class counts; docs/cli.md has the same table.
EXIT_CODES: Final[dict[type[BaseException], int]] = {
    BaseException: 1,
    PeerError: 1,
    BadRequest: 2,
    NotFound: 3,
    Ambiguous: 3,
    Denied: 4,
    LinkError: 5,
    StorageError: 6,
    RequestError: 7,
    SetupError: 8,
    BadJail: 9,
    BadProgram: 9,
    Cancelled: 9,
    CannotCapture: 9,
    JailFailed: 9,
    NeedsAwait: 9,
    NotCollocated: 9,
    OperationFailed: 9,
    OperationNotAllowed: 9,
    ReadOnly: 9,
    WorkerLost: 9,
    KeyboardInterrupt: 130,
}


def exit_code(error: BaseException) -> int:
    """What the process ends with for this error."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def raise_last(failures: Sequence[BaseException]) -> None:
    """Of several things that failed: one is raised, the others are said."""
    for failure in failures[:-1]:
        complain(failure)
    if failures:
        raise failures[-1]


def complain(error: BaseException, where: str = "") -> None:
    """Say it on standard error; `where` names what it is about."""
    text = str(error) if isinstance(error, GridError) else f"a defect: {type(error).__name__}: {error}"
    hint = "" if isinstance(error, GridError) else "\n'grid --debug ...' shows where it comes from"
    _say(f"{where}: {text}{hint}" if where and where not in text else text + hint, "error: ", "red")
    for told in getattr(error, "__notes__", ()):  # of a jail: what it printed, and the user's own lines
        note(told)


def note(text: str) -> None:
    """Say something besides the results, on standard error."""
    _say(text, "", "")


def safe(text: str) -> str:
    """A message may quote strangers: nothing in it moves the cursor."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def _say(text: str, word: str, style: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text(word, style=style) + Text(safe(text)), soft_wrap=True)
