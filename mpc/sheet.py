"""What is written down while a program is lowered: nodes, and the public values and bodies of loops that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from compute.dtypes import NAME_OF
from compute.program import Body, Input, Node
from compute.values import encode_call, header_of, inline_tensor
from mpc.varying import Varying
from protocol import limits
from protocol.sizes import check_limit

Reference = dict[str, Any]
"""What stands for a value while it is written (assembly.py)."""


class Sheet:
    """One block: the program, or the body of a loop.

    Args:
        varying: what is public and differs from iteration to iteration.
        outside: of the body of a loop: the block that it is in, with which it has constants and bodies in common.
        slice_of: gives the reference of what differs, of its values.

    Attributes:
        inputs: the secret ones.
        public: the values of the public ones, which follow them.
    """

    def __init__(
        self,
        varying: Varying,
        outside: Sheet | None = None,
        slice_of: Callable[[torch.Tensor, Sequence[torch.Tensor]], Reference] | None = None,
    ) -> None:
        self._varying, self._slice_of = varying, slice_of
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.public: list[torch.Tensor] = []
        self.constants: list[Mapping[str, Any]] = [] if outside is None else outside.constants
        self.bodies: list[Body] = [] if outside is None else outside.bodies
        self._known: dict[tuple[int, int], Reference] = {}  # of public tensors that were written down
        self._alive: list[torch.Tensor] = []

    @property
    def _lists(self) -> tuple[list[Any], ...]:
        return self.nodes, self.public, self.constants, self.bodies

    def mark(self) -> tuple[Any, ...]:
        """Where the writing stands."""
        return tuple(len(each) for each in self._lists), dict(self._known)

    def back_to(self, mark: tuple[Any, ...]) -> None:
        """Nothing was written since."""
        for each, size in zip(self._lists, mark[0], strict=True):
            del each[size:]
        self._known = dict(mark[1])

    def add_input(self, name: str, like: torch.Tensor) -> Reference:
        """One more secret input."""
        self.inputs.append(Input(name, NAME_OF[like.dtype], tuple(like.shape)))
        return {"secret": len(self.inputs) - 1}

    def add_body(self, body: Body) -> int:
        self.bodies.append(body)
        return len(self.bodies) - 1

    def add(self, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any], refer: Callable[..., Any]) -> int:
        """One more node; its number. `refer`: the reference of a tensor. TooLarge: there are too many."""
        number = len(self.nodes)
        check_limit("MAX_NODES", number + 1, "more than {allowed} operations")
        self.nodes.append(Node(operation, *encode_call(args, kwargs, refer)))
        return number

    def public_reference(self, tensor: torch.Tensor) -> Reference:
        """Of what all know: it is written down where it was not."""
        key = id(tensor), tensor._version
        if key not in self._known:
            self._alive.append(tensor)
            self._known[key] = self._written(tensor)
        return self._known[key]

    def _written(self, tensor: torch.Tensor) -> Reference:
        """In the program where it is small, else beside it; where it differs, in slices."""
        values = self._varying.of(tensor)
        if len(values) > 1:
            assert self._slice_of is not None
            return self._slice_of(tensor, values)
        if header_of(tensor).nbytes <= limits.MAX_CONSTANT:
            self.constants.append(inline_tensor(tensor)["tensor"])
            return {"constant": len(self.constants) - 1}
        self.public.append(tensor)
        return {"public": len(self.public) - 1}
