"""Small results that are told before a program's end: what it has in the end, and nothing that may still change."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compute.settled
from compute import interpreter
from compute.cost import ALLOWED
from compute.operations import OPERATIONS
from compute.prepared import prepare
from compute.program import Input, Node, Program
from compute.report import Report
from compute.settled import Settled, are_small, is_sure
from compute.table import Entry, lookup
from compute.values import constant_tensor
from protocol import limits
from protocol.errors import GridError, TooLarge
from tests.compute.flows import aten, body, n, program, repeat
from tests.compute.random_programs import Maker, arguments_for, evaluate, same
from tests.full import FULL


@pytest.fixture(autouse=True)
def from_the_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is settled is told, if but one operation is left."""
    monkeypatch.setattr(limits, "SETTLED_STEPS", 1)
    yield
    ALLOWED.limit(None, None)


class Ran:
    """A run, and what was told before its end."""

    def __init__(self, program: Program, given: Sequence[Any], **settings: Any) -> None:
        self.told: list[tuple[Settled, list[Any]]] = []
        self.results = interpreter.results(program, given, tell=self._tell, **settings)

    def _tell(self, settled: Settled, small: Sequence[torch.Tensor | None]) -> None:
        self.told.append((settled, [None if each is None else each.clone() for each in small]))

    @property
    def after(self) -> int | None:
        """After how many operations something was told."""
        return self.told[0][0].after if self.told else None


def ran(program: Program, *given: torch.Tensor) -> Ran:
    """The second run on these."""
    interpreter.results(program, [each.clone() for each in given])
    return Ran(program, given)


def rest(first: int, count: int = 3) -> list[Node]:
    """Operations on what is large, of which the first is node `first`."""
    return [aten("add.Tensor", n(0 if at == 0 else first + at - 1), 1.0) for at in range(count)]


LARGE = torch.ones(2_000)


def test_a_small_result_is_told_when_it_is_there() -> None:
    p = program("x", aten("sum.default", n(0)), *rest(2), outputs={"tuple": [n(4), n(1)]})
    run = ran(p, LARGE)
    ((settled, values),) = run.told
    assert settled.after == 1
    assert settled.looks == (("float32", (2_000,)), ("float32", ()))
    assert settled.small == (False, True)
    assert values[0] is None
    assert values[1].item() == 2_000
    assert torch.equal(run.results[0], LARGE + 3)


def test_of_the_first_run_nothing_is_told_before_its_end() -> None:
    p = program("x", aten("sum.default", n(0)), *rest(2), outputs={"tuple": [n(4), n(1)]})
    assert Ran(p, [LARGE]).told == []
    assert Ran(p, [LARGE]).after == 1
    assert Ran(p, [LARGE[:1_500]]).told == []


def test_nor_where_no_result_is_small() -> None:
    assert ran(program("x", *rest(1), outputs=n(3)), LARGE).told == []


def test_nor_where_little_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETTLED_STEPS", 4)
    p = program("x", aten("sum.default", n(0)), *rest(2), outputs={"tuple": [n(4), n(1)]})
    assert ran(p, LARGE).told == []


def test_nor_where_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    p = program("x", aten("sum.default", n(0)), aten("mm.default", n(0), n(0)), outputs={"tuple": [n(2), n(1)]})
    assert ran(p, torch.ones(60, 60)).after == 1
    assert ran(p, torch.ones(1_100, 1_100)).told == []  # 1.3e9 multiply-adds


def test_nor_with_a_report() -> None:
    p = program("x", aten("sum.default", n(0)), *rest(2), outputs={"tuple": [n(4), n(1)]})
    ran(p, LARGE)
    assert Ran(p, [LARGE], report=Report()).told == []


VIEW = aten("view.default", n(1), [1])


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        ([aten("add_.Scalar", n(1), 1)], 2),
        ([VIEW, aten("add_.Scalar", n(2), 1)], 3),
        ([VIEW, aten("alias.default", n(2)), aten("mul_.Scalar", n(3), 2), VIEW], 4),
        ([aten("reshape.default", n(1), [1]), aten("zero_.default", n(2))], 3),
        ([aten("clone.default", n(1)), aten("add_.Scalar", n(2), 1)], 1),
        ([aten("add_.Scalar", n(0), 1)], 2),
        ([aten("t.default", n(0)), aten("zero_.default", n(2))], 3),
    ],
    ids=["itself", "a view", "a view of a view", "what may be a view", "a copy", "the input", "a view of the input"],
)
def test_what_is_written_later_is_told_after_that(changes: list[Node], after: int) -> None:
    made = 2 + len(changes)
    p = program("x", aten("sum.default", n(0)), *changes, *rest(made), outputs={"tuple": [n(made + 2), n(1)]})
    run = ran(p, LARGE.clone())
    assert run.after == after
    assert torch.equal(run.told[0][1][1], run.results[1])


