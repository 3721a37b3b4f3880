"""Runs a program: each node through the table's checks, its values freed after their last use.

`execute` is the one place where an operation runs, and may be replaced: the interpreter on secret shares brings its
own. With the default one, inputs may be tensors of any kind that implements ATen: plain, fake, or pointers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch

from compute.bounds import Result
from compute.dtypes import DTYPE_OF
from compute.estimate import check_size, failed, guarded
from compute.layout import laid_out
from compute.program import Program
from compute.table import Entry, lookup
from compute.value_guards import VALUE_GUARDS, is_readable
from compute.values import constant_tensor, decode
from protocol.errors import BadRequest, GridError, OperationFailed

Execute = Callable[[Entry, Sequence[Any], Mapping[str, Any]], Any]


def execute(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Checks and runs one operation of the table.

    Raises:
        BadRequest: arguments that do not fit the schema, or that the kernel would not survive.
        TooLarge: results beyond MAX_RESULT.
        OperationFailed: torch refused; `fields["type"]` is the name of its exception.
    """
    bound, named, results = checked(entry, args, kwargs)
    return call(entry, bound, named, results)


def checked(
    entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Sequence[Result | None]]:
    """The arguments as the overload takes them, and what is known of its results.

    Raises what `execute` raises before the operation runs.
    """
    bound, named = entry.bind(args, kwargs)
    results: Sequence[Result | None] = ()
    if entry.category != "size":
        results = check_size(entry, bound, named).results
        guard = VALUE_GUARDS.get(entry.name)
        if guard is not None and is_readable((*bound, *named.values())):
            guarded(entry.name, guard, entry.named(bound, named))
    return bound, named, results


def call(entry: Entry, bound: Sequence[Any], named: Mapping[str, Any], results: Sequence[Result | None]) -> Any:
    """Runs the operation on arguments that were checked. What it gives lies in memory as `results` say."""
    if entry.name == _NO_CONJUGATES:
        bound = [bound[0].resolve_conj(), *bound[1:]]
    try:
        value = entry.overload(*bound, **named)
        return laid_out(value, results) if results else value
    except GridError:
        raise
    except Exception as error:
        raise failed(entry.name, error) from None


# Who asks does not know which values are conjugated lazily where they are, so that it cannot resolve them before.
_NO_CONJUGATES: Final = "aten.view_as_real.default"


def run(program: Program, inputs: Sequence[Any], execute: Execute = execute) -> Any:
    """The program's outputs for these inputs, which stand in the order of `program.inputs`.

    Raises:
        BadRequest: too few or too many inputs, or one that is not of the dtype or shape that the program names.
        GridError: what a node raised, with the operation, and the node's number in `fields["node"]`.
    """
    _check_inputs(program, inputs)
    prepared = _prepare(program)
    constants = [constant_tensor(constant) for constant in program.constants]
    values: list[Any] = [*inputs, *[None] * len(prepared.steps), *constants]
    for at, step in enumerate(prepared.steps):
        try:
            args = [_resolve(value, values) for value in step.args]
            kwargs = {name: _resolve(value, values) for name, value in step.kwargs.items()}
            entry = step.entry
            # Straight into its place: a name for it here would keep it alive during the next step.
            values[len(inputs) + at] = execute(entry, args, kwargs) if entry else _number(step.operation, args)
        except Exception as error:
            raise _at_node(error, at, step.operation) from None
        for number in step.frees:
            values[number] = None
    return _outputs(prepared.outputs, values)


def written_inputs(program: Program) -> tuple[int, ...]:
    """The numbers of inputs that the program writes in place, directly or through a view of them."""
    count = len(program.inputs)
    roots: list[frozenset[int]] = [frozenset({number}) for number in range(count)]
    written: set[int] = set()
    for node in program.nodes:
        if node.operation not in _NUMBERS:
            entry = lookup(node.operation)
            call = entry.named(node.args, node.kwargs)
            given = [_roots(call[parameter.name], roots) for parameter in entry.parameters]
            for position in entry.written(node.args, node.kwargs):
                written |= given[position]
            shared = [given[position] for position in entry.aliases if position is not None]
            roots.append(frozenset().union(*(given if entry.name in _RETURN_ARGUMENTS else shared)))
        else:
            roots.append(frozenset())
    return tuple(sorted(number for number in written if number < count))


@dataclass(frozen=True, slots=True)
class _Value:
    """Stands in a step's arguments for a value of the program, or for one item of it."""

    number: int
    item: int | None


@dataclass(frozen=True, slots=True)
class _Step:
    operation: str
    entry: Entry | None  # None: arithmetic on numbers
    args: list[Any]
    kwargs: dict[str, Any]
    frees: tuple[int, ...]  # values that nothing needs after this step


@dataclass(frozen=True, slots=True)
class _Prepared:
    steps: list[_Step]
    outputs: Any


_prepared: Final[WeakKeyDictionary[Program, _Prepared]] = WeakKeyDictionary()


