"""The command line over real peers in processes of their own: what a user does in a first hour."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import zygotes
from tests.cli.shell import ROOT, SECONDS, Grid, blobs, command, ids, wait_until
from tests.waiting import process_ended

# --- peers ------------------------------------------------------------------------------------------------


def test_peers_come_up_are_seen_and_go_down(grid: Grid) -> None:
    started = grid("up", "alice", "bob", "--json").json
    assert [peer["name"] for peer in started] == ["alice", "bob"]
    seen = grid("peers", "--json").json
    assert [(peer["name"], peer["id"], peer["state"]) for peer in seen] == [
        (peer["name"], peer["id"], "alive") for peer in started
    ]
    assert "alice" in grid("peers").out
    assert [status["name"] for status in grid("status", "--json").json] == ["alice", "bob"]
    assert grid("status", "bob", "--json").json["objects"] == 0
    assert grid("down", "alice", "--json").json == [{"name": "alice", "killed": False}]
    assert [peer["name"] for peer in grid("peers", "--json").json if peer["state"] == "alive"] == ["bob"]
    assert grid("down").out == "bob is down\n"
    assert grid("peers").code == 8


def test_a_second_peer_of_a_name_is_refused_and_the_others_start(grid: Grid) -> None:
    grid("up", "alice")
    ended = grid("up", "alice", "bob", "--json")
    assert ended.code == 8
    assert "a peer named alice runs on this machine already" in ended.err
    assert [peer["name"] for peer in json.loads(ended.out)] == ["bob"]


def test_a_port_in_use_is_said_with_what_to_do_and_nothing_is_made(grid: Grid, home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = grid("start", "alice", "--port", str(taken.getsockname()[1]))
    assert ended.code == 8
    assert "is in use: choose another with --port" in ended.err
    assert not [path for path in home.rglob("*") if path.is_file() or path.name == "alice"]


def test_a_data_folder_in_use_is_refused(grid: Grid, home: Path) -> None:
    grid("up", "alice")
    ended = grid("start", "bob", "--port", "0", "--data-dir", str(home / "data" / "alice"))
    assert ended.code == 8
    assert "is in use by process" in ended.err


def test_two_peers_of_one_name_are_told_apart_by_their_ids(grid: Grid, tmp_path: Path) -> None:
    """They run for different users of the machine, who joined their grids."""
    (ours,) = grid("up", "alice", "--json").json
    other = [sys.executable, "-m", "peer.process", "alice", "--port", "0", "--join", ours["url"], "--folders"]
    other += [str(tmp_path / "other" / name) for name in ("config", "data", "run")]
    with subprocess.Popen(other, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline()
        ended = grid("status", "alice")
        theirs = [peer["id"] for peer in grid("peers", "--json").json if peer["id"] != ours["id"]]
        by_id = [grid("status", id, "--json").json["id"] for id in (ours["id"], theirs[0])]
        process.terminate()
    assert ended.code == 3
    assert "2 peers are named 'alice'; use an id instead" in ended.err
    assert by_id == [ours["id"], theirs[0]]


# --- objects ----------------------------------------------------------------------------------------------


def test_the_way_of_an_object_from_a_file_to_a_file(grid: Grid, labels: Path, tmp_path: Path) -> None:
    grid("up", "alice", "bob")
    (put,) = grid("put", str(labels), "--to", "alice", "--tag", "#mnist #Test", "--tag", "labels", "--json").json
    assert put["tags"] == ["#mnist", "#test", "#labels"]
    assert (put["name"], put["dtype"], put["shape"]) == ("t10k-labels", "uint8", [10_000])

    found = grid("search", "#mnist #test", "--json").json
    assert ids(found) == [put["id"]]
    assert found["unreachable"] == {}
    assert put["id"][:12] in grid("search", "#mnist").out
    assert ids(grid("search", "-#mnist", "--json").json) == []
    assert grid("show", put["id"][:6], "--json").json["peer"] == "alice"

    target = tmp_path / "out.npy"
    assert grid("get", "#labels", "-o", str(target), "--json").json["file"] == str(target)
    assert np.load(target).tolist() == (np.arange(10_000) % 10).tolist()
    assert grid("get", "#labels", "-o", str(target)).code == 7
    assert grid("get", "#labels", "-o", str(target), "--force").code == 0

    moved = grid("move", "#labels", "bob", "--json").json
    assert (moved["peer"], moved["id"]) == ("bob", put["id"])
    copied = grid("copy", "#labels", "alice", "--json").json
    assert copied["peer"] == "alice"
    assert len(ids(grid("search", "#labels", "--json").json)) == 2
    assert grid("show", "#labels").code == 3

    tagged = grid("tag", "#labels peer:bob", "+#moved", "-#test", "--describe", "now at bob", "--json").json
    assert tagged["tags"] == ["#mnist", "#labels", "#moved"]
    assert tagged["description"] == "now at bob"
    assert grid("rm", "#moved", copied["id"], "--json").json == [
        {"id": put["id"], "peer": "bob"},
        {"id": copied["id"], "peer": "alice"},
    ]
    assert ids(grid("search", "", "--json").json) == []


def test_what_is_moved_goes_past_the_one_who_asks(grid: Grid, images: Path) -> None:
    grid("up", "alice", "bob")
    grid("put", str(images), "--to", "alice", "--tag", "#images")
    nbytes = 12_000_000
    assert grid("move", "#images", "bob").code == 0
    traffic = {end["name"]: end for end in grid("status", "bob", "--json").json["traffic"]}
    assert traffic["alice"]["payload_received"] >= nbytes
    assert all(end["payload_received"] < nbytes for name, end in traffic.items() if name != "alice")


@pytest.mark.parametrize(
    "arguments", [["move", "#a", "bob"], ["copy", "#a", "bob"], ["tag", "#a", "+#b"], ["rm", "#a"]]
)
def test_what_goes_past_the_one_who_asks_needs_no_torch(grid: Grid, labels: Path, arguments: list[str]) -> None:
    grid("up", "alice", "bob")
    grid("put", str(labels), "--to", "alice", "--tag", "#a")
    code = "import sys, cli; code = cli.main(); print('torch' in sys.modules, code)"
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=SECONDS, check=True, cwd=ROOT
    )
    assert ended.stdout.splitlines()[-1] == "False 0", ended


def test_a_stored_model_is_copied_and_moved_whole(grid: Grid, home: Path, tmp_path: Path) -> None:
    grid("up", "alice", "bob")
    code = "import asyncio, grid, torch\nasync def main():\n    async with grid.connect() as g:\n"
    code += (
        "        await g['alice'].send(torch.nn.Linear(3, 2), tags='#m', example=torch.ones(1, 3))\nasyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", code], timeout=SECONDS, check=True, cwd=ROOT)
    copied = grid("copy", "#m", "bob", "--json").json
    assert copied["id"].endswith("0000")  # its tensors' ids count on from there
    assert grid("move", "#m peer:alice", "bob").code == 0
    assert len(ids(grid("search", "#m peer:bob", "--json").json)) == 2
    assert grid("get", copied["id"], "-o", "m.npz").code == 0
    assert sorted(np.load("m.npz")) == ["bias", "weight"]


def test_several_files_and_folders_are_put_with_their_names(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set" / "two.npz", x=np.ones(2), y=np.zeros(2))
    (tmp_path / "set" / "table.csv").write_text("a,b\n1,2\n")
    grid("up", "alice")
    put = grid("put", str(tmp_path / "set"), "--to", "alice", "--tag", "#set", "--json").json
    assert sorted(record["name"] for record in put) == ["table", "x", "y"]
    (one,) = grid("put", f"{tmp_path}/set/two.npz:y", "--to", "alice", "--tag", "#y", "--name", "why", "--json").json
    assert one["name"] == "why"
    assert grid("get", "#y", "--json").json["value"] == [0.0, 0.0]
    assert "0., 0." in grid("get", "#y").out


def test_one_bad_file_does_not_keep_the_others_and_each_is_named(grid: Grid, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones(2))
    (folder / "b.csv").write_text("1\noops\n")
    np.save(folder / "c.npy", np.ones(3))
    grid("up", "alice")
    ended = grid("put", str(folder), "gone.npy", "--to", "alice", "--tag", "#set")
    assert ended.code == 7
    assert [line.split(":")[0] for line in ended.out.splitlines()] == ["alice has a", "alice has c"]
    errors = ended.err.splitlines()
    assert len(errors) == 3
    assert "line 2, column 1: 'oops' is not a number" in errors[0] and "gone.npy" in errors[1]
    assert errors[2] == "error: 2 files were not put whole, for the reasons above; alice has the rest"
    assert len(ids(grid("search", "#set", "--json").json)) == 2
    ended = grid("put", str(folder), "--to", "alice", "--tag", "#again", "--json")
    assert [record["name"] for record in json.loads(ended.out)] == ["a", "c"]


def test_what_breaks_off_in_the_file_leaves_nothing_at_the_peer(grid: Grid, tmp_path: Path, home: Path) -> None:
    packed = bytearray(gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 5_000_000) + os.urandom(5_000_000)))
    packed[-5] ^= 1
    (tmp_path / "x.idx.gz").write_bytes(packed)
    grid("up", "alice")
    ended = grid("put", "x.idx.gz", "--to", "alice", "--tag", "#x")
    assert ended.code == 7
    assert "x.idx.gz is not an IDX file: CRC check failed" in ended.err
    assert ids(grid("search", "", "--json").json) == []
    wait_until(lambda: not blobs(home))


# --- whatever is put --------------------------------------------------------------------------------------


def test_arrays_of_any_size_are_put_and_got(grid: Grid) -> None:
    grid("up", "alice")
    for number, shape in enumerate([(), (0, 3), (1,), (16_384,), (16_385,), (262_144,), (262_145, 3)]):
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        np.save("x.npy", values)
        assert grid("put", "x.npy", "--to", "alice", "--tag", f"#n{number}").code == 0
        assert grid("get", f"#n{number}", "-o", "y.npy", "--force").code == 0
        assert np.load("y.npy").shape == shape
        assert (np.load("y.npy") == values).all()


def test_a_private_object_is_found_and_kept(grid: Grid, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (peer,) = grid("up", "alice", "--json").json
    grid("put", str(labels), "--to", "alice", "--tag", "#secret", "--private")
    assert grid("get", "#secret", "-o", "mine.npy").code == 0
    with monkeypatch.context() as other:
        other.setenv("PEERGRID_HOME", str(Path(os.environ["PEERGRID_HOME"]).with_name("other")))
        via = ("--via", peer["url"])
        assert len(ids(grid(*via, "search", "#secret", "--json").json)) == 1
        ended = grid(*via, "get", "#secret", "-o", "theirs.npy")
        assert ended.code == 4
        assert not Path("theirs.npy").exists()
        assert grid(*via, "rm", "#secret").code == 4
        assert grid(*via, "tag", "#secret", "+#mine").code == 4


REFUSED = {
    "no such peer": (["put", "{labels}", "--to", "zed", "--tag", "#a"], 3, "no peer named 'zed'"),
    "no such file": (["put", "gone.npy", "--to", "alice", "--tag", "#a"], 7, "there is no file gone.npy"),
    "no such format": (["put", "home", "--to", "alice", "--tag", "#a"], 7, "can be read; endings that can"),
    "bad tag": (["put", "{labels}", "--to", "alice", "--tag", "#a!"], 7, "cannot hold '!'"),
    "bad query": (["search", "#a | ("], 7, "  #a | (\n       ^"),
    "nothing found": (["show", "#nothing"], 3, "nothing matches '#nothing'"),
    "bad target": (["get", "#nothing", "-o", "x.doc"], 7, "no ending that can be written"),
    "no plan": (["run", "gone.py:f"], 7, "there is no Python file gone.py"),
}


def test_what_cannot_be_done_is_one_clear_error(grid: Grid, labels: Path) -> None:
    grid("up", "alice")
    for case, (arguments, code, message) in REFUSED.items():
        ended = grid(*(argument.format(labels=labels) for argument in arguments))
        assert (case, ended.code, ended.out) == (case, code, "")
        assert message in ended.err
        assert "Traceback" not in ended.err


def test_a_peer_that_does_not_answer_is_named_below_what_the_others_have(grid: Grid, labels: Path) -> None:
    silent = grid("up", "alice", "bob", "--json").json[1]
    grid("put", str(labels), "--to", "alice", "--tag", "#a")
    os.kill(silent["pid"], signal.SIGSTOP)
    try:
        for seconds in ("0.3", "1", "3", "30"):  # a busy machine: alice may need longer for her answer
            answer = grid("search", "#a", "--timeout", seconds, "--json").json
            shown = grid("search", "#a", "--timeout", seconds)
            if list(answer["unreachable"]) == ["bob"] and "no answer from alice" not in shown.out:
                break
    finally:
        os.kill(silent["pid"], signal.SIGCONT)
    assert len(ids(answer)) == 1
    assert list(answer["unreachable"]) == ["bob"]
    assert shown.code == 0
    assert "no answer from bob: " in shown.out


# --- what is published stays ------------------------------------------------------------------------------


def test_published_objects_are_there_after_kill_9_and_a_restart(grid: Grid, labels: Path, images: Path) -> None:
    (peer,) = grid("up", "alice", "--json").json
    put = [
        grid("put", str(path), "--to", "alice", "--tag", "#kept", "--json").json[0]["id"] for path in (labels, images)
    ]
    os.kill(peer["pid"], signal.SIGKILL)
    process_ended(peer["pid"])
    (again,) = grid("up", "alice", "--json").json
    assert again["id"] == peer["id"]
    assert sorted(ids(grid("search", "#kept", "--json").json)) == sorted(put)
    assert grid("get", put[1], "-o", "back.npy").code == 0
    assert (np.load("back.npy") == np.load(images)).all()


# --- as in a shell ----------------------------------------------------------------------------------------


def test_a_peer_in_a_terminal_is_found_without_flags_and_stopped_by_ctrl_c(home: Path) -> None:
    code = "import sys, cli; sys.exit(cli.main(['start', 'alice']))"
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with started:
        assert started.stdout is not None
        assert started.stdout.readline().startswith("alice is ready at ws://127.0.0.1:")
        listed = command("peers")
        started.send_signal(signal.SIGINT)
        started.wait(SECONDS)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "alice" in listed.stdout
    assert "\x1b" not in listed.stdout
    assert started.returncode == 0


def test_search_goes_on_with_watch_and_prints_what_changes(grid: Grid, labels: Path) -> None:
    grid("up", "alice")
    code = "import sys, cli; sys.exit(cli.main(['search', '#a', '--watch', '--json']))"
    watching = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with watching:
        assert watching.stdout is not None
        assert ids(json.loads(watching.stdout.readline())) == []
        (put,) = grid("put", str(labels), "--to", "alice", "--tag", "#a", "--json").json
        while not (seen := ids(json.loads(watching.stdout.readline()))):
            pass  # a peer that is slow to answer is news as well
        assert seen == [put["id"]]
        watching.send_signal(signal.SIGINT)
        watching.wait(SECONDS)
    assert watching.returncode == 130


# --- computing --------------------------------------------------------------------------------------------


PLANS = """
import grid