@pytest.mark.parametrize("written", [0, 1])
def test_inputs_may_share_memory(written: int) -> None:
    """One that comes out is told when no other is written any more."""
    p = program(
        "x y",
        aten("sum.default", n(0)),
        aten("add_.Scalar", n(written), 1),
        aten("neg.default", n(0)),
        outputs={"tuple": [n(0), n(2)]},
    )
    x = torch.zeros(4)
    interpreter.results(p, [torch.zeros(4), torch.zeros(4)])
    run = Ran(p, [x, x])
    assert run.after == 2
    assert run.told[0][1][0].tolist() == run.results[0].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("one", "after"),
    [
        (aten("index_select.default", n(0), 0, n(1)), 2),  # an index may lie beside the input
        (aten("nonzero.default", n(0)), 2),  # nobody knows how many there are
        (aten("cumsum.default", n(0), 0), 2),  # not among those that are sure
        (aten("floor_divide.default", n(1), n(1)), 2),  # integers by zero
        (aten("mul.Tensor", n(1), n(1)), 1),
    ],
)
def test_what_may_fail_by_its_data_comes_first(one: Node, after: int) -> None:
    inputs = (Input("x"), Input("at"))
    p = program(inputs, aten("sum.default", n(0)), one, *rest(4), outputs={"tuple": [n(6), n(2)]})
    assert ran(p, LARGE, torch.ones(2_000, dtype=torch.int64)).after == after


ODD = [0.0, -1.0, -5.0, 3.7, 100.0, 1e30, float("nan"), float("inf"), float("-inf")]


def sure() -> list[Entry]:
    return [entry for entry in map(lookup, sorted(OPERATIONS)) if entry.category != "size" and is_sure(entry)]


def arguments(entry: Entry, value: float, dtype: torch.dtype, number: float) -> tuple[list[Any], dict[str, Any]]:
    """Those that it needs, tensors of this value among them. KeyError for an operation that takes other things."""
    tensor = torch.full((3,), value).to(dtype)
    made = {"Tensor": tensor, "List[Tensor]": [tensor] * 2, "number": number, "int": int(number), "float": number}
    needed = [each for each in entry.parameters if each.is_required]
    given = [(each, made[each.kind]) for each in needed]
    return [value for each, value in given if not each.is_keyword_only], {
        each.name: value for each, value in given if each.is_keyword_only
    }


def refuses(entry: Entry, value: float, dtype: torch.dtype, number: float) -> bool:
    args, kwargs = arguments(entry, value, dtype, number)
    try:
        entry.overload(*args, **kwargs)
    except Exception:
        return True
    return False


@pytest.mark.filterwarnings("ignore")
def test_what_is_sure_fails_for_no_values() -> None:
    count = 0
    for entry in sure():
        with contextlib.suppress(KeyError):
            for dtype, number in itertools.product([torch.float32, torch.int64], [0.5, 2]):
                if not refuses(entry, 1.0, dtype, number):
                    values = ODD if dtype.is_floating_point else ODD[:5]
                    assert [value for value in values if refuses(entry, value, dtype, number)] == [], entry.name
                    count += 1
    assert count > 300
    assert refuses(lookup("aten.remainder.Tensor"), 0.0, torch.int64, 2)


def test_a_loop_comes_first() -> None:
    step = body("i x", aten("add.Tensor", n(1), 1.0))
    p = program(
        "x", aten("sum.default", n(0)), repeat(0, 3, [n(0)]), *rest(3), bodies=(step,), outputs={"tuple": [n(5), n(1)]}
    )
    assert ran(p, LARGE).after == 2


def test_a_loop_may_give_what_it_was_given() -> None:
    """Told is what it gives in the end, for inputs that are one tensor, too."""
    p = program(
        "x y large",
        repeat(0, 1, [n(0)]),
        aten("add_.Scalar", n(1), 1),
        *(aten("add.Tensor", n(at), 1.0) for at in (2, 5, 6)),
        bodies=(body("i x", outputs=[n(1)]),),
        outputs={"tuple": [n(7), n(3, 0)]},
    )
    run = ran(p, *(torch.zeros(4), torch.zeros(4), LARGE))
    assert run.after == 2
    x = torch.zeros(4)
    again = Ran(p, [x, x, LARGE])
    assert torch.equal(again.told[0][1][1], again.results[1])


