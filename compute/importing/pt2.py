"""The archive of torch.export.save, read without running anything that is in it.

torch.export.load runs code in three ways: pickled sample inputs, pickled weights, and expressions of sizes, which it
evaluates. Here the graph is read as the JSON that it is, operations are looked up by name in the table, weights are raw
bytes, sample inputs are not looked at, and a size is a number, a name, or open.

The format: torch/_export/serde/schema.py and torch/export/pt2_archive of torch 2.9 to 2.13 (schema version 8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from compute.dtypes import DTYPE_OF
from compute.importing.archive import Archive
from compute.importing.imported import ImportedModel, check_total, slot_name
from compute.importing.structures import structure
from compute.importing.writing import Ref, Writer
from compute.model_spec import ModelSpec, Slot
from compute.program import Input
from compute.signature import Argument, Signature, template
from compute.values import header_of
from compute.wire import shown
from protocol import limits
from protocol.errors import BadFile
from protocol.tensors import ITEMSIZE, TensorHeader

_SCHEMA: Final = 8
_SCALAR_TYPES: Final = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 34: "uint32", 35: "uint64",
}  # fmt: skip
_MEMORY_FORMATS: Final = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_STRIDED: Final = 7
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
_SYMBOL: Final = re.compile(
    r"(?:Symbol\('([A-Za-z_][A-Za-z0-9_]{0,40})'(?:, (?:positive|integer|nonnegative)=True)*\)|([A-Za-z_]\w{0,40}))"
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
    document = _map(archive.json(models[0]), "the document")
    version = _map(document.get("schema_version"), "its version")
    if version.get("major") != _SCHEMA:
        raise BadFile(
            f"it is of schema {shown(version.get('major'))}, and {_SCHEMA} is read: save it with torch 2.9 or newer"
        )
    _check_byte_order(archive)
    return _Reading(archive, name, _map(document.get("graph_module"), "the graph module")).model()


class _Reading:
    """One archive on its way to a program."""

    def __init__(self, archive: Archive, name: str, module: Mapping[str, Any]) -> None:
        self._archive = archive
        self._graph = _map(module.get("graph"), "the graph")
        self._signature = _map(module.get("signature"), "its signature")
        self._calls = _list(module.get("module_call_graph"), "its calls")
        self._weights = self._config(f"data/weights/{name}_weights_config.json", "data/weights/")
        self._constants = self._config(f"data/constants/{name}_constants_config.json", "data/constants/")
        self._writer = Writer()
        self._values: dict[str, Any] = {}
        self._slots: dict[str, Slot] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._first: dict[tuple[Any, ...], str] = {}
        self._examples: dict[str, TensorHeader] = {}
        self._total = 0

    def model(self) -> ImportedModel:
        given = self._take_inputs()
        for number, node in enumerate(_list(self._graph.get("nodes"), "its nodes")):
            self._add(_map(node, f"node {number}"), number)
        program = self._writer.program(self._outputs())
        spec = ModelSpec(
            program,
            tuple(self._slots.values()),
            tuple(name for _, name in given),
            self._arguments(given),
            self._examples,
        )
        return ImportedModel(spec, self._tensors)

    def _config(self, path: str, folder: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """Where each tensor's bytes are, and its description; refused where a pickle would have to be read."""
        if path not in self._archive:
            return {}
        found = {}
        for name, entry in _map(_map(self._archive.json(path), path).get("config"), path).items():
            entry = _map(entry, name)
            if entry.get("use_pickle") is not False:
                raise BadFile(
                    f"its tensor {name[:80]!r} is pickled, and reading that could run code: make the model of plain "
                    "tensors, and save it again"
                )
            where, meta = entry.get("path_name"), entry.get("tensor_meta")
            if not isinstance(where, str) or meta is None:
                raise BadFile(f"its constant {name[:80]!r} is no tensor, and only tensors are read")
            found[name] = folder + where, _map(meta, name)
        return found

    # --- inputs -----------------------------------------------------------------------------------------------

    def _take_inputs(self) -> list[tuple[str | None, str]]:
        """Slots first, then what the user gives: for each graph name, the input's. Constants are noted too."""
        specs = [_union(spec, "an input") for spec in _list(self._signature.get("input_specs"), "its inputs")]
        for kind, spec in specs:
            if kind in ("parameter", "buffer", "tensor_constant"):
                self._take_slot(kind, spec)
            elif kind not in ("user_input", "constant_input"):
                raise BadFile(f"it takes a {kind.replace('_', ' ')}, which is no tensor")
        self._place_slots()
        given: list[tuple[str | None, str]] = []
        for kind, spec in specs:
            if kind == "constant_input":
                self._values[_text(spec.get("name"), "a constant")] = self._argument(spec.get("value"))
            elif kind == "user_input":
                self._take_input(spec, given)
        return given

    def _take_slot(self, kind: str, spec: Mapping[str, Any]) -> None:
        graph_name = _text(_map(spec.get("arg"), "an input").get("name"), "an input")
        own = _text(spec.get(f"{kind}_name"), "a tensor")
        is_kept = kind != "buffer" or spec.get("persistent") is True
        where = self._weights.get(own) if kind != "tensor_constant" else None
        path, meta = where or self._constants.get(own) or _nothing(own)
        key = path, str(meta)
        twin = self._first.get(key)
        name = slot_name(own, self._slots)
        if twin is None:
            self._first[key] = name
            self._tensors[name] = self._tensor(path, meta, own)
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
        kind, value = _union(spec.get("arg"), "an input")
        if kind != "as_tensor":
            raise BadFile("it takes a number that is not fixed; export it with one that is, or with a tensor")
        graph_name = _text(_map(value, "an input").get("name"), "an input")
        dtype, shape = self._described(graph_name)
        name = slot_name(graph_name, {known: None for known in [*self._slots, *(taken for _, taken in given)]})
        self._values[graph_name] = self._writer.input(Input(name, dtype, shape))
        hints = self._hints(graph_name)
        if None not in hints:
            self._examples[name] = TensorHeader.from_wire({"dtype": dtype, "shape": hints})
        given.append((graph_name, name))

    def _described(self, name: str) -> tuple[str, tuple[int | None, ...]]:
        meta = _map(_map(self._graph.get("tensor_values"), "its values").get(name), f"value {name[:80]!r}")
        return _dtype(meta.get("dtype")), tuple(_size(size) for size in _list(meta.get("sizes"), "its sizes"))

    def _hints(self, name: str) -> list[int | None]:
        """The sizes that it was exported with."""
        meta = self._graph["tensor_values"][name]
        return [_hint(*_union(size, "a size")) for size in meta["sizes"]]

    def _arguments(self, given: list[tuple[str | None, str]]) -> Signature:
        call = next((entry for entry in self._calls if isinstance(entry, dict) and entry.get("fqn") == ""), None)
        described = call.get("signature") if call is not None else None
        if not isinstance(described, dict):
            return Signature.of_tensors(tuple(name for _, name in given))
        specs = _list(self._signature.get("input_specs"), "its inputs")
        tensors = iter([{"input": name} for _, name in given])
        leaves: list[Any] = []
        for spec in specs:
            kind, value = _union(spec, "an input")
            if kind == "user_input":
                leaves.append(next(tensors))
            elif kind == "constant_input":
                leaves.append(self._values[_text(value.get("name"), "a constant")])
        found = structure(described.get("in_spec"), leaves)
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
            raise BadFile("its arguments are not those of a call")
        args, kwargs = found
        names = described.get("forward_arg_names")
        positional = names[: len(args)] if isinstance(names, list) and len(names) >= len(args) else None
        positional = positional or [f"input_{number}" for number in range(len(args))]
        arguments = [Argument(name, template(value)) for name, value in zip(positional, args, strict=True)]
        return Signature((*arguments, *(Argument(name, template(value), True) for name, value in kwargs.items())))

    # --- tensors ----------------------------------------------------------------------------------------------

    def _tensor(self, path: str, meta: Mapping[str, Any], name: str) -> torch.Tensor:
        """A view of its bytes where it is in one piece; all sizes are checked before anything is made of them."""
        what = f"its tensor {name[:80]!r}"
        dtype = _dtype(meta.get("dtype"))
        shape = [_whole(size, what) for size in _list(meta.get("sizes"), what)]
        strides = [_whole(stride, what) for stride in _list(meta.get("strides"), what)]
        offset = _whole(meta.get("storage_offset"), what)
        if meta.get("layout") != _STRIDED or len(strides) != len(shape):
            raise BadFile(f"{what} is no dense tensor")
        header = TensorHeader(dtype, tuple(shape))
        self._total += header.nbytes
        check_total(self._total, "what is in it")
        data = self._archive.read(path, limits.MAX_MEMORY_TENSOR)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if header.numel and (last + 1) * ITEMSIZE[dtype] > len(data):
            raise BadFile(f"{what} has {len(data)} bytes, and goes beyond them")
        if not header.numel:
            return torch.empty(shape, dtype=DTYPE_OF[dtype])
        flat = torch.frombuffer(data, dtype=DTYPE_OF[dtype], count=last + 1)
        return flat.as_strided(shape, strides, offset)

    # --- nodes ------------------------------------------------------------------------------------------------

    def _add(self, node: Mapping[str, Any], number: int) -> None:
        target = _text(node.get("target"), f"node {number}")
        outputs = _list(node.get("outputs"), f"node {number}")
        if _CHECKS.match(target):
            return
        if target.startswith("torch.ops.higher_order."):
            raise BadFile(f"it branches or loops through {target[:100]}, which is not read from .pt2 files")
        name = _ARITHMETIC.get(target) or target.removeprefix("torch.ops.")
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for item in _list(node.get("inputs"), f"node {number}"):
            given = _map(item, f"node {number}")
            key = _text(given.get("name"), f"node {number}")
            value = self._argument(given.get("arg"))
            if name in _ARITHMETIC.values() or (given.get("kind") == 1 and not kwargs):
                args.append(value)
            elif key not in _DROPPED:
                kwargs[key] = value
        made = self._writer.call(name, args, kwargs)
        self._name_results(made, outputs, number)

    def _name_results(self, made: Ref, outputs: list[Any], number: int) -> None:
        for item, output in enumerate(outputs):
            kind, value = _union(output, f"node {number}")
            place = made if len(outputs) == 1 else made.item(item)
            if kind == "as_tensors":
                if len(outputs) > 1:
                    raise BadFile(f"node {number} gives lists in a list")
                for at, tensor in enumerate(_list(value, f"node {number}")):
                    self._values[_text(_map(tensor, "a value").get("name"), "a value")] = made.item(at)
            elif kind == "as_tensor":
                self._values[_text(_map(value, "a value").get("name"), "a value")] = place
            elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
                self._values[_text(_map(value, "a value").get("as_name"), "a value")] = place
            elif kind != "as_none":
                raise BadFile(f"node {number} gives {kind.removeprefix('as_')}, which is not read")

    def _argument(self, argument: object) -> Any:
        kind, value = _union(argument, "an argument")
        convert = self._CONVERT.get(kind)
        if convert is None:
            raise BadFile(f"an argument in it is {kind.removeprefix('as_')[:40]}, which is not read")
        return convert(self, value)

    def _named(self, value: object) -> Any:
        name = _text(_map(value, "an argument").get("name"), "an argument")
        return self._known(name)

    def _known(self, name: str) -> Any:
        if name not in self._values:
            raise BadFile(f"value {name[:80]!r} is used before it is there")
        return self._values[name]

    def _symbolic(self, value: object) -> Any:
        kind, inner = _union(value, "an argument")
        if kind == "as_name":
            return self._known(_text(inner, "an argument"))
        if kind in ("as_int", "as_float", "as_bool") and type(inner) in (int, float, bool):
            return inner
        raise BadFile("a size in it is neither a number nor a value")

    def _optional(self, value: object) -> Any:
        kind, inner = _union(value, "an argument")
        return self._named(inner) if kind == "as_tensor" else None

    def _outputs(self) -> Any:
        leaves = []
        for spec in _list(self._signature.get("output_specs"), "its outputs"):
            kind, value = _union(spec, "an output")
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
        "as_tensors": lambda self, value: [self._named(item) for item in _list(value, "an argument")],
        "as_optional_tensor": _optional,
        "as_optional_tensors": lambda self, value: [self._optional(item) for item in _list(value, "an argument")],
        "as_int": lambda self, value: _plain(value, int),
        "as_ints": lambda self, value: [_plain(item, int) for item in _list(value, "an argument")],
        "as_float": lambda self, value: _float(value),
        "as_floats": lambda self, value: [_float(item) for item in _list(value, "an argument")],
        "as_bool": lambda self, value: _plain(value, bool),
        "as_bools": lambda self, value: [_plain(item, bool) for item in _list(value, "an argument")],
        "as_string": lambda self, value: _text(value, "an argument"),
        "as_sym_int": _symbolic,
        "as_sym_ints": lambda self, value: [self._symbolic(item) for item in _list(value, "an argument")],
        "as_sym_float": _symbolic,
        "as_sym_bool": _symbolic,
        "as_scalar_type": lambda self, value: {"dtype": _dtype(value)},
        "as_memory_format": lambda self, value: {"memory_format": _memory_format(value)},
        "as_layout": lambda self, value: None,
        "as_device": lambda self, value: None,
    }


