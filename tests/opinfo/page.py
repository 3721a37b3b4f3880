"""The parts of docs/operations.md that are written by a run: figures, what is refused and why, what agrees, the table.

Each stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; what is around them is written by hand.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from compute.operations import CATEGORIES, OPERATIONS
from tests.opinfo.report import Report
from tests.opinfo.running import Found

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"

# What a refusal's text begins with or holds, and why that is so.
_WHY = (
    ("its data is not allocated", "torch reads the values of an argument in its own C++ code"),
    ("NeedsAwait: bool() of what", "the gradient needs to know a size that the data decide"),
    ("NeedsAwait", "torch needs a plain Python value on the way: get the value, or write it without"),
    ("of layout torch.sparse", "sparse layouts do not travel"),
    ("aten._to_sparse", "sparse layouts do not travel"),
    ("resize", "memory that nobody filled would be part of the result"),
    ("aten._unique.default", "the gradient needs to know a size that the data decide"),
    ("aten.segment_reduce", "its kernels trust lengths and offsets, and no guard stands before them"),
    ("torch_nn._linear_cross_entropy", "it is no ATen operation, but one of torch's own Python library"),
    ("would reach beyond the tensor", "the view would show memory beyond the object that was sent"),
    ("random_samples lie in", "samples outside of 0 <= x < 1 make the kernel read beyond its input"),
    ("a scale of", "a scale that does not fit the sizes makes the kernel read beyond its input"),
    ("gives residuals or none", "whether there are residuals depends on the data: take 'gels' or 'gelsy'"),
    ("NotCollocated", "torch makes a tensor on this machine and mixes it with pointers"),
    ("addbmm_", "in place it would change the shape of its argument's memory"),
    ("sparse gradients", "sparse gradients do not travel: sparse=False"),
)


def why(found: Found) -> str:
    """Why samples of an operation do not agree: the most frequent reason, in a sentence."""
    reasons: Counter[str] = Counter()
    for reason, count in found.reasons.items():
        verdict, _, _, text = reason.split(" | ", 3)
        if verdict == "agrees":
            continue
        if verdict == "disagrees":
            reasons["**gives something else**: " + text[:100]] += count * 1000
        else:
            reasons[next((sentence for part, sentence in _WHY if part in text), text[:120])] += count
    return reasons.most_common(1)[0][0].replace("|", "/")


def figures(reports: Sequence[Report]) -> str:
    rows = [
        "| seed | what ran | operations that agree in every sample | of | samples that agree | disagree | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        counts = " | ".join(f"{report.samples(verdict):,}" for verdict in ("agrees", "disagrees", "refused"))
        rows.append(
            f"| {report.seed} | {report.ran} | {len(report.agreeing)} | {len(report.with_pointers)} | {counts} |"
        )
    return "\n".join([*rows, "", f"torch {torch.__version__}; an operation is an entry of OpInfo's `op_db`."])


def agreeing(reports: Sequence[Report]) -> list[str]:
    """The operations that agree in every sample of every run that had any of them, sorted."""
    good = {each.name for report in reports for each in report.agreeing}
    return sorted(good - {each.name for report in reports for each in report.with_pointers if not each.agrees})


def refused(reports: Sequence[Report]) -> str:
    """The operations that do not, grouped by why."""
    good = set(agreeing(reports))
    worst: dict[str, Found] = {}
    for report in reports:
        for each in report.with_pointers:
            if each.name not in good and not each.agrees:
                worst.setdefault(each.name, each)
    groups: dict[str, list[str]] = {}
    for each in sorted(worst.values(), key=lambda found: found.name):
        part = each.counts["refused"] + each.counts["disagrees"]
        groups.setdefault(why(each), []).append(f"`{each.name}` ({part} of {part + each.counts['agrees']})")
    rows = ["| why | operations (samples that do not agree) |", "|---|---|"]
    return "\n".join(rows + [f"| {reason} | {', '.join(names)} |" for reason, names in sorted(groups.items())])


def table() -> str:
    """Every name of the table, by category, without `aten.` and `.default`."""
    lines = []
    for category in CATEGORIES:
        names = [name for name, its in OPERATIONS.items() if its == category]
        lines.append(f"**{category}** ({len(names)})\n")
        lines.append(_block([name.removeprefix("aten.").removesuffix(".default") for name in names]))
    return "\n".join([f"{len(OPERATIONS)} operations.\n", *lines]).rstrip()


def _block(names: Sequence[str]) -> str:
    return "```\n" + textwrap.fill(" ".join(names), 118, break_long_words=False, break_on_hyphens=False) + "\n```\n"


def read(name: str, text: str | None = None) -> str:
    """What stands in a part of the page."""
    text = PAGE.read_text() if text is None else text
    found = re.search(_pattern(name), text, re.DOTALL)
    assert found is not None, f"the page has no part {name}"
    return found[2].strip()


def listed() -> list[str]:
    """The operations that the page says agree."""
    return read("agreeing").replace("```", "").split()


def write(reports: Sequence[Report]) -> None:
    """Puts what the runs found into the page; without any only the table."""
    parts = {"table": table()}
    if reports:
        names = agreeing(reports)
        parts |= {"figures": figures(reports), "refused": refused(reports), "agreeing": _block(names).strip()}
    text = PAGE.read_text()
    for name, content in parts.items():
        text = re.sub(
            _pattern(name), lambda found, new=content: f"{found[1]}\n{new}\n{found[3]}", text, flags=re.DOTALL
        )
    PAGE.write_text(text)


def _pattern(name: str) -> str:
    return rf"(<!-- begin {name} -->\n)(.*?)(<!-- end {name} -->)"
