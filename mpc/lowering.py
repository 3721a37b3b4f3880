"""A program as one that can run on shares: what is public is computed beforehand, the rest is said in secure forms.

The asker does this before anything is shared. Nodes on public values alone run here and now, once: parties that did so
each by itself might differ in a last bit, and what they multiply their shares by must be the same. A node on a secret
that has no secure form is taken apart by torch's own decompositions, down to ones that have; where that does not work
out, the error names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from compute import interpreter as clear
from compute import numbers
from compute.dtypes import NAME_OF
from compute.flow import Flow
from compute.operations import NUMBERS
from compute.prepared import Block, Prepared, arguments, prepare, resolve
from compute.prepared import outputs as outputs_of
from compute.program import Body, Input, Node, Program
from compute.table import lookup
from compute.tracing import quiet
from compute.values import encode_call, header_of, inline_tensor
from mpc.assembly import assembled
from mpc.backward import RULES
from mpc.loops import CARRIED, ROOM, Inside, looped
from mpc.operations import SECURE
from mpc.ring import PRECISION, check_precision
from mpc.unrolled import TooLong, unrolled
from mpc.varying import Differs, Varying, version_of
from protocol import limits
from protocol.errors import BadRequest, OperationNotAllowed, TooLarge

_OF_SHAPE: Final = frozenset(
    f"aten::{name}"
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
        *("scalar_tensor", "sym_size", "sym_numel", "sym_stride", "rand_like", "randn_like", "randint_like"),
    )
)
"""What they give hangs on the shape of a secret, which all know, and not on its value. What is drawn so (dropout's
masks) is public: it tells nothing of any data."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """What runs on shares.

    Attributes:
        program: its inputs are the secret ones, in their order, and then the public ones.
        public: the values of the latter: all parties are given them.
        precision: fractional bits of secret reals that the program is meant for: Party and script_of are given them.
        more: of each secret input how many more of them it is to have (moments.py); empty: none.
    """

    program: Program
    public: tuple[torch.Tensor, ...]
    precision: int = PRECISION
    more: tuple[int, ...] = ()

    def bits(self, at: int, dtype: torch.dtype) -> int:
        """Fractional bits that secret input number `at`, of this dtype, is to have."""
        return self.precision + (self.more[at] if self.more else 0) if dtype.is_floating_point else 0


def lower(
    program: Program, inputs: Sequence[torch.Tensor], secret: Sequence[bool], precision: int = PRECISION
) -> Lowered:
    """The program, for inputs of these shapes.

    Args:
        inputs: the values of public ones; of secret ones only the shape and dtype count.
        secret: which of them are.
        precision: fractional bits of secret reals, 10 to 24.

    Raises:
        OperationNotAllowed: an operation on a secret has no secure form; `fields["node"]` is its number.
        BadRequest: a secret where a value has to be known, or a precision that cannot be.
    """
    check_precision(precision)
    return _Lowering(prepare(program), precision).lowered(program, inputs, secret)


class _Lowering:
    """Lowers a program; or, `inside` one, the body of a loop."""

    def __init__(self, prepared: Prepared, precision: int, inside: Inside | None = None) -> None:
        self._prepared = prepared
        self._precision = precision
        self._loop = inside
        self._varying = Varying(1) if inside is None else inside.varying
        self._origins: dict[int, tuple[str, Mapping[str, Any]]] = {}
        self._users: dict[int, list[int]] = {}  # of a tensor, what came from it
        self.nodes: list[Node] = []
        self._inputs: list[Input] = []
        self.public: list[torch.Tensor] = []
        self._constants: list[Mapping[str, Any]] = [] if inside is None else inside.outside._constants
        self._bodies: list[Body] = [] if inside is None else inside.outside._bodies
        self._references: dict[int, dict[str, Any]] = {}  # of what stands for a secret, by its identity
        self._known: dict[tuple[int, int], dict[str, Any]] = {}  # of public tensors that were written down
        self._alive: list[torch.Tensor] = []
        self._remembered: dict[Any, Any] = {}
        self._more: dict[int, int] = {}  # of secret inputs, by their numbers
        self._inside: list[str] = []  # what is being taken apart
        self._mode = _Recording(self)
        self.last_values: list[Any] = []  # of the block that was lowered last

    def _stand_in(self, given: Input, tensor: torch.Tensor) -> torch.Tensor:
        """Zeros: what is computed of it has the right shapes, and no value of it is ever used."""
        if tensor.is_complex():
            raise BadRequest(
                f"{given.name} is {NAME_OF[tensor.dtype]}: complex numbers cannot be secrets, so share their real and "
                "imaginary parts (torch.view_as_real)"
            )
        zeros = torch.zeros(tensor.shape, dtype=tensor.dtype)
        self._note(zeros, {"secret": len(self._inputs)})
        self._inputs.append(Input(given.name, NAME_OF[tensor.dtype], tuple(tensor.shape)))
        return zeros

    def _note(self, tensor: torch.Tensor, reference: dict[str, Any]) -> None:
        self._references[id(tensor)] = reference
        self._alive.append(tensor)

    def lowered(self, program: Program, inputs: Sequence[torch.Tensor], secret: Sequence[bool]) -> Lowered:
        values = [
            self._stand_in(given, tensor) if is_secret else tensor
            for given, tensor, is_secret in zip(program.inputs, inputs, secret, strict=True)
        ]
        with torch.no_grad():
            values = self._block(self._prepared.main, values)
        outputs = self._output(outputs_of(self._prepared.main.outputs, values))
        return Lowered(
            assembled(self._inputs, self.public, self.nodes, self._constants, outputs, self._bodies),
            tuple(self.public),
            self._precision,
            tuple(self._more.get(at, 0) for at in range(len(self._inputs))) if self._more else (),
        )

    def _block(self, block: Block, given: Sequence[Any]) -> list[Any]:
        """All values of a block."""
        values: list[Any] = [*given, *[None] * len(block.steps)]
        constants = self._prepared.constants()
        values += [constants[at] for at in block.constants]
        if block.body is not None:
            for number in block.copies:
                values[number] = self._copy(values[number])
        for step in block.steps:
            try:
                if step.flow is not None:
                    made: Any = self._flow(step.flow, values)
                    values[step.number] = list(map(self._copy, made)) if step.copies else made
                else:
                    args, kwargs = arguments(step, values)
                    values[step.number] = self.call(step.operation, args, kwargs)
            except Exception as error:
                if isinstance(error, Differs | TooLong):
                    raise
                raise clear._at_node(error, block, step) from None
        self.last_values = values
        return values

    def _copy(self, value: Any) -> Any:
        """The same value under a name of its own, so that what is done to one in place is not done to the other."""
        if not isinstance(value, torch.Tensor):
            return value
        copy = self._varying.copy(value)
        if self.is_secret(value):
            self._note(copy, self._references[id(value)])
            if id(value) in self._origins:
                self._came_from(copy, *self._origins[id(value)])
        return copy

    def body(self, number: int, given: list[Any]) -> list[Any]:
        """What a body gives."""
        block = self._prepared.bodies[number]
        values = self._block(block, given)
        return [resolve(template, values) for template in block.outputs]

    # --- loops ------------------------------------------------------------------------------------------------

    def _flow(self, flow: Flow, values: list[Any]) -> list[Any]:
        """What a loop or branch gives: written out where it is short, or cannot stay a loop."""
        before = self.mark()
        try:
            return unrolled(self, flow, values, ROOM)
        except TooLong:
            self.back_to(before)
        try:
            return looped(self, flow, values)
        except Differs:
            self.back_to(before)
        return unrolled(self, flow, values)

    def mark(self) -> tuple[Any, ...]:
        """Where the writing stands."""
        lists: tuple[list[Any], ...] = (self.nodes, self.public, self._constants, self._bodies)
        return tuple(len(each) for each in lists), dict(self._known), dict(self._remembered)

    def back_to(self, mark: tuple[Any, ...]) -> None:
        """Nothing was written since."""
        lists: tuple[list[Any], ...] = (self.nodes, self.public, self._constants, self._bodies)
        for each, size in zip(lists, mark[0], strict=True):
            del each[size:]
        self._known, self._remembered = dict(mark[1]), dict(mark[2])

    def block_of(self, body: int) -> Block:
        return self._prepared.bodies[body]

    def within(self, inside: Inside) -> _Lowering:
        """The lowering of a loop's body."""
        return _Lowering(self._prepared, self._precision, inside)

    def given(self, stand_in: torch.Tensor, reference: dict[str, Any]) -> torch.Tensor:
        """A secret that a body is given."""
        self._note(stand_in, reference)
        return stand_in

    def gives(self, node: Node, stand_ins: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Writes a node with secret items; what it gives."""
        self.nodes.append(node)
        return [self.given(each, {"made": len(self.nodes) - 1, "item": at}) for at, each in enumerate(stand_ins)]

    def add_body(self, body: Body) -> int:
        self._bodies.append(body)
        return len(self._bodies) - 1

    def refer(self, value: torch.Tensor) -> dict[str, Any]:
        """The reference of a value, which is written down where it is public."""
        return self._reference(value)

    def varies(self, value: Any) -> bool:
        """Whether something in it is public and differs from iteration to iteration."""
        return self._varying.has(value)

    def values_of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Of what is public: its value in each iteration; one, where it is the same in all."""
        with _disable_current_modes():
            return [each.detach() for each in self._varying.of(tensor)]

    def differing(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """One public tensor that has these values in the iterations."""
        return self._varying.note(values) if len(values) > 1 else values[0]

    def carried_as(self, tensor: torch.Tensor, purpose: Any, make: Callable[[Any, Any], Any]) -> torch.Tensor | None:
        """What a loop carries, in the form that `make` gives it; None where it carries no such thing."""
        kind, place = self._reference(tensor).get("given", (None, 0))
        if self._loop is None or kind != CARRIED:
            return None
        return self.given(*self._loop.carried_as(place, purpose, make, tensor))

    def remember(self, tensor: torch.Tensor, purpose: Any, made: torch.Tensor) -> None:
        """What `remembered` is to give."""
        self._remembered[tuple(sorted(self._reference(tensor).items())), purpose] = made

    # --- calls ------------------------------------------------------------------------------------------------

    def call(self, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One node: here and now where nothing in it is secret, else written down."""
        if operation in NUMBERS:
            return numbers.compute(operation, args)
        entry = lookup(operation)
        if not self.is_secret((args, kwargs)):
            return self.public_result(lambda *a, **k: clear.execute(entry, a, k), entry.overload, args, kwargs)
        bound, named = entry.bind(args, kwargs)
        if entry.category == "size":
            return entry.overload(*bound, **named)
        return self.secret(operation, entry.overload, bound, named)

    def public_result(
        self, function: Callable[..., Any], overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What an operation on what all know gives, which `function` does. What is empty holds zeros: some of it may
        go on with secrets, and whatever lay there may be no number."""
        if "empty" in overload._schema.name:

            def zeros(*args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs).zero_()

            return self._varying.run(zeros, overload, args, kwargs)
        return self._varying.run(function, overload, args, kwargs)

    def secret(self, operation: str, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation on a secret: as it is, or in parts."""
        if overload._schema.name in _OF_SHAPE:
            return self.public_result(overload, overload, args, kwargs)
        if overload._schema.name == "aten::_linalg_check_errors":
            return None  # what is secret is not looked at
        rule = RULES.get(operation)
        if rule is not None:
            with self._mode if self._loop is not None else nullcontext():
                result = rule(self, self._named(overload, args, kwargs))
            if result is not None:
                if any(result is each for each in pytree.tree_leaves((args, kwargs))):
                    return self._copy(result)
                if isinstance(result, torch.Tensor) and self.is_secret(result):
                    self._came_from(result, operation, self._named(overload, args, kwargs))
                return result
        if operation in SECURE and not self._is_plainer(overload, args, kwargs):
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
            raise self._has_none(operation)
        self._inside.append(operation)
        try:
            with self._mode, quiet():
                return parts(*args, **kwargs)
        finally:
            self._inside.pop()

    def _has_none(self, operation: str) -> OperationNotAllowed:
        """What was written is named; what of it there is no form for, too."""
        written = self._inside[0] if self._inside else operation
        because = f" (it needs {operation})" if written != operation else ""
        return OperationNotAllowed(f"{written} has no secure form{because}: it cannot run on shares", operation=written)

    def written(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of torch operations gives."""
        with self._mode, quiet():
            return function(*args)

    def apply(self, overload: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operation gives: here and now where nothing in it is secret, else written down."""
        if not self.is_secret((args, kwargs)):
            return self.public_result(overload, overload, args, kwargs)
        with _disable_current_modes() if self._loop is not None else nullcontext():
            return self.secret(str(overload), overload, args, kwargs)

    def made_by(self, tensor: torch.Tensor) -> tuple[str, Mapping[str, Any]] | None:
        """The operation that gave a secret, with its arguments."""
        return self._origins.get(id(tensor))

    @staticmethod
    def _named(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by their names in the schema, those left out as it has them."""
        named = dict(kwargs)
        for at, each in enumerate(overload._schema.arguments):
            if at < len(args):
                named[each.name] = args[at]
            elif each.name not in named and each.has_default_value():
                named[each.name] = each.default_value
        return named

    def _is_plainer(self, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the secure form is for secret labels, and these are public: then the decomposition is better."""
        name = overload._schema.name.removeprefix("aten::")
        return name.startswith("nll_loss") and not self.is_secret(self._named(overload, args, kwargs)["target"])

    def _in_place(self, operation: str, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What changes a tensor is what makes a new one, which from then on is meant by the old one's name."""
        changed = args[0]
        if not overload._schema.name.endswith("_"):
            raise OperationNotAllowed(
                f"{operation} changes several tensors in place: programs on shares make new ones", operation=operation
            )
        if operation == "aten.copy_.default":
            plain: Any = torch.ops.aten.expand.default
            args = args[1], list(changed.shape)
        else:
            packet = getattr(torch.ops.aten, overload._schema.name.removeprefix("aten::")[:-1], None)
            plain = getattr(packet, overload._overloadname, None)
        if plain is None:
            raise self._has_none(operation)
        # What it was goes on under another name, for whom looks how the new value was made.
        args = [self._copy(each) if each is changed else each for each in args]
        made = (
            self.secret(str(plain), plain, args, kwargs)
            if self.is_secret(args)
            else self._varying.run(plain, plain, args, kwargs)
        )
        if changed._base is None:
            self._renamed(changed, made)
        else:
            self._through_view(operation, changed._base, changed, made)
        return changed

    def _through_view(self, operation: str, base: torch.Tensor, view: torch.Tensor, made: torch.Tensor) -> None:
        """What is written to a view is put at its places of the whole; the other views are taken from that anew."""
        if not base.is_contiguous() or 0 in view.stride():
            raise OperationNotAllowed(
                f"{operation} changes an expanded or transposed tensor in place: programs on shares make new ones",
                operation=operation,
            )
        aten: Any = torch.ops.aten
        flat = self.apply(aten.reshape.default, base, [-1])
        given = self.apply(aten.reshape.default, made, [-1])
        flat = self.apply(aten.index_put.default, flat, [_places(base, view).flatten()], given)
        self._renamed(base, self.apply(aten.reshape.default, flat, list(base.shape)))
        for other in [each for each in self._alive if each._base is base]:
            self._renamed(other, self.apply(aten.index.Tensor, flat, [_places(base, other)]))

    def _renamed(self, changed: torch.Tensor, made: torch.Tensor) -> None:
        """From now on one means the other; who was made of what it was, was made of its copy."""
        before = self._copy(changed)
        self._note(changed, self._reference(made))
        of_before = self._users.pop(id(changed), [])
        for each in of_before:
            name, given = self._origins[each]
            self._origins[each] = name, {key: before if value is changed else value for key, value in given.items()}
        self._users[id(before)] = of_before
        self._origins.pop(id(changed), None)
        if id(made) in self._origins:
            self._came_from(changed, *self._origins[id(made)])

    def _came_from(self, made: torch.Tensor, operation: str, given: Mapping[str, Any]) -> None:
        self._origins[id(made)] = operation, given
        for value in given.values():
            if isinstance(value, torch.Tensor):
                self._users.setdefault(id(value), []).append(id(made))

    def remembered(self, tensor: torch.Tensor, purpose: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, once for each value and purpose."""
        key = tuple(sorted(self._reference(tensor).items())), purpose
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]

    def finer(self, tensor: torch.Tensor, bits: int) -> None:
        """Has a secret that is given be given with so many more fractional bits; nothing of one that is made."""
        reference = self._reference(tensor)
        if "secret" in reference:
            at = reference["secret"]
            self._more[at] = max(bits, self._more.get(at, 0))
        elif "given" in reference and self._loop is not None:
            kind, at = reference["given"]
            self._loop.outside.finer(self._loop.given[kind][at], bits)

    def _finest(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is to come out, made of its largest form: with the digits that this has below a real's last."""
        if not self.is_secret(tensor) or "secret" in self._reference(tensor):
            return tensor
        key = tuple(sorted(self._reference(tensor).items()))
        larger = {shift: made for (of, shift), made in self._remembered.items() if of == key and type(shift) is int}
        if not larger:
            return tensor
        shift = max(larger)
        made: torch.Tensor = self.apply(torch.ops.aten.mul.Scalar, larger[shift], 2.0**-shift)
        return made

    def is_secret(self, value: Any) -> bool:
        leaves = pytree.tree_leaves(value)
        return any(isinstance(leaf, torch.Tensor) and id(leaf) in self._references for leaf in leaves)

    def _write(self, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> None:
        number = len(self.nodes)
        if number >= limits.MAX_NODES:
            raise TooLarge(f"more than {number} operations", limit="MAX_NODES", allowed=limits.MAX_NODES)
        self.nodes.append(Node(operation, *encode_call(args, kwargs, self._reference)))
        given = self._named(lookup(operation).overload, args, kwargs)
        if isinstance(made, torch.Tensor):
            self._note(made, {"made": number})
            self._came_from(made, operation, given)
        else:
            for item, each in enumerate(made):
                if isinstance(each, torch.Tensor):
                    self._note(each, {"made": number, "item": item})
                    self._came_from(each, operation, given)

    def _reference(self, tensor: torch.Tensor) -> dict[str, Any]:
        key = id(tensor), version_of(tensor)
        found = self._references.get(id(tensor)) or self._known.get(key)
        if found is None:
            self._alive.append(tensor)
            found = self._known[key] = self._written(tensor)
        return found

    def _written(self, tensor: torch.Tensor) -> dict[str, Any]:
        """A public tensor: in the program where it is small, else beside it; where it differs, in slices."""
        values = self._varying.of(tensor)
        if len(values) > 1:
            assert self._loop is not None
            return self._loop.slice_of(tensor, values)
        if header_of(tensor).nbytes <= limits.MAX_CONSTANT:
            self._constants.append(inline_tensor(tensor)["tensor"])
            return {"constant": len(self._constants) - 1}
        self.public.append(tensor)
        return {"public": len(self.public) - 1}

    def _output(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._reference(self._finest(value))
        if isinstance(value, tuple):
            return {"tuple": [self._output(item) for item in value]}
        if isinstance(value, list):
            return [self._output(item) for item in value]
        if isinstance(value, Mapping):
            return {"map": {key: self._output(item) for key, item in value.items()}}
        return value


def _places(base: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Where a view's elements are among those of the whole."""
    numbers = torch.arange(base.numel())
    return numbers.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a decomposition calls."""

    def __init__(self, lowering: _Lowering) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lowering = lowering

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._lowering.is_secret((args, kwargs)):
            return self._lowering.public_result(func, func, args, kwargs)
        return self._lowering.secret(str(func), func, args, kwargs)
