"""The command line where no peer runs: what is parsed, what is refused, and how that is said."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
from grid.commands.computing import parsed
from grid.commands.computing import value as read
from grid.commands.declared import objects
from grid.commands.errors import EXIT_CODES, exit_code
from grid.commands.options import peer_names
from grid.given import as_query
from peer.membership import Member
from protocol import errors
from protocol.errors import BadRequest, GridError, NotFound

MANUAL = Path(cli.__file__).with_name("docs") / "cli.md"
COMMANDS = "start up down peers status verify compact put search show get move copy tag rm run ps kill demo".split()
Grid = Callable[..., Any]


def test_help_is_there_without_what_is_slow_to_import() -> None:
    code = "import sys, cli; cli.main(['--help']); print({'torch', 'websockets', 'sqlite3'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert printed.stdout.strip().endswith("set()")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(grid: Grid, command: str) -> None:
    ended = grid(command, "--help")
    assert ended.code == 0
    assert f"Usage: grid {command}" in ended.out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_names_what_is_to_be_written(grid: Grid, command: str) -> None:
    """In capitals, as the manual does; the commands' own words, not Python's."""
    text = grid(*([command] if command else []), "--help").out
    usage = text.split("\n\n")[0].split("[OPTIONS]")[1]
    assert not re.search(r"[a-z]", usage.replace(".py", "")), usage
    for options, value in re.findall(r"^  ((?:-\w, )?--[\w-]+)(?: (\S.*?))?(?:  |$)", text, re.MULTILINE):
        assert re.fullmatch(r"[A-Z]*|'#TAG'", value), f"{options} {value}"


def test_the_manual_names_every_command_and_no_other(grid: Grid) -> None:
    named = set(re.findall(r"`grid ([a-z]+)[^`]*`(?:,| \|)", MANUAL.read_text()))
    assert named == set(COMMANDS)
    assert re.findall(r"^  ([a-z]+) ", grid("--help").out.split("Commands:")[1], re.MULTILINE) == COMMANDS


def test_the_manual_has_the_exit_codes(grid: Grid) -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]*) \|$", MANUAL.read_text(), re.MULTILINE)
    written = {name: int(code) for code, names in rows for name in filter(None, names.split(", "))}
    kinds = {kind.__name__: code for kind, code in EXIT_CODES.items() if kind is not BaseException}
    assert written == kinds


def test_every_error_has_an_exit_code_of_its_kind() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GridError)]
    assert all(0 < exit_code(kind("why")) < 10 for kind in kinds)
    assert exit_code(errors.UnknownPeer("x")) == 3
    assert exit_code(errors.TimedOut("x")) == 5
    assert exit_code(errors.StorageFull("x")) == 6
    assert exit_code(errors.QueryError("x")) == 7
    assert exit_code(ValueError("x")) == 1


WRONG = [
    ["nonsense"],
    ["start"],
    ["start", "alice", "--port", "many"],
    ["start", "alice", "--log-level", "loud"],
    ["up"],
    ["put", "x.npy"],
    ["put", "x.npy", "--to", "alice"],
    ["search"],
    ["search", "#a", "--timeout", "-1"],
    ["move", "abcd"],
    ["rm"],
    ["peers", "--frobnicate"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_a_wrong_command_line_ends_with_2_and_shows_the_usage(grid: Grid, arguments: list[str]) -> None:
    ended = grid(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: grid" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["peers"],
        ["status"],
        ["search", "#a"],
        ["show", "#a"],
        ["get", "#a", "-o", "x.npy"],
        ["put", "x.npy", "--to", "alice", "--tag", "#a"],
        ["rm", "abcd"],
        ["tag", "abcd", "-#b"],
    ],
)
def test_without_a_peer_there_is_one_line_that_says_what_to_do(grid: Grid, arguments: list[str]) -> None:
    ended = grid(*arguments)
    assert (ended.code, ended.out) == (8, "")
    assert ended.err.startswith("error: no peer runs on this machine: start one with 'grid start alice'")
    assert "give the address of one elsewhere: 'grid --via ws://127.0.0.1:7700 ...'" in ended.err
    assert ended.err.count("\n") == 1


def test_there_is_nothing_to_look_after_where_no_peer_ever_ran(grid: Grid) -> None:
    for command in ("verify", "compact"):
        ended = grid(command)
        assert (ended.code, ended.out) == (8, "")
        assert "no peer runs on this machine, and none has kept anything here" in ended.err
        assert grid(command, "zed").code == 3
        assert grid(command, "--data-dir", ".").code == 2


def test_what_looks_and_what_stores_files_does_without_torch() -> None:
    modules = "grid.mesh grid.putting grid.saving grid.found grid.commands.files grid.commands.objects"
    modules += " grid.commands.upkeep grid.commands.running"
    code = f"import sys, {', '.join(modules.split())}; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert printed.stdout == "False\n"


def test_nobody_at_the_address_is_said_with_the_address(grid: Grid) -> None:
    ended = grid("--via", "ws://127.0.0.1:1", "peers")
    assert ended.code == 5
    assert "ws://127.0.0.1:1" in ended.err
    assert grid("--via", "http://127.0.0.1", "peers").code == 2


def test_down_is_content_where_nothing_runs_but_not_with_a_name_it_does_not_know(grid: Grid) -> None:
    assert grid("down").out == "no peer runs on this machine\n"
    assert grid("down", "--json").json == []
    ended = grid("down", "zed")
    assert ended.code == 3
    assert "no peer named 'zed'" in ended.err


def test_a_name_or_an_address_that_cannot_be_is_refused_before_anything_starts(grid: Grid, home: Path) -> None:
    assert grid("start", "a b").code == 2
    assert grid("up", "alice", "../bob").code == 2
    assert grid("start", "alice", "--host", "0.0.0.0").code == 8
    assert not list(home.rglob("*.sqlite"))


def test_a_defect_is_one_line_and_a_traceback_only_on_demand(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("\x1b[2Jboo")

    monkeypatch.setattr("peer.neighbours.Neighbours.list", broken)
    ended = grid("down")
    monkeypatch.undo()
    assert ended.code == 1
    assert "a defect: ZeroDivisionError: \\x1b[2Jboo" in ended.err
    assert "Traceback" not in ended.err


def test_an_error_is_raised_with_debug(home: Path) -> None:
    with pytest.raises(errors.UnknownPeer):
        cli.main(["--debug", "down", "zed"])


def test_completion_offers_running_peers(home: Path) -> None:
    assert peer_names("") == []


def test_the_version_is_printed(grid: Grid) -> None:
    assert re.fullmatch(r"peergrid \d+\.\d+\.\d+\n", grid("--version").out)


# --- what a command asks of the grid ----------------------------------------------------------------------


class OneObject:
    """A grid in which there is one, and who asked what of its peer."""

    def __init__(self) -> None:
        self.record = {"id": bytes(16), "kind": "tensor", "tags": ["a"], "nbytes": 4, "peer": "alice", "peer_id": "A"}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def find_record(self, ref: str) -> dict[str, Any]:
        if ref != "#a":
            raise NotFound(f"nothing matches {ref!r}")
        return self.record

    def find_member(self, peer: str) -> Member:
        return Member("a" * 52, "alice", ("ws://127.0.0.1:7700",))

    async def request(self, member: Member, op: str, args: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((op, args))
        return {"record": self.record}


async def test_tag_adds_and_takes_away_and_describes_in_one_request(capsys: pytest.CaptureFixture[str]) -> None:
    g = OneObject()
    await objects.tag(g, "#a", ["+#b", "-#c", "+d"], "words", True)
    assert g.asked == [("edit", {"id": bytes(16), "add": ["b", "d"], "remove": ["c"], "description": "words"})]


@pytest.mark.parametrize("changes", [["b"], ["+"], [], None, ["+#a", "c"]])
async def test_a_tag_change_needs_a_sign(changes: list[str] | None) -> None:
    with pytest.raises(BadRequest, match="is no change"):
        await objects.tag(OneObject(), "#a", changes)


def test_arguments_of_a_plan_are_by_name_or_by_position() -> None:
    assert parsed(["#a #b", "y=3.5", "images=#a (rows>=10 | -#b)", "rows>=10"]) == (
        ["#a #b", "rows>=10"],
        {"y": 3.5, "images": "#a (rows>=10 | -#b)"},
    )
    with pytest.raises(BadRequest, match="x is given twice"):
        parsed(["x=1", "x=2"])


VALUES = {
    "3.5": 3.5,
    "-2": -2,
    "true": True,
    "None": None,
    '["#a", 2]': ["#a", 2],
    "mean": "mean",
    "#digits": "#digits",
    "ij,jk->ik": "ij,jk->ik",
    "deadbeef": "id:deadbeef",
    "123456789012": "id:123456789012",
    "12345678": 12345678,
    "fade": "fade",
}


@pytest.mark.parametrize("text", VALUES)
def test_a_value_is_json_an_id_a_query_or_a_text(text: str) -> None:
    found = read(text)
    assert found == VALUES[text] and type(found) is type(VALUES[text])


def test_a_quoted_text_is_no_query() -> None:
    assert as_query(read('"#a"')) is None and as_query(read("#a")) == "#a"
