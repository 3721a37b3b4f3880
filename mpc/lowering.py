"""A program as one that can run on shares: what is public is computed beforehand, the rest is said in secure forms.

The asker does this before anything is shared. Nodes on public values alone run here and now, once: parties that did so
each by itself might differ in a last bit, and what they multiply their shares by must be the same. A node on a secret
that has no secure form is taken apart by torch's own decompositions, down to ones that have; where that does not work
out, the error names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from compute import interpreter as clear
from compute import numbers
from compute.dtypes import NAME_OF
from compute.flow import FLOW
from compute.operations import NUMBERS
from compute.prepared import arguments, prepare
from compute.prepared import outputs as outputs_of
from compute.program import Input, Node, Program
from compute.table import lookup
from compute.tracing import quiet
from compute.values import encode_call, header_of, inline_tensor
from mpc.operations import SECURE
from protocol import limits
from protocol.errors import OperationNotAllowed

_OF_SHAPE: Final = frozenset(
    f"aten::{name}"
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
        *("scalar_tensor", "sym_size", "sym_numel", "sym_stride"),
    )
)
"""What they give hangs on the shape of a secret, which all know, and not on its value."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """What runs on shares.

    Attributes:
        program: its inputs are the secret ones, in their order, and then the public ones.
        public: the values of the latter: all parties are given them.
    """

    program: Program
    public: tuple[torch.Tensor, ...]


def lower(program: Program, inputs: Sequence[torch.Tensor], secret: Sequence[bool]) -> Lowered:
    """The program, for inputs of these shapes.

    Args:
        inputs: the values of public ones; of secret ones only the shape and dtype count.
        secret: which of them are.

    Raises:
        OperationNotAllowed: an operation on a secret has no secure form; `fields["node"]` is its number.
        BadRequest: a secret where a value has to be known.
    """
    return _Lowering(program, inputs, secret).lowered()


class _Lowering:
    def __init__(self, program: Program, inputs: Sequence[torch.Tensor], secret: Sequence[bool]) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._inputs: list[Input] = []
        self._public: list[torch.Tensor] = []
        self._constants: list[Mapping[str, Any]] = []
        self._references: dict[int, dict[str, Any]] = {}  # of what stands for a secret, by its identity
        self._known: dict[int, dict[str, Any]] = {}  # of public tensors that were written down
        self._alive: list[torch.Tensor] = []
        self._inside: list[str] = []  # what is being taken apart
        self._mode = _Recording(self)
        self._values = [
            self._stand_in(given, tensor) if is_secret else tensor
            for given, tensor, is_secret in zip(program.inputs, inputs, secret, strict=True)
        ]

    def _stand_in(self, given: Input, tensor: torch.Tensor) -> torch.Tensor:
        """Zeros: what is computed of it has the right shapes, and no value of it is ever used."""
        zeros = torch.zeros(tensor.shape, dtype=tensor.dtype)
        self._note(zeros, {"secret": len(self._inputs)})
        self._inputs.append(Input(given.name, NAME_OF[tensor.dtype], tuple(tensor.shape)))
        return zeros

    def _note(self, tensor: torch.Tensor, reference: dict[str, Any]) -> None:
        self._references[id(tensor)] = reference
        self._alive.append(tensor)

    def lowered(self) -> Lowered:
        prepared = prepare(self._program)
        block = prepared.main
        values: list[Any] = [*self._values, *[None] * len(block.steps)]
        values += [prepared.constants()[at] for at in block.constants]
        with torch.no_grad():
            for step in block.steps:
                try:
                    args, kwargs = arguments(step, values)
                    values[step.number] = self.call(step.operation, args, kwargs)
                except Exception as error:
                    raise clear._at_node(error, block, step) from None
        outputs = self._output(outputs_of(block.outputs, values))
        return Lowered(self._assembled(outputs), tuple(self._public))

    # --- calls ------------------------------------------------------------------------------------------------

    def call(self, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One node: here and now where nothing in it is secret, else written down."""
        if operation in NUMBERS:
            return numbers.compute(operation, args)
        if operation in FLOW:
            raise OperationNotAllowed(f"{operation} on secrets is not lowered", operation=operation)
        entry = lookup(operation)
        if not self.is_secret((args, kwargs)):
            return clear.execute(entry, args, kwargs)
        bound, named = entry.bind(args, kwargs)
        if entry.category == "size":
            return entry.overload(*bound, **named)
        return self.secret(operation, entry.overload, bound, named)

    def secret(self, operation: str, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation on a secret: as it is, or in parts."""
        if overload._schema.name in _OF_SHAPE:
            return overload(*args, **kwargs)
        if operation in SECURE:
            made = overload(*args, **kwargs)
            self._write(operation, args, kwargs, made)
            return made
        if overload._schema.is_mutable:
            return self._in_place(operation, overload, args, kwargs)
        parts = decomposition_table.get(overload)
        if parts is None and overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            parts = overload.decompose
        if operation.startswith("prims."):
            parts = overload.impl_aten
        if parts is None or operation in self._inside:
            raise OperationNotAllowed(f"{operation} has no secure form: it cannot run on shares", operation=operation)
        self._inside.append(operation)
        try:
            with self._mode, quiet():
                return parts(*args, **kwargs)
        finally:
            self._inside.pop()

    def _in_place(self, operation: str, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What changes a tensor is what makes a new one, which from then on is meant by the old one's name."""
        changed = args[0]
        if changed._base is not None or not overload._schema.name.endswith("_"):
            raise OperationNotAllowed(
                f"{operation} changes a view, or several tensors, in place: programs on shares make new ones",
                operation=operation,
            )
        if operation == "aten.copy_.default":
            plain: Any = torch.ops.aten.expand.default
            args = args[1], list(changed.shape)
        else:
            packet = getattr(torch.ops.aten, overload._schema.name.removeprefix("aten::")[:-1], None)
            plain = getattr(packet, overload._overloadname, None)
        if plain is None:
            raise OperationNotAllowed(f"{operation} has no secure form: it cannot run on shares", operation=operation)
        made = self.secret(str(plain), plain, args, kwargs) if self.is_secret(args) else plain(*args, **kwargs)
        self._note(changed, self._reference(made))
        return changed

    def is_secret(self, value: Any) -> bool:
        leaves = pytree.tree_leaves(value)
        return any(isinstance(leaf, torch.Tensor) and id(leaf) in self._references for leaf in leaves)

    def _write(self, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> None:
        number = len(self._nodes)
        self._nodes.append(Node(operation, *encode_call(args, kwargs, self._reference)))
        if isinstance(made, torch.Tensor):
            self._note(made, {"made": number})
        else:
            for item, each in enumerate(made):
                if isinstance(each, torch.Tensor):
                    self._note(each, {"made": number, "item": item})

    def _reference(self, tensor: torch.Tensor) -> dict[str, Any]:
        found = self._references.get(id(tensor)) or self._known.get(id(tensor))
        if found is None:
            self._alive.append(tensor)
            found = self._known[id(tensor)] = self._written(tensor)
        return found

    def _written(self, tensor: torch.Tensor) -> dict[str, Any]:
        """A public tensor: in the program where it is small, else beside it."""
        if header_of(tensor).nbytes <= limits.MAX_CONSTANT:
            self._constants.append(inline_tensor(tensor)["tensor"])
            return {"constant": len(self._constants) - 1}
        self._public.append(tensor)
        return {"public": len(self._public) - 1}

    # --- putting together ---------------------------------------------------------------------------------------

    def _output(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._reference(value)
        if isinstance(value, tuple):
            return {"tuple": [self._output(item) for item in value]}
        if isinstance(value, list):
            return [self._output(item) for item in value]
        if isinstance(value, Mapping):
            return {"map": {key: self._output(item) for key, item in value.items()}}
        return value

    def _assembled(self, outputs: Any) -> Program:
        secrets, publics = len(self._inputs), len(self._public)
        inputs = [*self._inputs]
        for at, tensor in enumerate(self._public):
            inputs.append(Input(f"public.{at}", NAME_OF[tensor.dtype], tuple(tensor.shape)))

        def numbered(value: Any) -> Any:
            if isinstance(value, list):
                return [numbered(item) for item in value]
            if not isinstance(value, Mapping):
                return value
            if "secret" in value:
                return {"node": value["secret"]}
            if "public" in value:
                return {"node": secrets + value["public"]}
            if "made" in value:
                number = {"node": secrets + publics + value["made"]}
                return {**number, "item": value["item"]} if "item" in value else number
            return {key: numbered(item) for key, item in value.items()}

        nodes = tuple(
            Node(node.operation, numbered(node.args), {key: numbered(item) for key, item in node.kwargs.items()})
            for node in self._nodes
        )
        return Program(tuple(inputs), nodes, numbered(outputs), tuple(self._constants))


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a decomposition calls."""

    def __init__(self, lowering: _Lowering) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lowering = lowering

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._lowering.is_secret((args, kwargs)):
            return func(*args, **kwargs)
        return self._lowering.secret(str(func), func, args, kwargs)
