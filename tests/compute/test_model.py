"""Modules captured as programs, and modules made from programs."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compute.model import ModelSpec, ProgramModule, Slot, capture_model
from compute.program import Input
from protocol.errors import BadProgram, BadRequest, CannotCapture, OperationNotAllowed, TooLarge
from protocol.tensors import TensorHeader


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(400, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(self.norm(self.conv1(x)).relu(), 2)
        x = torch.max_pool2d(self.conv2(x).relu(), 2)
        return self.out(self.drop(x.view(x.size(0), -1)))  # type: ignore[no-any-return]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.words(x))[0][:, -1])  # type: ignore[no-any-return]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder(self.words(x)).mean(1))  # type: ignore[no-any-return]


class Odd(nn.Module):
    """Tied weights, tensors held in odd ways, named inputs, and a result in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("kept", torch.full((4,), 2.0))
        self.register_buffer("passing", torch.ones(4), persistent=False)
        self.small = torch.arange(4.0)
        self.large = torch.randn(2000, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, Any]:
        hidden = self.words(x) * self.passing * self.kept + self.small + self.large[0]
        with torch.no_grad():
            hidden = hidden + torch.ones(4)
        result = self.out(hidden)
        return {"scores": result if scale is None else result * scale, "parts": (hidden, x.shape[0])}


def words(*shape: int) -> torch.Tensor:
    return torch.randint(0, 10, shape)


