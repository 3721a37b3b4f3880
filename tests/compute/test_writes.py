"""What the peer believes of an operation by its name is what the schemas say."""

from __future__ import annotations

import pytest

from compute.operations import OPERATIONS
from compute.table import lookup
from compute.writes import written_positions
from protocol.errors import OperationNotAllowed


def test_written_positions_are_those_of_the_schemas_for_every_operation() -> None:
    checked = 0
    for name in OPERATIONS:
        try:
            entry = lookup(name)
        except OperationNotAllowed:  # optional, and not in this torch
            continue
        checked += 1
        assert entry.writes == written_positions(name), name
    assert checked > 500


@pytest.mark.parametrize("name", ["", "add_", "aten.add_", "aten..", "aten._.x.y"])
def test_a_name_that_is_no_operation_writes_nothing(name: str) -> None:
    assert written_positions(name) in ((), (0,)) and (written_positions(name) == () or name.count(".") == 2)
