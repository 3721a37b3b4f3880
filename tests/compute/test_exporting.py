"""Programs as torch's own graphs and files, whatever their authors called what is in them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compute.exporting import as_graph, exported, write_onnx, write_pt2
from compute.importing import onnx, pt2
from compute.model import ProgramModule, capture_model
from compute.model_spec import ModelSpec, Slot
from compute.program import Input, Node, Program
from protocol.errors import BadFile
from protocol.tensors import TensorHeader
from tests.compute.onnx_files import Graph

HEADER = TensorHeader("float32", (3,))
NAMES = [
    "class.weight",
    "a-b.weight",
    "a_b.weight",
    "train.weight",
    "forward",
    "layers.0.weight",
    "0",
    "é.w",
    "x.code",
    "_parameters",
    "lambda",
    "lambda_",
]


def summed(names: list[str], given: str = "x", outputs: Any = None) -> ProgramModule:
    """x plus all tensors of these names."""
    inputs = (*(Input(name, "float32", (3,)) for name in names), Input(given, "float32", ("n", 3)))
    nodes, last = [], len(names)
    for number in range(len(names)):
        nodes.append(Node("aten.add.Tensor", [{"node": last}, {"node": number}], {}))
        last = len(inputs) + number
    program = Program(inputs, tuple(nodes), outputs or {"node": last})
    spec = ModelSpec(program, tuple(Slot(name, HEADER, "parameter", True) for name in names), (given,))
    return ProgramModule(spec, {name: torch.full((3,), 2.0**at) for at, name in enumerate(names)})


def test_a_graph_is_made_whatever_its_tensors_are_called() -> None:
    model, x = summed(NAMES), torch.randn(2, 3)
    graph = as_graph(model)
    assert torch.allclose(graph(x), model(x))
    state = graph.state_dict()
    assert state["layers.0.weight"][0] == 32 and state["class_.weight"][0] == 1 and len(state) == len(NAMES)
    file = io.BytesIO()
    write_pt2(model, file)
    found = pt2.read(memoryview(bytearray(file.getvalue())))
    assert torch.allclose(ProgramModule(found.spec, found.tensors)(x), model(x))


def test_names_are_never_run(tmp_path: Path) -> None:
    """torch.fx writes names of tensors, as they are, into source that it runs."""
    mark = tmp_path / "mark"
    call = f"__import__('builtins') and getattr(__import__('os'), 'mkdir')('{mark}')"
    assert "." not in call.replace(str(mark), "")
    evil = [f'none", 0) or ({call}) or getattr(self, "a', f"b; {call} #", f"c']; {call} #"]
    given = f"d=0); {call}; ("
    outputs = {"map": {evil[2]: {"node": 8}, evil[1]: evil[0]}}
    model, x = summed([*evil, "a"], given, outputs), torch.randn(2, 3)
    graph = as_graph(model)
    assert torch.allclose(graph(x)[evil[2]], model(x)[evil[2]])
    write_pt2(model, io.BytesIO())
    assert not mark.exists()


def test_of_what_a_file_of_tensors_cannot_hold_the_tensors_are_written() -> None:
    class Told(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"all": [x + 1, (x + 2, None)], "note": "none", "scale": 2.0}

    made = capture_model(Told(), torch.zeros(2, 3))
    flat = exported(ProgramModule(made, {}), is_flat=True).module()(torch.zeros(2, 3))
    assert [each[0, 0].item() for each in flat] == [1, 2]
    with pytest.raises(BadFile, match="gives no tensor"):
        as_graph(summed(["w"], outputs={"map": {"note": "none"}}), is_flat=True)


@pytest.mark.filterwarnings("ignore")
def test_sizes_that_are_not_open_are_numbers_in_an_onnx_file() -> None:
    pytest.importorskip("onnxscript")
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU())
    spec = capture_model(net, torch.zeros(2, 3, 8, 8))
    file = io.BytesIO()
    write_onnx(ProgramModule(spec, spec.tensors(net)), file)
    found = onnx.read(memoryview(bytearray(file.getvalue())))
    (x,) = [given for given in found.spec.program.inputs if given.name in found.spec.inputs]
    assert x.shape is not None and x.shape[1:2] == (3,) and x.shape[0] is None


def channels(size: str) -> Graph:
    return Graph().given("x", ["batch", size, "height", "width"])


def test_a_size_of_an_onnx_file_that_is_called_by_a_number_is_open_where_the_graph_lets_it() -> None:
    """torch's exporter calls sizes so that it could not leave open itself."""
    weight = torch.ones(2, 3, 1, 1)
    graphs = {
        (None, None, None, None): channels("3").node("Relu", ["x"], "y"),
        (None, 3, None, None): channels("3")
        .constant("w", (2, 3, 1, 1), weight.numpy().tobytes())
        .node("Conv", ["x", "w"], "y"),
    }
    for shape, graph in graphs.items():
        found = onnx.read(memoryview(bytearray(graph.gives("y").model())))
        assert found.spec.program.inputs[-1].shape == shape


def test_of_as_many_patches_as_there_are_places_none_is_open_in_a_file() -> None:
    """torch.export leaves height and width open, by a product of them that has to stay."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.places = nn.Conv2d(3, 5, 4, 4), nn.Parameter(torch.randn(1, 16, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).flatten(2).transpose(1, 2) + self.places

    net = Patches()
    made = capture_model(net, torch.zeros(2, 3, 16, 16))
    found = exported(ProgramModule(made, made.tensors(net)), is_flat=True)
    (x,) = [node for node in found.graph.nodes if node.name in found.graph_signature.user_inputs]
    batch, *rest = x.meta["val"].shape
    assert rest == [3, 16, 16] and isinstance(batch, torch.SymInt)
