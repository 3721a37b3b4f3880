"""Models of any architecture: sent, found by who has no class of theirs, called, moved; from files and into files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import grid
from compute.model import ProgramModule, capture_model
from grid.files import write
from grid.putting import Putting
from peer.folders import Folders
from protocol.errors import BadFile
from tests.compute.architectures import GPT, ZOO, words
from tests.compute.onnx_files import Graph
from tests.compute.test_architectures import called, same
from tests.tags import fresh_tag

pytestmark = [
    pytest.mark.usefixtures("one_reader"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, of its transformers
]


async def on_pointers(home: Any, model: Any, call: tuple[Any, ...]) -> Any:
    """What a model gives for arguments that are where it is, as values here."""
    found = model(*[await home.send(item) for item in call])
    parts = found if isinstance(found, tuple) else (found,)
    values = tuple([await part.get() for part in parts if not isinstance(part, tuple)])
    return values if isinstance(found, tuple) else values[0]


@pytest.mark.parametrize("name", ["resnet18", "transformer", "gpt"])
async def test_a_model_is_found_and_called_by_who_has_no_class_of_it(peers: Folders, name: str) -> None:
    torch.manual_seed(0)
    case = ZOO[name]
    module = case.make()
    call = case.calls()[-1]
    want = called(module.eval(), call)
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(module, tags=[f"zoo-{name}"], example=case.example())
    async with grid.connect(folders=peers) as g:
        model: Any = (await g.search(f"#zoo-{name}")).one()
        assert same(await on_pointers(g["alice"], model, call), want)
        assert same(called(await model.fetch(), call), want)
        copied = await model.copy(g["bob"])
        assert same(await on_pointers(g["bob"], copied, call), want)
        moved = await copied.move(g["carol"])
        assert same(await on_pointers(g["carol"], moved, call), want)
        for each in (model, moved):
            await each.delete()


async def test_a_model_called_on_data_elsewhere_is_awaited(peers: Folders) -> None:
    torch.manual_seed(0)
    module, tag = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), fresh_tag()
    x = torch.randn(5, 4)
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(module, tags=[tag, "model"], example=x)
        there = await g["bob"].send(x)
        made = (await g.search(f"#{tag} #model")).one()(there)
        for use in (lambda: made + 1, lambda: torch.relu(made), lambda: made.shape, lambda: bool(made)):
            with pytest.raises(grid.NotCollocated, match=r"alice.*bob.*await model\(x\)"):
                use()
        assert torch.allclose(await (await made).get(), module(x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
async def test_recurrent_models_give_their_states(peers: Folders, kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    module: Any = kind(5, 8, batch_first=True)  # type: ignore[arg-type, call-arg]  # of both that it is given
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(module, tags=["rnn"], example=torch.zeros(2, 6, 5))
        model: Any = (await g.search("#rnn")).one()
        x = torch.randn(3, 9, 5)
        out, state = model(await g["alice"].send(x))
        want, last = module(x)
        assert same(await out.get(), want.detach())
        assert same(await (state[0] if isinstance(state, tuple) else state).get(), last[0] if kind is nn.LSTM else last)
        await model.delete()


async def test_gpt_decodes_at_its_peer_with_the_cache_there(peers: Folders) -> None:
    torch.manual_seed(0)
    module = GPT().eval()
    tokens = words(2, 4)
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(module, tags=["gpt"], example=ZOO["gpt"].example())
        model: Any = (await g.search("#gpt")).one()
        step, cache = await g["alice"].send(tokens), await g["alice"].send(module.empty(2))
        found = []
        for _ in range(5):
            logits, cache = model(step, cache)
            step = logits[:, -1:].argmax(-1)
            found.append(step)
        have = torch.cat([tokens, *[await each.get() for each in found]], 1)
        await model.delete()
    whole = tokens
    for _ in range(5):
        whole = torch.cat([whole, called(module, (whole, module.empty(2)))[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(have, whole)


# --- files ------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def onnx_file(path: Path, module: Any) -> Path:
    graph = Graph().given("x", ["batch", 3])
    for name, weight in module.state_dict().items():
        graph.constant(name, list(weight.shape), weight.numpy().tobytes())
    graph.node("Gemm", ["x", "0.weight", "0.bias"], "h", transB=1).node("Relu", ["h"], "r")
    path.write_bytes(graph.node("Gemm", ["r", "2.weight", "2.bias"], "y", transB=1).gives("y").model())
    return path


def pt2_file(path: Path, module: nn.Module) -> Path:
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3),), dynamic_shapes=shapes), path)
    return path


class Quiet:
    """No progress bars."""

    def progress(self, title: str, after: str = "") -> Any:
        return self

    waiting = progress

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
async def test_a_model_file_is_put_found_called_and_saved_again(peers: Folders, tmp_path: Path, ending: str) -> None:
    module = mlp()
    make = pt2_file if ending == "pt2" else onnx_file
    path = make(tmp_path / f"net.{ending}", module)
    x = torch.randn(5, 3)
    async with grid.connect(folders=peers) as g:
        putting = Putting(g, g.find_member("alice"), f"#file-{ending}")
        titles = [title async for title, _ in putting.run([str(path)], Quiet())]  # type: ignore[arg-type]
        assert titles == ["net"] and not putting.failures
        model: Any = (await g.search(f"#file-{ending} kind:model")).one()
        assert same(await on_pointers(g["alice"], model, (x,)), module(x).detach())
        await model.save(tmp_path / "back.pt2")
        await model.save(tmp_path / "back.safetensors")
        await model.delete()
    assert same(called(plain_torch(tmp_path / "back.pt2"), (x,)), module(x).detach())
    loaded = grid.read_model(
        tmp_path / "back.safetensors", into=nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    )
    assert same(loaded(x).detach(), module(x).detach())


def plain_torch(path: Path) -> Any:
    return torch.export.load(path).module()


def test_what_was_exported_opens_without_this_package(tmp_path: Path) -> None:
    module = mlp()
    write(tmp_path / "net.pt2", module)
    torch.save((x := torch.randn(5, 3), module(x).detach()), tmp_path / "want.pt")
    code = (
        "import sys, torch; x, want = torch.load('want.pt'); "
        "assert torch.allclose(torch.export.load('net.pt2').module()(x), want, atol=1e-5); "
        "assert not any(name.split('.')[0] in ('grid', 'compute', 'peer') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True, timeout=120)


async def test_a_model_that_was_read_is_sent_as_it_is(peers: Folders, tmp_path: Path) -> None:
    module = mlp()
    read = grid.read_model(onnx_file(tmp_path / "net.onnx", module))
    assert list(read.state_dict()) == list(module.state_dict())
    x = torch.randn(5, 3)
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(read, tags=["was-read"])
        model: Any = (await g.search("#was-read")).one()
        assert same(await on_pointers(g["alice"], model, (x,)), module(x).detach())
        await model.delete()


def test_a_state_dict_of_another_architecture_says_so(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": mlp().state_dict()}, tmp_path / "net.pt")
    made = grid.read_model(tmp_path / "net.pt", into=nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert torch.equal(made.state_dict()["0.weight"], mlp().state_dict()["0.weight"])
    with pytest.raises(BadFile, match="not the state dict of Linear"):
        grid.read_model(tmp_path / "net.pt", into=nn.Linear(3, 4))
    with pytest.raises(BadFile, match="holds tensors and no model"):
        grid.read_model(tmp_path / "net.pt")


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return {"b": [x + 1], "a": (x, {"c": x * 2})}


def test_a_model_that_gives_dicts_is_written_and_read_again(tmp_path: Path) -> None:
    x = torch.randn(5, 3)
    spec = capture_model(Named(), x)
    write(tmp_path / "net.pt2", ProgramModule(spec, spec.tensors(Named())))
    assert same(called(grid.read_model(tmp_path / "net.pt2"), (x,)), Named()(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_state_dict_goes_into_a_module_that_keeps_what_it_computed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, other = (nn.utils.weight_norm(nn.Linear(3, 4)) for _ in range(2))
    torch.save(module.state_dict(), tmp_path / "net.pt")
    x = torch.randn(5, 3)
    assert same(grid.read_model(tmp_path / "net.pt", into=other)(x).detach(), module(x).detach())


def test_onnx_is_written_and_read_again(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    module = mlp()
    write(tmp_path / "net.onnx", module)
    x = torch.randn(5, 3)
    assert same(called(grid.read_model(tmp_path / "net.onnx"), (x,)), module(x).detach())


def test_without_the_exporter_onnx_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BadFile, match=r"pip install 'peergrid\[onnx\]'"):
        write(tmp_path / "net.onnx", mlp())
    assert not os.listdir(tmp_path)