@grid.plan
def agreement(a, b):
    return (a == b).float().mean()
"""


def test_a_plan_runs_where_its_data_are(grid: Grid, tmp_path: Path) -> None:
    grid("up", "alice", "bob")
    for name, peer, values in (("a", "alice", [1, 2, 3, 4]), ("b", "bob", [1, 2, 0, 0])):
        np.save(tmp_path / f"{name}.npy", np.array(values))
        grid("put", str(tmp_path / f"{name}.npy"), "--to", peer, "--tag", f"#{name}")
    (tmp_path / "plans.py").write_text(PLANS)
    arguments = ("run", f"{tmp_path}/plans.py:agreement", "a=#a", "b=#b")
    assert grid(*arguments, "--json").json == {"dtype": "float32", "shape": [], "value": 0.5}
    assert grid(*arguments).out == "0.5\n"
    assert grid(*arguments, "-o", "r.npy").code == 0
    assert np.load("r.npy") == 0.5
    assert grid("run", f"{tmp_path}/plans.py", "a=#a").code == 2
    assert grid("run", f"{tmp_path}/plans.py", "a=#a", "b=#none").code == 3
    told = grid(*arguments, "--explain", "--json").json
    assert [(each["what"], each["peer"]) for each in told["found"]] == [("a", "alice"), ("b", "bob")]
    assert told["peer"] in ("alice", "bob")  # as much would move either way
    assert (told["nbytes"], told["problem"]) == (32, None)
    assert f"runs at {told['peer']}" in grid(*arguments, "--explain").out


SEVERAL = """
import grid

