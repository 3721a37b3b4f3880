"""Programs with loops and branches, written shortly."""

from __future__ import annotations

from typing import Any

from compute.program import Body, Input, Node, Program


def n(number: int, item: int | None = None) -> dict[str, int]:
    """A reference to a value."""
    return {"node": number} if item is None else {"node": number, "item": item}


def inputs(names: str) -> tuple[Input, ...]:
    return tuple(Input(name) for name in names.split())


def body(names: str, *nodes: Node, outputs: list[Any] | None = None) -> Body:
    """Gives its last value where nothing else is said."""
    given = inputs(names)
    return Body(given, nodes, [n(len(given) + len(nodes) - 1)] if outputs is None else outputs)


def program(
    names: str | tuple[Input, ...], *nodes: Node, bodies: tuple[Body, ...] = (), outputs: Any = None
) -> Program:
    """As it comes over the wire; it gives the first item of its last node where nothing else is said."""
    given = inputs(names) if isinstance(names, str) else names
    last = n(len(given) + len(nodes) - 1, 0)
    built = Program(given, nodes, last if outputs is None else outputs, bodies=bodies)
    return Program.from_bytes(built.to_bytes())


def aten(name: str, *args: Any, **kwargs: Any) -> Node:
    return Node(f"aten.{name}", list(args), kwargs)


def cond(predicate: Any, then: int, otherwise: int, *operands: Any) -> Node:
    return Node("flow.cond", [predicate, {"body": then}, {"body": otherwise}, list(operands)])


def loop(test: int, step: int, carried: list[Any], *operands: Any, **kwargs: Any) -> Node:
    return Node("flow.while", [{"body": test}, {"body": step}, carried, list(operands)], kwargs)


def repeat(step: int, count: Any, carried: list[Any], *operands: Any) -> Node:
    return Node("flow.repeat", [{"body": step}, count, carried, list(operands)])


def scan(step: int, carried: list[Any], sliced: list[Any], *operands: Any, **kwargs: Any) -> Node:
    return Node("flow.scan", [{"body": step}, carried, sliced, list(operands)], kwargs)


def each(step: int, sliced: list[Any], *operands: Any) -> Node:
    return Node("flow.map", [{"body": step}, sliced, list(operands)])
