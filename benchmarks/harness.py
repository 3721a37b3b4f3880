"""What all benchmarks share: figures with references, their table and JSON, interleaved repeats."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table

Measure = Callable[[], Awaitable[float]]


@dataclass(frozen=True)
class Figure:
    """One measured claim: `ours` and each reference in `unit`; `bar` is what the ratio is held to, in words."""

    id: str
    what: str
    unit: str
    ours: float
    references: Mapping[str, float] = field(default_factory=dict)
    bar: str = ""
    fields: Mapping[str, float] = field(default_factory=dict)
    """What else was measured, by name: in the JSON object beside the rest."""

    @property
    def ratio(self) -> dict[str, float]:
        return {name: self.ours / value for name, value in self.references.items() if value}


@dataclass(frozen=True)
class Options:
    json: bool
    quick: bool


def options(description: str | None) -> Options:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: ends within 50 s on 2 cores")
    given = parser.parse_args()
    return Options(given.json, given.quick)


def machine() -> dict[str, object]:
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def report(name: str, figures: Sequence[Figure], chosen: Options) -> None:
    """Print the figures as a table, or as the JSON object that docs/benchmarks.md describes."""
    if chosen.json:
        rows = [
            {
                "id": figure.id,
                "what": figure.what,
                "unit": figure.unit,
                "ours": figure.ours,
                "references": dict(figure.references),
                "ratio": figure.ratio,
                **figure.fields,
            }
            for figure in figures
        ]
        json.dump({"benchmark": name, "machine": machine(), "figures": rows}, sys.stdout, indent=2)
        print()
        return
    table = Table(title=f"benchmarks.{name}", title_justify="left")
    for column in ("figure", "what", "unit", "ours", "reference", "ratio", "bar"):
        table.add_column(column, justify="right" if column in ("ours", "ratio") else "left")
    for figure in figures:
        references = figure.references or {"-": float("nan")}
        for number, (reference, value) in enumerate(references.items()):
            ratio = f"{figure.ours / value:.2f}" if value == value and value else ""
            shown = f"{reference} {value:.4g}" if value == value else ""
            first = (figure.id, figure.what, figure.unit, f"{figure.ours:.4g}") if number == 0 else ("", "", "", "")
            table.add_row(*first, shown, ratio, figure.bar if number == 0 else "")
    Console().print(table)


async def interleaved(rounds: int, measured: Mapping[str, Measure]) -> dict[str, float]:
    """Call each in turn, `rounds` times over; the median of what each returned."""
    samples: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            samples[name].append(await measure())
    return {name: statistics.median(values) for name, values in samples.items()}
