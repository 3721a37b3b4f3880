"""What a run found: figures, JSON, and read again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tests.opinfo.running import Found


@dataclass(frozen=True, slots=True)
class Report:
    """What one run found, of one seed. `ran` says which samples those were."""

    seed: int
    ran: str
    found: list[Found]

    @property
    def with_pointers(self) -> list[Found]:
        """The operations that have a sample with a tensor in it, which torch itself runs."""
        return [each for each in self.found if each.has_pointers]

    @property
    def agreeing(self) -> list[Found]:
        return [each for each in self.with_pointers if each.agrees]

    def samples(self, verdict: str) -> int:
        return sum(each.counts[verdict] for each in self.found)

    def summary(self) -> str:
        run = sum(self.samples(verdict) for verdict in ("agrees", "disagrees", "refused"))
        return (
            f"seed {self.seed}, torch {torch.__version__}: {len(self.agreeing)} of {len(self.with_pointers)} "
            f"operations agree in every sample; {self.samples('agrees')} of {run} samples agree, "
            f"{self.samples('disagrees')} disagree, {self.samples('refused')} are refused"
        )

    def to_json(self) -> str:
        found = [
            {"name": each.name, "counts": each.counts, "forms": each.forms, "reasons": each.reasons}
            for each in self.found
        ]
        return json.dumps({"seed": self.seed, "ran": self.ran, "torch": torch.__version__, "found": found}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        data: dict[str, Any] = json.loads(text)
        found = [
            Found(each["name"], Counter(each["counts"]), Counter(each["forms"]), Counter(each["reasons"]))
            for each in data["found"]
        ]
        return cls(data["seed"], data["ran"], found)

    @classmethod
    def by_seed(cls, reports: Iterable[Report]) -> list[Report]:
        """One for each seed, of the shares of its run."""
        found: dict[tuple[int, str], list[Found]] = {}
        for report in reports:
            found.setdefault((report.seed, report.ran), []).extend(report.found)
        return [cls(seed, ran, found[seed, ran]) for seed, ran in sorted(found)]
