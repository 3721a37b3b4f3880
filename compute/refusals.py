"""What a function that is being captured must not do, and what the error says instead of torch's words."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.overrides import TorchFunctionMode

from protocol.errors import CannotCapture

_VALUE: Final = "a plan has no values while it is captured; "
_BRANCH: Final = _VALUE + "write torch.where(condition, a, b) instead of a branch on a tensor"
_NUMBER: Final = _VALUE + "keep it a tensor (drop .item(), float() and int()): x / x.sum() works as it is"
_ARRAY: Final = _VALUE + "use torch operations instead of numpy, or return the tensor and convert its value"
_PRINT: Final = _VALUE + "return what is to be printed, and print it after await"
_SHAPE: Final = "a plan's shapes are fixed while it is captured; use torch.where(mask, x, 0) instead of x[mask]"
_REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("__bool__", "__contains__", "is_nonzero"), _BRANCH),
    **dict.fromkeys(("equal", "allclose"), _VALUE + "compare with (a == b).all(), which is a tensor"),
    **dict.fromkeys(("item", "__float__", "__int__", "__index__", "__complex__"), _NUMBER),
    **dict.fromkeys(("tolist", "numpy", "__array__"), _ARRAY),
    **dict.fromkeys(("__repr__", "__format__", "__str__"), _PRINT),
}


class Watch(TorchFunctionMode):
    """Refuses what asks a tensor for its value, with the word on what to write instead.

    `lines`, where it is a dict, collects the user's line for each torch function that is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, str] | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        advice = _REFUSED.get(name)
        if advice is not None:
            raise CannotCapture(f"{user_line(None)}{advice}", operation=name.strip("_"))
        if self.lines is not None:
            self.lines.setdefault(name.strip("_"), user_line(None))
        return function(*args, **(kwargs or {}))

    def line_of(self, operation: str | None) -> str:
        """The line that called the function behind an ATen operation, as "file.py:12: ", or ""."""
        parts = (operation or "").split(".")
        base = parts[1] if len(parts) > 1 else parts[0]
        return (self.lines or {}).get(base.strip("_"), "")


def explained(error: Exception) -> CannotCapture:
    at = user_line(error.__traceback__)
    if isinstance(error, DynamicOutputShapeException):
        return CannotCapture(at + _SHAPE, operation=str(error.func))
    if isinstance(error, DataDependentOutputException):
        return CannotCapture(at + _NUMBER, operation=str(error.func))
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return CannotCapture(f"{at}{type(error).__name__}: {(lines or ['no message'])[0][:500]}")


_OURS: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TORCH: Final = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_STANDARD: Final = sysconfig.get_path("stdlib") + os.sep
_MADE_UP: Final = ("<frozen", "<eval_with_key", "<string>", "<__")  # but not "<stdin>", where a user types
_SITE: Final = os.sep + "site-packages" + os.sep


def user_line(traceback: TracebackType | None) -> str:
    """The innermost line that is neither torch's nor ours, as "file.py:12: "; without a traceback, of the stack."""
    frames: list[tuple[str, int]] = []
    if traceback is None:
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            frames.insert(0, (frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return next((f"{file}:{line}: " for file, line in reversed(frames) if is_users(file)), "")


def is_users(file: str) -> bool:
    """True for a file that is neither torch's, nor ours, nor the standard library's."""
    return not file.startswith((_OURS, _TORCH, *_MADE_UP)) and (_SITE in file or not file.startswith(_STANDARD))