@grid.plan
def summed(x, factor, kind):
    return {"sum": getattr(x, kind)() * factor, "rows": x.shape[0]}
"""


SEND = """
import asyncio, grid, torch

@grid.plan
def doubled(x):
    "Twice as much."
    return x * 2

async def main():
    async with grid.connect() as g:
        await doubled.build(torch.zeros(2, dtype=torch.int64)).send(g["alice"], tags="#doubled")

asyncio.run(main())
"""


def test_a_plan_runs_at_each_of_several_peers_and_a_stored_one_by_its_tag(grid: Grid, tmp_path: Path) -> None:
    grid("up", "alice", "bob")
    for peer, values in (("alice", [1, 2, 3, 4]), ("bob", [10, 20])):
        np.save(tmp_path / "x.npy", np.array(values))
        grid("put", str(tmp_path / "x.npy"), "--to", peer, "--tag", "#x")
    (tmp_path / "several.py").write_text(SEVERAL)
    arguments = ("run", f"{tmp_path}/several.py", "#x", "factor=0.5", "kind=sum")
    assert grid(*arguments).code == 3
    ended = grid(*arguments, "--map")
    assert sorted(ended.out.splitlines()) == ["alice.rows: 4", "alice.sum: 5.0", "bob.rows: 2", "bob.sum: 15.0"]
    assert grid(*arguments, "--reduce", "sum").out == "sum: 20.0\nrows: 6\n"
    code = subprocess.run([sys.executable, "-c", SEND], timeout=SECONDS, check=False, cwd=ROOT).returncode
    assert code == 0
    assert grid("run", "#doubled", "x=#x peer:bob").out == "tensor([20, 40])\n"
    shown = grid("show", "#doubled").out
    assert "Twice as much." in shown and "aten.mul.Tensor(%0, 2)" in shown
    assert "aten.mul.Tensor(%0, 2)" in grid("show", "#doubled", "--json").json["program"]
    ended = grid("run", "#doubled", "y=#x peer:bob")
    assert (ended.code, ended.err) == (2, "error: the plan takes x; given were y\n")


def test_the_demo_is_right_and_prints_its_figures(home: Path, zygotes_at_hand: zygotes.Nursery) -> None:
    pytest.importorskip("sklearn")
    ended = command("demo", "--json", nursery=zygotes_at_hand)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    assert figures["ok"] and all(check["ok"] for check in figures["checks"])
    assert figures["accuracy"]["value"] == pytest.approx(figures["accuracy"]["local"])
    assert figures["training"]["largest_weight_difference"] <= 1e-4
    assert figures["model"]["alice_to_bob"] >= figures["model"]["bytes"] > 10 * figures["model"]["through_asker"]
