"""What a function that is being captured must not do, and what the error says instead of torch's words: the user's own
line, and what to write there.
"""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedFakeTensorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from compute import packed_layers, scalar_indices
from protocol.errors import CannotCapture

_VALUE: Final = "a plan has no values while it is captured; "
_BRANCH: Final = (
    _VALUE + "write torch.where(condition, a, b) instead of a branch on a tensor, torch.cond where only one side may "
    "run, and grid.while_loop for a loop that ends by a value"
)
_NUMBER: Final = _VALUE + "keep it a tensor (drop .item(), float() and int()): x / x.sum() works as it is"
_ARRAY: Final = _VALUE + "use torch operations instead of numpy, or return the tensor and convert its value"
_PRINT: Final = _VALUE + "return what is to be printed, and print it after await"
_MEMORY: Final = _VALUE + "what is not torch (ctypes, C extensions, files) cannot have its memory: use torch operations"
_KERNEL: Final = _VALUE + "a kernel of torch's looks at some here; call it another way, on pointers, or in a jail"
_LENGTHS: Final = (
    _VALUE
    + "sequences are packed by lengths that are known: a list of numbers. Of lengths that are data run the layer "
    "on the padded sequences, and take what is wanted by them (out[lengths - 1, rows], or a mask of positions); or use "
    "a jail"
)
_SHAPE: Final = "a plan's shapes are fixed while it is captured; use torch.where(mask, x, 0) instead of x[mask]"
_OF_VALUES: Final[Mapping[str, str]] = {
    "aten.repeat_interleave": _VALUE + "say how many there are in the end: repeat_interleave(..., output_size=n)",
    "aten.bincount": _VALUE + "use F.one_hot(x, classes).sum(0), or torch.zeros(n).index_add(0, x, weights)",
    "aten._unique2": "a plan's shapes are fixed while it is captured; sort it (x.sort()) and compare neighbours",
    "aten.nonzero": "a plan's shapes are fixed while it is captured; keep the mask and use torch.where(mask, x, 0), or "
    "torch.nonzero_static(x, size=n)",
}
"""What to write instead of an operation whose result has a shape by values."""
_REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("__bool__", "__contains__", "is_nonzero"), _BRANCH),
    **dict.fromkeys(("equal", "allclose"), _VALUE + "compare with (a == b).all(), which is a tensor"),
    **dict.fromkeys(("item", "__float__", "__int__", "__index__", "__complex__"), _NUMBER),
    **dict.fromkeys(("tolist", "numpy", "__array__"), _ARRAY),
    **dict.fromkeys(("__repr__", "__format__", "__str__"), _PRINT),
    **dict.fromkeys(("data_ptr", "storage", "untyped_storage", "__dlpack__", "share_memory_"), _MEMORY),
    **dict.fromkeys(("save", "load"), _VALUE + "return the tensor, and save its value"),
}


_VALUES: Final = frozenset(
    ("__bool__", "is_nonzero", "item", "__float__", "__int__", "__index__", "__complex__", "tolist")
)
"""What may be asked where the function wrote the numbers out itself."""


