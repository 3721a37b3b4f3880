"""Files of models that want to be more: nothing in them runs, and they cost what a small file costs."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import grid
from compute.importing import onnx, pt, pt2
from grid.files import read
from peer import machine
from protocol.errors import BadFile, GridError, TooLarge
from tests.compute.onnx_files import Graph, field, text

pytestmark = [
    pytest.mark.usefixtures("one_reader"),
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="such files are read on Linux only"),
]


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What every evil file would make, from whichever process."""
    path = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(path))
    yield path
    assert not path.exists()


class Evil:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['CANARY']}",)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The members of an honest .pt2."""
    path = tmp_path_factory.mktemp("honest") / "m.pt2"
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3),), dynamic_shapes=shapes), path)
    with zipfile.ZipFile(path) as found:
        return {name: found.read(name) for name in found.namelist()}


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return file.getvalue()


def changed(archive: dict[str, bytes], ending: str, change: Callable[[Any], None]) -> bytes:
    """The archive with a document of JSON changed."""
    name = next(name for name in archive if name.endswith(ending))
    document = json.loads(archive[name])
    change(document)
    return zipped({**archive, name: json.dumps(document).encode()})


def refused(path: Path, data: bytes, match: str) -> None:
    path.write_bytes(data)
    with pytest.raises((BadFile, TooLarge, GridError), match=match):
        grid.read_model(path)


# --- .pt2 -------------------------------------------------------------------------------------------------


def test_pickled_sample_inputs_are_not_looked_at(tmp_path: Path, archive: dict[str, bytes]) -> None:
    name = next(name for name in archive if "sample_inputs" in name)
    (tmp_path / "m.pt2").write_bytes(zipped({**archive, name: pickle.dumps(Evil())}))
    model = grid.read_model(tmp_path / "m.pt2")
    assert model(torch.zeros(5, 3)).shape == (5, 2)


def test_a_pickled_weight_is_refused(tmp_path: Path, archive: dict[str, bytes]) -> None:
    def change(document: Any) -> None:
        entry = document["config"]["0.weight"]
        entry["use_pickle"] = True

    weight = next(name for name in archive if name.endswith("weight_0"))
    data = changed({**archive, weight: pickle.dumps(Evil())}, "weights_config.json", change)
    refused(tmp_path / "m.pt2", data, "could run code")


@pytest.mark.parametrize(
    "code",
    ["open('{}', 'w')", "__import__('os').system('touch {}')", "Symbol('s0') or open('{}', 'w')", "s0 + 1", "9**9**9"],
)
def test_code_in_place_of_a_size_is_not_evaluated(
    tmp_path: Path, archive: dict[str, bytes], canary: Path, code: str
) -> None:
    def change(document: Any) -> None:
        graph = document["graph_module"]["graph"]
        name = graph["inputs"][-1]["as_tensor"]["name"]
        graph["tensor_values"][name]["sizes"][0]["as_expr"]["expr_str"] = code.format(canary)

    refused(tmp_path / "m.pt2", changed(archive, "model.json", change), "neither a number nor a name")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "math.__loader__.load_module",
        "torch.ops.aten.from_file.default",
        "builtins.eval",
        "torch.ops.aten.linear.default.__class__",
        "torch.ops.higher_order.cond",
    ],
)
def test_a_node_that_is_no_operation_is_refused(tmp_path: Path, archive: dict[str, bytes], target: str) -> None:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = target

    refused(tmp_path / "m.pt2", changed(archive, "model.json", change), "not in the table|is not read")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("strides", [{"as_int": 0}, {"as_int": 1 << 39}], "goes beyond"),
        ("strides", [{"as_int": -3}, {"as_int": 1}], "no whole numbers"),
        ("storage_offset", {"as_int": 1 << 20}, "goes beyond"),
        ("sizes", [{"as_int": 1 << 20}, {"as_int": 1 << 20}], "would take|at most"),
        ("sizes", [{"as_int": 4}, {"as_expr": {"expr_str": "exit()"}}], "no whole numbers"),
        ("dtype", "__class__", "cannot travel"),
        ("layout", 1, "no dense tensor"),
    ],
)
def test_a_weight_that_lies_about_its_bytes_is_refused(
    tmp_path: Path, archive: dict[str, bytes], key: str, value: Any, match: str
) -> None:
    def change(document: Any) -> None:
        document["config"]["0.weight"]["tensor_meta"][key] = value

    refused(tmp_path / "m.pt2", changed(archive, "weights_config.json", change), match)


