"""What private data must not tell besides their values: shapes that depend on them, and errors that quote them.

Decides; waits only to have a large program read. That an operation on private data succeeds or fails is told
(SECURITY.md says so).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from compute.dependent import DATA_DEPENDENT, may_tell_values
from compute.operations import OPERATIONS
from compute.program import Body, Input, Node, Program
from compute.writes import written_positions
from protocol import limits
from protocol.errors import Denied, GridError, NotFound, WorkerLost

PLAIN_INDICES: Final = frozenset({"int64", "int32"})
"""dtypes of indices that are no masks: how many there are is no secret."""


def told(error: GridError, labels: Iterable[str]) -> GridError:
    """The error as the asker may read it: of a computation on others' private data its kind, and nothing that it
    quotes."""
    if not labels or isinstance(error, WorkerLost):
        return error
    message = "the operation failed; what it says of private data is not shown"
    operation = error.operation if error.operation in OPERATIONS else None  # a word of the table's, not of the worker's
    return GridError.from_fault({"code": error.code, "message": message, "operation": operation, "fields": {}})


def is_indexing(name: str) -> bool:
    """Whether only the dtype of its indices decides if the operation's shape tells values."""
    return may_tell_values(name) and name not in DATA_DEPENDENT


def tells_values(name: str) -> Denied:
    return Denied(
        f"the shape of what {name} gives would tell values of private data: use torch.where(mask, x, 0) or a reduction",
        operation=name,
    )


@dataclass(frozen=True, slots=True)
class KnownProgram:
    """What matters of a program here: whether it writes in place, which node's shape may tell values (or None), and
    its inputs, if some of them name their contents (else none)."""

    writes: bool
    telling: str | None
    named: tuple[Input, ...] = ()

    def check_shapes_are_public(self) -> None:
        if self.telling is not None:
            raise tells_values(self.telling)


class KnownPrograms:
    """Remembers programs that came, by id."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, KnownProgram] = OrderedDict()

    def at_hand(self, id: str) -> KnownProgram | None:
        """What is remembered of it, if anything is."""
        return self._known.get(id)

    async def known(self, id: str, code: bytes | None) -> KnownProgram:
        """NotFound, which asks for the code, where it has not come; BadProgram where it does not check."""
        found = self._known.get(id)
        if found is None:
            if code is None:
                raise NotFound(f"program {id[:12]} is not known here; send it along")
            program = await asyncio.to_thread(Program.from_bytes, code)
            found = self._known[id] = KnownProgram(
                any(written_positions(name) for name in program.operations),
                next(_telling(program), None),
                program.inputs if any(given.content is not None for given in program.inputs) else (),
            )
            if len(self._known) > limits.KNOWN_PROGRAMS:
                self._known.popitem(last=False)
        return found


def _telling(program: Program) -> Iterator[str]:
    # A branch or loop tells nothing by shapes: whichever way it goes, it gives the same ones (compute/following.py).
    blocks: list[Body | Program] = [*program.bodies, program]
    for block in blocks:
        for node in block.nodes:
            if may_tell_values(node.operation) and not _has_plain_indices(block.inputs, node):
                yield node.operation


def _has_plain_indices(inputs: Sequence[Input], node: Node) -> bool:
    """Whether all indices are inputs of a dtype that the program names, so that it is checked when they are bound."""
    if not is_indexing(node.operation) or len(node.args) < 2 or not isinstance(node.args[1], list):
        return False
    return all(index is None or _is_plain(inputs, index) for index in node.args[1])


def _is_plain(inputs: Sequence[Input], index: Any) -> bool:
    number = index.get("node") if isinstance(index, Mapping) else None
    return isinstance(number, int) and number < len(inputs) and inputs[number].dtype in PLAIN_INDICES
