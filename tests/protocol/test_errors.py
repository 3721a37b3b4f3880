"""Errors cross the wire and come back as themselves."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest

from protocol import codec, errors, messages
from protocol.errors import GridError, NotFound, PeerError, QueryError
from protocol.messages import Fault

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, GridError) and kind is not GridError
]


def over_the_wire(error: GridError) -> GridError:
    made = Fault.of(1, error)
    (frame,) = codec.decode(codec.encode(made.type, messages.header(made)))
    fault = messages.parse(frame)
    assert isinstance(fault, Fault)
    return fault.error()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_itself(kind: type[GridError]) -> None:
    error = kind("what is wrong", operation="fetch", peer="alice", count=3, names=["a", "b"], query="#a", column=1)
    again = over_the_wire(error)
    assert type(again) is kind
    assert again.to_fault() == error.to_fault()
    assert str(again) == str(error)
    assert again.args == error.args


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_can_be_copied(kind: type[GridError]) -> None:
    error = kind("what is wrong", operation="fetch", names=["a"])
    for again in (copy.copy(error), copy.deepcopy(error), error.again()):
        assert type(again) is kind and again.to_fault() == error.to_fault() and again is not error


def test_every_code_is_used_once() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_every_error_is_in_the_tree_of_the_module() -> None:
    assert errors.__doc__ is not None
    drawn = [word.strip("│├└─ ") for line in errors.__doc__.splitlines() for word in line.split("  ")[:9]]
    assert [kind.__name__ for kind in KINDS if kind.__name__ not in drawn] == []


def test_every_code_that_crosses_the_wire_is_in_the_specification() -> None:
    text = Path(errors.__file__).with_name("SPEC.md").read_text()
    listed = text[text.index("Codes:") :].split("`")[1].split()
    crossing = [kind.code for kind in KINDS if not issubclass(kind, errors.SetupError)]
    assert sorted(listed) == sorted(crossing)


def test_an_unknown_code_is_a_peer_error_that_keeps_it() -> None:
    error = GridError.from_fault({"code": "from_the_future", "message": "new", "peer": "alice", "fields": {"a": 1}})
    assert type(error) is PeerError
    assert (error.message, error.peer, error.fields) == ("new", "alice", {"a": 1, "code": "from_the_future"})


@pytest.mark.parametrize("fault", [{}, {"code": None}, {"code": ["x"]}, {"code": "error"}, {"fields": None}], ids=repr)
def test_any_fault_gives_an_error(fault: dict[str, object]) -> None:
    assert isinstance(GridError.from_fault(fault), PeerError)


def test_fields_cannot_take_the_place_of_attributes() -> None:
    hostile = {"message": "other", "operation": "other", "peer": "other", "self": 1, "args": 2, "code": "other"}
    error = GridError.from_fault({"code": "not_found", "message": "no", "fields": hostile})
    assert isinstance(error, NotFound)
    assert (error.message, error.operation, error.peer, error.code) == ("no", None, None, "not_found")
    assert str(error) == "no"


def test_a_fault_names_operation_and_peer() -> None:
    assert str(NotFound("no such object", operation="fetch", peer="alice")) == "no such object [fetch at alice]"


@pytest.mark.parametrize(
    ("column", "spaces"), [(0, 0), (3, 3), (4, 4), (99, 4), (2**62, 4), (-1, 0), ("3", 0), (None, 0), (True, 0)]
)
def test_a_query_error_points_at_its_column(column: object, spaces: int) -> None:
    error = QueryError("an operator is missing", query="#a &", column=column)
    assert str(error).splitlines()[-1] == "  " + " " * spaces + "^"


def test_errors_are_what_python_calls_them() -> None:
    assert issubclass(errors.NotFound, LookupError)
    assert issubclass(errors.Denied, PermissionError)
    assert issubclass(errors.TimedOut, TimeoutError)
    assert issubclass(errors.BadTensor, ValueError)
    assert issubclass(errors.NeedsAwait, TypeError)