class Watch(TorchFunctionMode):
    """Refuses what asks a tensor for its value, with the word on what to write instead.

    Args:
        stand_in: the fake tensor for a tensor whose values are elsewhere (a pointer).
        loops: what is called instead of torch's own operators for loops and branches, by the operator's name.
        asked: called where the function asks whether a tensor requires grad, before it hears it.
        known: the value of a tensor, where the function made it of numbers that it wrote out.

    Attributes:
        refused: what was refused first. Whoever catches it may not go on with another value in place of the one that
            there is not: the function does something else then where there are values.
    """

    def __init__(
        self,
        stand_in: Callable[[torch.Tensor], torch.Tensor],
        loops: Mapping[str, Callable[..., Any]],
        asked: Callable[[], None],
        known: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> None:
        super().__init__()
        self._stand_in, self._loops, self._asked, self._known = stand_in, loops, asked, known
        self.refused: CannotCapture | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        advice = _REFUSED.get(name)
        if advice is not None and not _is_trusted(sys._getframe(1)):
            known = self._known(args[0]) if name in _VALUES and isinstance(args[0], FakeTensor) else None
            if known is not None:
                with _disable_current_modes():
                    return function(known, *args[1:], **kwargs)
            error = refusal(advice, operation=name.strip("_"))
            self.refused = self.refused or error
            raise error
        if name == "__get__" and function in _HAS_GRADIENT and is_users(sys._getframe(1).f_code.co_filename):
            self._asked()
        if isinstance(function, torch._ops.HigherOrderOperator) and function is not _OWN_FUNCTION:
            loop = self._loops.get(str(function))
            if loop is None:
                raise refusal(f"torch's operator {function} does not go into a program")
            return loop(*args, **kwargs)
        if _has_elsewhere(args) or _has_elsewhere(tuple(kwargs.values())):
            args, kwargs = pytree.tree_map_only(_is_elsewhere, self._stand_in, (args, kwargs))
        parts = packed_layers.written_out(name, args, self._known)
        if parts is not None:
            try:
                return parts(*args, **kwargs)
            except packed_layers.UnknownLengths:
                raise refusal(_LENGTHS, operation=name) from None
        if name == "__deepcopy__" and isinstance(args[0], FakeTensor):
            return _copied(*args)
        if name == "__getitem__" and scalar_indices.has_scalar(args[1]):
            return scalar_indices.taken(*args)
        if name == "__setitem__" and scalar_indices.has_scalar(args[1]) and scalar_indices.put(*args):
            return None
        if name in _SCALED and _is_tensor(kwargs.get(_SCALED[name])):
            return _scaled(function, name, args, kwargs)
        return function(*args, **kwargs)


def _copied(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """A copy of a leaf, for a copy of what holds it: a network of targets, an average. torch copies the memory, which
    is none here, and gives a tensor that nobody knows."""
    if not tensor.is_leaf:
        raise RuntimeError("only tensors that were made without a history can be copied with their modules: detach()")
    made = memo.get(id(tensor))
    if made is None:
        with torch.no_grad():
            made = memo[id(tensor)] = tensor.clone()
        made.requires_grad_(tensor.requires_grad)
        if isinstance(tensor, torch.nn.Parameter):
            made._is_param = True
    return made


def _scaled(function: Any, name: str, args: Any, kwargs: Any) -> Any:
    """An operation with a tensor for a factor that torch would read as a number: a step whose size was computed."""
    factor = kwargs[_SCALED[name]]
    rest = {key: value for key, value in kwargs.items() if key != _SCALED[name]}
    if name.startswith("addc"):
        product = torch.div(args[1], args[2]) if "div" in name else torch.mul(args[1], args[2])
        added = getattr(torch.Tensor, "add_" if name.endswith("_") else "add")
        return added(args[0], product * factor.to(product.dtype))
    return function(args[0], args[1] * factor.to(args[1].dtype), **rest)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


_SCALED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("add", "add_", "sub", "sub_"), "alpha"),
    **dict.fromkeys(("addcmul", "addcmul_", "addcdiv", "addcdiv_"), "value"),
}


def _has_elsewhere(values: Any) -> bool:
    return any(_has_elsewhere(value) if type(value) in (list, tuple) else _is_elsewhere(value) for value in values)


def _is_elsewhere(value: object) -> bool:
    """A tensor whose values are not in this process: a pointer."""
    kind = type(value)
    return kind not in _HERE and isinstance(value, torch.Tensor) and not issubclass(kind, _KINDS)


_HAS_GRADIENT: Final = (torch.Tensor.requires_grad.__get__, torch.Tensor.is_leaf.__get__)  # type: ignore[attr-defined]
_OWN_FUNCTION: Final = torch._functorch.autograd_function.custom_function_call  # of a user's autograd.Function
_KINDS: Final = (torch.nn.Parameter, torch.nn.Buffer)
_HERE: Final = frozenset({torch.Tensor, FakeTensor, torch.nn.Parameter, int, float, str, bool, type(None), slice})


def _is_trusted(frame: FrameType) -> bool:
    """Whether our own code asks, or an optimiser's, which counts its steps."""
    return frame.f_code.co_filename.startswith((_FOLDER, _OPTIMISERS))


