"""The import arrow, and what each package may use, read from the sources."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARROW = ("protocol", "search", "compute", "mpc", "peer", "grid", "cli")
"""Nothing imports from a package to its right."""

OWN_USE = {"protocol": {"msgpack"}, "search": set[str]()}
"""Packages that use nothing beside the standard library and this."""

NOT_IN_PROTOCOL = {"asyncio", "socket", "sqlite3", "subprocess", "threading", "time", "random", "secrets"}
"""Waiting, clocks and chance: they are given to protocol/ and search/, which only decide."""

RUNS_CODE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


@dataclass(frozen=True)
class Import:
    """One import statement of one of our files."""

    file: Path
    line: int
    module: str

    @property
    def package(self) -> str:
        return self.file.relative_to(ROOT).parts[0].removesuffix(".py")

    @property
    def root(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def sources() -> list[Path]:
    """Every file of every package that exists."""
    files = [path for name in ARROW for path in sorted((ROOT / name).rglob("*.py"))]
    return files + ([ROOT / "cli.py"] if (ROOT / "cli.py").exists() else [])


def imports_in(file: Path) -> Iterator[Import]:
    """All of them: those in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield Import(file, node.lineno, node.module)


@functools.cache
def imports() -> list[Import]:
    """Those of all sources."""
    return [each for file in sources() for each in imports_in(file)]


def test_there_is_something_to_check() -> None:
    assert {each.package for each in imports()} == set(ARROW)
    assert len(imports()) > 200


@pytest.mark.parametrize("package", ARROW)
def test_no_import_goes_against_the_arrow(package: str) -> None:
    beyond = ARROW[ARROW.index(package) + 1 :]
    assert [str(each) for each in imports() if each.package == package and each.root in beyond] == []


@pytest.mark.parametrize("package", ARROW)
def test_only_declared_dependencies_are_imported(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    declared = {re.split(r"[^A-Za-z0-9_-]", each)[0].replace("-", "_") for each in wanted}
    known = declared | {"sklearn"} | set(ARROW) | sys.stdlib_module_names
    assert [str(each) for each in imports() if each.package == package and each.root not in known] == []


@pytest.mark.parametrize("package", OWN_USE)
def test_the_inner_packages_use_the_standard_library_alone(package: str) -> None:
    allowed = OWN_USE[package] | set(ARROW) | sys.stdlib_module_names
    assert [str(each) for each in imports() if each.package == package and each.root not in allowed] == []


@pytest.mark.parametrize("package", OWN_USE)
def test_the_inner_packages_wait_for_nothing(package: str) -> None:
    inner = [each for each in imports() if each.package == package]
    assert [str(each) for each in inner if each.root in NOT_IN_PROTOCOL] == []


def test_nothing_that_runs_code_from_data_is_imported() -> None:
    assert [str(each) for each in imports() if each.root in RUNS_CODE] == []


def test_no_source_calls_eval_or_exec() -> None:
    found = []
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(str(file.relative_to(ROOT)))
    # But one: what a jail is shipped for, behind the walls. Nobody but its own process may come there.
    assert found == ["compute/jail/running.py"]
    own = ("compute.jail", "peer.worker.jail", "grid.jails")
    others = [each for each in imports() if "jail.running" in str(each) and each.root in ("compute", "peer", "grid")]
    assert all(str(each).startswith(tuple(name.replace(".", "/") for name in own)) for each in others)


def test_there_is_no_drawer_for_everything() -> None:
    assert [file.name for file in sources() if file.name in ("utils.py", "common.py", "helpers.py", "misc.py")] == []


def loaded_by(modules: list[str]) -> set[str]:
    """The names in sys.modules of a fresh interpreter that imported these."""
    code = f"import json, sys\nfor name in {modules!r}:\n    __import__(name)\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def modules_of(*folders: str) -> list[str]:
    files = [file for folder in folders for file in sorted((ROOT / folder).glob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def test_the_peer_process_does_not_load_torch() -> None:
    """Every module of it, not only those that peer.peer needs. (The workers are processes of their own.)"""
    loaded = loaded_by(modules_of("peer", "peer/store"))
    assert "peer.connection" in loaded
    assert not {"torch", "numpy"} & loaded


def test_the_protocol_loads_neither_sockets_nor_databases() -> None:
    loaded = loaded_by(modules_of("protocol", "search"))
    assert not {"asyncio", "socket", "sqlite3", "torch", "numpy", "websockets", "cryptography"} & loaded
