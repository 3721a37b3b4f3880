"""Programs: single-assignment lists of ATen operations, as data (PROGRAM.md is the specification).

A Program is checked when it is built, and so also when it arrives: names are in the table, every reference points
backwards, sizes are within the limits (program_check.py). Whether an operation's arguments fit its schema and each
other is checked by program_types.py, which needs torch; this does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from compute import program_parser, program_text, program_wire
from compute.program_check import check
from compute.program_parts import Body, Input, Node
from compute.program_wire import VERSION, Parts
from protocol.errors import BadProgram
from protocol.sizes import check_limit

__all__ = ["VERSION", "Body", "Input", "Node", "Program"]

_TOO_LARGE: Final = "a program of {size} bytes; at most {allowed}"


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Program:
    """Inputs, then one value for each node; `outputs` says what comes out.

    Values are numbered: the inputs first, then the nodes. Arguments refer to them by {"node": number}, or
    {"node": number, "item": k} for one value of an operation that gives several; to `constants` by {"constant": k}.
    Nodes of compute.flow.FLOW run `bodies`, sub-programs, named by {"body": k}.
    Outputs are such a reference, a plain value, a list, {"tuple": [...]} or {"map": {name: ...}} of outputs.
    Two programs are equal when their bytes are.

    Raises:
        BadProgram: anything that PROGRAM.md forbids; the message names the node.
        OperationNotAllowed: an operation outside the table.
        TooLarge: more nodes, bytes, or steps of loops than allowed.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: Any
    constants: tuple[Mapping[str, Any], ...] = ()
    bodies: tuple[Body, ...] = ()
    _bytes: bytes = field(init=False, repr=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        check(self.inputs, self.nodes, self.outputs, self.constants, self.bodies)
        packed = program_wire.pack(self._parts)
        check_limit("MAX_PROGRAM", len(packed), _TOO_LARGE)
        object.__setattr__(self, "_bytes", packed)
        object.__setattr__(self, "id", hashlib.sha256(packed).hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and other._bytes == self._bytes

    def __hash__(self) -> int:
        return hash(self.id)

    def to_bytes(self) -> bytes:
        """The canonical bytes: msgpack with sorted keys. `id` is their SHA-256 in hex."""
        return self._bytes

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Program:
        """The program of these bytes, checked in full. They must be the canonical ones: one program, one id."""
        check_limit("MAX_PROGRAM", memoryview(data).nbytes, _TOO_LARGE)
        program = cls(*program_wire.unpack(data))
        if program._bytes != bytes(data):
            raise BadProgram("a program that is not in canonical form: sorted keys, shortest integers, 64-bit floats")
        return program

    @classmethod
    def from_text(cls, text: str) -> Program:
        """The program that `str` wrote so, or somebody by hand; comments do not matter. Checked in full."""
        return cls(*program_parser.from_text(text))

    def __str__(self) -> str:
        return self.text()

    def text(self, note: program_text.Note | None = None) -> str:
        """Readable, and `from_text` makes the same program of it again. `note` may comment on each value."""
        count = sum(1 for _ in self.every_node())
        return program_text.to_text(
            self._parts, f"program {self.id[:12]}: {len(self.inputs)} inputs, {count} operations", note
        )

    def every_node(self) -> Iterator[Node]:
        """All nodes, those of bodies first."""
        for body in self.bodies:
            yield from body.nodes
        yield from self.nodes

    @property
    def operations(self) -> frozenset[str]:
        """The names of all operations in it."""
        return frozenset(node.operation for node in self.every_node())

    @property
    def _parts(self) -> Parts:
        return Parts(self.inputs, self.nodes, self.outputs, self.constants, self.bodies)
