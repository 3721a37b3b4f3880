"""ONNX models, read as the data that they are: each operator becomes operations of the table (onnx_*.py), at two sizes
of every input whose sizes are open (worlds.py). https://onnx.ai/onnx/operators

Nothing of the onnx package is used, and no file but this one is looked at: tensors that are kept elsewhere are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from compute.importing import onnx_layers, onnx_math, onnx_recurrent, onnx_shapes  # noqa: F401  # they register
from compute.importing.imported import ImportedModel, check_total, slot_name
from compute.importing.onnx_nodes import HANDLERS, Node, as_tensor
from compute.importing.onnx_schema import ATTRIBUTE_KINDS, dtype_of, parse, tensor_of
from compute.importing.protobuf import Message
from compute.importing.worlds import WORLDS, DoesNotFit, World
from compute.model_spec import ModelSpec, Slot
from compute.program import Input
from compute.values import header_of
from protocol import limits
from protocol.errors import BadFile, GridError, TooLarge
from protocol.tensors import TensorHeader

_OWN: Final = ("", "ai.onnx")
_LOWEST: Final = 7  # operator set: of 2017; older ones spell broadcasting out
_HIGHEST: Final = 27
_MAX_DEPTH: Final = 16  # functions and branches in each other
# What open sizes are tried with, the first that fit: far apart, so that what is alike at both is so at all. The second
# of each row is that of the next open dimension, and so on.
_TRIED: Final = (
    ((2, 5, 11), (3, 8, 14), (6, 11, 21), (7, 12, 17)),
    ((3, 5, 2), (32, 64, 160), (64, 96, 192), (32, 64, 128)),
    ((2, 3, 5), (224, 256, 320), (256, 288, 224), (224, 256, 320)),
)
_MOST_STEPS: Final = 20_000  # operators that are tried in all while sizes are looked for: some seconds

Sizes = dict[str, tuple[int, ...]]
"""Of open dimensions, in each world; the same number in all is one that is not open after all."""


Tried = ImportedModel | BadFile | DoesNotFit


def read(data: memoryview) -> ImportedModel:
    """The model in the file.

    Raises:
        BadFile: it is not one, or asks for what is not read; the message names the operator. TooLarge.
    """
    return _Search(parse(data)).model()


class _Search:
    """Sizes of open dimensions at which the graph fits together.

    Exporters call dimensions open that are not: the channels of an image have a name too, although only one number
    fits the weights. Where an operator does not fit, the open dimensions are tried with the numbers that it was given,
    each in turn, and the one with which the graph gets furthest is no longer open. Before that those are numbers whose
    names are: torch's exporter calls sizes "8" that it could not leave open itself, though the file often can.
    """

    def __init__(self, message: Message) -> None:
        self._message = message
        self._left = _MOST_STEPS

    def model(self) -> ImportedModel:
        refusals: list[BadFile | DoesNotFit] = []
        for search in (self._plain, self._strict, self._fitted):
            for row in _TRIED:
                found = search(row)
                if isinstance(found, ImportedModel):
                    return found
                refusals.append(found)
        first = refusals[0]
        raise BadFile(first.message) if isinstance(first, DoesNotFit) else first

    def _plain(self, row: Sequence[tuple[int, ...]]) -> Tried:
        return self._tried(_Reading(self._message, row, {}, is_strict=False))

    def _strict(self, row: Sequence[tuple[int, ...]]) -> Tried:
        return self._tried(_Reading(self._message, row, {}, is_strict=True))

    def _fitted(self, row: Sequence[tuple[int, ...]]) -> Tried:
        fixed: Sizes = {}
        reading = _Reading(self._message, row, fixed, is_strict=True)
        found = self._tried(reading)
        while isinstance(found, DoesNotFit):
            best: tuple[int, Sizes, _Reading, Any] | None = None
            for name in reading.candidates():
                for hint in found.hints:
                    sizes = {**fixed, name: (hint,) * WORLDS}
                    trial = _Reading(self._message, row, sizes, is_strict=True)
                    result = self._tried(trial)
                    if isinstance(result, ImportedModel):
                        return result
                    if trial.steps > (best[0] if best is not None else reading.steps):
                        best = trial.steps, sizes, trial, result
            if best is None:
                break
            _, fixed, reading, found = best
        return found

    def _tried(self, reading: _Reading) -> Tried:
        if self._left < 0:
            return BadFile("no sizes of its open dimensions were found that fit: export it with fewer that are open")
        try:
            return reading.model()
        except DoesNotFit as error:
            return error
        except TooLarge as error:  # of these sizes
            return DoesNotFit(error.message)
        finally:
            self._left -= reading.steps


class _Reading:
    """One model on its way to a program, with open dimensions at one pair of sizes."""

    def __init__(self, message: Message, row: Sequence[tuple[int, ...]], fixed: Sizes, is_strict: bool) -> None:
        self._is_strict = is_strict
        self.open: Sizes = dict(fixed)
        self.steps = 0
        self._graph: Message = message["graph"]
        self._row = row
        self._world = World()
        self._version = _version(message["versions"])
        self._functions = {(item.get("domain", ""), item.get("name", "")): item for item in message["functions"]}
        self._examples: dict[str, TensorHeader] = {}
        self._unnamed = 0
        self._leading: set[str] = set()

    def model(self) -> ImportedModel:
        if self._graph["sparse"]:
            raise BadFile("it keeps sparse tensors, which are not read")
        values: dict[str, Any] = {}
        taken: dict[str, Any] = {}
        total = 0
        for initializer in self._graph["initializers"]:
            tensor = tensor_of(initializer)
            total += tensor.numel() * tensor.element_size()
            check_total(total, "what is in it")
            own = initializer.get("name", "")
            name = slot_name(own or "tensor", taken)
            taken[name] = values[own] = tensor
            self._world.name(tensor, name)
        names = [self._take(given, values, taken) for given in self._graph["inputs"] if given.get("name") not in values]
        self._run(self._graph["nodes"], values, 0)
        outputs = [(item.get("name", ""), self._output(item, values)) for item in self._graph["outputs"]]
        if not outputs:
            raise BadFile("it gives nothing")
        program = self._world.program(tuple(value for _, value in outputs) if len(outputs) > 1 else outputs[0][1])
        slots = tuple(self._slot(name, tensor) for name, tensor in self._world.slots.items())
        spec = ModelSpec(program, slots, tuple(names), examples=self._examples)
        return ImportedModel(spec, self._world.slots)

    def candidates(self) -> list[str]:
        """Open dimensions; batches, which come first in shapes, last."""
        names = [name for name, sizes in self.open.items() if len(set(sizes)) > 1]
        return sorted(names, key=lambda name: name in self._leading)

    def _slot(self, name: str, tensor: torch.Tensor) -> Slot:
        if self._world.name_of(tensor) != name or name.startswith("constant_"):
            return Slot(name, header_of(tensor), "constant", False, False)
        is_weight = tensor.dtype.is_floating_point and id(tensor) not in self._world.is_buffer
        return Slot(name, header_of(tensor), "parameter" if is_weight else "buffer", is_weight)

    def _take(self, given: Message, values: dict[str, Any], taken: dict[str, Any]) -> str:
        own = given.get("name", "")
        described = given.get("type", {}).get("tensor")
        if described is None:
            raise BadFile(f"its input {own[:80]!r} is no tensor")
        dtype = dtype_of(described.get("dtype"))
        if "shape" not in described:
            raise BadFile(f"its input {own[:80]!r} has no shape: export it with one, open sizes included")
        sizes = [self._dim(dim, at) for at, dim in enumerate(described["shape"]["dims"])]
        shape = tuple(size[0] if len(set(size)) == 1 else None for size in sizes)
        name = slot_name(own or "input", taken)
        taken[name] = None
        shapes = [[size[world] for size in sizes] for world in range(WORLDS)]
        self._examples[name] = TensorHeader(str(dtype).removeprefix("torch."), tuple(shapes[0]))
        spec = Input(name, str(dtype).removeprefix("torch."), shape)
        values[own] = self._world.input(spec, shapes, dtype)
        return name

    def _dim(self, dim: Message, at: int) -> tuple[int, ...]:
        size, parameter = dim.get("value"), dim.get("parameter", "")
        if self._is_strict and parameter.isdecimal() and len(parameter) < 20:
            size = int(parameter)
        if isinstance(size, int) and size > 0:
            if size >= limits.MAX_DIM:
                raise BadFile("an input of it has a size that no tensor has")
            return (size,) * WORLDS
        self._unnamed += 1
        name = parameter or f" {self._unnamed}"
        if at == 0:
            self._leading.add(name)
        if name not in self.open:
            self.open[name] = self._row[min(at, len(self._row) - 1)]
        return self.open[name]

    def _output(self, item: Message, values: Mapping[str, Any]) -> Any:
        name = item.get("name", "")
        if name not in values:
            raise BadFile(f"its output {name[:80]!r} is computed by nothing")
        return as_tensor(self._world, values[name], "an output")

    # --- nodes ------------------------------------------------------------------------------------------------

    def _run(
        self, nodes: list[Message], values: dict[str, Any], depth: int, bound: Mapping[str, Any] | None = None
    ) -> None:
        if depth > _MAX_DEPTH:
            raise BadFile("its functions call each other without end")
        for message in nodes:
            self.steps += 1
            if self.steps > limits.MAX_NODES:
                raise BadFile(f"it has more than {limits.MAX_NODES} operators")
            self._step(message, values, depth, bound or {})

    def _step(self, message: Message, values: dict[str, Any], depth: int, bound: Mapping[str, Any]) -> None:
        op, domain = message.get("op", ""), message.get("domain", "")
        attributes = self._attributes(message, bound)
        inputs = [self._operand(name, values, op) for name in message["inputs"]]
        function = self._functions.get((domain, op))
        if function is not None:
            made = self._call(function, inputs, attributes, depth)
        elif domain not in _OWN:
            raise BadFile(f"operator {op[:60]!r} in it is of {domain[:60]!r}, and only ONNX's own are read")
        elif op == "Constant":
            made = [_constant(attributes)]
        elif op == "If":
            made = self._branch(inputs, attributes, values, depth)
        else:
            made = self._apply(op, inputs, attributes, len(message["outputs"]))
        if len(made) < sum(1 for name in message["outputs"] if name):
            raise BadFile(f"{op[:60]} in it gives {len(made)} values, and more are wanted of it")
        values.update((name, value) for name, value in zip(message["outputs"], made, strict=False) if name)

    def _apply(self, op: str, inputs: list[Any], attributes: Mapping[str, Any], outputs: int) -> list[Any]:
        handler = HANDLERS.get(op)
        if handler is None:
            raise BadFile(f"operator {op[:60]!r} in it is not read")
        try:
            node = Node(self._world, op, inputs, attributes, self._version, outputs)
            made = handler(node)
            node.check_all_read()
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
            if isinstance(error, GridError):
                raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DoesNotFit(f"{op} in it does not fit what it is given: {line}") from None
        return list(made) if isinstance(made, tuple) else [made]

    def _operand(self, name: str, values: Mapping[str, Any], op: str) -> Any:
        if not name:
            return None
        if name not in values:
            raise BadFile(f"{op[:60]} in it takes {name[:80]!r}, which nothing gives before it")
        return values[name]

    def _call(self, function: Message, inputs: list[Any], attributes: Mapping[str, Any], depth: int) -> list[Any]:
        """A function of the model's own: its nodes, in place."""
        inner = dict(zip(function["inputs"], inputs, strict=False))
        defaults = {item.get("name", ""): _attribute(item) for item in function["defaults"]}
        outer, self._version = self._version, _version(function["versions"]) if function["versions"] else self._version
        self._run(function["nodes"], inner, depth + 1, {**defaults, **attributes})
        self._version = outer
        return [self._operand(name, inner, function.get("name", "")) for name in function["outputs"]]

    def _branch(
        self, inputs: list[Any], attributes: Mapping[str, Any], values: dict[str, Any], depth: int
    ) -> list[Any]:
        """If, where it is known here which way it goes."""
        condition = inputs[0] if inputs else None
        if not isinstance(condition, torch.Tensor) or condition.numel() != 1:
            raise BadFile("it branches by data (If), which is not read from ONNX")
        graph = attributes.get("then_branch" if bool(condition) else "else_branch")
        if not isinstance(graph, dict):
            raise BadFile("If in it has no branches")
        inner = dict(values)
        for initializer in graph["initializers"]:
            inner[initializer.get("name", "")] = tensor_of(initializer)
        self._run(graph["nodes"], inner, depth + 1)
        return [self._operand(item.get("name", ""), inner, "If") for item in graph["outputs"]]

    def _attributes(self, message: Message, bound: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for item in message["attributes"]:
            name, outer = item.get("name", ""), item.get("reference")
            if not outer:
                found[name] = _attribute(item)
            elif outer in bound:
                found[name] = bound[outer]
        return found


def _attribute(item: Message) -> Any:
    kind = ATTRIBUTE_KINDS.get(item.get("type", 0))
    if kind is None:
        kind = next((name for name in ("f", "i", "s", "t", "g", "floats", "ints", "strings") if item.get(name)), "i")
    value: Any = item.get(kind)
    if value is None:
        value = {"f": 0.0, "i": 0, "s": b""}.get(kind)
    return tensor_of(value) if kind == "t" and value is not None else value


def _constant(attributes: Mapping[str, Any]) -> torch.Tensor:
    for name, dtype in (
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
    ):
        if name in attributes:
            return torch.tensor(attributes[name], dtype=dtype)
    value = attributes.get("value")
    if not isinstance(value, torch.Tensor):
        raise BadFile("a constant in it is no tensor")
    return value


def _version(versions: list[Message]) -> int:
    found = max((item.get("version", 0) for item in versions if item.get("domain", "") in _OWN), default=0)
    if not _LOWEST <= found <= _HIGHEST:
        raise BadFile(
            f"it is of operator set {found}, and {_LOWEST} to {_HIGHEST} are read: export it with opset_version=18"
        )
    return int(found)
