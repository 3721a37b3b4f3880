"""Loops and branches as nodes: which there are, what each takes, and how its arguments are read (PROGRAM.md, Flow).

A flow node runs bodies, which are sub-programs that stand before it in the program. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from compute.wire import Malformed, is_index, shown
from protocol import limits

FLOW: Final[Mapping[str, tuple[str, ...]]] = {
    "flow.cond": ("value", "body", "body", "operands"),
    "flow.while": ("test", "body", "carried", "operands"),
    "flow.repeat": ("body", "value", "carried", "operands"),
    "flow.scan": ("body", "carried", "sliced", "operands"),
    "flow.map": ("body", "sliced", "operands"),
}
"""The flow nodes, and what stands at each position of their arguments."""

_NAMED: Final[Mapping[str, frozenset[str]]] = {
    "flow.while": frozenset({"limit"}),
    "flow.scan": frozenset({"reverse"}),
}


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow node, read.

    Attributes:
        name: a key of FLOW.
        bodies: the numbers of its bodies: cond has two, then and otherwise; while has two, test and step.
        value: the predicate of a cond, or the count of a repeat.
        carried: what goes from one iteration to the next, as it is before the first.
        sliced: what is gone through along its first dimension, one slice for each iteration.
        operands: what each iteration is given besides.
        limit: of a while: with more iterations than this it has failed.
        reverse: of a scan: the last slice comes first.
    """

    name: str
    bodies: tuple[int, ...]
    value: Any = None
    carried: tuple[Any, ...] = ()
    sliced: tuple[Any, ...] = ()
    operands: tuple[Any, ...] = ()
    limit: int = limits.MAX_ITERATIONS
    reverse: bool = False

    @property
    def values(self) -> tuple[Any, ...]:
        """Every argument that may refer to a value of the program."""
        return (self.value, *self.carried, *self.sliced, *self.operands)

    @property
    def count(self) -> int | None:
        """How often its body runs at least, where the node says so itself; None where that depends on values."""
        return self.value if self.name == "flow.repeat" and type(self.value) is int else None

    def taken(self) -> tuple[int, ...]:
        """How many inputs each body has to have."""
        given = len(self.carried) + len(self.sliced) + len(self.operands)
        return (given + (self.name == "flow.repeat"),) * len(self.bodies)

    def check_given(self, given: Sequence[int]) -> None:
        """Malformed unless the bodies, which give so many values, give what a node of this kind takes."""
        name, carried = self.name, len(self.carried)
        if name == "flow.cond" and given[0] != given[1]:
            raise Malformed(f"its branches give {given[0]} and {given[1]} values; both have to give as many")
        if name == "flow.while" and given[0] != 1:
            raise Malformed(f"the body that tests gives {given[0]} values; it has to give one, a truth value")
        if name in ("flow.while", "flow.repeat") and given[-1] != carried:
            raise Malformed(f"its body gives {given[-1]} values, but {carried} are carried to the next iteration")
        if name == "flow.scan" and given[0] < carried:
            raise Malformed(f"its body gives {given[0]} values, but {carried} are carried to the next iteration")


def read(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> Flow:
    """The flow node of these arguments; Malformed where they are not of its form. What they refer to is not looked at,
    nor whether the bodies exist."""
    form = FLOW[name]
    if len(args) != len(form):
        raise Malformed(f"takes {len(form)} arguments ({', '.join(form)}), not {len(args)}")
    if not named.keys() <= _NAMED.get(name, frozenset()):
        raise Malformed(f"takes no argument {shown(next(key for key in named if key not in _NAMED.get(name, ())))}")
    bodies: list[int] = []
    parts: dict[str, Any] = {}
    for kind, value in zip(form, args, strict=True):
        if kind in ("body", "test"):
            bodies.append(_body(value))
        elif kind == "value":
            parts["value"] = value
        elif not isinstance(value, list):
            raise Malformed(f"its {kind} are a list")
        else:
            parts[kind] = tuple(value)
    flow = Flow(name, tuple(bodies), **parts, **named)
    _check_plain(flow)
    return flow


def _check_plain(flow: Flow) -> None:
    """What can be said without knowing what values are."""
    if flow.name == "flow.repeat" and not isinstance(flow.value, Mapping) and type(flow.value) is not int:
        raise Malformed(f"its count is an integer or a value, not {shown(flow.value)}")
    if flow.count is not None and not is_index(flow.count, limits.MAX_ITERATIONS + 1):
        raise Malformed(f"{shown(flow.count)} iterations; at least 0 and at most {limits.MAX_ITERATIONS}")
    if flow.name == "flow.cond" and not isinstance(flow.value, Mapping | bool):
        raise Malformed(f"its predicate is a value or a truth value, not {shown(flow.value)}")
    if not is_index(flow.limit, limits.MAX_ITERATIONS + 1):
        raise Malformed(f"its limit is an integer from 0 to {limits.MAX_ITERATIONS}, not {shown(flow.limit)}")
    if type(flow.reverse) is not bool:
        raise Malformed(f"reverse is true or false, not {shown(flow.reverse)}")
    if flow.name in ("flow.scan", "flow.map") and not flow.sliced:
        raise Malformed("nothing to go through: its sliced values are an empty list")


def _body(value: object) -> int:
    if not isinstance(value, Mapping) or set(value) != {"body"} or not is_index(value["body"], limits.MAX_BODIES):
        raise Malformed(f"a body is named by {{body: number}}, not by {shown(value)}")
    return int(value["body"])