def _prepare(program: Program) -> _Prepared:
    found = _prepared.get(program)
    if found is not None:
        return found
    count, end = len(program.inputs), len(program.inputs) + len(program.nodes)

    def refer(value: Mapping[str, Any]) -> _Value:
        if "constant" in value:
            return _Value(end + value["constant"], None)
        return _Value(value["node"], value.get("item"))

    steps: list[_Step] = []
    last: dict[int, int] = {}
    for at, node in enumerate(program.nodes):
        args = [decode(value, _no_object, refer) for value in node.args]
        kwargs = {name: decode(value, _no_object, refer) for name, value in node.kwargs.items()}
        for number in _used([args, *kwargs.values()]):
            last[number] = at
        last.setdefault(count + at, at)
        entry = None if node.operation in _NUMBERS else lookup(node.operation)
        steps.append(_Step(node.operation, entry, args, kwargs, ()))
    outputs = _decode_output(program.outputs, refer)
    kept = set(_used(outputs))
    frees: dict[int, list[int]] = {}
    for number, at in last.items():
        if number not in kept:
            frees.setdefault(at, []).append(number)
    steps = [
        _Step(step.operation, step.entry, step.args, step.kwargs, tuple(frees.get(at, ())))
        for at, step in enumerate(steps)
    ]
    _prepared[program] = prepared = _Prepared(steps, outputs)
    return prepared


def _no_object(reference: bytes) -> torch.Tensor:
    raise BadRequest("a program refers to its inputs, never to objects")


def _used(template: Any) -> list[int]:
    if type(template) is _Value:
        return [template.number]
    if isinstance(template, list | tuple):
        return [number for item in template for number in _used(item)]
    if isinstance(template, dict):
        return [number for item in template.values() for number in _used(item)]
    return []


def _resolve(template: Any, values: list[Any]) -> Any:
    kind = type(template)
    if kind is _Value:
        value = values[template.number]
        if template.item is None:
            return value
        if not isinstance(value, list | tuple) or template.item >= len(value):
            raise BadRequest(f"value {template.number} has no item {template.item}")
        return value[template.item]
    if kind is list:
        return [_resolve(item, values) for item in template]
    return template


def _decode_output(value: Any, refer: Callable[[Mapping[str, Any]], _Value]) -> Any:
    if isinstance(value, list):
        return [_decode_output(item, refer) for item in value]
    if isinstance(value, Mapping) and "tuple" in value:
        return tuple(_decode_output(item, refer) for item in value["tuple"])
    if isinstance(value, Mapping) and "map" in value:
        return {key: _decode_output(item, refer) for key, item in value["map"].items()}
    return decode(value, _no_object, refer)


def _outputs(template: Any, values: list[Any]) -> Any:
    if isinstance(template, list):
        return [_outputs(item, values) for item in template]
    if isinstance(template, tuple):
        return tuple(_outputs(item, values) for item in template)
    if isinstance(template, dict):
        return {key: _outputs(item, values) for key, item in template.items()}
    return _resolve(template, values)


def _check_inputs(program: Program, inputs: Sequence[Any]) -> None:
    if len(inputs) != len(program.inputs):
        names = ", ".join(given.name for given in program.inputs[:20])
        raise BadRequest(f"the program takes {len(program.inputs)} inputs ({names}), but {len(inputs)} were given")
    for given, value in zip(program.inputs, inputs, strict=True):
        if given.dtype is not None and value.dtype is not DTYPE_OF.get(given.dtype):
            raise BadRequest(f"input {given.name!r} is {given.dtype}, but {value.dtype} was given")
        if given.shape is None:
            continue
        fits = len(value.shape) == len(given.shape) and all(
            want is None or want == have for want, have in zip(given.shape, value.shape, strict=True)
        )
        if not fits:
            raise BadRequest(f"input {given} was given as {list(value.shape)}")


def _at_node(error: Exception, at: int, operation: str) -> GridError:
    found = error if isinstance(error, GridError) else failed(operation, error)
    found.fields.setdefault("node", at)
    if found.operation is None:
        found.operation = operation
    return found


def _roots(value: Any, roots: list[frozenset[int]]) -> frozenset[int]:
    if isinstance(value, Mapping) and "node" in value:
        return roots[value["node"]]
    if isinstance(value, list):
        return frozenset().union(*(_roots(item, roots) for item in value))
    return frozenset()


# Operations that may return an argument, or a view of one, though their schema does not say so (found by running all).
_RETURN_ARGUMENTS: Final = frozenset(
    f"aten.{name if '.' in name else name + '.default'}"
    for name in (
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as", "conj_physical"),
        *("_unsafe_view", "unsafe_chunk", "unsafe_split.Tensor", "unsafe_split_with_sizes", "broadcast_tensors"),
        *("atleast_1d", "atleast_2d", "atleast_3d", "meshgrid", "meshgrid.indexing", "cartesian_prod", "chain_matmul"),
        *("einsum", "sum_to_size", "cumprod_backward"),
    )
)

_NUMBERS: Final[dict[str, Callable[..., Any]]] = {
    "int.add": operator.add,
    "int.sub": operator.sub,
    "int.mul": operator.mul,
    "int.floordiv": operator.floordiv,
    "int.mod": operator.mod,
    "int.neg": operator.neg,
    "int.min": min,
    "int.max": max,
    "int.from_float": int,
    "float.div": operator.truediv,
    "float.sqrt": math.sqrt,
    "float.from_int": float,
}
_INT64: Final = 1 << 63


def _number(operation: str, args: list[Any]) -> Any:
    if not all(type(value) in (int, float) for value in args):
        raise BadRequest(f"{operation} takes numbers", operation=operation)
    try:
        result = _NUMBERS[operation](*args)
    except (ArithmeticError, ValueError) as error:
        raise OperationFailed(str(error), operation=operation, type=type(error).__name__) from None
    if isinstance(result, int) and not -_INT64 <= result < _INT64:
        raise OperationFailed("a number beyond 64 bits", operation=operation, type="OverflowError")
    return result
