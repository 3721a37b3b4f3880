"""Plans from files: found by name, and what is wrong with a file is said with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grid.scripts import load_plan
from protocol.errors import BadFile

TWO = """
import grid

@grid.plan
def double(x):
    return x * 2

@grid.plan
def triple(x):
    return x * 3
"""


def write(folder: Path, text: str) -> str:
    (folder / "plans.py").write_text(text)
    return str(folder / "plans.py")


def test_a_plan_is_found_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    assert load_plan(f"{path}:double")(torch.ones(1)).item() == 2


def test_the_only_plan_needs_no_name(tmp_path: Path) -> None:
    path = write(tmp_path, TWO.partition("@grid.plan\ndef triple")[0])
    assert load_plan(path)(torch.ones(1)).item() == 2


REFUSED = {
    TWO: r"which plan\? it has double, triple",
    "x = 1": "it has none: put @grid.plan",
    "def f(:\n": "line 1: SyntaxError",
    "\n\n1 / 0\n": "line 3: ZeroDivisionError",
    "import not_there_at_all\n": "line 1: ModuleNotFoundError",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_file_without_the_plan_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadFile, match=REFUSED[text]):
        load_plan(write(tmp_path, text))


def test_an_unknown_name_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no plan called 'half'; it has double, triple"):
        load_plan(write(tmp_path, TWO) + ":half")


def test_a_function_that_is_no_plan_yet_is_answered_with_what_makes_it_one(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"no plan called .half.; that is a plain function: put @grid\.plan before it"):
        load_plan(write(tmp_path, f"{TWO}\n\ndef half(x):\n    return x / 2\n") + ":half")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    for reference in (f"{tmp_path}/gone.py:x", f"{tmp_path}/gone.py", f"{tmp_path}", "accuracy"):
        with pytest.raises(BadFile, match="there is no Python file"):
            load_plan(reference)
