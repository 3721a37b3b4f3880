"""A program out of what lowering wrote down: numbered, and without what nothing hangs on.

While it is written, a value is {secret: k} (input k), {given: [kind, k]} (in the body of a loop, loops.py), {public: k}
(a public tensor beside the program) or {made: k}, what node k gives, perhaps with an item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from compute.dtypes import NAME_OF
from compute.program import Body, Input, Node, Program


def assembled(
    inputs: Sequence[Input],
    public: Sequence[torch.Tensor],
    nodes: Sequence[Node],
    constants: Sequence[Mapping[str, Any]],
    outputs: Any,
    bodies: Sequence[Body] = (),
) -> Program:
    """The program: its inputs are the secret ones, then the public tensors."""
    main = body_of(inputs, public, nodes, outputs, {})
    return Program(main.inputs, main.nodes, main.outputs, tuple(constants), tuple(bodies))


def body_of(
    inputs: Sequence[Input],
    public: Sequence[torch.Tensor],
    nodes: Sequence[Node],
    outputs: Any,
    starts: Mapping[int, int],
) -> Body:
    """The same of the body of a loop. `starts`: where the inputs of each kind begin."""
    beside = [Input(f"public.{at}", NAME_OF[each.dtype], tuple(each.shape)) for at, each in enumerate(public)]
    used = sorted(_used(nodes, outputs))
    place = {at: index for index, at in enumerate(used)}

    def numbered(value: Any) -> Any:
        if isinstance(value, list):
            return [numbered(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        if "secret" in value:
            return {"node": value["secret"]}
        if "given" in value:
            kind, at = value["given"]
            return {"node": starts[kind] + at}
        if "public" in value:
            return {"node": len(inputs) + value["public"]}
        if "made" in value:
            number = {"node": len(inputs) + len(beside) + place[value["made"]]}
            return {**number, "item": value["item"]} if "item" in value else number
        return {key: numbered(item) for key, item in value.items()}

    kept = tuple(
        Node(
            nodes[at].operation,
            numbered(nodes[at].args),
            {key: numbered(each) for key, each in nodes[at].kwargs.items()},
        )
        for at in used
    )
    return Body((*inputs, *beside), kept, numbered(outputs))


def _used(nodes: Sequence[Node], outputs: Any) -> set[int]:
    """The nodes that something of the outputs hangs on."""
    used: set[int] = set()
    found = list(_made(outputs))
    while found:
        at = found.pop()
        if at not in used:
            used.add(at)
            found += _made([*nodes[at].args, *nodes[at].kwargs.values()])
    return used


def _made(value: Any) -> Iterator[int]:
    """The nodes that a written argument refers to."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _made(item)
    elif isinstance(value, Mapping):
        if "made" in value:
            yield value["made"]
        else:
            yield from _made(list(value.values()))
