"""What a captured model is: its program and the tensors that it is made of, checked, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from compute.program import Program
from compute.program_parts import MAX_INPUT_NAME
from compute.signature import Signature
from compute.wire import shown
from protocol import limits
from protocol.errors import BadProgram, BadTensor
from protocol.tensors import TensorHeader

KINDS: Final = ("parameter", "buffer", "constant")


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that a model is made of.

    Attributes:
        name: as in the module's state_dict ("layers.0.weight"); "constant" and a number for tensors that the module
            holds in other ways.
        kind: one of KINDS.
        is_trainable: the parameter takes gradients.
        is_persistent: the module's state_dict holds it.
        same_as: the name of the slot before it that is the very same tensor (tied weights), or None.
    """

    name: str
    header: TensorHeader
    kind: str = "parameter"
    is_trainable: bool = False
    is_persistent: bool = True
    same_as: str | None = None

    def __post_init__(self) -> None:
        fits = isinstance(self.name, str) and 0 < len(self.name) <= MAX_INPUT_NAME and self.name.isprintable()
        if not fits or not all(self.name.split(".")):
            raise BadProgram(f"{shown(self.name)} is no name of a tensor in a model")
        if self.kind not in KINDS or type(self.is_trainable) is not bool or type(self.is_persistent) is not bool:
            raise BadProgram(f"{self.name}: not a slot of a model")

    def to_wire(self) -> dict[str, Any]:
        return {
            **self.header.to_wire(),
            "name": self.name,
            "kind": self.kind,
            "trainable": self.is_trainable,
            "persistent": self.is_persistent,
            "same_as": self.same_as,
        }

    @classmethod
    def from_wire(cls, value: object) -> Slot:
        keys = {"dtype", "shape", "name", "kind", "trainable", "persistent", "same_as"}
        if not isinstance(value, Mapping) or set(value) != keys:
            raise BadProgram(f"a slot of a model is a map of {', '.join(sorted(keys))}")
        try:
            header = TensorHeader.from_wire(value)
        except BadTensor as error:
            raise BadProgram(f"a slot of a model: {error.message}") from None
        return cls(value["name"], header, value["kind"], value["trainable"], value["persistent"], value["same_as"])


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A captured model: its program, the tensors that it is made of, and what `forward` takes.

    `program.inputs` are the slots (those that are not `same_as` another), in order, and then `inputs`. `signature` says
    where in forward's arguments those are; left out, each is one. `examples` has a dtype and a shape for each input,
    as far as they are known, on which it runs: what it was captured with. `constants` holds the values of the slots of
    kind "constant" at the side that captured; it does not travel with the rest.
    """

    program: Program
    slots: tuple[Slot, ...]
    inputs: tuple[str, ...]
    signature: Signature = field(default_factory=lambda: Signature(()))
    examples: Mapping[str, TensorHeader] = field(default_factory=dict)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        before: dict[str, Slot] = {}
        for slot in self.slots:
            if slot.name in before:
                raise BadProgram(f"two tensors of a model are called {slot.name!r}")
            twin = before.get(slot.same_as) if isinstance(slot.same_as, str) else None
            if slot.same_as is not None and (twin is None or twin.same_as is not None or twin.header != slot.header):
                raise BadProgram(f"{slot.name!r} is the same as {shown(slot.same_as)}, which does not fit")
            before[slot.name] = slot
        own = tuple(slot.name for slot in self.slots if slot.same_as is None)
        if (*own, *self.inputs) != tuple(given.name for given in self.program.inputs):
            raise BadProgram("the program's inputs are not the model's tensors and inputs")
        if self.inputs and not self.signature.arguments:
            object.__setattr__(self, "signature", Signature.of_tensors(self.inputs))
        if not set(self.examples) <= set(self.inputs):
            raise BadProgram("a model has an example of something that is no input of it")
        if sorted(self.signature.inputs) != sorted(self.inputs):
            raise BadProgram("the tensors in a model's arguments are not its inputs")

    @property
    def parameters(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.kind == "parameter")

    @property
    def buffers(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.kind == "buffer")

    @property
    def nbytes(self) -> int:
        return sum(slot.header.nbytes for slot in self.slots if slot.same_as is None)

    def tensors(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """The tensors of the module that was captured, by slot name, without those that are the same as another."""
        named = {**dict(named_tensors(module)), **self.constants}
        return {slot.name: named[slot.name].detach() for slot in self.slots if slot.same_as is None}

    def to_wire(self) -> dict[str, Any]:
        """A plain map for messages; `program` in its canonical bytes."""
        return {
            "program": self.program.to_bytes(),
            "slots": [slot.to_wire() for slot in self.slots],
            "inputs": list(self.inputs),
            "arguments": self.signature.to_wire(),
            "examples": {name: header.to_wire() for name, header in self.examples.items()},
        }

    @classmethod
    def from_wire(cls, value: object) -> ModelSpec:
        """The spec of such a map, checked in full; BadProgram (or OperationNotAllowed, TooLarge) for anything else."""
        if not isinstance(value, Mapping) or set(value) != {"program", "slots", "inputs", "arguments", "examples"}:
            raise BadProgram("a model is a map of program, slots, inputs, arguments and examples")
        slots, inputs, program = value["slots"], value["inputs"], value["program"]
        if not isinstance(slots, list) or len(slots) > limits.MAX_NODES or not isinstance(inputs, list):
            raise BadProgram("the slots and inputs of a model are lists")
        if not isinstance(program, bytes):
            raise BadProgram("the program of a model are bytes")
        found = tuple(Slot.from_wire(slot) for slot in slots)
        signature, examples = Signature.from_wire(value["arguments"]), _examples(value["examples"])
        return cls(Program.from_bytes(program), found, tuple(inputs), signature, examples)


def _examples(value: object) -> dict[str, TensorHeader]:
    if not isinstance(value, Mapping) or not all(isinstance(item, Mapping) for item in value.values()):
        raise BadProgram("the examples of a model are a map of dtypes and shapes")
    try:
        return {str(name): TensorHeader.from_wire(item) for name, item in value.items()}
    except BadTensor as error:
        raise BadProgram(f"an example of a model: {error.message}") from None


def named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, then buffers, under every name that they have."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
