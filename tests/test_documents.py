"""What the documents name is there: limits with their values, files, variables of the long trials, links."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from peer.calls import Statistics
from protocol import limits

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "protocol" / "SPEC.md"])
PACKAGES = sorted(
    path.parent
    for top in ("protocol", "search", "compute", "mpc", "peer", "grid")
    for path in (ROOT / top).rglob("__init__.py")
)
DURABILITY = (ROOT / "docs" / "durability.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
UNITS = {"": 1, "s": 1, "days": 86_400, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def test_the_limits_of_durability_have_these_values() -> None:
    section = DURABILITY[DURABILITY.index("## The limits") : DURABILITY.index("## What is not promised")]
    seen = 0
    for names, values in re.findall(r"^\| (`[A-Z_`, ]+`) \| ([^|]+) \|", section, re.MULTILINE):
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            number, _, unit = value.partition(" ")
            assert getattr(limits, name.strip("`")) == pytest.approx(float(number) * UNITS[unit]), name
            seen += 1
    assert seen >= 20


def test_every_limit_that_durability_names_exists() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", DURABILITY)) - {"PEERGRID_FAILPOINTS"}
    assert [name for name in sorted(named) if not hasattr(limits, name)] == []


@pytest.mark.parametrize("text", [DURABILITY, CONTRIBUTING], ids=["durability", "contributing"])
def test_the_long_trials_are_there(text: str) -> None:
    sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py") if file != Path(__file__))
    variables = set(re.findall(r"PEERGRID_[A-Z_]+(?==)", text))
    assert len(variables) >= 6
    assert [name for name in sorted(variables) if f'"{name}"' not in sources] == []
    assert [path for path in re.findall(r"tests/[\w/]+(?:\.py)?", text) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_map_of_a_package_has_its_files(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    listed = set(re.findall(r"^ *(\w+)(?:\.py|/)?\b(?: \*)? ", text, re.MULTILINE))
    there = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert sorted(there - listed) == []
    assert [name for name in re.findall(r"^ *(\w+)\.py ", text, re.MULTILINE) if name not in there] == []


def test_the_counts_of_statistics_are_explained() -> None:
    for text in ((ROOT / "README.md").read_text(), Statistics.__doc__ or ""):
        assert [name for name in Statistics.__dataclass_fields__ if name not in text] == []


def test_every_file_of_the_architecture_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    files = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert [name for name in re.findall(r"`(?:[\w]+/)*(\w+\.py)`", text) if name not in files] == []
