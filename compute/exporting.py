"""A program as plain torch: a graph of ATen operations that needs nothing of this package, and the files made of it."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils import _pytree as pytree

from compute.dtypes import DTYPE_OF
from compute.given import joined
from compute.inlining import ON_SIZES
from compute.interpreter import run
from compute.model import ProgramModule, Slot
from compute.program import Input, Node
from compute.table import lookup
from compute.tracing import quiet
from compute.values import constant_tensor, decode_argument, decode_output
from protocol.errors import BadFile

_SIZES: Final = (3, 5, 7, 11)  # what open dimensions are exported with, the first of each input first
_INSTALL: Final = "pip install 'peergrid[onnx]'"


def as_graph(model: ProgramModule, *, is_flat: bool = False) -> fx.GraphModule:
    """The model as a torch.fx.GraphModule: its inputs by name, its parameters and buffers under their own names, as far
    as these can be written in Python: torch.fx makes source of its graphs and runs it, whoever named what is in it.

    `is_flat`: of what it gives the tensors alone, in a tuple.

    Raises:
        BadFile: it loops or branches, which such graphs cannot hold; it gives no tensor, where those are wanted.
    """
    program = model.spec.program
    if program.bodies:
        raise BadFile("a program that loops or branches is in no file but this grid's: fetch it, or save its weights")
    graph, names = fx.Graph(), _plain_names([slot.name for slot in model.spec.slots])
    own = len(program.inputs) - len(model.spec.inputs)
    given = [graph.placeholder(_identifier(item.name)) for item in program.inputs[own:]]
    values: list[Any] = [graph.get_attr(names[item.name]) for item in program.inputs[:own]] + given
    root = _copy(model, names)
    constants = []
    for number, constant in enumerate(program.constants):
        root.register_buffer(f"_constant_{number}", constant_tensor(constant), persistent=False)
        constants.append(graph.get_attr(f"_constant_{number}"))
    for node in program.nodes:
        values.append(_call(graph, node, values, constants))
    given_back = decode_output(program.outputs, _refer(graph, values, constants))
    if is_flat:
        given_back = tuple(leaf for leaf in pytree.tree_leaves(given_back) if isinstance(leaf, fx.Node))
        if not given_back:
            raise BadFile("the model gives no tensor, and nothing else can be in such a file")
    graph.output(given_back)
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph, "Model")


def exported(
    model: ProgramModule, example: Sequence[torch.Tensor] | None = None, *, is_flat: bool = False
) -> ExportedProgram:
    """The model as torch.export has it, with the open sizes that torch grants. `is_flat`: see as_graph.

    Args:
        example: a tensor for each of the program's inputs; left out, they are made from what the program says of them.

    Raises:
        BadFile: torch refuses it; an input of which the dimensions are not known, where there is no example.
    """
    own = len(model.spec.program.inputs) - len(model.spec.inputs)
    inputs = model.spec.program.inputs[own:]
    if example is None:
        example = [_example(item, model) for item in inputs]
    graph = as_graph(model, is_flat=is_flat)
    shapes: Sequence[Sequence[Any]] = [[Dim.AUTO] * tensor.dim() for tensor in example]
    try:
        with quiet(), torch.no_grad():
            found = export(graph, tuple(example), dynamic_shapes=tuple(shapes), strict=False)
            if not is_flat:
                return found
            # Once more with just those open that are: torch's exporter to ONNX takes the others for open ones, too.
            names = _size_names(found)
            is_open = _open_ones(model, example, names)
            shapes = [[Dim.AUTO if name in is_open else None for name in shape] for shape in names]
            return export(graph, tuple(example), dynamic_shapes=tuple(shapes), strict=False)
    except Exception as error:  # torch raises whatever the graph met
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise BadFile(f"torch.export refuses the model: {line}") from None


def write_pt2(model: ProgramModule, file: IO[bytes]) -> None:
    """An archive for torch.export.load. It has no sample inputs, which would be pickled."""
    found = exported(model)
    found._example_inputs = None
    torch.export.save(found, file)


def write_onnx(model: ProgramModule, file: IO[bytes]) -> None:
    """An ONNX model, by torch's own exporter. It gives tensors, one after another, without what was around them.

    Raises:
        BadFile: the exporter is not installed, or refuses the model.
    """
    found = exported(model, is_flat=True)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise BadFile(f"ONNX is written with the packages onnx and onnxscript: {_INSTALL}") from None
    try:
        file.write(_as_onnx(found))
    except Exception as error:  # the exporter raises whatever it met
        lines = [line for line in str(error).splitlines() if line.startswith("<class")] or str(error).splitlines()
        raise BadFile(f"the model cannot be said in ONNX: {(lines or [type(error).__name__])[0][:300]}") from None


def _as_onnx(found: ExportedProgram) -> bytes:
    with quiet(), torch.no_grad():
        try:
            made = torch.onnx.export(found, dynamo=True, verbose=False)
        except Exception:  # some operations it knows only taken apart, such as an LSTM of several layers with a state
            made = torch.onnx.export(found.run_decompositions(), dynamo=True, verbose=False)
        assert made is not None
        data: bytes = made.model_proto.SerializeToString()
        return data


def _size_names(found: ExportedProgram) -> list[list[str | None]]:
    """Of each dimension of the inputs torch's name for its size, one of its own where that is a number after all, or
    None where nothing was open."""
    users = found.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in found.graph.nodes if node.name in users]
    return [
        [
            None if not isinstance(size, torch.SymInt) else f"{number}.{at}" if str(size).isdecimal() else str(size)
            for at, size in enumerate(shape)
        ]
        for number, shape in enumerate(shapes)
    ]


def _open_ones(
    model: ProgramModule, example: Sequence[torch.Tensor], names: Sequence[Sequence[str | None]]
) -> set[str]:
    """Of the sizes with these names those that can be another while all others stay: torch does not see that the
    patches of an image have to be as many as their places."""
    every = {name for shape in names for name in shape if name is not None}
    return {name for name in every if any(_runs(model, example, names, name, times) for times in (2, 3, 5))} or every


def _runs(
    model: ProgramModule, example: Sequence[torch.Tensor], names: Sequence[Sequence[str | None]], name: str, times: int
) -> bool:
    """Whether the program runs where this size is so many times that of the example."""
    own = [torch.empty(slot.header.shape, dtype=DTYPE_OF[slot.header.dtype], device="meta") for slot in _own(model)]
    given = [
        torch.empty(
            [have * times if size == name else have for have, size in zip(each.shape, shape, strict=True)],
            dtype=each.dtype,
            device="meta",
        )
        for each, shape in zip(example, names, strict=True)
    ]
    try:
        run(model.spec.program, [*own, *given])
    except Exception:  # torch raises whatever the shapes lead to
        return False
    return True


def _own(model: ProgramModule) -> list[Slot]:
    return [slot for slot in model.spec.slots if slot.same_as is None]


def _plain_names(names: Sequence[str]) -> dict[str, str]:
    """For each name of a tensor one of which each part is a number, or can stand behind a dot in Python and is no
    attribute of modules; itself where it is such a one."""
    found: dict[str, str] = {}
    parts: dict[tuple[str, str], str] = {}  # what a part of a name is called, under the parts before it
    taken: set[str] = set()
    for name in names:
        path = ""
        for part in name.split("."):
            if (path, part) not in parts:
                plain, number = _plain_part(part), 2
                inner = joined(path, plain)
                while inner in taken:
                    inner, number = joined(path, f"{plain}_{number}"), number + 1
                taken.add(inner)
                parts[path, part] = inner
            path = parts[path, part]
        found[name] = path
    return found


def _plain_part(part: str) -> str:
    if part.isascii() and part.isdecimal():
        return part
    plain = re.sub(r"[^A-Za-z0-9_]", "_", part)
    if not plain.isidentifier():
        plain = f"_{plain}"
    return f"{plain}_" if keyword.iskeyword(plain) or hasattr(fx.GraphModule, plain) or plain in vars(_BARE) else plain


_BARE: Final = nn.Module()


def _copy(model: ProgramModule, names: Mapping[str, str]) -> nn.Module:
    """Plain modules that hold its tensors, under these names, without this package's classes."""
    root = nn.Module()
    for slot in model.spec.slots:
        *source_path, source_leaf = slot.name.split(".")
        *path, leaf = names[slot.name].split(".")
        source: Any = model
        target: Any = root
        for part, own in zip(path, source_path, strict=True):
            source = source._modules[own]
            if part not in target._modules:
                target._modules[part] = nn.Module()
            target = target._modules[part]
        if source_leaf in source._parameters:
            target._parameters[leaf] = source._parameters[source_leaf]
        else:
            target.register_buffer(leaf, source._buffers[source_leaf], persistent=slot.is_persistent)
    return root.eval()


