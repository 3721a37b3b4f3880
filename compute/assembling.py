"""Frames to programs: calls get their numbers, bodies theirs, constants are written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from compute.dtypes import NAME_OF
from compute.frames import LITERAL, Call, Constant, Frame, Ref, Source, is_item, replaced, storage_of
from compute.program import Body, Input, Node, Program
from compute.values import inline_tensor

_NO_NAME: Final[Mapping[str, Any]] = {}


class Assembler:
    """One program, made of a root frame whose calls and outputs are final.

    Args:
        shapes: what is known of the shape of each input by name, where that is not its tensor's own.
    """

    def __init__(self, shapes: Mapping[str, tuple[int | str, ...]] = _NO_NAME) -> None:
        self._shapes = shapes
        self._bodies: list[Body] = []
        self._numbers: dict[int, int] = {}
        self._constants: list[Mapping[str, Any]] = []
        self._constant_numbers: dict[Any, int] = {}
        self._alive: list[Constant] = []

    def program(self, root: Frame, outputs: Any) -> Program:
        """`outputs`: nested tuples, lists and dicts of references and plain values, as PROGRAM.md writes them."""
        inputs, nodes, out = self._frame(root, root.inputs, outputs)
        named = tuple(Input(source.name, NAME_OF[source.tensor.dtype], self._shape(source)) for source in inputs)
        return Program(named, tuple(nodes), out, tuple(self._constants), tuple(self._bodies))

    def _shape(self, source: Source) -> tuple[int | str, ...]:
        known = self._shapes.get(source.name)
        return known if known is not None else tuple(int(size) for size in source.tensor.shape)

    def _body(self, frame: Frame) -> int:
        found = self._numbers.get(id(frame))
        if found is None:
            sources, nodes, outputs = self._frame(frame, frame.order, frame.outputs)
            inputs = tuple(
                Input(name, NAME_OF[source.tensor.dtype], _known(source))
                for name, source in zip(_names(sources), sources, strict=True)
            )
            self._bodies.append(Body(inputs, tuple(nodes), outputs))
            found = self._numbers[id(frame)] = len(self._bodies) - 1
        return found

    def _frame(self, frame: Frame, inputs: Sequence[Source], outputs: Any) -> tuple[Sequence[Source], list[Node], Any]:
        """The inputs, nodes and outputs of a frame. What it changes in place is a copy; inputs are never written."""
        stands_for: dict[int, Any] = {}
        calls: list[Call] = []
        for source in inputs:
            if storage_of(source.tensor) in frame.written:
                copied = Call("aten.clone.default", [Ref(source)], tensors=(source.tensor,))
                calls.append(copied)
                stands_for[id(source)] = Ref(copied)
        copies = len(calls)
        for call in frame.calls:
            if call.operation != LITERAL:
                calls.append(call)
            elif storage_of(call.tensors[0]) in frame.written:
                calls.append(Call("aten.clone.default", call.args, tensors=call.tensors))
                stands_for[id(call)] = Ref(calls[-1])
            else:
                stands_for[id(call)] = call.args[0]
        numbers = {id(source): at for at, source in enumerate(inputs)}
        numbers |= {id(call): at for at, call in enumerate(calls, len(inputs))}

        def put(value: Any) -> Any:
            if isinstance(value, Ref):
                value = stands_for.get(id(value.of), value)
            if isinstance(value, Constant):
                return {"constant": self._constant(value)}
            written = {"node": numbers[id(value.of)]}
            return written if value.item is None or not is_item(value.of) else {**written, "item": value.item}

        def wire(value: Any) -> Any:
            return self._with_bodies(replaced(value, put))

        nodes = [Node(call.operation, call.args, call.kwargs) for call in calls[:copies]]
        nodes = [Node(node.operation, [{"node": numbers[id(node.args[0].of)]}], {}) for node in nodes]
        nodes += [
            Node(call.operation, [wire(value) for value in call.args], {k: wire(v) for k, v in call.kwargs.items()})
            for call in calls[copies:]
        ]
        return inputs, nodes, replaced(outputs, put)

    def _with_bodies(self, value: Any) -> Any:
        if isinstance(value, Frame):
            return {"body": self._body(value)}
        return [self._with_bodies(item) for item in value] if type(value) is list else value

    def _constant(self, constant: Constant) -> int:
        tensor = constant.tensor
        written = inline_tensor(tensor)["tensor"]
        key = (written["dtype"], tuple(written["shape"]), written["data"])
        if key not in self._constant_numbers:
            self._constant_numbers[key] = len(self._constants)
            self._constants.append(written)
        return self._constant_numbers[key]


def _known(source: Source) -> tuple[int | None, ...]:
    """The shape of a body's input: what is no number differs from run to run."""
    return tuple(size if isinstance(size, int) else None for size in source.tensor.shape)


def _names(sources: Sequence[Source]) -> list[str]:
    """Every input of a body by its role and place; operands are numbered anew."""
    counts: dict[str, int] = {}
    names: list[str] = []
    for source in sources:
        role = source.name.split(".")[0]
        counts[role] = counts.get(role, -1) + 1
        names.append(role if role == "i" else f"{role}.{counts[role]}")
    return names
