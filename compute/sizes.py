"""Sizes that a program leaves open: one name for each, and arithmetic on them as nodes.

torch follows what happens to sizes as expressions; here they become `int.*` nodes over sizes of inputs. Where the
function itself decides by a size (`if x.shape[0] > 3`, `for row in x`), that size cannot be left open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from compute.frames import Call, Frame, Ref
from protocol.errors import CannotCapture

BATCH: Final = "batch"  # the name of the first size along dimension 0


class OpenSizes:
    """The sizes of one capture: which are open, what they are called, and which turned out to be fixed."""

    def __init__(self) -> None:
        self._is_inside = False
        self._decided: list[Any] = []
        self._env = _environment(self._note)
        self._tensors: dict[str, torch.Tensor] = {}
        self._where: dict[Any, tuple[str, int]] = {}
        self.fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=self._env)

    def begin_again(self) -> None:
        """The function runs anew: nothing is known of its sizes yet."""
        self.__init__()  # type: ignore[misc]

    def tensor(self, path: str, shape: Sequence[int], dtype: torch.dtype, is_open: Sequence[bool]) -> torch.Tensor:
        """A fake input; its open dimensions (of size 2 at least) are symbols."""
        from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

        kinds = [DimDynamic.DYNAMIC if open_ else DimDynamic.STATIC for open_ in is_open]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds, constraint_sizes=[None] * len(kinds))
        # An expanded zero: the example's memory is not needed, and may be large.
        example = torch.empty(tuple(shape), dtype=dtype, device="meta")
        found = self.fake.from_tensor(
            example, static_shapes=False, source=_source(f"input{len(self._tensors)}"), symbolic_context=context
        )
        with self.fake:
            made = torch.empty(found.shape, dtype=dtype, device="cpu")
        self._tensors[path] = made
        for dim, size in enumerate(found.shape):
            if isinstance(size, torch.SymInt):
                self._where.setdefault(size.node.expr, (path, dim))
        return made

    @contextmanager
    def inside(self) -> Iterator[None]:
        """In it torch asks about sizes for its own purposes: to check arguments, to choose strides."""
        before, self._is_inside = self._is_inside, True
        try:
            yield
        finally:
            self._is_inside = before

    def fixed(self) -> set[tuple[str, int]]:
        """The open dimensions (path, number) on which the function decided something, or that are no plain size."""
        symbols: set[Any] = set()
        for expression in self._decided:
            left = self._env.replace(expression)
            if left.free_symbols and not _is_settled(left):
                symbols |= left.free_symbols
        for tensor in self._tensors.values():
            for size in tensor.shape:
                expression = self._expression(size)
                if expression is not None and not expression.is_Symbol:
                    symbols |= expression.free_symbols
        return {self._where[symbol] for symbol in symbols if symbol in self._where}

    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """The shape of each input: numbers, and one name for all dimensions that are always of one size."""
        names: dict[Any, str] = {}
        for is_first in (True, False):
            for path, tensor in self._tensors.items():
                for dim, size in enumerate(tensor.shape):
                    expression = self._expression(size)
                    if expression is not None and expression not in names and is_first == (dim == 0):
                        names[expression] = _name(path, dim, names.values())
        return {path: tuple(self._dim(size, names) for size in tensor.shape) for path, tensor in self._tensors.items()}

    def value(self, number: Any, frame: Frame) -> Any:
        """A size, or what was computed from sizes, as a value of the frame."""
        return _Writer(self, frame).value(self._env.replace(number.node.expr))

    def source(self, symbol: Any) -> tuple[torch.Tensor, int]:
        """The input, and its dimension, whose size the symbol is."""
        for tensor in self._tensors.values():
            for dim, size in enumerate(tensor.shape):
                if self._expression(size) == symbol:
                    return tensor, dim
        raise CannotCapture(f"the size {symbol} is of no input")

    def expression(self, size: Any) -> Any:
        """What is known of a size: an expression, or None for a number."""
        return self._expression(size)

    def _expression(self, size: Any) -> Any:
        if not isinstance(size, torch.SymInt):
            return None
        found = self._env.replace(size.node.expr)
        return None if found.is_Integer else found

    def _dim(self, size: Any, names: Mapping[Any, str]) -> int | str:
        expression = self._expression(size)
        return names[expression] if expression is not None else int(size)

    def _note(self, expression: Any, result: Any) -> None:
        # An equation that torch needs counts too: sizes that must fit each other in some odd way are not open.
        if not self._is_inside or (bool(result) and type(expression).__name__ in ("Equality", "Eq")):
            self._decided.append(expression)


def _environment(note: Callable[[Any, Any], None]) -> Any:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    class Environment(ShapeEnv):
        def evaluate_sym_node(self, sym_node: Any, *args: Any, **kwargs: Any) -> Any:
            result = super().evaluate_sym_node(sym_node, *args, **kwargs)
            note(sym_node.expr, result)
            return result

        def guard_or_defer_runtime_assert(  # type: ignore[override]  # torch's is cached
            self, orig_expr: Any, *args: Any, **kwargs: Any
        ) -> Any:
            note(orig_expr, True)
            return super().guard_or_defer_runtime_assert(orig_expr, *args, **kwargs)

    return Environment()


def _source(name: str) -> Any:
    """Where a size comes from, as torch wants it said; its own class for that takes a second to import."""
    from torch._guards import GuardSource, Source

    class Named(Source):
        @property
        def guard_source(self) -> Any:
            return GuardSource.CONSTANT

        @property
        def _name_template(self) -> str:
            return name

    return Named()


def _is_settled(expression: Any) -> bool:
    """Whether it is the same for all sizes of 2 and more."""
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

    ranges = {symbol: ValueRanges(2, int_oo) for symbol in expression.free_symbols}
    try:
        return bool(bound_sympy(expression, ranges).is_singleton())
    except Exception:  # it knows not every function
        return False


def _name(path: str, dim: int, taken: Any) -> str:
    if dim == 0 and BATCH not in taken:
        return BATCH
    base = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in path)[-40:].strip("_")
    name = f"{base}_{dim}" if base[:1].isalpha() else f"size_{base}_{dim}"
    while name in taken:
        name += "_"
    return name


class _Writer:
    """Arithmetic on sizes as nodes of a frame."""

    def __init__(self, sizes: OpenSizes, frame: Frame) -> None:
        self._sizes, self._frame = sizes, frame

    def value(self, expression: Any) -> Any:
        if expression.is_Integer:
            return int(expression)
        if expression.is_Float or expression.is_Rational:
            return float(expression)
        found = self._frame.sizes.get(expression)
        if found is None:
            found = self._frame.sizes[expression] = self._written(expression)
        return found

    def _written(self, expression: Any) -> Any:
        if expression.is_Symbol:
            return self._size_of(expression)
        if expression.is_Add:
            return self._folded("int.add", [self.value(part) for part in expression.args])
        if expression.is_Mul:
            return self._product(expression)
        if expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
            return self._folded("int.mul", [self.value(expression.base)] * int(expression.exp))
        kind = type(expression).__name__
        if kind in ("FloatPow", "Pow") and abs(float(expression.args[1])) == 0.5:
            root = self._call("float.sqrt", self.value(expression.args[0]))
            return root if float(expression.args[1]) > 0 else self._call("float.div", 1.0, root)
        operation = _FUNCTIONS.get(kind)
        if operation is not None:
            return self._folded(operation, [self.value(part) for part in expression.args])
        if kind == "CeilDiv":
            above, below = (self.value(part) for part in expression.args)
            return self._call("int.neg", self._call("int.floordiv", self._call("int.neg", above), below))
        raise CannotCapture(f"a size that is {expression} cannot be written into a program")

    def _product(self, expression: Any) -> Any:
        rational, rest = expression.as_coeff_Mul(rational=True)
        parts = [self.value(part) for part in (rest.args if rest.is_Mul else (rest,))]
        if not rational.is_Rational:
            raise CannotCapture(f"a size that is {expression} cannot be written into a program")
        whole = self._folded("int.mul", ([int(rational.p)] if rational.p != 1 else []) + parts)
        return whole if rational.q == 1 else self._call("int.floordiv", whole, int(rational.q))

    def _folded(self, operation: str, parts: list[Any]) -> Any:
        if len(parts) == 1 and operation in _UNARY:
            return self._call(operation, parts[0])
        found = parts[0]
        for part in parts[1:]:
            found = self._call(operation, found, part)
        return found

    def _call(self, operation: str, *args: Any) -> Ref:
        call = Call(operation, list(args), tensors=(None,))
        self._frame.add_call(call)
        return Ref(call)

    def _size_of(self, symbol: Any) -> Ref:
        for source in self._frame.sources:
            for dim, size in enumerate(source.tensor.shape):
                if self._sizes.expression(size) == symbol:
                    return self._call("aten.sym_size.int", Ref(source), dim)
        tensor, dim = self._sizes.source(symbol)
        return self._call("aten.sym_size.int", self._frame.find(tensor), dim)


_UNARY: Final = frozenset({"float.from_int", "int.from_float", "float.sqrt", "int.neg"})
_FUNCTIONS: Final[Mapping[str, str]] = {
    "FloorDiv": "int.floordiv",
    "CleanDiv": "int.floordiv",
    "Mod": "int.mod",
    "PythonMod": "int.mod",
    "Max": "int.max",
    "Min": "int.min",
    "IntTrueDiv": "float.div",
    "FloatTrueDiv": "float.div",
    "ToFloat": "float.from_int",
    "TruncToInt": "int.from_float",
    "OpaqueUnaryFn_sqrt": "float.sqrt",
}
