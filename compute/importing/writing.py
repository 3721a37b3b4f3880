"""A program as it is written, node by node; references into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from compute.operations import substitute
from compute.program import Input, Node, Program
from compute.values import inline_tensor
from protocol.errors import BadFile
from protocol.sizes import check_limit


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the program: an input, what a node gives or one item of that; or a constant."""

    number: int
    at: int | None = None
    is_constant: bool = False

    def item(self, at: int) -> Ref:
        """One of the values of a node that gives several."""
        if self.at is not None or self.is_constant:
            raise BadFile("an item of a value that is one")
        return Ref(self.number, at)

    def wire(self) -> dict[str, int]:
        if self.is_constant:
            return {"constant": self.number}
        return {"node": self.number} if self.at is None else {"node": self.number, "item": self.at}


class Writer:
    """All inputs first, then calls in order. Arguments are wire values, with Refs in them."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self._nodes: list[Node] = []
        self._constants: list[Mapping[str, Any]] = []

    def input(self, given: Input) -> Ref:
        assert not self._nodes
        self.inputs.append(given)
        return Ref(len(self.inputs) - 1)

    def constant(self, tensor: torch.Tensor) -> Ref:
        """A small tensor that is written into the program."""
        self._constants.append(inline_tensor(tensor)["tensor"])
        return Ref(len(self._constants) - 1, is_constant=True)

    def call(self, name: str, args: list[Any], kwargs: Mapping[str, Any] | None = None) -> Ref:
        check_limit("MAX_NODES", len(self._nodes) + 1, "a graph of more than {allowed} operations")
        name, positional, named = substitute(name, args, kwargs or {})
        self._nodes.append(Node(name, [_wire(arg) for arg in positional], {k: _wire(v) for k, v in named.items()}))
        return Ref(len(self.inputs) + len(self._nodes) - 1)

    def program(self, outputs: Any) -> Program:
        """With outputs in tuples, lists and dicts; checked in full."""
        return Program(tuple(self.inputs), tuple(self._nodes), _output(outputs), tuple(self._constants))


def _wire(value: Any) -> Any:
    if isinstance(value, Ref):
        return value.wire()
    return [_wire(item) for item in value] if isinstance(value, list | tuple) else value


def _output(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"tuple": [_output(item) for item in value]}
    if isinstance(value, list):
        return [_output(item) for item in value]
    if isinstance(value, dict):
        return {"map": {key: _output(item) for key, item in value.items()}}
    return _wire(value)