def test_paths_in_an_archive_lead_nowhere(tmp_path: Path, archive: dict[str, bytes]) -> None:
    def change(document: Any) -> None:
        document["config"]["0.weight"]["path_name"] = "../../../../etc/passwd"

    refused(tmp_path / "m.pt2", changed(archive, "weights_config.json", change), "there is no")


def test_a_structure_of_somebodys_class_is_refused(tmp_path: Path, archive: dict[str, bytes]) -> None:
    def change(document: Any) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = signature["in_spec"].replace("builtins.tuple", "subprocess.Popen")

    refused(tmp_path / "m.pt2", changed(archive, "model.json", change), "subprocess.Popen")


# --- .pt --------------------------------------------------------------------------------------------------


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path: Path, is_zip: bool) -> None:
    data = saved({"a": Evil()}, _use_new_zipfile_serialization=is_zip)
    refused(tmp_path / "m.pt", data, "reading those could run code")
    refused(tmp_path / "m.pth", pickle.dumps(Evil()), "m.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_whole_modules_and_torchscript_are_refused_with_what_to_save(tmp_path: Path) -> None:
    refused(tmp_path / "m.pt", saved(nn.Linear(2, 2)), r"torch.export.save\(torch.export.export\(model")
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), file)
    refused(tmp_path / "s.pt", file.getvalue(), "TorchScript module, which is code")


def test_terabytes_of_one_element_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(saved(torch.zeros(1).expand(10**12)))
    with pytest.raises(TooLarge, match="would grow to"):
        read(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_tensors_with_wrong_indices_are_refused(tmp_path: Path) -> None:
    with torch.sparse.check_sparse_tensor_invariants(False):
        rows, columns = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
        good = torch.sparse_csr_tensor(rows, columns, torch.ones(2), (2, 2), check_invariants=False)
        bad = torch.sparse_csr_tensor(rows * 10**6, columns, torch.ones(2), (2, 2), check_invariants=False)
    for value in (good, bad):
        (tmp_path / "m.pt").write_bytes(saved(value))
        with pytest.raises(BadFile, match="is no dense tensor"):
            read(tmp_path / "m.pt")


def test_a_small_archive_that_unpacks_to_a_thousand_times_as_much_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as target:
        with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(2)))) as source:
            root = source.namelist()[0].partition("/")[0]
            target.writestr(f"{root}/data.pkl", source.read(f"{root}/data.pkl"))
        with target.open(f"{root}/data/0", "w") as member:
            for _ in range(320):
                member.write(bytes(1 << 20))
    before = machine.own_memory(os.getpid()) or 0
    assert (tmp_path / "m.pt").stat().st_size < 2 << 20
    with pytest.raises(TooLarge, match="would grow to"):
        read(tmp_path / "m.pt")
    assert (machine.own_memory(os.getpid()) or 0) < before + (64 << 20)


# --- .onnx ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "link", "weights.bin", "\0"])
def test_tensors_in_other_files_are_not_opened(tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    entry = field(13, field(1, text("location")) + field(2, text(place)))
    tensor = field(1, 4) + field(2, 1) + field(8, text("w")) + entry + field(14, 1)
    data = Graph().given("x", [4]).node("Add", ["x", "w"], "y").raw(5, tensor).gives("y").model()
    refused(tmp_path / "m.onnx", data, "in other files, which are not opened")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (Graph().given("x", [4]).node("PyOp", ["x"], "y", domain="ai.onnx.contrib").gives("y").model(), "ONNX's own"),
        (Graph().given("x", [4]).node("System", ["x"], "y").gives("y").model(), "'System' in it is not read"),
        (Graph().given("x", [4]).node("Relu", ["z"], "y").gives("y").model(), "which nothing gives"),
        (Graph().given("x", [4]).node("Relu", ["y"], "y").gives("y").model(), "which nothing gives"),
        (Graph().given("x", [4]).gives("y").model(), "computed by nothing"),
        (Graph().given("x", [1 << 50]).node("Relu", ["x"], "y").gives("y").model(), "a size that no tensor has"),
        (Graph().given("x", [4]).constant("w", [1 << 20, 1 << 20], b"").gives("w").model(), "would have"),
        (Graph().given("x", [4]).constant("w", [1 << 20], b"").gives("w").model(), "0 bytes, not"),
        (Graph(version=3).given("x", [4]).gives("x").model(), "operator set 3"),
    ],
)
def test_graphs_that_are_none_are_refused(tmp_path: Path, data: bytes, match: str) -> None:
    refused(tmp_path / "m.onnx", data, match)


