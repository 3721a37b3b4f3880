"""One operator of an ONNX graph with its operands, and what all operators have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from compute.importing.worlds import Dim, Operand, Size, Value, World
from protocol.errors import BadFile

_MOST_SIZES: Final = 64
# Where they would have one, the operator is read without what they speak of.
_WITHOUT_EFFECT: Final = frozenset(
    "consumed_inputs storage_order spatial momentum saturate seed kernel_shape stash_type nearest_mode "
    "qk_matmul_output_mode extrapolation_value exclude_outside".split()
)


@dataclass(eq=False, slots=True)
class Ints:
    """A tensor of few whole numbers of which some are sizes: a vector, or of no dimensions."""

    items: list[Dim]
    is_scalar: bool = False


@dataclass(slots=True)
class Node:
    """`inputs` has None for those that are left out. `version` is the operator set's that the graph asks for."""

    world: World
    op: str
    inputs: list[Any]
    attributes: Mapping[str, Any]
    version: int
    outputs: int = 1
    _looked_at: set[str] = field(default_factory=set)

    def attr(self, name: str, default: Any = None) -> Any:
        self._looked_at.add(name)
        return self.attributes.get(name, default)

    def check_all_read(self) -> None:
        """BadFile where it has an attribute that nobody asked for: what it says would be left out silently."""
        unread = sorted(set(self.attributes) - self._looked_at - _WITHOUT_EFFECT)
        if unread:
            raise BadFile(f"{self.op} in it has {', '.join(unread)[:100]}, which is not read")

    def text(self, name: str, default: str) -> str:
        value = self.attr(name)
        return default if value is None else bytes(value).decode(errors="replace")

    def has(self, at: int) -> bool:
        return at < len(self.inputs) and self.inputs[at] is not None

    def raw(self, at: int) -> Any:
        if not self.has(at):
            raise BadFile(f"{self.op} in it lacks its operand {at + 1}")
        return self.inputs[at]

    def tensor(self, at: int) -> Operand:
        """An operand as a tensor."""
        return as_tensor(self.world, self.raw(at), self.op)

    def optional(self, at: int) -> Operand | None:
        return self.tensor(at) if self.has(at) else None

    def ints(self, at: int) -> list[Dim]:
        """An operand as whole numbers that are known, or sizes."""
        found = as_ints(self.raw(at))
        if found is None:
            raise BadFile(f"{self.op} in it takes sizes that are computed from data, which programs do not")
        return found.items

    def numbers(self, at: int) -> list[int]:
        found = self.ints(at)
        if any(isinstance(item, Size) for item in found):
            raise BadFile(f"{self.op} in it takes numbers that depend on sizes, where programs have fixed ones")
        return found  # type: ignore[return-value]

    def constant(self, at: int) -> torch.Tensor:
        value = self.raw(at)
        if not isinstance(value, torch.Tensor):
            raise BadFile(f"{self.op} in it takes an operand {at + 1} that is computed, where programs have fixed ones")
        return value

    def is_one_of(self, name: str, *known: str) -> str:
        """A word among its attributes; the first of `known` where it is left out."""
        value = self.text(name, known[0])
        if value not in known:
            raise BadFile(f"{self.op} in it has {name} {value[:40]!r}, which is not read")
        return value

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.world.op(f"aten.{name}", *args, **kwargs)


def rank(value: Operand) -> int:
    return value.dim() if isinstance(value, torch.Tensor) else value.rank


def as_ints(value: Any) -> Ints | None:
    """Whole numbers, where they are known or sizes; else None."""
    if isinstance(value, Ints):
        return value
    if isinstance(value, torch.Tensor) and value.dim() <= 1 and value.numel() <= _MOST_SIZES:
        if value.dtype in (torch.int64, torch.int32, torch.bool):
            return Ints([int(item) for item in value.reshape(-1).tolist()], value.dim() == 0)
    return None


def as_tensor(world: World, value: Any, op: str) -> Operand:
    if isinstance(value, Ints):
        if not any(isinstance(item, Size) for item in value.items):
            plain = torch.tensor(value.items, dtype=torch.int64)
            return plain.reshape(()) if value.is_scalar else plain
        parts = [world.op("aten.full.default", [1], item, dtype=torch.int64) for item in value.items]
        joined = world.op("aten.cat.default", parts) if len(parts) > 1 else parts[0]
        return world.op("aten.reshape.default", joined, []) if value.is_scalar else joined  # type: ignore[no-any-return]
    if not isinstance(value, torch.Tensor | Value):
        raise BadFile(f"{op} in it takes a list where a tensor is wanted")
    return value


Handler = Callable[[Node], Any]
HANDLERS: Final[dict[str, Handler]] = {}


def operator(*names: str) -> Callable[[Handler], Handler]:
    """Registers a function as what these operators are in a program: it gives one value, or a tuple of them."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def pairs(values: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """Paddings as ONNX writes them: all beginnings, then all ends."""
    if len(values) != 2 * count:
        raise BadFile("paddings in it are not two for each dimension")
    return list(values[:count]), list(values[count:])
