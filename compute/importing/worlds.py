"""A program that is written while it is tried: each operation on tensors without data, at three sizes of the inputs.

What is the same at all of them is a number of the program; what differs is a size, which the program finds out when it
runs. So a graph with open sizes becomes a program with open sizes, and an operation that does not fit says so at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from compute.importing.writing import Ref, Writer
from compute.program import Input, Program
from compute.table import lookup
from protocol import limits
from protocol.errors import BadFile, GridError
from protocol.sizes import check_limit

WORLDS: Final = 3
_HINTS: Final = 24
_FOLDED: Final = 1 << 30  # bytes of one constant that is computed while a file is read


class DoesNotFit(Exception):
    """An operation that does not fit its operands at the sizes that are tried; `hints` are numbers in them that one of
    the sizes may have to be."""

    def __init__(self, message: str, hints: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(dict.fromkeys(hint for hint in hints if 0 < hint < limits.MAX_DIM))[:_HINTS]


@dataclass(eq=False, slots=True)
class Place:
    """Where a value will be in the program; `ref` is known when it is written."""

    ref: Ref | None = None


@dataclass(eq=False, slots=True)
class Value:
    """A tensor of the program, and what it is at each of the sizes, without data."""

    place: Place
    metas: tuple[torch.Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.metas[0].dtype

    @property
    def rank(self) -> int:
        return self.metas[0].dim()


@dataclass(eq=False, slots=True)
class Size:
    """A whole number that is not the same at all sizes."""

    place: Place
    values: tuple[int, ...]


Dim = int | Size
Operand = torch.Tensor | Value
"""A constant, which has its data, or a value."""


@dataclass(eq=False, slots=True)
class _Call:
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    places: list[Place]
    has_items: bool


class World:
    """Inputs and operations as they come, and at the end the program of those that its outputs need."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Input, Place]] = []
        self.slots: dict[str, torch.Tensor] = {}
        self.is_buffer: set[int] = set()  # ids of named constants that nothing is to be learned of
        self._slot_places: dict[str, Place] = {}
        self._names: dict[int, str] = {}
        self._small: dict[int, tuple[torch.Tensor, Place]] = {}
        self._calls: list[_Call] = []
        self._sizes: dict[tuple[int, int], Size] = {}
        self._kept: list[torch.Tensor] = []

    def input(self, given: Input, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> Value:
        place = Place()
        self.inputs.append((given, place))
        return Value(place, tuple(torch.empty(tuple(shape), dtype=dtype, device="meta") for shape in shapes))

    def name(self, tensor: torch.Tensor, name: str) -> None:
        """A constant that has a name of its own: where it is used it is a tensor of the model."""
        self._names[id(tensor)] = name
        self._kept.append(tensor)  # so that its id stays its own

    def name_of(self, tensor: torch.Tensor) -> str | None:
        return self._names.get(id(tensor))

    # --- operations -------------------------------------------------------------------------------------------

    def op(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What an operation of the table gives: constants of constants, else values.

        Raises:
            BadFile: it does not fit its arguments. OperationNotAllowed: it is not in the table.
        """
        overload = lookup(name).overload
        leaves = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(leaf, Value | Size) for leaf in leaves):
            return self._folded(name, overload, args, kwargs)
        results = [self._tried(name, overload, args, kwargs, world) for world in range(WORLDS)]
        return self._made(name, args, kwargs, results)

    def _folded(self, name: str, overload: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        tried = self._tried(name, overload, args, kwargs, 0)
        nbytes = sum(t.numel() * t.element_size() for t in pytree.tree_leaves(tried) if isinstance(t, torch.Tensor))
        sentence = "a constant of {size} bytes in it; at most {allowed} are computed"
        check_limit("constant", nbytes, sentence, allowed=_FOLDED)
        made = overload(*args, **kwargs)
        self._kept += [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        return made

    def _tried(self, name: str, overload: Callable[..., Any], args: Any, kwargs: Any, world: int) -> Any:
        def there(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return leaf.metas[world]
            if isinstance(leaf, Size):
                return leaf.values[world]
            return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf

        args, kwargs = pytree.tree_map(there, (args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Value | Size))
        factory = {"device": "meta"} if _makes(overload) else {}
        try:
            return overload(*args, **kwargs, **factory)
        except GridError:
            raise
        except Exception as error:  # torch raises whatever the shapes lead to
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DoesNotFit(f"{name} in it does not fit what it is given: {line}", _hints(args, kwargs)) from None

    def _made(self, name: str, args: Any, kwargs: Any, results: list[Any]) -> Any:
        many = isinstance(results[0], tuple | list)
        found: list[Any] = []
        for metas in zip(*results, strict=True) if many else [tuple(results)]:
            if not all(isinstance(meta, torch.Tensor) for meta in metas):
                raise BadFile(f"{name} in it gives something that is no tensor")
            found.append(Value(Place(), metas))
        check_limit("MAX_NODES", len(self._calls) + 1, "a graph of more than {allowed} operations")
        self._calls.append(_Call(name, args, kwargs, [value.place for value in found], many))
        return found if many else found[0]

    # --- sizes ------------------------------------------------------------------------------------------------

    def size(self, value: Operand, dim: int) -> Dim:
        """One size of a tensor: a number where it is always the same."""
        if isinstance(value, torch.Tensor):
            return value.shape[dim]
        dim %= max(value.rank, 1)
        sizes = tuple(meta.shape[dim] for meta in value.metas)
        if len(set(sizes)) == 1:
            return sizes[0]
        key = id(value.place), dim
        if key not in self._sizes:
            self._sizes[key] = self._number("aten.sym_size.int", [value, dim], sizes)
        return self._sizes[key]

    def shape(self, value: Operand) -> list[Dim]:
        rank = value.dim() if isinstance(value, torch.Tensor) else value.rank
        return [self.size(value, dim) for dim in range(rank)]

    def compute(self, name: str, function: Callable[..., int], *operands: Dim) -> Dim:
        """Arithmetic on sizes: `name` in the program, `function` on numbers."""
        values = tuple(
            function(*(item.values[world] if isinstance(item, Size) else item for item in operands))
            for world in range(WORLDS)
        )
        if not any(isinstance(item, Size) for item in operands):
            return values[0]
        return self._number(name, list(operands), values)  # though they may be alike: by chance

    def _number(self, name: str, args: list[Any], values: tuple[int, ...]) -> Size:
        place = Place()
        self._calls.append(_Call(name, args, {}, [place], False))
        return Size(place, values)

    # --- the program ------------------------------------------------------------------------------------------

    def program(self, outputs: Any) -> Program:
        """All of it that `outputs` (nested tuples, lists and dicts of operands) need."""
        needed = self._needed(outputs)
        order = {name: at for at, name in enumerate(self._names.values())}
        self.slots = {name: self.slots[name] for name in sorted(self.slots, key=order.__getitem__)}
        writer = Writer()
        for name, tensor in self.slots.items():
            header = Input(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            self._slot_places[name].ref = writer.input(header)
        for given, place in self.inputs:
            place.ref = writer.input(given)
        for tensor, place in self._small.values():
            place.ref = writer.constant(tensor)
        for call in self._calls:
            if call in needed:
                self._write(writer, call)
        return writer.program(self._referred(outputs))

    def _write(self, writer: Writer, call: _Call) -> None:
        made = writer.call(call.name, self._referred(list(call.args)), self._referred(dict(call.kwargs)))
        for at, place in enumerate(call.places):
            place.ref = made.item(at) if call.has_items else made

    def _needed(self, outputs: Any) -> set[_Call]:
        makers = {id(place): call for call in self._calls for place in call.places}
        needed: set[_Call] = set()
        queue = [outputs]
        while queue:
            for leaf in _leaves(queue.pop()):
                if isinstance(leaf, torch.Tensor):
                    self._keep(leaf)
                    continue
                call = makers.get(id(leaf.place)) if isinstance(leaf, Value | Size) else None
                if call is not None and call not in needed:
                    needed.add(call)
                    queue.append((list(call.args), dict(call.kwargs)))
        return needed

    def _keep(self, tensor: torch.Tensor) -> None:
        """A constant that is used: a named or large one is a slot, any other is written into the program."""
        name = self._names.get(id(tensor))
        if name is None and tensor.numel() * tensor.element_size() <= limits.MAX_CONSTANT:
            self._small.setdefault(id(tensor), (tensor, Place()))
            return
        if name is None:
            name = f"constant_{len(self.slots)}"
            self.name(tensor, name)
        if name not in self.slots:
            self.slots[name] = tensor
            self._slot_places[name] = Place()

    def _referred(self, value: Any) -> Any:
        if isinstance(value, Value | Size):
            return value.place.ref
        if isinstance(value, torch.Tensor):
            name = self._names.get(id(value))
            return self._small[id(value)][1].ref if name is None else self._slot_places[name].ref
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, dict):
            return {key: self._referred(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._referred(item) for item in value)
        return value


def _hints(args: Any, kwargs: Any) -> list[int]:
    """Whole numbers among the arguments, sums of lists of them, and the sizes of tensors."""
    found: list[int] = []
    for value in (*args, *kwargs.values()):
        items = list(value) if isinstance(value, list | tuple) else [value]
        numbers = [item for item in items if type(item) is int]
        found += [sum(numbers), *numbers]
        metas = [item.metas if isinstance(item, Value) else (item,) for item in items if isinstance(item, Operand)]
        sizes = [each for shapes in metas for each in zip(*(tensor.shape for tensor in shapes), strict=True)]
        found += [each[0] for each in sizes if len(set(each)) == 1]
    return found


def _leaves(value: Any) -> list[Any]:
    return pytree.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, Value | Size))


def _makes(overload: Any) -> bool:
    """Whether it makes a tensor out of sizes and numbers, so that it must be told to make none with data."""
    arguments = overload._schema.arguments
    takes_tensor = any("Tensor" in str(argument.type) for argument in arguments)
    return not takes_tensor and any(argument.name == "device" for argument in arguments)