def test_a_constant_that_grows_is_refused_before_it_does(tmp_path: Path) -> None:
    graph = Graph().given("x", [1]).constant("w", [1024], bytes(4096))
    graph.constant("times", [1], struct.pack("<q", 1 << 20), dtype=7)
    data = graph.node("Tile", ["w", "times"], "y").gives("y").model()
    refused(tmp_path / "m.onnx", data, "at most")


def test_messages_within_messages_end(tmp_path: Path) -> None:
    inner = b""
    for _ in range(200):
        inner = field(1, field(4, text("If")) + field(5, field(1, text("then_branch")) + field(6, inner)))
    refused(tmp_path / "m.onnx", field(1, 8) + field(8, field(2, 18)) + field(7, inner), "too deep")


# --- any byte ---------------------------------------------------------------------------------------------


def honest_onnx() -> bytes:
    graph = Graph().given("x", ["batch", 3]).constant("w", [3, 2], torch.randn(3, 2).numpy().tobytes())
    return graph.node("MatMul", ["x", "w"], "h").node("Relu", ["h"], "y").gives("y").model()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A few bytes of it changed, or a part cut off, doubled, or filled."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(found))
        match draw.randrange(5):
            case 0:
                found[at] = draw.randrange(256)
            case 1:
                found[at] ^= 1 << draw.randrange(8)
            case 2:
                del found[at : at + draw.randrange(1, 40)]
            case 3:
                found[at:at] = found[at : at + draw.randrange(1, 40)]
            case _:
                found[at : at + 8] = draw.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7))
        if not found:
            break
    return bytes(found)


@pytest.mark.parametrize("kind", ["pt2", "pt", "onnx"])
def test_a_thousand_changed_files_are_read_or_refused(archive: dict[str, bytes], kind: str) -> None:
    """In this very process, in which anything that a reader did would be seen: memory and errors of other kinds."""
    whole = {
        "pt2": zipped({name: data for name, data in archive.items() if "sample" not in name}),
        "pt": saved({"a": torch.randn(3, 4), "b": [torch.arange(5), {"c": torch.tensor(True)}]}),
        "onnx": honest_onnx(),
    }[kind]
    from compute.importing import reading

    draw, before = random.Random(7), machine.own_memory(os.getpid()) or 0
    slowest = 0.0
    refusals = 0
    for _ in range(1000):
        data = bytearray(mutated(whole, draw))
        begun = time.process_time()
        try:
            what, head, rest = reading.read(kind, memoryview(data))
            total = len(head) + sum(memoryview(piece).nbytes for piece in rest)
            assert what in ("model", "tensors") and total < 1 << 20
        except GridError as error:
            assert error.message
            refusals += 1
        slowest = max(slowest, time.process_time() - begun)
    assert refusals > 100
    assert slowest < 20
    assert (machine.own_memory(os.getpid()) or 0) < before + (256 << 20)


@pytest.mark.parametrize("ending", ["pt2", "pt", "onnx"])
def test_files_that_are_cut_off_say_so(tmp_path: Path, archive: dict[str, bytes], ending: str) -> None:
    whole = {"pt2": zipped(archive), "pt": saved(torch.zeros(100)), "onnx": honest_onnx()}[ending]
    for part in (1, 3, 30, len(whole) // 2, len(whole) - 1):
        refused(tmp_path / f"m.{ending}", whole[:part], f"m.{ending}")


def test_honest_files_of_each_kind_are_read(tmp_path: Path, archive: dict[str, bytes]) -> None:
    """Or the refusals above would say nothing."""
    (tmp_path / "m.onnx").write_bytes(honest_onnx())
    assert grid.read_model(tmp_path / "m.onnx")(torch.ones(5, 3)).shape == (5, 2)
    (tmp_path / "m.pt2").write_bytes(zipped(archive, zipfile.ZIP_DEFLATED))
    assert grid.read_model(tmp_path / "m.pt2")(torch.ones(5, 3)).shape == (5, 2)


def test_readers_import_nothing_that_loads_code() -> None:
    for module in (onnx, pt, pt2):
        assert module.__file__ is not None
        source = Path(module.__file__).read_text()
        assert "torch.export.load" not in source.split('"""')[2] and "import pickle" not in source
    assert importlib.util.find_spec("compute.importing.reading") is not None
