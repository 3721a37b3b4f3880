"""A program that a captured function calls (a stored model, a stored plan) becomes a part of the function's own: its
nodes are noted as if the function had said them, its loops as loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from compute import bodies, flow, loops, numbers, scans
from compute.flow import Flow
from compute.looks import check_inputs
from compute.operations import NUMBERS
from compute.program import Node, Program
from compute.table import lookup
from compute.values import constant_tensor, decode_argument, decode_output
from protocol.errors import CannotCapture


def inlined(program: Program, inputs: Sequence[Any]) -> Any:
    """The program's outputs for these fake tensors.

    Raises:
        BadRequest: inputs that do not fit what the program names.
    """
    check_inputs("the program", program.inputs, inputs)
    return _Inlined(program).outputs(list(inputs))


class _Inlined:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._constants = [constant_tensor(constant) for constant in program.constants]

    def outputs(self, inputs: list[Any]) -> Any:
        values = self._values(self._program.nodes, inputs)
        return self._output(self._program.outputs, values)

    def _body(self, number: int, inputs: list[Any]) -> list[Any]:
        body = self._program.bodies[number]
        values = self._values(body.nodes, inputs)
        return [self._output(output, values) for output in body.outputs]

    def _values(self, nodes: Sequence[Node], inputs: list[Any]) -> list[Any]:
        values = list(inputs)
        for node in nodes:
            if node.operation in flow.FLOW:
                values.append(self._flow(node, values))
                continue
            args = [self._argument(value, values) for value in node.args]
            if node.operation in NUMBERS:
                values.append(ON_SIZES[node.operation](*args))
            else:
                kwargs = {key: self._argument(value, values) for key, value in node.kwargs.items()}
                values.append(lookup(node.operation).overload(*args, **kwargs))
        return values

    def _flow(self, node: Node, values: list[Any]) -> list[Any]:
        found = flow.read(node.operation, node.args, node.kwargs)
        recorder = bodies.active()
        if recorder is None:
            raise CannotCapture(f"a program with {found.name} inside a transform of torch.func is not captured")
        carried = tuple(self._argument(value, values) for value in found.carried)
        sliced = [self._argument(value, values) for value in found.sliced]
        operands = [self._argument(value, values) for value in found.operands]
        value = self._argument(found.value, values)
        return list(self._looped(recorder, found, value, carried, sliced, operands))

    def _looped(
        self, recorder: Any, found: Flow, value: Any, carried: tuple[Any, ...], sliced: list[Any], operands: list[Any]
    ) -> Sequence[Any]:
        first, last = found.bodies[0], found.bodies[-1]

        def run(body: int, *given: Any) -> tuple[Any, ...]:
            return tuple(self._body(body, [*given, *operands]))

        if found.name == "flow.cond":
            made: Sequence[Any] = loops.cond(recorder, value, lambda: run(first), lambda: run(last), ())
            return made
        if found.name == "flow.while":
            return loops.while_loop(
                recorder, lambda *c: run(first, *c)[0], lambda *c: run(last, *c), carried, found.limit
            )
        if found.name == "flow.repeat":
            made = loops.repeat(recorder, value, lambda i, *c: run(last, i, *c), carried)
            return made
        if found.name == "flow.map":
            made = loops.mapped(recorder, lambda slices: run(last, *slices), sliced, ())
            return made

        def step(before: Any, slices: Any) -> tuple[Any, Any]:
            given = run(last, *before, *slices)
            return given[: len(carried)], given[len(carried) :]

        end, kept = scans.scan(recorder, step, carried, sliced, found.reverse)
        return [*end, *kept]

    def _argument(self, value: Any, values: list[Any]) -> Any:
        return decode_argument(value, lambda reference: self._named(reference, values))

    def _output(self, value: Any, values: list[Any]) -> Any:
        return decode_output(value, lambda reference: self._named(reference, values))

    def _named(self, reference: Mapping[str, Any], values: list[Any]) -> Any:
        if "constant" in reference:
            return self._constants[reference["constant"]]
        found = values[reference["node"]]
        return found if reference.get("item") is None else found[reference["item"]]


ON_SIZES: Final[Mapping[str, Callable[..., Any]]] = {
    **numbers.COMPUTES,
    "int.min": torch.sym_min,
    "int.max": torch.sym_max,
    "int.from_float": torch.sym_int,
    "float.sqrt": torch.sym_sqrt,
    "float.from_int": torch.sym_float,
}
"""Arithmetic of programs (operations.NUMBERS), on numbers and on sizes that are open."""
