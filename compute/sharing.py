"""What in a program may share memory with what, and so which inputs it writes in place. From schemas alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Final

from compute import flow
from compute.flow import FLOW
from compute.operations import NUMBERS
from compute.program import Body, Node, Program
from compute.table import Entry, lookup

Roots = int
"""A set, as bits: of inputs, constants, and nodes that have memory of their own, in this order."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Of a program or a body. Inputs by their number n, constants by -1 - k.

    Attributes:
        written: the inputs and constants whose memory it changes.
        given: those whose memory its outputs may be, or be views of.
        constants: the numbers k of all constants that it names, its bodies included.
        copied: the loops and branches, by their number among the nodes, whose results are to be copied: something that
            they may share memory with is written.
    """

    written: frozenset[int]
    given: frozenset[int]
    constants: frozenset[int]
    copied: frozenset[int]


def written_inputs(program: Program) -> tuple[int, ...]:
    """The numbers of inputs that the program writes in place, directly or through a view of them."""
    return tuple(sorted(number for number in sharing(program)[-1].written if number >= 0))


def sharing(program: Program) -> list[Sharing]:
    """Of each body, in order, and last of the program itself.

    Loops and branches take and give by value (PROGRAM.md, Flow): a body that writes an input writes a copy, and what
    comes out is copied where it, or what it may share memory with, is written.
    """
    found: list[Sharing] = []
    for body in program.bodies:
        found.append(_sharing(body, found, len(program.constants)))
    return [*found, _sharing(program, found, len(program.constants))]


def _sharing(block: Body | Program, bodies: Sequence[Sharing], constants: int) -> Sharing:
    first = _Walk(block, bodies, constants, frozenset())
    if not first.written or not first.flows:
        return first.result(block)
    copied = frozenset(at for at, roots in first.flows.items() if roots & first.written)
    return _Walk(block, bodies, constants, copied).result(block)


class _Walk:
    """Goes through the nodes of a block once."""

    def __init__(
        self, block: Body | Program, bodies: Sequence[Sharing], constants: int, copied: frozenset[int]
    ) -> None:
        self.written: Roots = 0
        self.flows: dict[int, Roots] = {}
        self._copied = copied
        self._inputs, self._end = len(block.inputs), len(block.inputs) + constants
        self._constants: set[int] = set()
        self._has_flows = any(node.operation in FLOW for node in block.nodes)
        self._roots: list[Roots] = [1 << number for number in range(self._inputs)]
        for at, node in enumerate(block.nodes):
            self._roots.append(self._given(at, node, bodies))

    def _given(self, at: int, node: Node, bodies: Sequence[Sharing]) -> Roots:
        if node.operation in NUMBERS:
            return 0
        if node.operation not in FLOW:
            # What a node makes is its own; that matters only where a loop or branch may give it on.
            return self._operation(node) or (1 << self._end + at if self._has_flows else 0)
        read = flow.read(node.operation, node.args, node.kwargs)
        constants = frozenset().union(*(bodies[body].constants for body in read.bodies))
        self._constants |= constants
        own = 1 << self._end + at
        self.flows[at] = own | self._of([{"constant": number} for number in constants]) | self._of(list(read.values))
        return own if at in self._copied else self.flows[at]

    def _operation(self, node: Node) -> Roots:
        entry = lookup(node.operation)
        call = entry.named(node.args, node.kwargs)
        given = [self._of(call[parameter.name]) for parameter in entry.parameters]
        for position in entry.written(node.args, node.kwargs):
            self.written |= given[position]
        return reduce(or_, [given[position] for position in shared_by(entry)], 0)

    def _of(self, value: Any) -> Roots:
        if isinstance(value, Mapping):
            if "node" in value:
                return self._roots[value["node"]]
            if "constant" in value:
                self._constants.add(value["constant"])
                return 1 << self._inputs + int(value["constant"])
            return self._of(list(value.values()))
        if isinstance(value, list):
            return reduce(or_, map(self._of, value), 0)
        return 0

    def result(self, block: Body | Program) -> Sharing:
        given = self._of(block.outputs)
        return Sharing(self._numbers(self.written), self._numbers(given), frozenset(self._constants), self._copied)

    def _numbers(self, roots: Roots) -> frozenset[int]:
        bits = bin(roots & (1 << self._end) - 1)[:1:-1]
        numbers = [at for at, bit in enumerate(bits) if bit == "1"]
        return frozenset(at if at < self._inputs else self._inputs - 1 - at for at in numbers)


def shared_by(entry: Entry) -> list[int]:
    """The positions (in `parameters`) of arguments whose memory its result may be, or be a view of."""
    if entry.name in _RETURN_ARGUMENTS:
        return list(range(len(entry.parameters)))
    return [position for position in entry.aliases if position is not None]


# Operations that may return an argument, or a view of one, though their schema does not say so (found by running all).
_RETURN_ARGUMENTS: Final = frozenset(
    f"aten.{name if '.' in name else name + '.default'}"
    for name in (
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as", "conj_physical"),
        *("_unsafe_view", "unsafe_chunk", "unsafe_split.Tensor", "unsafe_split_with_sizes", "broadcast_tensors"),
        *("atleast_1d", "atleast_2d", "atleast_3d", "meshgrid", "meshgrid.indexing", "cartesian_prod", "chain_matmul"),
        *("einsum", "sum_to_size", "cumprod_backward"),
    )
)
