"""What is told of a computation on others' private data that failed."""

from __future__ import annotations

import pytest

from compute.program import Body, Input, Node, Program
from peer.secrecy import KnownPrograms, told
from protocol.errors import Denied, OperationFailed, WorkerLost


def test_an_error_about_private_data_keeps_its_kind_and_no_word_of_the_workers() -> None:
    error = OperationFailed("the 7th row is 42", operation="the 7th row is 42", peer="the 7th row is 42", type="42")
    shown = told(error, {"bob"})
    assert type(shown) is OperationFailed
    assert "42" not in str(shown.to_fault())


def test_the_operation_that_failed_is_named_where_the_table_has_it() -> None:
    assert told(OperationFailed("no", operation="aten.mm.default"), {"bob"}).operation == "aten.mm.default"


def test_of_ones_own_data_and_of_a_lost_worker_everything_is_told() -> None:
    own, lost = OperationFailed("the 7th row is 42", operation="x"), WorkerLost("it died")
    assert told(own, ()) is own
    assert told(lost, {"bob"}) is lost


# --- programs ---------------------------------------------------------------------------------------------

INDICES = [{"node": 1}]


def in_a_body(node: Node, *inputs: Input) -> Program:
    """A program whose body has this node."""
    body = Body(inputs, (node,), [{"node": len(inputs)}])
    given = [{"node": at} for at in range(len(inputs))]
    return Program(
        tuple(Input(name.name) for name in inputs),
        (Node("flow.cond", [True, {"body": 0}, {"body": 0}, given]),),
        {"node": len(inputs), "item": 0},
        bodies=(body,),
    )


@pytest.mark.parametrize(
    "program",
    [
        in_a_body(Node("aten.nonzero.default", [{"node": 0}]), Input("x")),
        in_a_body(Node("aten.index.Tensor", [{"node": 0}, INDICES]), Input("x"), Input("mask")),
        in_a_body(Node("aten.index.Tensor", [{"node": 0}, INDICES]), Input("x"), Input("mask", "bool")),
        in_a_body(Node("aten.masked_select.default", [{"node": 0}, {"node": 0}]), Input("x")),
    ],
)
async def test_a_body_whose_shapes_tell_values_is_found(program: Program) -> None:
    known = await KnownPrograms().known(program.id, program.to_bytes())
    with pytest.raises(Denied, match="would tell values"):
        known.check_shapes_are_public()


async def test_indices_that_a_body_declares_are_plain_ones() -> None:
    program = in_a_body(Node("aten.index.Tensor", [{"node": 0}, INDICES]), Input("x"), Input("rows", "int64"))
    (await KnownPrograms().known(program.id, program.to_bytes())).check_shapes_are_public()
