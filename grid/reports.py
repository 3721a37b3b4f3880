"""What a run took, node by node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

from compute.program import Program
from grid.show import size
from protocol import limits
from protocol.errors import BadTensor

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What one operation of a program took, in all its runs.

    Attributes:
        body: the number of the sub-program that it is in; None for one of the program itself.
        node: its number there, from 0; `operation` is its name.
        runs: how often it ran.
        seconds: of the clock. Those of a loop are its body's, too.
        nbytes: bytes of memory that its results took and that were not there before; a view takes none.
        peak: bytes that the program had in use at most when it ended, inputs not counted.
    """

    body: int | None
    node: int
    operation: str
    runs: int
    seconds: float
    nbytes: int
    peak: int


@dataclass(frozen=True)
class RunReport:
    """What a run took; print it for the program's text with times and bytes beside its lines.

    Attributes:
        peer: the name of the peer where it ran.
        program: what ran.
        seconds: of the clock, of all operations of the program.
        peak: bytes that it had in use at most, inputs not counted.
        nodes: those that ran, the program's own first.
    """

    peer: str
    program: Program
    seconds: float
    peak: int
    nodes: tuple[NodeReport, ...]

    def __str__(self) -> str:
        rows = {(row.body, row.node): row for row in self.nodes}
        width = max(map(len, map(self._taken, self.nodes)), default=0)

        def note(body: int | None, number: int) -> str:
            inputs = self.program.inputs if body is None else self.program.bodies[body].inputs
            row = rows.get((body, number - len(inputs)))
            return "" if row is None else self._taken(row)

        text = self.program.text(note)
        head = f"ran at {self.peer} in {duration(self.seconds)}, with {size(self.peak)} in use at most"
        return "\n".join([head, *(_aligned(line, width) for line in text.splitlines())])

    def _taken(self, row: NodeReport) -> str:
        share = row.seconds / self.seconds if self.seconds else 0.0
        runs = "" if row.runs == 1 else f" in {row.runs} runs"
        return f"{duration(row.seconds)} {share:4.0%}  {size(row.nbytes)}{runs}"

    def slowest(self, count: int = 10) -> tuple[NodeReport, ...]:
        """The nodes that took longest, without loops and branches, whose time is that of their bodies."""
        own = [row for row in self.nodes if not row.operation.startswith("flow.")]
        return tuple(sorted(own, key=lambda row: -row.seconds)[:count])

    @classmethod
    def of(cls, peer: str, program: Program, data: bytes) -> RunReport:
        """What the peer says (SPEC.md, Reports). BadTensor for what is no such thing."""
        try:
            given = msgpack.unpackb(data, raw=False, max_array_len=limits.MAX_NODES, max_map_len=16, max_ext_len=0)
            nodes = tuple(_node(program, *row) for row in given["nodes"])
            return cls(peer, program, float(given["seconds"]), int(given["peak"]), nodes)
        except (KeyError, IndexError, TypeError, ValueError, msgpack.exceptions.UnpackException) as error:
            raise BadTensor(f"{peer} gave a report that does not decode: {error}") from None


def duration(seconds: float) -> str:
    """Seconds for people, to three digits: 1.2 s, 35 ms, 4.1 us."""
    for unit, name in _TIMES:
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.2g} us"


def _node(program: Program, body: int | None, node: int, runs: int, seconds: float, nbytes: int, peak: int) -> Any:
    nodes = program.nodes if body is None else program.bodies[body].nodes
    if node < 0 or (body is not None and body < 0):
        raise ValueError("a node of a number below zero")
    return NodeReport(body, int(node), nodes[node].operation, int(runs), float(seconds), int(nbytes), int(peak))


def _aligned(line: str, width: int) -> str:
    code, mark, note = line.partition("  # ")
    return f"{note:>{width}}  {code}" if mark else f"{'':{width}}  {line}"