def refusal(message: str, **fields: Any) -> CannotCapture:
    """The error for what the user's code does right now: with the line, and what stands there."""
    return CannotCapture(_placed(message, user_line(None)), **fields)


def at_line(message: str, file: str, line: int, **fields: Any) -> CannotCapture:
    return CannotCapture(_placed(message, (file, line)), **fields)


@contextmanager
def at_function(function: Callable[..., Any]) -> Iterator[None]:
    """What is refused in it is about what the function gave: at its first line, as the function is over."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    token = _over.set((code.co_filename, code.co_firstlineno) if isinstance(code, CodeType) else None)
    try:
        yield
    finally:
        _over.reset(token)


_over: ContextVar[tuple[str, int] | None] = ContextVar("over", default=None)


def explained(error: Exception) -> CannotCapture:
    """The error for what torch, or the user's code, raised while it was captured."""
    at = user_line(error.__traceback__)
    if isinstance(error, DynamicOutputShapeException):
        name = ".".join(str(error.func).split(".")[:2])
        return CannotCapture(_placed(_OF_VALUES.get(name, _SHAPE), at), operation=str(error.func))
    if isinstance(error, DataDependentOutputException):
        return CannotCapture(_placed(_NUMBER, at), operation=str(error.func))
    if isinstance(error, UnsupportedFakeTensorException):
        return CannotCapture(_placed(f"{str(error)[:300]}: not in the table of operations that peers run", at))
    if _is_of_numpy(error.__traceback__):
        return CannotCapture(_placed(_ARRAY, at))
    if "data is not allocated" in str(error) or "access data pointer" in str(error):
        return CannotCapture(_placed(_KERNEL, at))
    if "INTERNAL ASSERT FAILED" in str(error):
        return CannotCapture(
            _placed("torch cannot do this on tensors that have no values yet; say it in operations", at)
        )
    lines = [line.replace("FakeTensor", "Tensor") for line in str(error).strip().splitlines() if line.strip()]
    return CannotCapture(_placed(f"{type(error).__name__}: {(lines or ['no message'])[0][:400]}", at))


def _placed(message: str, at: tuple[str, int] | None) -> str:
    if at is None:
        return message
    file, line = at
    source = linecache.getline(file, line).strip()
    return f"{file}:{line}: {message}" + (f"\n    {source[:160]}" if source else "")


_OURS: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
_FOLDER: Final = _OURS
_OURS_TOO: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "grid") + os.sep
_TORCH: Final = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OPTIMISERS: Final = os.path.join(_TORCH, "optim") + os.sep
_STANDARD: Final = sysconfig.get_path("stdlib") + os.sep
_MADE_UP: Final = ("<frozen", "<eval_with_key", "<string>", "<__")  # but not "<stdin>", where a user types
_SITE: Final = os.sep + "site-packages" + os.sep
_NUMPY: Final = _SITE + "numpy" + os.sep  # not imported here: where it is not there nobody uses it


def user_line(traceback: TracebackType | None) -> tuple[str, int] | None:
    """The innermost line (file, number) that is neither torch's nor ours; without a traceback, of the stack."""
    frames: list[tuple[str, int]] = []
    if traceback is None and _over.get() is not None:
        return _over.get()
    if traceback is None:
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            frames.insert(0, (frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return next(((file, line) for file, line in reversed(frames) if is_users(file)), None)


def is_users(file: str) -> bool:
    """True for a file that is neither torch's, nor numpy's, nor ours, nor the standard library's."""
    return (
        not file.startswith((_OURS, _OURS_TOO, _TORCH, *_MADE_UP))
        and _NUMPY not in file
        and (_SITE in file or not file.startswith(_STANDARD))
    )


def is_installed(file: str) -> bool:
    """True for a file of an installed library."""
    return _SITE in file


def _is_of_numpy(traceback: TracebackType | None) -> bool:
    """Whether it was numpy that could not do what it was asked."""
    while traceback is not None:
        if _NUMPY in traceback.tb_frame.f_code.co_filename:
            return True
        traceback = traceback.tb_next
    return False
