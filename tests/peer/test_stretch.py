"""What is the same in operations that come again, and what a hostile end may say of it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest

from peer.stretch import Kept, Stretch, Use
from peer.worker.taught import Taught
from protocol import limits
from protocol.errors import BadRequest, GridError
from protocol.tensors import TensorHeader

X, Y, Z, W = (bytes(15) + bytes([number]) for number in (1, 2, 3, 4))
STEP = [
    ["aten.mul.Tensor", [X, 0.5], {}, [Y]],
    ["aten.add_.Tensor", [W, Y], {"alpha": 0.25}, []],
    ["aten.cat.default", [[Y, X], 0], {}, [Z]],
    ["aten.sum.dim_IntList", [Z, [0], True], {"dtype": {"dtype": "float32"}}, []],
]


def _stretch(operations: Any = STEP) -> Stretch:
    stretch = Stretch.of(operations)
    assert stretch is not None
    return stretch


def _args(given: bytes = X + W, outs: bytes = Y + Z, floats: Any = (0.5, 0.25)) -> dict[str, Any]:
    return {"given": given, "outs": outs, "floats": list(floats) if type(floats) is tuple else floats}


def test_a_use_gives_the_operations_back() -> None:
    use = Use(_stretch(), _args())
    assert use.operations == STEP
    assert list(use.ids) == [X, W] and list(use.outs) == [Y, Z]
    assert use.stretch.is_writing and use.stretch.written == (1,)


def test_another_use_has_other_ids_and_floats() -> None:
    a, b, c, d = (bytes(14) + bytes([1, number]) for number in range(4))
    operations = Use(_stretch(), _args(a + b, c + d, (1.0, 2.0))).operations
    assert operations[0] == ["aten.mul.Tensor", [a, 1.0], {}, [c]]
    assert operations[1] == ["aten.add_.Tensor", [b, c], {"alpha": 2.0}, []]


@pytest.mark.parametrize(
    "args",
    [
        _args(given=X),
        _args(given=X + W + Y),
        _args(given=(X + W)[:-1]),
        _args(outs=Y),
        _args(outs=Y + Y),
        _args(floats=(0.5,)),
        _args(floats=(0.5, 1)),
        _args(floats=(0.5, "x")),
        _args(floats={"0": 0.5, "1": 0.5}),
        _args(floats=7),
        _args(floats=None),
        {**_args(), "given": [X, W]},
        {**_args(), "outs": None},
        {},
    ],
)
def test_a_use_that_does_not_fit_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Use(_stretch(), args)


@pytest.mark.parametrize(
    "operation",
    [
        ["grid.manual_seed", [1], {}, []],
        ["a", [X], {}, [Z]],
        ["aten.no_such_thing.default", [X], {}, [Z]],
        ["aten.add_.Tensor", [], {"self": X, "other": X}, []],
        ["aten.add_.Tensor", [X], {"other": Y}, []],
        ["aten.neg.default", [X], {}, [X]],
        ["aten.neg.default", [X], {}, [bytes(16), bytes(16)]],
        ["aten.neg.default", [b"short"], {}, [Z]],
        ["aten.neg.default", [[[X]]], {}, [Z]],
        ["aten.neg.default", [{"tensor": b"", "dtype": "float32"}], {}, [Z]],
        ["aten.neg.default", [{}], {}, [Z]],
        ["aten.neg.default", [{"dtype": [X]}], {}, [Z]],
        ["aten.neg.default", [X], {}],
        ["aten.neg.default", X, {}, []],
        "aten.neg.default",
        None,
    ],
)
def test_what_is_not_kept(operation: Any) -> None:
    assert Stretch.of([STEP[0], operation]) is None


def test_an_id_is_made_once() -> None:
    assert Stretch.of([STEP[0], STEP[0]]) is None


def test_containers_without_end_are_not_kept() -> None:
    assert Stretch.of([["aten.neg.default", [[] for _ in range(limits.MAX_STRETCH // 2)], {}, []]]) is None
    assert Stretch.of([["aten.neg.default", [X, *([0] for _ in range(6))], {}, [Y]]]) is not None
    most = limits.STRETCH_CONTAINERS * limits.MAX_BATCH
    assert Stretch.of([["aten.neg.default", [[]] * most, {}, []]]) is not None
    assert Stretch.of([["aten.neg.default", [[]] * (most + 1), {}, []]]) is None


@pytest.mark.parametrize("number", [-1, limits.MAX_STRETCHES, 1 << 70, True, None, "1", 1.0, [1]])
def test_a_number_that_is_none(number: Any) -> None:
    kept = Kept()
    with pytest.raises(BadRequest):
        kept.keep(number, STEP, 100)
    with pytest.raises(BadRequest):
        kept.asked({"again": number, **_args()})


def _asked(kept: Kept, args: dict[str, Any]) -> Use:
    use = kept.asked({"again": 3, **args})
    assert isinstance(use, Use)
    return use


def test_operations_themselves_are_not_looked_at_and_nothing_is_no_request() -> None:
    operations = [None]
    assert Kept().asked({"operations": operations, "again": 3}) is operations
    for args in ({}, {"operations": ()}, {"operations": {}, "again": None}):
        with pytest.raises(BadRequest, match="operations is a list"):
            Kept().asked(args)


def test_what_is_kept_is_replaced_and_found_no_more_where_it_is_refused() -> None:
    kept = Kept()
    assert kept.keep(3, STEP, 100) and _asked(kept, _args()).operations == STEP
    assert kept.keep(3, STEP[:1], 100) and len(_asked(kept, _args(X, Y, (0.5,))).operations) == 1
    assert not kept.keep(3, STEP, limits.MAX_STRETCH + 1)
    with pytest.raises(BadRequest):
        kept.asked({"again": 3, **_args(X, Y, (0.5,))})
    assert not kept.keep(4, STEP[:1] * (limits.MAX_BATCH + 1), 100)
    assert not kept.keep(5, ["no operation"], 100)
    assert not kept.keep(6, [], 100), "a worker would have nothing to learn of it"


def test_what_is_kept_has_a_bound_in_memory() -> None:
    kept, nbytes = Kept(), _stretch().nbytes
    assert [kept.keep(number, STEP, 100, 3 * nbytes) for number in range(4)] == [True, True, True, False]
    assert kept.nbytes == 3 * nbytes
    assert kept.keep(0, STEP, 100, 3 * nbytes), "in place of what had the number"
    assert not kept.keep(1, STEP, limits.MAX_STRETCH + 1, 3 * nbytes) and kept.nbytes == 2 * nbytes
    assert kept.keep(3, STEP, 100, 3 * nbytes)


@pytest.mark.parametrize(
    "operation",
    [
        ["aten.neg.default", [1000 + number for number in range(30)], {}, []],
        ["aten.neg.default", [1.5] * 60, {}, []],
        ["aten.neg.default", [], {f"k{number}": number for number in range(20)}, []],
        ["aten.neg.default", ["text"] * 30, {}, []],
        ["aten.neg.default", [[1000 + number] for number in range(3)], {"dtype": {"dtype": "float32"}}, []],
    ],
    ids=["items", "floats", "names", "texts", "lists"],
)
def test_a_stretch_takes_about_what_is_counted_for_it_at_most(operation: Any) -> None:
    packed = msgpack.packb([operation] * 20)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    stretches = [_stretch(msgpack.unpackb(packed)) for _ in range(10)]
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken < 1.5 * sum(stretch.nbytes for stretch in stretches)


# --- what a worker says of it -------------------------------------------------------------------------------


def _read(fields: list[Any], count: int) -> list[Any]:
    assert len(fields[0]) == count
    return list(fields[0])


def test_a_worker_may_not_refer_to_what_it_never_told() -> None:
    taught = Taught(_stretch(), 1)
    with pytest.raises(ValueError):
        taught.results([None], _read)


def test_results_as_before_are_those_that_it_told_last() -> None:
    taught, header, other = Taught(_stretch(), 1), TensorHeader("float32", (3,)), TensorHeader("int64", ())
    told = [[header], [header], [other], [header]]
    assert taught.results([told], _read) == told
    assert taught.results([None], _read) == (header, other)


@pytest.mark.parametrize("told", [[[], [], [], []], [[GridError], [], [], []]])
def test_results_that_failed_or_do_not_fit_are_not_what_others_are_like(told: list[Any]) -> None:
    header = TensorHeader("float32", (3,))
    taught = Taught(_stretch(), 1)
    taught.results([[[header], [header], [header], [header]]], _read)
    taught.results([[GridError("why") if each == [GridError] else each for each in told]], _read)
    with pytest.raises(ValueError):
        taught.results([None], _read)
