"""A program as plain torch: a graph of ATen operations that needs nothing of this package, and the files made of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, export

from compute.dtypes import DTYPE_OF
from compute.inlining import ON_SIZES
from compute.model import ProgramModule
from compute.program import Input, Node
from compute.table import lookup
from compute.tracing import quiet
from compute.values import constant_tensor, decode
from protocol.errors import BadFile

_SIZES: Final = (3, 5, 7, 11)  # what open dimensions are exported with, the first of each input first
_INSTALL: Final = "pip install 'peergrid[onnx]'"


def as_graph(model: ProgramModule) -> fx.GraphModule:
    """The model as a torch.fx.GraphModule: its inputs by name, its parameters and buffers under their own names.

    Raises:
        BadFile: it loops or branches, which such graphs cannot hold.
    """
    program = model.spec.program
    if program.bodies:
        raise BadFile("a program that loops or branches is in no file but this grid's: fetch it, or save its weights")
    graph = fx.Graph()
    own = len(program.inputs) - len(model.spec.inputs)
    given = [graph.placeholder(_identifier(item.name)) for item in program.inputs[own:]]
    values: list[Any] = [graph.get_attr(item.name) for item in program.inputs[:own]] + given
    root = _copy(model)
    constants = []
    for number, constant in enumerate(program.constants):
        root.register_buffer(f"_constant_{number}", constant_tensor(constant), persistent=False)
        constants.append(graph.get_attr(f"_constant_{number}"))
    for node in program.nodes:
        values.append(_call(graph, node, values, constants))
    graph.output(_output(program.outputs, _refer(graph, values, constants)))
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph, "Model")


def exported(model: ProgramModule, example: Sequence[torch.Tensor] | None = None) -> ExportedProgram:
    """The model as torch.export has it, with the open sizes that torch grants.

    Args:
        example: a tensor for each of the program's inputs; left out, they are made from what the program says of them.

    Raises:
        BadFile: torch refuses it; an input of which the dimensions are not known, where there is no example.
    """
    own = len(model.spec.program.inputs) - len(model.spec.inputs)
    inputs = model.spec.program.inputs[own:]
    if example is None:
        example = [_example(item, model) for item in inputs]
    graph = as_graph(model)
    shapes = tuple([Dim.AUTO] * tensor.dim() for tensor in example)
    try:
        with quiet(), torch.no_grad():
            return export(graph, tuple(example), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises whatever the graph met
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise BadFile(f"torch.export refuses the model: {line}") from None


def write_pt2(model: ProgramModule, file: IO[bytes]) -> None:
    """An archive for torch.export.load. It has no sample inputs, which would be pickled."""
    found = exported(model)
    found._example_inputs = None
    torch.export.save(found, file)


def write_onnx(model: ProgramModule, file: IO[bytes]) -> None:
    """An ONNX model, by torch's own exporter.

    Raises:
        BadFile: the exporter is not installed, or refuses the model.
    """
    found = exported(model)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise BadFile(f"ONNX is written with the packages onnx and onnxscript: {_INSTALL}") from None
    try:
        with quiet(), torch.no_grad():
            made = torch.onnx.export(found, dynamo=True, verbose=False)
            assert made is not None
            file.write(made.model_proto.SerializeToString())
    except Exception as error:  # the exporter raises whatever it met
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise BadFile(f"the model cannot be said in ONNX: {line}") from None


def _copy(model: ProgramModule) -> nn.Module:
    """Plain modules that hold its tensors, without this package's classes."""
    root = nn.Module()
    for slot in model.spec.slots:
        *path, leaf = slot.name.split(".")
        source: Any = model
        target: Any = root
        for part in path:
            source = source._modules[part]
            if part not in target._modules:
                target._modules[part] = nn.Module()
            target = target._modules[part]
        if leaf in source._parameters:
            target._parameters[leaf] = source._parameters[leaf]
        else:
            target.register_buffer(leaf, source._buffers[leaf], persistent=slot.is_persistent)
    return root.eval()


def _call(graph: fx.Graph, node: Node, values: Sequence[Any], constants: Sequence[Any]) -> Any:
    refer = _refer(graph, values, constants)
    args = [decode(value, _no_tensor, refer) for value in node.args]
    kwargs = {name: decode(value, _no_tensor, refer) for name, value in node.kwargs.items()}
    function = ON_SIZES.get(node.operation) or lookup(node.operation).overload
    return graph.call_function(function, tuple(args), kwargs)


def _refer(graph: fx.Graph, values: Sequence[Any], constants: Sequence[Any]) -> Callable[[Mapping[str, Any]], Any]:
    def refer(value: Mapping[str, Any]) -> Any:
        if "constant" in value:
            return constants[value["constant"]]
        found = values[value["node"]]
        return graph.call_function(operator.getitem, (found, value["item"])) if "item" in value else found

    return refer


def _output(value: Any, refer: Callable[[Mapping[str, Any]], Any]) -> Any:
    if isinstance(value, list):
        return [_output(item, refer) for item in value]
    if isinstance(value, Mapping) and "tuple" in value:
        return tuple(_output(item, refer) for item in value["tuple"])
    if isinstance(value, Mapping) and "map" in value:
        return {key: _output(item, refer) for key, item in value["map"].items()}
    return decode(value, _no_tensor, refer)


def _no_tensor(_: bytes) -> torch.Tensor:
    raise BadFile("a program has no tensors by their ids")


def _identifier(name: str) -> str:
    plain = "".join(sign if sign.isalnum() or sign == "_" else "_" for sign in name)
    return plain if plain.isidentifier() else f"input_{plain}"


def _example(given: Input, model: ProgramModule) -> torch.Tensor:
    known = model.spec.examples.get(given.name)
    if known is not None:
        return torch.zeros(known.shape, dtype=DTYPE_OF[known.dtype])
    if given.dtype is None or given.shape is None:
        raise BadFile(f"the dimensions of input {given.name!r} are not known, and a file needs them")
    sizes = iter(_SIZES)
    shape = [dim if isinstance(dim, int) else next(sizes, 4) for dim in given.shape]
    return torch.zeros(shape, dtype=DTYPE_OF[given.dtype])