MODELS: dict[str, tuple[Any, list[torch.Tensor]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        [torch.randn(1, 64), torch.randn(5, 1, 8, 8), torch.randn(3, 8, 8), torch.randn(0, 64)],
    ),
    "lenet": (LeNet, [torch.randn(1, 1, 28, 28), torch.randn(7, 1, 28, 28)]),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(32, 2)),
        [words(1, 8), words(5, 8)],
    ),
    "lstm": (Words, [words(1, 8), words(5, 3)]),
    "encoder": (Encoder, [words(1, 8), words(5, 3)]),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 2)),
        [torch.randn(1, 2, 20), torch.randn(4, 2, 50)],
    ),
    "convolutions only": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.SiLU(), nn.ConvTranspose2d(4, 1, 2)),
        [torch.randn(1, 3, 28, 28), torch.randn(2, 3, 17, 40)],
    ),
    "in place": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout(inplace=True), nn.Flatten(1, 3)),
        [torch.randn(1, 3, 28, 28), torch.randn(4, 3, 8, 9)],
    ),
    "linear": (lambda: nn.Linear(3, 2), [torch.randn(3), torch.randn(4, 3), torch.randn(2, 5, 3)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_program_gives_what_the_module_gives_for_any_batch(name: str) -> None:
    torch.manual_seed(1)
    make, inputs = MODELS[name]
    module = make()
    module.train()
    captured = capture_model(module)
    assert all(part.training for part in module.modules())
    spec = ModelSpec.from_wire(captured.to_wire())
    assert spec == captured
    program = ProgramModule(spec, captured.tensors(module))
    module.eval()
    for x in inputs:
        assert torch.allclose(program(x), module(x), atol=1e-6), x.shape


def test_names_are_those_of_the_module() -> None:
    module = LeNet()
    spec = capture_model(module)
    program = ProgramModule(spec, spec.tensors(module))
    assert list(program.state_dict()) == list(module.state_dict())
    assert [name for name, _ in program.named_parameters()] == [name for name, _ in module.named_parameters()]
    assert [slot.name for slot in spec.parameters] == [name for name, _ in module.named_parameters()]
    assert [slot.name for slot in spec.buffers] == [name for name, _ in module.named_buffers()]
    assert spec.nbytes == sum(tensor.nbytes for tensor in module.state_dict().values())
    assert torch.equal(program.conv1.weight, module.conv1.weight)  # type: ignore[union-attr, arg-type]
    module.load_state_dict(program.state_dict())


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(Words().train(), nn.Dropout().eval())
    before = [(part, part.training, dict(part.__dict__)) for part in module.modules()]
    capture_model(module)
    for part, is_training, attributes in before:
        assert part.training is is_training
        assert set(part.__dict__) == set(attributes)
    assert torch.isfinite(module(words(2, 5))).all()


def test_odd_modules_are_captured_whole() -> None:
    module = Odd().eval()
    spec = capture_model(module)
    there = ModelSpec.from_wire(spec.to_wire())
    program = ProgramModule(there, spec.tensors(module))
    assert [slot.same_as for slot in spec.slots] == [None, "words.weight", None, None, None]
    assert [slot.kind for slot in spec.slots] == ["parameter", "parameter", "buffer", "buffer", "constant"]
    assert list(program.state_dict()) == list(module.state_dict())
    assert program.words.weight is program.out.weight  # type: ignore[union-attr]
    for x in (words(1, 8), words(5, 3)):
        found, wanted = program(x), module(x)
        assert torch.allclose(found["scores"], wanted["scores"], atol=1e-6)
        assert torch.allclose(found["parts"][0], wanted["parts"][0], atol=1e-6)
        assert found["parts"][1] == x.shape[0]


def test_an_example_may_name_its_inputs() -> None:
    module = Odd().eval()
    spec = capture_model(module, {"x": words(2, 8), "scale": torch.ones(2, 8, 1)})
    assert spec.inputs == ("x", "scale")
    program = ProgramModule(spec, spec.tensors(module))
    x, scale = words(3, 8), torch.randn(3, 8, 1)
    assert torch.allclose(program(x, scale)["scores"], module(x, scale)["scores"], atol=1e-6)
    assert torch.allclose(program(x, scale=scale)["scores"], module(x, scale)["scores"], atol=1e-6)


def test_an_example_of_one_row_still_gives_any_batch() -> None:
    spec = capture_model(LeNet(), torch.zeros(1, 1, 28, 28))
    assert spec.program.inputs[-1] == Input("x", "float32", (None, 1, None, None))


def test_an_example_of_several_tensors() -> None:
    module = nn.Bilinear(3, 4, 2)
    spec = capture_model(module, (torch.ones(2, 3), torch.ones(2, 4)))
    a, b = torch.randn(5, 3), torch.randn(5, 4)
    assert torch.allclose(ProgramModule(spec, spec.tensors(module))(a, b), module(a, b), atol=1e-6)


def test_branches_on_shapes_are_fixed_by_the_example() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[1] == 3 else x

    program = ProgramModule(capture_model(Branching(), torch.ones(2, 3)), {})
    assert torch.equal(program(torch.ones(5, 3)), torch.full((5, 3), 2.0))
    with pytest.raises(BadRequest, match="was given as"):
        program(torch.ones(5, 4))


def test_gradients_flow_and_steps_change_the_parameters() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
    spec = capture_model(module)
    program = ProgramModule(spec, {name: tensor.clone() for name, tensor in spec.tensors(module).items()})
    x, y = torch.randn(6, 16), torch.randint(0, 2, (6,))
    for model in (module, program):
        optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    for (name, one), (_, two) in zip(module.named_parameters(), program.named_parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5), name


def test_frozen_parameters_stay_frozen() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    spec = ModelSpec.from_wire(capture_model(module).to_wire())
    program = ProgramModule(spec, spec.tensors(module))
    assert [parameter.requires_grad for parameter in program.parameters()] == [True, False]


def test_meta_tensors_give_shapes() -> None:
    spec = capture_model(LeNet())
    meta = {
        slot.name: torch.empty(slot.header.shape, dtype=getattr(torch, slot.header.dtype), device="meta")
        for slot in spec.slots
    }
    assert ProgramModule(spec, meta)(torch.empty(3, 1, 28, 28, device="meta")).shape == (3, 10)


# --- refusals ---------------------------------------------------------------------------------------------


def test_a_tensor_that_is_missing_or_does_not_fit_is_named() -> None:
    module = nn.Linear(3, 2)
    spec = capture_model(module)
    with pytest.raises(BadRequest, match="'bias' is missing"):
        ProgramModule(spec, {"weight": module.weight})
    with pytest.raises(BadRequest, match=r"'weight' is float32 \[2, 3\], but float32 \[3, 2\]"):
        ProgramModule(spec, {"weight": torch.ones(3, 2), "bias": torch.ones(2)})
    with pytest.raises(BadRequest, match="float64"):
        ProgramModule(spec, {"weight": module.weight.double(), "bias": torch.ones(2)})


def test_calls_that_do_not_fit_name_the_inputs() -> None:
    program = ProgramModule(capture_model(nn.Linear(3, 2)), {"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    for args, kwargs in (((), {}), ((X, X), {}), ((X,), {"input": X}), ((), {"other": X})):
        with pytest.raises(BadRequest, match="input"):
            program(*args, **kwargs)


X = torch.ones(1, 3)


class Needs(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.layer(x)
        if self.what == "value":
            return x if x.sum() > 0 else -x
        if self.what == "unknown":
            return torch.segment_reduce(x, "sum", lengths=torch.tensor([1]))
        if self.what == "text":
            return "text"
        raise ValueError("always")


@pytest.mark.parametrize(
    ("module", "example", "words_"),
    [
        (Needs("value"), None, r"alice\.send\(model, example=x\)"),
        (Needs("value"), torch.ones(2, 4), "torch.export refuses"),
        (Needs("always"), None, "ValueError: always"),
        (Needs("unknown"), None, r"aten\.segment_reduce\.default is not in the table"),
        (nn.Linear(4, 4), torch.ones(2, 5), "torch.export refuses"),
        (lambda x: x, None, "nn.Module was wanted"),
        (nn.LazyLinear(3), None, "lazy"),
    ],
)
def test_what_cannot_be_captured_says_why(module: Any, example: Any, words_: str) -> None:
    with pytest.raises(CannotCapture, match=words_) as caught:
        capture_model(module, example)
    assert len(str(caught.value)) < 900


def test_a_module_that_writes_its_buffers_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1.0)  # type: ignore[operator, union-attr]
            return x + self.count

    module = Counting()
    with pytest.raises(CannotCapture, match="changes count"):
        capture_model(module, torch.ones(2, 3))
    assert module.count.item() == 0  # type: ignore[operator, union-attr]


def test_a_copy_of_a_program_module_stands_alone() -> None:
    module = nn.Linear(3, 2)
    spec = capture_model(module)
    one = ProgramModule(spec, spec.tensors(module))
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.weight.zero_()  # type: ignore[operator, union-attr]
    assert torch.allclose(one(X), module(X))
    assert not torch.allclose(two(X), module(X))


def test_several_large_tensors_held_in_odd_ways() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = torch.randn(2000)
            self.constant = torch.randn(2000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.constant - self.other

    module = Holding()
    spec = capture_model(module, torch.ones(2, 2000))
    x = torch.randn(3, 2000)
    assert torch.allclose(ProgramModule(spec, spec.tensors(module))(x), module(x))


def test_a_failed_capture_leaves_the_module_as_it_was() -> None:
    module = Needs("value").train()
    with pytest.raises(CannotCapture):
        capture_model(module)
    assert module.training
    assert isinstance(module.layer.weight, nn.Parameter)


def good() -> dict[str, Any]:
    return capture_model(nn.Linear(3, 2)).to_wire()


def slot(**changes: Any) -> dict[str, Any]:
    return {**Slot("weight", TensorHeader("float32", (2, 3)), is_trainable=True).to_wire(), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"program": b""},
        {"program": "text"},
        {"program": None},
        {"slots": {}},
        {"slots": [slot()]},
        {"slots": [slot(), slot(name="bias", shape=[2]), slot(name="more")]},
        {"slots": [slot(), slot()]},
        {"slots": [slot(dtype="qint8"), slot(name="bias")]},
        {"slots": [slot(shape=[-1]), slot(name="bias")]},
        {"slots": [slot(shape=[2**39, 2**39]), slot(name="bias")]},
        {"slots": [slot(kind="code"), slot(name="bias")]},
        {"slots": [slot(kind=[]), slot(name="bias")]},
        {"slots": [slot(trainable=1), slot(name="bias")]},
        {"slots": [slot(name="../x"), slot(name="bias")]},
        {"slots": [slot(name="a..b"), slot(name="bias")]},
        {"slots": [slot(name=7), slot(name="bias")]},
        {"slots": [slot(same_as="bias"), slot(name="bias")]},
        {"slots": [slot(same_as="weight"), slot(name="bias")]},
        {"slots": [slot(same_as=7), slot(name="bias")]},
        {"slots": [slot(extra=1), slot(name="bias")]},
        {"slots": ["weight", "bias"]},
        {"inputs": []},
        {"inputs": ["weight"]},
        {"inputs": [7]},
        {"inputs": [["input"]]},
        {"inputs": "input"},
        {"extra": 1},
    ],
)
def test_hostile_specs_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((BadProgram, TooLarge)):
        ModelSpec.from_wire({**good(), **changes})


def test_names_of_methods_do_no_harm() -> None:
    from compute.program import Input, Node, Program

    program = Program(
        (Input("forward"), Input("_parameters.train"), Input("x")),
        (Node("aten.relu.default", [{"node": 2}]),),
        {"node": 3},
    )
    header = TensorHeader("float32", (1,))
    module = ProgramModule(
        ModelSpec(program, (Slot("forward", header), Slot("_parameters.train", header)), ("x",)),
        {"forward": torch.ones(1), "_parameters.train": torch.ones(1)},
    )
    assert module(torch.tensor([-1.0])).item() == 0
    assert set(module.state_dict()) == {"forward", "_parameters.train"}


def test_unknown_operations_in_a_spec_are_refused() -> None:
    wire = good()
    with pytest.raises((OperationNotAllowed, BadProgram)):
        ModelSpec.from_wire({**wire, "program": wire["program"].replace(b"aten.linear", b"aten.savefi")})


def test_outputs_may_be_nested() -> None:
    module = nn.GRU(4, 5)
    spec = capture_model(module)
    x = torch.randn(3, 2, 4)
    found = ProgramModule(spec, spec.tensors(module))(x)
    assert [leaf.shape for leaf in pytree.tree_leaves(found)] == [(3, 2, 5), (1, 2, 5)]