def _check_byte_order(archive: Archive) -> None:
    if "byteorder" in archive and bytes(archive.read("byteorder", 64)).strip() != b"little":
        raise BadFile("it was saved on a machine of another byte order")


def _nothing(name: str) -> tuple[str, Mapping[str, Any]]:
    raise BadFile(f"its tensor {name[:80]!r} is not in the archive")


def _map(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadFile(f"{what} is no map")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadFile(f"{what} is no list")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadFile(f"{what} has no name")
    return value


def _union(value: object, what: str) -> tuple[str, Any]:
    """Which of several forms it is: a map of one entry."""
    if not isinstance(value, dict) or len(value) != 1:
        raise BadFile(f"{what} is a map of one entry, and this is {shown(value)}")
    found: tuple[str, Any] = next(iter(value.items()))
    return found


def _plain(value: object, kind: type) -> Any:
    if type(value) is not kind:
        raise BadFile(f"an argument in it is {shown(value)}, and was to be {kind.__name__}")
    return value


def _float(value: object) -> float:
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(str(value))
    if type(value) not in (int, float):
        raise BadFile(f"an argument in it is {shown(value)}, and was to be a number")
    return float(value)  # type: ignore[arg-type]  # its type was just looked at


def _dtype(value: object) -> str:
    found = _SCALAR_TYPES.get(value) if type(value) is int else None
    if found is None or found not in DTYPE_OF:
        raise BadFile(f"a tensor in it has dtype {shown(value)}, which cannot travel")
    return found


def _memory_format(value: object) -> str:
    found = _MEMORY_FORMATS.get(value) if type(value) is int else None
    if found is None:
        raise BadFile(f"{shown(value)} is no memory format")
    return found


def _whole(value: object, what: str) -> int:
    kind, inner = _union(value, what)
    if kind != "as_int" or type(inner) is not int or not 0 <= inner < limits.MAX_DIM:
        raise BadFile(f"{what} has sizes that are no whole numbers")
    return inner


def _hint(kind: str, inner: Any) -> int | None:
    if kind == "as_expr":
        hint = inner.get("hint") if isinstance(inner, dict) else None
        inner = hint.get("as_int") if isinstance(hint, dict) else None
    return inner if type(inner) is int else None


def _size(value: object) -> int | None:
    """Of an input: a number, or open. What a size is computed from is never evaluated."""
    kind, inner = _union(value, "a size")
    if kind == "as_int" and type(inner) is int:
        return inner
    text = _map(inner, "a size").get("expr_str") if kind == "as_expr" else None
    if not isinstance(text, str) or not _SYMBOL.fullmatch(text):
        raise BadFile(f"a size of an input is neither a number nor a name, but {shown(text)}")
    return None
