"""All samples of an operation at a peer, and what came of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from grid.remote import RemotePeer
from tests.opinfo.compare import Outcome, check, failure, together
from tests.opinfo.forms import forms_of
from tests.opinfo.inputs import known, samples_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64)
_AT_ONCE = 48  # samples whose requests are under way together


@dataclass(slots=True)
class Found:
    """What came of one operation.

    Attributes:
        name: torch's, with the variant of the OpInfo after a dot.
        counts: samples by verdict.
        forms: samples that agree, by form.
        reasons: "verdict | form | dtype | reason" and how often; of what agrees, that its strides are others than here.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def agrees(self) -> bool:
        """Every sample of it does, in each form and dtype."""
        return bool(self.counts["agrees"]) and not self.counts["disagrees"] and not self.counts["refused"]

    @property
    def has_pointers(self) -> bool:
        return any(self.counts[verdict] for verdict in ("agrees", "disagrees", "refused"))

    def note(self, form: str, dtype: torch.dtype, outcome: Outcome) -> None:
        self.counts[outcome.verdict] += 1
        if outcome.verdict == "agrees":
            self.forms[form] += 1
        if outcome.reason:
            short = str(dtype).removeprefix("torch.")
            self.reasons[f"{outcome.verdict} | {form} | {short} | {outcome.reason}"] += 1


@dataclass(frozen=True, slots=True)
class Choice:
    """Which samples are run: by which seed, in which dtypes, and how many of each kind (None: all)."""

    seed: int
    dtypes: Sequence[torch.dtype] = DTYPES
    most: int | None = None

    def __str__(self) -> str:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
        return f"{dtypes}; {'all samples' if self.most is None else f'{self.most} of the samples of each form'}"


def operations(names: Iterable[str] = ()) -> list[Any]:
    """The OpInfo entries with these names, all without; in torch's order."""
    wanted = set(names)
    return [op for op in known() if not wanted or op.name in wanted or name_of(op) in wanted]


def name_of(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


async def run_operation(op: Any, peer: RemotePeer, choice: Choice) -> Found:
    """Every sample of the choice, in every form; with gradients in the function's form."""
    found = Found(name_of(op))
    supported = op.supported_dtypes("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in choice.dtypes:
            if dtype not in supported:
                continue
            for form, has_grad in _runs(op, dtype):
                function = forms_of(op)[form]
                made = samples_of(op, dtype, requires_grad=has_grad, seed=choice.seed, most=choice.most)
                for some in _batches(made):
                    outcomes = await together([_checked(op, function, sample, peer) for sample in some])
                    for outcome in outcomes:
                        found.note(form if not has_grad else "gradient", dtype, outcome)
    return found


def _runs(op: Any, dtype: torch.dtype) -> Iterator[tuple[str, bool]]:
    for form in forms_of(op):
        yield form, False
    if op.supports_autograd and dtype in op.supported_backward_dtypes("cpu"):
        yield "function", True


async def _checked(op: Any, form: Any, sample: Any, peer: RemotePeer) -> Outcome:
    try:
        return await check(op, form, sample, peer)
    except Exception as error:  # its tensors could not be sent
        return failure(error)


def _batches(samples: Iterator[Any]) -> Iterator[list[Any]]:
    while some := list(islice(samples, _AT_ONCE)):
        yield some