def _call(graph: fx.Graph, node: Node, values: Sequence[Any], constants: Sequence[Any]) -> Any:
    refer = _refer(graph, values, constants)
    args = [decode_argument(value, refer) for value in node.args]
    kwargs = {name: decode_argument(value, refer) for name, value in node.kwargs.items()}
    function = ON_SIZES.get(node.operation) or lookup(node.operation).overload
    return graph.call_function(function, tuple(args), kwargs)


def _refer(graph: fx.Graph, values: Sequence[Any], constants: Sequence[Any]) -> Callable[[Mapping[str, Any]], Any]:
    def refer(value: Mapping[str, Any]) -> Any:
        if "constant" in value:
            return constants[value["constant"]]
        found = values[value["node"]]
        return graph.call_function(operator.getitem, (found, value["item"])) if "item" in value else found

    return refer


def _identifier(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"input_{plain}"


def _example(given: Input, model: ProgramModule) -> torch.Tensor:
    known = model.spec.examples.get(given.name)
    if known is not None:
        return torch.zeros(known.shape, dtype=DTYPE_OF[known.dtype])
    if given.dtype is None or given.shape is None:
        raise BadFile(f"the dimensions of input {given.name!r} are not known, and a file needs them")
    sizes = iter(_SIZES)
    shape = [dim if isinstance(dim, int) else next(sizes, 4) for dim in given.shape]
    return torch.zeros(shape, dtype=DTYPE_OF[given.dtype])
