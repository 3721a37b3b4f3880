"""From a function to what is shipped of it: its source, what it closes over, and the queries that it loads.

At the asker's. Everything that would come to nothing at the peer is found here, with the line of the user's file.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import symtable
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from compute.jail import lint, scope
from protocol.errors import BadJail

GRID: Final = "grid"


@dataclass(frozen=True, slots=True)
class Source:
    """A function, ready to be shipped.

    Attributes:
        text: its definition, without decorators and not indented; `line` is where that begins in `file`.
        values: what it closes over that are no modules, by name: plain values, and tensors.
        modules: names of its file's that stand for something in the scope of jails, with the dotted path there.
        loads: the queries of its grid.load("...").
    """

    name: str
    text: str
    file: str
    line: int
    values: Mapping[str, Any]
    modules: Mapping[str, str]
    loads: tuple[str, ...]


def source_of(function: Callable[..., Any], load: Callable[..., Any] | None = None) -> Source:
    """What is shipped of a function.

    Args:
        load: what a name of the function's file may be that means grid.load.

    Raises:
        BadJail: it says what a jail cannot, or needs what cannot be shipped; the message says what to write.
    """
    if not isinstance(function, types.FunctionType):
        raise BadJail(f"a jail is a function, def name(...), not {type(function).__name__}")
    name, text, file, line = _text(function)
    tree = lint.check(text, first_line=line, name=name)
    found = _Names(function, name, load)
    for used, at in sorted(_globals(tree, line).items(), key=lambda item: item[1]):
        found.add(used, at)
    loads = tuple(dict.fromkeys(_loads(tree, found.modules, name)))
    return Source(name, text, file, line, found.values, found.modules, loads)


def _text(function: types.FunctionType) -> tuple[str, str, str, int]:
    name = function.__name__
    if name == "<lambda>":
        raise BadJail("a jail is a function with a name: write def name(...): ... instead of lambda")
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        raise BadJail(f"the source of {name} is not to be had: define it in a file, or in a notebook's cell") from None
    text = textwrap.dedent("".join(lines))
    try:
        (definition,) = ast.parse(text).body
    except (SyntaxError, ValueError):
        raise BadJail(
            f"{name}, line {first}: its source does not parse alone; define it at the left", line=first
        ) from None
    if isinstance(definition, ast.AsyncFunctionDef):
        raise BadJail(f"{name}, line {first}: a jail is no async function; it waits for nothing", line=first)
    if not isinstance(definition, ast.FunctionDef):
        raise BadJail(f"{name}, line {first}: a jail is a function, def {name}(...)", line=first)
    text = "".join(text.splitlines(keepends=True)[definition.lineno - 1 : definition.end_lineno])
    return definition.name, text, function.__code__.co_filename, max(first, 1) + definition.lineno - 1


# --- names ------------------------------------------------------------------------------------------------


def _globals(tree: ast.Module, line: int) -> dict[str, int]:
    """Names that the function takes from around it, each with the first line that has it."""
    plain = ast.fix_missing_locations(_Plain().visit(ast.parse(ast.unparse(tree))))
    used: set[str] = set()
    for table in _tables(symtable.symtable(ast.unparse(plain), "jail", "exec")):
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    at: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in used:
            at[node.id] = min(at.get(node.id, node.lineno), node.lineno)
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name: at.get(name, line) for name in used - own}


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _tables(child)


class _Plain(ast.NodeTransformer):
    """Takes away what is evaluated at the asker's, or not at all: defaults and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node


class _Names:
    """What names of a function's stand for at a peer."""

    def __init__(self, function: types.FunctionType, name: str, load: Callable[..., Any] | None) -> None:
        self._around = inspect.getclosurevars(function).nonlocals
        self._globals = function.__globals__
        self._name = name
        self._load = load
        self.values: dict[str, Any] = {}
        self.modules: dict[str, str] = {}

    def add(self, used: str, line: int) -> None:
        if used in self._around:
            value = self._around[used]
        elif used in self._globals:
            value = self._globals[used]
        else:
            self._check_builtin(used, line)
            return
        path = self._path(value)
        if path is not None:
            self.modules[used] = path
        elif _is_plain(value):
            self.values[used] = value
        else:
            raise BadJail(f"{self._name}, line {line}: {_advice(used, value)}", line=line)

    def _path(self, value: Any) -> str | None:
        if self._load is not None and value is self._load:
            return f"{GRID}.load"
        if isinstance(value, types.ModuleType):
            return GRID if value.__name__ == GRID else _paths().get(f"module {value.__name__}")
        return _paths().get(_key(value)) if callable(value) or isinstance(value, torch.dtype) else None

    def _check_builtin(self, used: str, line: int) -> None:
        if used in _IN_SCOPE:
            return
        if hasattr(builtins, used):
            raise BadJail(f"{self._name}, line {line}: {used} is not there in a jail", line=line)
        raise BadJail(f"{self._name}, line {line}: {used} is not defined", line=line)


_IN_SCOPE: Final = frozenset(scope.builtins_for(print, {}))


def _key(value: Any) -> str:
    return f"object {id(value)}"


@functools.cache
def _paths() -> Mapping[str, str]:
    """Where in the scope of jails modules and functions are, by what they are outside."""
    found: dict[str, str] = {}

    def add(path: str, space: scope.Namespace) -> None:
        found[f"module {path}"] = path
        for name in dir(space):
            value = getattr(space, name)
            if isinstance(value, scope.Namespace):
                add(f"{path}.{name}", value)
            elif callable(value) or isinstance(value, torch.dtype):
                found.setdefault(_key(value), f"{path}.{name}")

    for name, space in scope.modules().items():
        add(name, space)
    return found


def _is_plain(value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, bool | int | float | complex | str | torch.Tensor):
        return True
    if isinstance(value, list | tuple):
        return depth < 32 and all(_is_plain(item, depth + 1) for item in value)
    return isinstance(value, dict) and depth < 32 and all(_is_plain(item, depth + 1) for item in value.values())


def _advice(used: str, value: Any) -> str:
    if isinstance(value, types.ModuleType):
        there = ", ".join(scope.modules())
        return f"the module {value.__name__} is not there in a jail, but {there}"
    if isinstance(value, torch.nn.Module):
        return f"{used} is a module, which is not shipped: give its state_dict() as an argument, and build it inside"
    if isinstance(value, type):
        return f"{used} is a class, which is not shipped: define it inside the jail"
    if callable(value):
        return f"{used} is a function outside the jail, which is not shipped: define it inside, as def {used}(...)"
    kind = type(value).__name__
    return f"{used} is of type {kind}, which is not shipped: use tensors, numbers, text, lists, tuples and dicts"


# --- grid.load --------------------------------------------------------------------------------------------


def _loads(tree: ast.Module, modules: Mapping[str, str], name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_load(node.func, modules):
            given = node.args[0] if len(node.args) == 1 and not node.keywords else None
            if not isinstance(given, ast.Constant) or not isinstance(given.value, str):
                raise BadJail(
                    f"{name}, line {node.lineno}: what grid.load finds is found before the jail begins: write the "
                    'query into the call, as text: grid.load("#tag")',
                    line=node.lineno,
                )
            yield given.value


def _is_load(function: ast.expr, modules: Mapping[str, str]) -> bool:
    if isinstance(function, ast.Name):
        return modules.get(function.id) == f"{GRID}.load"
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return False
    return function.attr == "load" and modules.get(function.value.id, function.value.id) == GRID
