"""What a jail's source cannot say, found before it runs: RestrictedPython's rules, with the words that help. No torch.

A linter and no boundary: it says early, and at the right line, what would come to nothing. Its rules are looser than
RestrictedPython's own where those protect guards that are not used here (names that begin with "_", `x[0] += 1`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any, Final

from RestrictedPython.transformer import FORBIDDEN_FUNC_NAMES, INSPECT_ATTRIBUTES, RestrictingNodeTransformer

from protocol import limits
from protocol.errors import BadJail

MODULES: Final = ("torch", "math", "cmath", "functools", "itertools", "typing", "grid")
"""What can be imported, with the parts of torch that scope.py has."""

_METHODS: Final = frozenset(
    "__init__ __call__ __len__ __iter__ __next__ __contains__ __getitem__ __setitem__ __enter__ __exit__ __repr__ "
    "__str__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __matmul__ "
    "__truediv__ __rtruediv__ __neg__ __bool__ __hash__".split()
)
_FOREIGN: Final = "memory of a tensor is not handed out in a jail: work with torch's operations"
_ATTRIBUTES: Final = {
    **dict.fromkeys(
        ("numpy", "data_ptr", "storage", "untyped_storage", "share_memory_", "set_", "from_file"), _FOREIGN
    ),
    **dict.fromkeys(("format", "format_map"), "write an f-string instead: f'{x}'"),
    **dict.fromkeys(("cuda", "backends", "hub", "jit", "multiprocessing", "distributed"), "it is not there in a jail"),
}
_NAMES: Final = {
    **dict.fromkeys(
        ("eval", "exec", "compile", "open", "input", "breakpoint", "__import__"), "it is not there in a jail"
    ),
    **dict.fromkeys(("getattr", "setattr", "delattr", "vars", "globals", "locals", "dir"), "name the attribute itself"),
}


def check(source: str, *, first_line: int = 1, name: str = "jail") -> ast.Module:
    """The source, parsed, with the lines of the file that it is from.

    Args:
        source: one function definition, not indented.
        first_line: its line in the file.

    Raises:
        BadJail: what it says cannot be said in a jail; `fields["line"]` is the first such line.
    """
    if len(source) > limits.JAIL_SOURCE:
        raise BadJail(f"{name} has {len(source)} characters of source; a jail takes at most {limits.JAIL_SOURCE}")
    tree, copy = _parsed(source, first_line, name), _parsed(source, first_line, name)
    rules = _Rules()
    try:
        rules.visit(copy)
    except RecursionError:
        raise BadJail(f"{name} nests too deeply", line=first_line) from None
    if rules.found:
        raise _refused(rules.found, name)
    return tree


def _parsed(source: str, first_line: int, name: str) -> ast.Module:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        line = (error.lineno or 1) + first_line - 1
        raise BadJail(f"{name}, line {line}: {error.msg}", line=line) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadJail(f"{name} does not parse: {error}", line=first_line) from None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise BadJail("the source of a jail is one function definition: def name(...): ...", line=first_line)
    tree.body[0].decorator_list = []
    ast.increment_lineno(tree, first_line - 1)
    return tree


def _refused(found: list[tuple[int, str]], name: str) -> BadJail:
    shown = "; ".join(f"line {line}: {what}" for line, what in found[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return BadJail(f"{name} cannot run as a jail. {shown}{more}", line=found[0][0])


class _Rules(RestrictingNodeTransformer):
    """Visits a tree (and spoils it); `found` has what is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self.used_names: dict[str, bool] = {}

    def error(self, node: ast.AST, info: str) -> None:
        self.found.append((getattr(node, "lineno", 0), info))

    def not_allowed(self, node: ast.AST) -> None:
        self.error(node, f"{_described(node)} is not there in a jail")

    def check_name(self, node: Any, name: str | None, allow_magic_methods: bool = False) -> None:
        if name is None:
            return
        is_method = allow_magic_methods and name in _METHODS and node.col_offset
        if name.startswith("__") and not is_method:
            self.error(node, f"{name!r} begins with '__', which is Python's own: take another name")
        elif name in _NAMES:
            self.error(node, f"{name}: {_NAMES[name]}")
        elif name in FORBIDDEN_FUNC_NAMES - {"print", "printed"}:
            self.error(node, f"{name!r} is a name of its own in a jail: take another")

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if node.attr.startswith("_") and not _is_super_init(node):
            self.error(node, f"the attribute {node.attr!r} begins with '_': it is not for a jail")
        elif node.attr in INSPECT_ATTRIBUTES:
            self.error(node, f"the attribute {node.attr!r} shows how Python runs: it is not for a jail")
        elif node.attr in _ATTRIBUTES:
            self.error(node, f".{node.attr}: {_ATTRIBUTES[node.attr]}")
        return self.node_contents_visit(node)

    def visit_Name(self, node: ast.Name) -> Any:
        self.check_name(node, node.id)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        return self.node_contents_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        return self.node_contents_visit(node)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> Any:
        return node

    def visit_YieldFrom(self, node: ast.YieldFrom) -> Any:
        return self.node_contents_visit(node)

    def visit_Import(self, node: ast.Import) -> Any:
        self._check_modules(node, [each.name for each in node.names])
        return super().visit_Import(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        self._check_modules(node, [node.module or "."] if not node.level else ["."])
        return super().visit_ImportFrom(node)

    def _check_modules(self, node: ast.AST, names: Iterable[str]) -> None:
        for name in names:
            if name.split(".")[0] not in MODULES:
                self.error(node, f"{name} cannot be imported in a jail, but {', '.join(MODULES)}")


def _is_super_init(node: ast.Attribute) -> bool:
    """super().__init__, which every torch.nn.Module of one's own calls."""
    call = node.value
    is_super = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "super"
    return node.attr == "__init__" and is_super


def _described(node: ast.AST) -> str:
    kind = type(node).__name__
    return _WORDS.get(kind, kind)


_WORDS: Final = {
    "AsyncFunctionDef": "an async function",
    "Await": "await",
    "AsyncFor": "async for",
    "AsyncWith": "async with",
    "TryStar": "try ... except*",
    "Match": "match",
}
