"""Random programs give the same as torch, or a clean error; and what was foreseen of them is so."""

from collections import Counter
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.forecast import foresee
from compute.interpreter import run
from compute.program import Program
from compute.program_types import check_types
from compute.report import Report
from protocol.errors import GridError
from tests.compute.random_programs import Maker, arguments_for, expected, same
from tests.full import FULL

EXAMPLES = 4_000 if FULL else 250
seeds = st.integers(0, 2**48)


def attempt(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except GridError as error:
        return error


def by_torch(program: Program, inputs: list[torch.Tensor]) -> Any:
    try:
        return expected(program, [tensor.clone() for tensor in inputs])
    except Exception as error:
        return error


def check(seed: int) -> str:
    """What came of it: "same" or "refused"."""
    program = Maker(seed).program()
    assert Program.from_text(str(program)) == program
    program = Program.from_bytes(program.to_bytes())
    last = ""
    for again in range(3):  # the second time some of it is known already; the third time with other values
        inputs = arguments_for(program, seed + again // 2)
        by_it = attempt(run, program, [tensor.clone() for tensor in inputs])
        by_them = by_torch(program, inputs)
        if isinstance(by_them, Exception):
            assert isinstance(by_it, GridError), f"{by_them!r}, but\n{program}\ngave {by_it}"
            assert len(str(by_it)) < 3_000
            last = "refused"
        else:
            assert not isinstance(by_it, GridError), f"{by_it!r}: {by_it.fields}\n{program}\n{by_them}"
            assert same(by_it, by_them), f"{program}\ngave {by_it}\nnot {by_them}"
            last = "same"
            check_foreseen(program, inputs)
    return last


def check_foreseen(program: Program, inputs: list[torch.Tensor]) -> None:
    """Of a program that runs: it passes the checks before it runs, and takes no more memory than was said."""
    if "flow.cond" in program.operations or "flow.while" in program.operations or "flow.repeat" in program.operations:
        return  # a branch or body that never runs may be wrong
    check_types(program)
    found = foresee(program, inputs)
    if not program.operations & {"aten.nonzero.default", "aten.masked_select.default"}:
        report = Report()
        run(program, [tensor.clone() for tensor in inputs], report=report)
        assert report.peak <= found.peak, f"{report.peak} is more than {found.peak}\n{program}"


@settings(max_examples=EXAMPLES, deadline=None)
@given(seeds)
def test_a_random_program_gives_what_torch_gives_or_a_clean_error(seed: int) -> None:
    check(seed)


def test_many_of_them_run_and_many_are_refused() -> None:
    outcomes = Counter(check(seed) for seed in range(60))
    assert outcomes["same"] >= 10
    assert outcomes["refused"] >= 10