def test_what_nobody_would_take_for_a_tensor_is_not_told() -> None:
    p = program("x", aten("view.default", n(0), [0, 1 << 21, 1 << 21]), *rest(2), outputs={"tuple": [n(1), n(4)]})
    assert ran(p, torch.zeros(0)).told == []


def test_where_something_looks_otherwise_it_is_told_at_the_end() -> None:
    """What is known of the results holds for as many non-zero elements as there were."""
    p = program(
        "x",
        aten("nonzero.default", n(0)),
        aten("sum.default", n(0)),
        aten("add.Tensor", n(1), 1),
        aten("add.Tensor", n(3), 1),
        outputs={"tuple": [n(4), n(2)]},
    )
    assert ran(p, LARGE).after == 2
    run = Ran(p, [torch.cat([LARGE[:900], torch.zeros(1_100)])])
    assert run.told == []
    assert run.results[0].shape == (900, 1)


def test_what_fails_after_it_was_told_fails() -> None:
    p = program("x", aten("sum.default", n(0)), *rest(2), outputs={"tuple": [n(4), n(1)]})
    ran(p, LARGE)
    told: list[Any] = []

    def tell(settled: Settled, small: Any) -> None:
        told.append(settled)
        ALLOWED.limit(1_000, None)

    with pytest.raises(TooLarge) as caught:
        interpreter.results(p, [LARGE], tell=tell)
    assert told
    assert caught.value.fields["node"] == 1


def test_the_policy_of_what_is_small() -> None:
    few = [torch.zeros(1_024), torch.zeros(1_025), torch.zeros(())]
    assert are_small(few) == (True, False, True)
    assert are_small([torch.zeros(1_024)] * 5) == (True, True, True, True, False)  # 16 KiB of all
    assert are_small([torch.zeros(1_024), torch.zeros(4), *[torch.zeros(5)] * 7]) == (False, True, *[False] * 7)


# --- any program --------------------------------------------------------------------------------------------


def of_tensors(seed: int) -> Program | None:
    """A random program of which only tensors come out; None where torch refuses what it does."""
    made = Maker(seed).program()
    values: list[Any] = arguments_for(made, seed)
    constants = [constant_tensor(constant) for constant in made.constants]
    try:
        for node in made.nodes:
            values.append(evaluate(node, values, constants, made.bodies))
    except Exception:
        return None
    found = [n(at) for at, value in enumerate(values) if isinstance(value, torch.Tensor)]
    return replace(made, outputs={"tuple": [*found, *({"constant": at} for at in range(len(constants)))]})


def check(seed: int) -> str:
    """Runs of a random program: what is told early of some of its results is what it gives in the end."""
    made = of_tensors(seed)
    if made is None:
        return "refused"
    chosen = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute.settled, "are_small", lambda results: tuple(chosen.random() < 0.3 for _ in results))
        patch.setattr(compute.settled, "is_sure", lambda entry: True)  # few of these are, and none fails twice
        return _check(made, seed)


def _check(made: Program, seed: int) -> str:
    outcome = "not told"
    for again in range(4):
        inputs = arguments_for(made, seed)
        if again == 3:  # all of one look are one tensor
            looks = [(each.dtype, each.shape) for each in inputs]
            inputs = [inputs[looks.index(look)] for look in looks]
        try:
            run = Ran(made, inputs)
        except GridError:
            continue
        outcome = "told" if run.told else outcome
        for settled, small in run.told:
            assert settled.after < len(prepare(made).main.steps)
            assert [tuple(shape) for _, shape in settled.looks] == [tuple(each.shape) for each in run.results]
            for early, late, is_small in zip(small, run.results, settled.small, strict=True):
                assert (early is not None) == is_small
                assert early is None or same(early, late), f"{made}\ntold {early}\nand gave {late}"
    return outcome


@settings(max_examples=4_000 if FULL else 200, deadline=None)
@given(st.integers(0, 2**48))
def test_what_is_told_of_a_random_program_is_what_it_gives(seed: int) -> None:
    check(seed)


def test_of_many_something_is_told() -> None:
    assert Counter(check(seed) for seed in range(60))["told"] >= 10
