"""A jail's source and arguments, to its result or to an error that shows the user's own lines.

Here nothing is confined: peer/worker/jail.py calls this when it is.
"""

from __future__ import annotations
import __future__

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, TracebackType
from typing import Any, Final

import torch

from compute.interpreter import Execute
from compute.jail import lint, scope, structure
from compute.jail.gate import Gate
from compute.model_spec import ModelSpec
from compute.program import Program
from compute.program_module import ProgramFunction, ProgramModule
from compute.program_types import check_types
from compute.spec import unpack_spec
from protocol import limits
from protocol.errors import BadJail, BadRequest, GridError, JailFailed, OperationFailed, TooLarge
from protocol.sizes import check_limit

FILE: Final = "<jail>"
_NO_MEMORY: Final = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


@dataclass(frozen=True, slots=True)
class Work:
    """What is shipped, as plain values (structure.py); tensors are numbers in a list beside it.

    Attributes:
        source: one function definition, called `name`; `line` is where it begins in the user's file.
        args, kwargs: what it is called with.
        values: what it closes over, by name.
        modules: names that stand for a namespace, with its dotted path.
        loads: what grid.load(query) gives.
    """

    source: str
    name: str
    line: int
    args: Any
    kwargs: Any
    values: Mapping[str, Any]
    modules: Mapping[str, str]
    loads: Mapping[str, Any]

    def to_wire(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_wire(cls, value: Any) -> Work:
        """BadRequest for what is none; what the parts say is checked where they are used."""
        kinds = {"source": str, "name": str, "line": int, "args": dict, "kwargs": dict}
        kinds |= dict.fromkeys(("values", "modules", "loads"), dict)
        if type(value) is not dict or value.keys() != kinds.keys():
            raise BadRequest("a jail is a map of " + ", ".join(kinds))
        for name, kind in kinds.items():
            if type(value[name]) is not kind:
                raise BadRequest(f"{name} of a jail is {kind.__name__}")
        return cls(**value)


class Printer:
    """The print of one jail: a bounded number of calls, and a bounded text, which `write` is given as it comes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._left = limits.JAIL_PRINTED
        self._calls = 0

    def __call__(self, *values: object, sep: str | None = " ", end: str | None = "\n", **_: object) -> None:
        self._calls += 1
        check_limit("JAIL_PRINTS", self._calls, "a jail prints at most {allowed} times")
        text = (" " if sep is None else sep).join(_text(value) for value in values) + ("\n" if end is None else end)
        data = text[: self._left].encode(errors="replace")[: self._left]
        self._left -= len(data)
        if data:
            self._write(data)


def _text(value: object) -> str:
    return str(value)


def run(
    work: Work, tensors: Sequence[torch.Tensor], *, execute: Execute, show: Callable[..., None], numbers: bool = False
) -> tuple[Any, list[torch.Tensor]]:
    """The result as a plain value, and its tensors.

    Args:
        tensors: those that the work's values number.
        execute: how an operation runs on them.
        show: its print.
        numbers: numbers of the result become tensors without dimensions, so that they are values like those.

    Raises:
        BadJail: it says what cannot be said in a jail.
        JailFailed, TooLarge, or another GridError: what its code raised, with the user's own lines.
    """
    try:
        function = _defined(work, tensors, show)
        decoded = _decoder(tensors)  # not within the gate: programs are checked on tensors without data
        args, kwargs = decoded(work.args), decoded(work.kwargs)
        # No one thinks of gradients being off where they are called.
        with Gate(execute), torch.enable_grad():
            result = function(*args, **kwargs)
        return _described(result, numbers)
    except BadJail:
        raise
    except BaseException as error:  # whatever the code raises: SystemExit of a library's too
        raise failed(error, work) from None


def _defined(work: Work, tensors: Sequence[torch.Tensor], show: Callable[..., None]) -> Callable[..., Any]:
    tree = lint.check(work.source, first_line=work.line, name=work.name)
    top = {**scope.modules(), "grid": scope.Namespace("grid", {"load": _loader(work, tensors)})}
    names: dict[str, Any] = {"__builtins__": scope.builtins_for(show, top), "__name__": "jail"}
    for name, path in work.modules.items():
        names[str(name)] = scope.find(str(path), top)
    for name, value in work.values.items():
        names[str(name)] = _decoder(tensors)(value)
    exec(_compiled(tree, work), names)
    function: Callable[..., Any] = names[work.name]
    return function


def _compiled(tree: ast.Module, work: Work) -> CodeType:
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.name = work.name
    # All arguments are given: what stands there was evaluated at the asker's.
    given = definition.args
    given.defaults = [_none(each) for each in given.defaults]
    given.kw_defaults = [each and _none(each) for each in given.kw_defaults]
    try:
        flags = __future__.annotations.compiler_flag
        code: CodeType = compile(tree, FILE, "exec", flags=flags, dont_inherit=True)
        return code
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or work.line
        raise BadJail(f"{work.name}, line {line}: {getattr(error, 'msg', error)}", line=line) from None


def _none(default: ast.expr) -> ast.expr:
    return ast.copy_location(ast.Constant(None), default)


def _loader(work: Work, tensors: Sequence[torch.Tensor]) -> Callable[[str], Any]:
    found = {query: _decoder(tensors)(value) for query, value in work.loads.items()}

    def load(query: str) -> Any:
        if query not in found:
            raise BadRequest(
                f"grid.load({query!r}) was not found before the jail began: write the query into the call, as text"
            )
        return found[query]

    return load


def _decoder(tensors: Sequence[torch.Tensor]) -> Callable[[Any], Any]:
    return lambda value: structure.decode(value, tensors.__getitem__, make=_made)


def _made(called: structure.Called) -> Any:
    """A stored model or plan as what is called in the jail: its program, on whatever tensors."""
    if called.kind == "model":
        spec = ModelSpec.from_wire(unpack_spec(called.code))
        check_types(spec.program)
        return ProgramModule(spec, called.held)
    if called.kind == "plan":
        program = Program.from_bytes(called.code)
        check_types(program)
        return ProgramFunction(program, called.held, "given")
    raise BadRequest(f"{called.kind[:20]!r} is nothing that a jail calls")


def _described(result: object, numbers: bool) -> tuple[Any, list[torch.Tensor]]:
    found: list[torch.Tensor] = []

    def number(value: Any) -> int | None:
        if numbers and isinstance(value, bool | int | float | complex):
            value = torch.tensor(value)
        if not isinstance(value, torch.Tensor):
            return None
        check_limit("JAIL_RESULTS", len(found) + 1, "a jail gives at most {allowed} tensors: stack some of them")
        found.append(value.detach())
        return len(found) - 1

    return structure.encode(result, number), found


# --- errors -----------------------------------------------------------------------------------------------


def failed(error: BaseException, work: Work) -> GridError:
    """What a jail's code raised, as an error of ours."""
    text, kind = _message(error), _kind(error)
    lines = _lines(error.__traceback__, work)
    shown = "".join(lines)[-limits.JAIL_TRACEBACK :]
    where = f"; line {_last(error.__traceback__)} of {work.name}" if lines else ""
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return TooLarge(
            f"{work.name} needs more memory than a jail has here{where}: work on smaller pieces",
            limit="memory",
            traceback=shown,
        )
    if isinstance(error, GridError) and not isinstance(error, OperationFailed):
        fault = error.to_fault()
        fields = {**fault["fields"], "traceback": shown}
        return GridError.from_fault({**fault, "message": error.message + where, "fields": fields})
    return JailFailed(f"{kind}: {text}"[: limits.MAX_FAULT_TEXT] + where, type=kind, traceback=shown)


def _kind(error: BaseException) -> str:
    if isinstance(error, OperationFailed):
        return str(error.fields.get("type", "RuntimeError"))
    return type(error).__name__[:80]


def _message(error: BaseException) -> str:
    try:
        text = error.message if isinstance(error, GridError) else str(error)
    except BaseException:  # its __str__ is the jail's own code
        text = "(its text cannot be shown)"
    return text.split("\nException raised from", 1)[0].strip()[: limits.MAX_FAULT_TEXT]


def _lines(trace: TracebackType | None, work: Work) -> list[str]:
    """The user's own lines on the way to the error, outermost first."""
    source, shown = work.source.splitlines(), []
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == FILE:
            at = trace.tb_lineno - work.line
            line = source[at].strip() if 0 <= at < len(source) else ""
            shown.append(f"  line {trace.tb_lineno}, in {code.co_name}\n    {line[:200]}\n")
        trace = trace.tb_next
    return [*shown[:10], *shown[-10:]] if len(shown) > 20 else shown


def _last(trace: TracebackType | None) -> int:
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
