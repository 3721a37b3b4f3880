"""The archive of torch.export.save, read without running anything that is in it.

torch.export.load runs code in three ways: pickled sample inputs, pickled weights, and expressions of sizes, which it
evaluates. Here the graph is read as the JSON that it is, operations are looked up by name in the table, weights are raw
bytes, sample inputs are not looked at, and a size is a number, a name, or open.

The format: torch/_export/serde/schema.py (pt2_schema.py) and torch/export/pt2_archive of torch 2.9 to 2.13.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from compute.importing import pt2_schema as schema
from compute.importing.archive import Archive
from compute.importing.imported import ImportedModel, slot_name
from compute.importing.pt2_tensors import Tensors
from compute.importing.structures import structure
from compute.importing.writing import Ref, Writer
from compute.model_spec import ModelSpec, Slot
from compute.program import Input
from compute.signature import Argument, Signature, template
from compute.values import header_of
from compute.wire import shown
from protocol.errors import BadFile
from protocol.tensors import TensorHeader

_ARITHMETIC: Final = {
    "_operator.add": "int.add",
    "_operator.sub": "int.sub",
    "_operator.mul": "int.mul",
    "_operator.floordiv": "int.floordiv",
    "_operator.mod": "int.mod",
    "_operator.neg": "int.neg",
    "_operator.truediv": "float.div",
    "math.sqrt": "float.sqrt",
    "torch.sym_min": "int.min",
    "torch.sym_max": "int.max",
    "torch.sym_float": "float.from_int",
    "torch.sym_int": "int.from_float",
}
_CHECKS: Final = re.compile(
    r"torch\.ops\.aten\.(_assert|sym_constrain_range)|torch\._C\._set_grad_enabled|_operator\.(eq|ne|le|lt|ge|gt)$"
)
_DROPPED: Final = frozenset({"device", "layout", "pin_memory", "generator"})


def read(data: memoryview) -> ImportedModel:
    """The model in the archive.

    Raises:
        BadFile: it is not one, or holds what is not read; the message says what. OperationNotAllowed, BadProgram: an
        operation outside the table, or a graph that is no program. TooLarge.
    """
    archive = Archive(data)
    models = [name for name in archive.names if name.startswith("models/") and name.endswith(".json")]
    if len(models) != 1:
        raise BadFile(
            f"it is not an archive of torch.export.save: it has {len(models)} graphs, and one is read; "
            "torch.export.save(torch.export.export(model, example), path) writes it"
        )
    name = models[0].removeprefix("models/").removesuffix(".json")
    document = schema.mapping(archive.json(models[0]), "the document")
    version = schema.mapping(document.get("schema_version"), "its version").get("major")
    if version != schema.VERSION:
        raise BadFile(
            f"it is of schema {shown(version)}, and {schema.VERSION} is read: save it with torch 2.9 or newer"
        )
    return _Reading(archive, name, schema.mapping(document.get("graph_module"), "the graph module")).model()


class _Reading:
    """One archive on its way to a program."""

    def __init__(self, archive: Archive, name: str, module: Mapping[str, Any]) -> None:
        self._graph = schema.mapping(module.get("graph"), "the graph")
        self._signature = schema.mapping(module.get("signature"), "its signature")
        self._calls = schema.items(module.get("module_call_graph"), "its calls")
        self._in_archive = Tensors(archive, name)
        self._writer = Writer()
        self._values: dict[str, Any] = {}
        self._slots: dict[str, Slot] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._first: dict[tuple[Any, ...], str] = {}
        self._examples: dict[str, TensorHeader] = {}

    def model(self) -> ImportedModel:
        given = self._take_inputs()
        for number, node in enumerate(schema.items(self._graph.get("nodes"), "its nodes")):
            self._add(schema.mapping(node, f"node {number}"), number)
        program = self._writer.program(self._outputs())
        spec = ModelSpec(
            program,
            tuple(self._slots.values()),
            tuple(name for _, name in given),
            self._arguments(given),
            self._examples,
        )
        return ImportedModel(spec, self._tensors)

    # --- inputs -----------------------------------------------------------------------------------------------

    def _take_inputs(self) -> list[tuple[str | None, str]]:
        """Slots first, then what the user gives: for each graph name, the input's. Constants are noted too."""
        listed = schema.items(self._signature.get("input_specs"), "its inputs")
        specs = [schema.union(spec, "an input") for spec in listed]
        for kind, spec in specs:
            if kind in ("parameter", "buffer", "tensor_constant"):
                self._take_slot(kind, spec)
            elif kind not in ("user_input", "constant_input"):
                raise BadFile(f"it takes a {kind.replace('_', ' ')}, which is no tensor")
        self._place_slots()
        given: list[tuple[str | None, str]] = []
        for kind, spec in specs:
            if kind == "constant_input":
                self._values[schema.text(spec.get("name"), "a constant")] = self._argument(spec.get("value"))
            elif kind == "user_input":
                self._take_input(spec, given)
        return given

    def _take_slot(self, kind: str, spec: Mapping[str, Any]) -> None:
        graph_name = schema.name(spec.get("arg"), "an input")
        own = schema.text(spec.get(f"{kind}_name"), "a tensor")
        is_kept = kind != "buffer" or spec.get("persistent") is True
        place = path, meta = self._in_archive.place(own, is_constant=kind == "tensor_constant")
        key = path, str(meta)
        twin = self._first.get(key)
        name = slot_name(own, self._slots)
        if twin is None:
            self._first[key] = name
            self._tensors[name] = self._in_archive.read(place, own)
            header = header_of(self._tensors[name])
        else:
            header = self._slots[twin].header
        slot_kind = "constant" if kind == "tensor_constant" else kind
        is_trainable = kind == "parameter" and meta.get("requires_grad") is True
        self._slots[name] = Slot(name, header, slot_kind, is_trainable, is_kept and kind != "tensor_constant", twin)
        self._values[graph_name] = twin or name

    def _place_slots(self) -> None:
        places = {}
        for slot in self._slots.values():
            if slot.same_as is None:
                places[slot.name] = self._writer.input(Input(slot.name, slot.header.dtype, slot.header.shape))
        self._values = {name: places[slot] for name, slot in self._values.items()}

    def _take_input(self, spec: Mapping[str, Any], given: list[tuple[str | None, str]]) -> None:
        kind, value = schema.union(spec.get("arg"), "an input")
        if kind != "as_tensor":
            raise BadFile("it takes a number that is not fixed; export it with one that is, or with a tensor")
        graph_name = schema.name(value, "an input")
        dtype, shape = self._described(graph_name)
        name = slot_name(graph_name, {known: None for known in [*self._slots, *(taken for _, taken in given)]})
        self._values[graph_name] = self._writer.input(Input(name, dtype, shape))
        hints = self._hints(graph_name)
        if None not in hints:
            self._examples[name] = TensorHeader.from_wire({"dtype": dtype, "shape": hints})
        given.append((graph_name, name))

    def _described(self, name: str) -> tuple[str, tuple[int | None, ...]]:
        values = schema.mapping(self._graph.get("tensor_values"), "its values")
        meta = schema.mapping(values.get(name), f"value {name[:80]!r}")
        sizes = schema.items(meta.get("sizes"), "its sizes")
        return schema.dtype(meta.get("dtype")), tuple(map(schema.size, sizes))

    def _hints(self, name: str) -> list[int | None]:
        """The sizes that it was exported with."""
        return [schema.hint(size) for size in self._graph["tensor_values"][name]["sizes"]]

    def _arguments(self, given: list[tuple[str | None, str]]) -> Signature:
        call = next((entry for entry in self._calls if isinstance(entry, dict) and entry.get("fqn") == ""), None)
        described = call.get("signature") if call is not None else None
        if not isinstance(described, dict):
            return Signature.of_tensors(tuple(name for _, name in given))
        specs = schema.items(self._signature.get("input_specs"), "its inputs")
        tensors = iter([{"input": name} for _, name in given])
        leaves: list[Any] = []
        for spec in specs:
            kind, value = schema.union(spec, "an input")
            if kind == "user_input":
                leaves.append(next(tensors))
            elif kind == "constant_input":
                leaves.append(self._values[schema.text(value.get("name"), "a constant")])
        found = structure(described.get("in_spec"), leaves)
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
            raise BadFile("its arguments are not those of a call")
        args, kwargs = found
        names = described.get("forward_arg_names")
        positional = names[: len(args)] if isinstance(names, list) and len(names) >= len(args) else None
        positional = positional or [f"input_{number}" for number in range(len(args))]
        arguments = [Argument(name, template(value)) for name, value in zip(positional, args, strict=True)]
        return Signature((*arguments, *(Argument(name, template(value), True) for name, value in kwargs.items())))

    # --- nodes ------------------------------------------------------------------------------------------------

    def _add(self, node: Mapping[str, Any], number: int) -> None:
        target = schema.text(node.get("target"), f"node {number}")
        outputs = schema.items(node.get("outputs"), f"node {number}")
        if _CHECKS.match(target):
            return
        if target.startswith("torch.ops.higher_order."):
            raise BadFile(f"it branches or loops through {target[:100]}, which is not read from .pt2 files")
        name = _ARITHMETIC.get(target) or target.removeprefix("torch.ops.")
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for item in schema.items(node.get("inputs"), f"node {number}"):
            given = schema.mapping(item, f"node {number}")
            key = schema.text(given.get("name"), f"node {number}")
            value = self._argument(given.get("arg"))
            if name in _ARITHMETIC.values() or (given.get("kind") == 1 and not kwargs):
                args.append(value)
            elif key not in _DROPPED:
                kwargs[key] = value
        made = self._writer.call(name, args, kwargs)
        self._name_results(made, outputs, number)

    def _name_results(self, made: Ref, outputs: list[Any], number: int) -> None:
        for item, output in enumerate(outputs):
            kind, value = schema.union(output, f"node {number}")
            place = made if len(outputs) == 1 else made.item(item)
            if kind == "as_tensors":
                if len(outputs) > 1:
                    raise BadFile(f"node {number} gives lists in a list")
                for at, tensor in enumerate(schema.items(value, f"node {number}")):
                    self._values[schema.name(tensor, "a value")] = made.item(at)
            elif kind == "as_tensor":
                self._values[schema.name(value, "a value")] = place
            elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
                self._values[schema.text(schema.mapping(value, "a value").get("as_name"), "a value")] = place
            elif kind != "as_none":
                raise BadFile(f"node {number} gives {kind.removeprefix('as_')}, which is not read")

    def _argument(self, argument: object) -> Any:
        kind, value = schema.union(argument, "an argument")
        convert = self._CONVERT.get(kind)
        if convert is None:
            raise BadFile(f"an argument in it is {kind.removeprefix('as_')[:40]}, which is not read")
        return convert(self, value)

    def _named(self, value: object) -> Any:
        return self._known(schema.name(value, "an argument"))

    def _known(self, name: str) -> Any:
        if name not in self._values:
            raise BadFile(f"value {name[:80]!r} is used before it is there")
        return self._values[name]

    def _symbolic(self, value: object) -> Any:
        kind, inner = schema.union(value, "an argument")
        if kind == "as_name":
            return self._known(schema.text(inner, "an argument"))
        if kind in ("as_int", "as_float", "as_bool") and type(inner) in (int, float, bool):
            return inner
        raise BadFile("a size in it is neither a number nor a value")

    def _optional(self, value: object) -> Any:
        kind, inner = schema.union(value, "an argument")
        return self._named(inner) if kind == "as_tensor" else None

    def _outputs(self) -> Any:
        leaves = []
        for spec in schema.items(self._signature.get("output_specs"), "its outputs"):
            kind, value = schema.union(spec, "an output")
            if kind == "user_output":
                leaves.append(self._argument(value.get("arg")))
            elif kind != "buffer_mutation":
                raise BadFile(f"running it has an effect ({kind.replace('_', ' ')}), and programs have none")
        call = next((entry for entry in self._calls if isinstance(entry, dict) and entry.get("fqn") == ""), None)
        described = call.get("signature") if call is not None else None
        return structure(described.get("out_spec"), leaves) if isinstance(described, dict) else tuple(leaves)

    _CONVERT: Final[Mapping[str, Callable[[_Reading, Any], Any]]] = {
        "as_none": lambda self, value: None,
        "as_tensor": _named,
        "as_tensors": lambda self, value: [self._named(item) for item in schema.items(value, "an argument")],
        "as_optional_tensor": _optional,
        "as_optional_tensors": lambda self, value: [
            self._optional(item) for item in schema.items(value, "an argument")
        ],
        "as_int": lambda self, value: schema.plain(value, int),
        "as_ints": lambda self, value: [schema.plain(item, int) for item in schema.items(value, "an argument")],
        "as_float": lambda self, value: schema.number(value),
        "as_floats": lambda self, value: [schema.number(item) for item in schema.items(value, "an argument")],
        "as_bool": lambda self, value: schema.plain(value, bool),
        "as_bools": lambda self, value: [schema.plain(item, bool) for item in schema.items(value, "an argument")],
        "as_string": lambda self, value: schema.text(value, "an argument"),
        "as_sym_int": _symbolic,
        "as_sym_ints": lambda self, value: [self._symbolic(item) for item in schema.items(value, "an argument")],
        "as_sym_float": _symbolic,
        "as_sym_bool": _symbolic,
        "as_scalar_type": lambda self, value: {"dtype": schema.dtype(value)},
        "as_memory_format": lambda self, value: {"memory_format": schema.memory_format(value)},
        "as_layout": lambda self, value: None,
        "as_device": lambda self, value: None,
    }
