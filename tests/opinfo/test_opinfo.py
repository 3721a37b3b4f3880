"""What docs/operations.md says of operations is so: those that it lists agree, and its table is the table.

One sample of each operation in each form, in one dtype; with PEERGRID_FULL set all samples in all dtypes (minutes).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from tests.full import FULL
from tests.opinfo import page
from tests.opinfo.compare import Outcome
from tests.opinfo.report import Report
from tests.opinfo.running import Choice, Found, name_of, operations, run_operation

PARTS = 64 if FULL else 6  # each with a peer of its own, and short enough for a busy machine


def choice(op: Any) -> Choice:
    if FULL:
        return Choice(seed=0)
    supported = op.supported_dtypes("cpu")
    dtype = next(dtype for dtype in (torch.float32, torch.int64, torch.complex64, torch.bool) if dtype in supported)
    return Choice(seed=0, dtypes=[dtype], most=1)


@pytest.mark.parametrize("part", range(PARTS))
async def test_operations_that_the_page_lists_agree(folders: Folders, part: int) -> None:
    listed, problems, agreeing = set(page.listed()), [], 0
    mine = [op for op in operations() if name_of(op) in listed][part::PARTS]
    async with grid.local("alice", folders=folders) as g:
        for op in mine:
            found = await run_operation(op, g["alice"], choice(op))
            agreeing += found.agrees
            problems += [f"{found.name}: {why}" for why in found.reasons if not why.startswith("agrees")]
    assert problems == []
    assert agreeing >= 0.9 * len(mine)  # of some the one sample is refused by torch itself


def test_the_page_lists_at_least_400_operations_that_there_are() -> None:
    listed = page.listed()
    assert len(set(listed)) == len(listed) >= 400
    assert set(listed) <= {name_of(op) for op in operations()}


def test_the_page_has_the_table_as_it_is() -> None:
    assert page.read("table") == page.table(), "write it again: python -m tests.opinfo --page"


async def test_a_wrong_result_is_found(folders: Folders) -> None:
    """An operation that gives something else at the peer, in values or in its gradient, does not agree."""
    (op,) = (op for op in operations(["sin"]) if not op.variant_test_name)
    async with grid.local("alice", folders=folders) as g:
        good = await run_operation(op, g["alice"], Choice(seed=0, dtypes=[torch.float32], most=2))
        assert good.agrees
        assert good.forms["gradient"] and good.forms["in place"] and good.forms["method"]
        for wrong in (_wrong_value, _wrong_gradient):
            found = await run_operation(_Pretended(op, wrong), g["alice"], Choice(0, [torch.float32], 2))
            assert found.counts["disagrees"] and not found.agrees, wrong


class _Pretended:
    """An OpInfo with another function."""

    def __init__(self, op: Any, function: Any) -> None:
        self._op, self.op = op, function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._op, name)


def _wrong_value(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + (1e-3 if type(x) is not torch.Tensor else 0)


def _wrong_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + (x - x.detach() if type(x) is not torch.Tensor else 0)


def test_a_report_is_read_as_it_was_written() -> None:
    found = Found("add")
    found.note("function", torch.float32, Outcome("agrees"))
    found.note("in place", torch.float32, Outcome("refused", "BadRequest: no"))
    report = Report(3, "float32; all samples", [found])
    (again,) = Report.by_seed([Report.from_json(report.to_json())])
    assert again.summary() == report.summary()
    assert not again.agreeing and again.with_pointers[0].reasons == found.reasons
