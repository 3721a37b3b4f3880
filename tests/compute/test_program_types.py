"""Types of programs: what fits passes, what does not is named, and what cannot be known before it runs is left to the
run."""

from typing import Any

import pytest
import torch

from compute.interpreter import run
from compute.program import Body, Input, Node, Program
from compute.program_types import check_types
from protocol.errors import BadProgram, TooLarge
from tests.compute.flows import aten, body, cond, each, loop, n, program, repeat, scan

ROWS = (Input("x", "float32", ("rows", 4)),)
FIXED = (Input("x", "float32", (3, 4)),)
DOUBLED = body("x", aten("mul.Tensor", n(0), 2.0))
TRUE = body("x", aten("isnan.default", n(0)), aten("all.default", n(1)))


def mm(*inputs: Input) -> Program:
    return program(inputs, aten("mm.default", n(0), n(1)), outputs=n(len(inputs)))


GOOD: dict[str, Program] = {
    "nothing": program((), outputs={"tuple": []}),
    "any input": program("x y", aten("mm.default", n(0), n(1)), outputs=n(2)),
    "a size that may be any": mm(Input("x", "float32", (None, 4)), Input("y", "float32", (5, 3))),
    "a named size": mm(Input("x", "float32", ("rows", 4)), Input("y", "float32", (4, "columns"))),
    "names for what has to be the same": mm(Input("x", "float32", ("a", "b")), Input("y", "float32", ("c", "d"))),
    "a size that has to be a multiple": program(ROWS, aten("view.default", n(0), [-1, 7]), outputs=n(1)),
    "a size that has to be large": program(
        (Input("x", "float32", (1, 1, "w", "w")), Input("k", "float32", (1, 1, 50, 50))),
        aten("conv2d.default", n(0), n(1)),
        outputs=n(2),
    ),
    "a size that has to be small": program(
        (Input("x", "float32", ("n", 8)), Input("positions", "float32", (64, 8))),
        aten("sym_size.int", n(0), 0),
        aten("slice.Tensor", n(1), 0, 0, n(2)),
        aten("add.Tensor", n(0), n(3)),
        outputs=n(4),
    ),
    "a size that makes it too large": program(
        (Input("x", "float32", ("a", "b", "c", "d", "e")),), aten("exp.default", n(0)), outputs=n(1)
    ),
    "a shape that hangs on data": program(
        FIXED, aten("nonzero.default", n(0)), aten("mm.default", n(1), n(1)), outputs=n(2)
    ),
    "items of what nobody knows": program(
        "x", aten("split.Tensor", n(0), 1), aten("relu.default", n(1, 7)), outputs=n(2)
    ),
    "a branch": program(ROWS, cond(True, 0, 0, n(0)), bodies=(DOUBLED,)),
    "a loop": program(ROWS, loop(0, 1, [n(0)]), bodies=(TRUE, DOUBLED)),
    "a count that nobody knows": program(
        (*ROWS, Input("c")), repeat(0, n(1), [n(0)]), bodies=(body("i x", aten("relu.default", n(1))),)
    ),
    "a loop over rows": program(ROWS, each(0, [n(0)]), bodies=(DOUBLED,)),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_fits_passes(name: str) -> None:
    check_types(GOOD[name])


SUMMED = body("x", aten("sum.default", n(0)))
NOT = body("i x", aten("t.default", n(1)))
BAD: dict[str, tuple[Program, str]] = {
    "shapes": (mm(Input("x", "float32", ("rows", 4)), Input("y", "float32", (5, 3))), r"node 0 \(aten\.mm\.default\)"),
    "dtypes": (mm(Input("x", "float32", (2, 2)), Input("y", "int64", (2, 2))), r"node 0 \(aten\.mm\.default\)"),
    "a rank": (mm(Input("x", "float32", (2,)), Input("y", "float32", (2, 2))), "aten.mm.default"),
    "a number for a tensor that is written": (program(FIXED, aten("add_.Tensor", 1, n(0)), outputs=n(1)), "'self'"),
    "a word for a number": (program(FIXED, aten("sum.dim_IntList", n(0), ["1"]), outputs=n(1)), "'dim'"),
    "a tensor for a number": (program(FIXED, aten("select.int", n(0), 0, n(0)), outputs=n(1)), "'index'"),
    "an argument too many": (program(FIXED, aten("relu.default", n(0), 1), outputs=n(1)), "takes 1 positional"),
    "an argument of another name": (program(FIXED, aten("relu.default", n(0), x=1), outputs=n(1)), "no argument 'x'"),
    "an argument too few": (program(FIXED, aten("add.Tensor", n(0)), outputs=n(1)), "needs the argument 'other'"),
    "of what nobody knows": (program("x", aten("select.int", n(0), "0", 1), outputs=n(1)), "'dim'"),
    "an item of one tensor": (program(FIXED, aten("relu.default", n(0)), outputs=n(1, 0)), "no item 0"),
    "an item beyond": (program(FIXED, aten("max.dim", n(0), 1), outputs=n(1, 2)), "no item 2"),
    "a tensor in arithmetic": (program(FIXED, Node("int.add", [n(0), 1]), outputs=n(1)), "takes numbers"),
    "division by nothing": (program(FIXED, Node("int.floordiv", [1, 0]), outputs=n(1)), "int.floordiv"),
    "branches": (program(ROWS, cond(True, 0, 1, n(0)), bodies=(SUMMED, DOUBLED)), "branches give different things"),
    "a branch that cannot run": (
        program(ROWS, cond(True, 0, 1, n(0)), bodies=(DOUBLED, body("x", aten("mm.default", n(0), n(0))))),
        r"body 1, node 0 \(aten\.mm\.default\)",
    ),
    "a predicate": (program(ROWS, cond(n(0), 0, 0, n(0)), bodies=(DOUBLED,)), "one truth value"),
    "a test": (program(FIXED, loop(0, 0, [n(0)]), bodies=(DOUBLED,)), "one truth value"),
    "what is carried": (program(FIXED, repeat(0, 3, [n(0)]), bodies=(NOT,)), r"carried value 0 is float32 \[3, 4\]"),
    "what is carried in no iteration": (program(FIXED, repeat(0, 0, [n(0)]), bodies=(NOT,)), "carried value 0"),
    "a scan": (
        program(FIXED, scan(0, [n(0)], [n(0)]), bodies=(body("c x", aten("mm.default", n(0), n(1))),)),
        r"body 0, node 0 \(aten\.mm\.default\)",
    ),
    "lengths": (
        program((Input("x", "float32", (3,)), Input("y", "float32", (4,))), each(0, [n(0), n(1)]), bodies=(
            body("a b", aten("add.Tensor", n(0), n(1))),)),
        "of one length",
    ),
    "the inputs of a body": (
        program(FIXED, repeat(0, 1, [n(0)]), bodies=(Body((Input("i"), Input("x", "int64")), (), [n(1)]),)),
        "'x' is int64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_and_named(name: str) -> None:
    bad, words = BAD[name]
    with pytest.raises(BadProgram, match=words):
        check_types(bad)


def test_the_node_of_a_body_is_told() -> None:
    with pytest.raises(BadProgram) as caught:
        check_types(BAD["a scan"][0])
    assert (caught.value.fields["body"], caught.value.fields["node"]) == (0, 0)
    assert caught.value.operation == "aten.mm.default"


def test_growth_of_fixed_shapes_is_refused() -> None:
    nodes = [aten("cat.default", [n(at), n(at)]) for at in range(60)]
    with pytest.raises(TooLarge):
        check_types(program((Input("x", "float32", (2,)),), *nodes, outputs=n(60)))


def test_nothing_is_written_while_types_are_checked() -> None:
    data = {"dtype": "float32", "shape": [2], "data": bytes(8)}
    p = Program((), (aten("add_.Tensor", {"constant": 0}, 1.0),), n(0), (data,))
    check_types(p)
    check_types(p)
    assert run(p, []).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("given", [torch.ones(3, 4), torch.ones(0, 4)])
def test_what_passes_runs(given: torch.Tensor) -> None:
    found: Any = run(GOOD["a branch"], [given])
    assert torch.equal(found, given * 2)
