"""A program as one that can run on shares: what is public is computed beforehand, the rest is said in secure forms.

The asker does this before anything is shared. Nodes on public values alone run here and now, once: parties that did so
each by itself might differ in a last bit, and what they multiply their shares by must be the same. A node on a secret
that has no secure form is taken apart by torch's own decompositions, down to ones that have; where that does not work
out, the error names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compute import interpreter as clear
from compute.dtypes import NAME_OF, as_peers_have_it
from compute.flow import Flow
from compute.prepared import Block, Prepared, arguments, prepare, resolve
from compute.prepared import outputs as outputs_of
from compute.program import Body, Input, Node, Program
from mpc.assembly import assembled
from mpc.calls import Calls
from mpc.loops import ROOM, Inside, looped
from mpc.ring import PRECISION, check_precision
from mpc.secret import Secret
from mpc.unrolled import TooLong, unrolled
from mpc.varying import Differs
from protocol.errors import BadRequest, InternalError


@dataclass(frozen=True, slots=True)
class Looks:
    """Of a tensor, secret or not."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{NAME_OF[self.dtype]} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Lowered:
    """What runs on shares.

    Attributes:
        program: its inputs are the secret ones, in their order, and then the public ones.
        public: the values of the latter: all parties are given them.
        precision: fractional bits of secret reals that the program is meant for: Party and script_of are given them.
        more: of each secret input how many more of them it is to have (moments.py); empty: none.
        looks: what comes out, nested as it is, with `Looks` for tensors; None: that is not known.
    """

    program: Program
    public: tuple[torch.Tensor, ...]
    precision: int = PRECISION
    more: tuple[int, ...] = ()
    looks: Any = None

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
    # In inference mode nobody counts what is written to a tensor.
    with as_peers_have_it(), torch.inference_mode(False), torch.no_grad():
        known = [each.clone() if each.is_inference() else each for each in inputs]
        return _Lowering(prepare(program), precision).lowered(program, known, secret)


def looks_of(outputs: Any) -> Any:
    """The same with Looks for tensors, and None for all else."""
    if isinstance(outputs, Mapping):
        return {key: looks_of(each) for key, each in outputs.items()}
    if isinstance(outputs, list | tuple):
        return [looks_of(each) for each in outputs]
    return Looks(outputs.dtype, tuple(outputs.shape)) if isinstance(outputs, torch.Tensor | Secret) else None


def check_looks(lowered: Lowered, outputs: Any) -> None:
    """What a program gives on shares has to look as in the clear. InternalError: nothing is to be shared for it, and
    no result taken for what it is not."""
    _compare(looks_of(outputs), lowered.looks)


def _compare(got: Any, meant: Any) -> None:
    if isinstance(meant, dict):
        for key, each in meant.items():
            _compare(got[key], each)
    elif isinstance(meant, list):
        for one, other in zip(got, meant, strict=True):
            _compare(one, other)
    elif got is not None and meant is not None and got != meant:
        raise InternalError(
            f"on shares this would give {got}, and {meant} in the clear: a defect of a secure form. Compute it in "
            "other operations"
        )


class _Lowering(Calls):
    """Lowers a program; or, `inside` one, the body of a loop."""

    def __init__(self, prepared: Prepared, precision: int, inside: Inside | None = None) -> None:
        super().__init__(inside)
        self._prepared = prepared
        self._precision = precision
        self.last_values: list[Any] = []  # of the block that was lowered last

    def _stand_in(self, given: Input, tensor: torch.Tensor) -> torch.Tensor:
        """Zeros: what is computed of it has the right shapes, and no value of it is ever used."""
        if tensor.is_complex():
            raise BadRequest(
                f"{given.name} is {NAME_OF[tensor.dtype]}: complex numbers cannot be secrets, so share their real and "
                "imaginary parts (torch.view_as_real)"
            )
        zeros = torch.zeros(tensor.shape, dtype=tensor.dtype)
        self.traces.note(zeros, self.sheet.add_input(given.name, zeros))
        return zeros

    def lowered(self, program: Program, inputs: Sequence[torch.Tensor], secret: Sequence[bool]) -> Lowered:
        values = [
            self._stand_in(given, tensor) if is_secret else tensor
            for given, tensor, is_secret in zip(program.inputs, inputs, secret, strict=True)
        ]
        values = self._block(self._prepared.main, values)
        given = outputs_of(self._prepared.main.outputs, values)
        outputs, sheet = self._output(given), self.sheet
        return Lowered(
            assembled(sheet.inputs, sheet.public, sheet.nodes, sheet.constants, outputs, sheet.bodies),
            tuple(sheet.public),
            self._precision,
            tuple(self.more.get(at, 0) for at in range(len(sheet.inputs))) if self.more else (),
            looks_of(given),
        )

    # --- what others ask (loops.py, unrolled.py, rewrites.py) -----------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """What was written down."""
        return self.sheet.nodes

    @property
    def public(self) -> list[torch.Tensor]:
        """Public values beside the program."""
        return self.sheet.public

    def add_body(self, body: Body) -> int:
        return self.sheet.add_body(body)

    # --- blocks -----------------------------------------------------------------------------------------------

    def _block(self, block: Block, given: Sequence[Any]) -> list[Any]:
        """All values of a block."""
        values: list[Any] = [*given, *[None] * len(block.steps)]
        constants = self._prepared.constants()
        values += [constants[at] for at in block.constants]
        if block.body is not None:
            for number in block.copies:
                values[number] = self.copy(values[number])
        for step in block.steps:
            try:
                if step.flow is not None:
                    made: Any = self._flow(step.flow, values)
                    values[step.number] = list(map(self.copy, made)) if step.copies else made
                else:
                    args, kwargs = arguments(step, values)
                    values[step.number] = self.call(step.operation, args, kwargs)
            except Exception as error:
                if isinstance(error, Differs | TooLong):
                    raise
                raise clear._at_node(error, block, step) from None
        self.last_values = values
        return values

    def body(self, number: int, given: list[Any]) -> list[Any]:
        """What a body gives."""
        block = self._prepared.bodies[number]
        values = self._block(block, given)
        return [resolve(template, values) for template in block.outputs]

    # --- loops ------------------------------------------------------------------------------------------------

    def _flow(self, flow: Flow, values: list[Any]) -> list[Any]:
        """What a loop or branch gives: written out where it is short, or cannot stay a loop."""
        # Views that are outdated are taken anew before the mark, behind which all may be taken back.
        self.is_secret([resolve(each, values) for each in flow.values])
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
        return self.sheet.mark(), self.traces.mark()

    def back_to(self, mark: tuple[Any, ...]) -> None:
        """Nothing was written since."""
        self.sheet.back_to(mark[0])
        self.traces.back_to(mark[1])

    def block_of(self, body: int) -> Block:
        return self._prepared.bodies[body]

    def within(self, inside: Inside) -> _Lowering:
        """The lowering of a loop's body."""
        return _Lowering(self._prepared, self._precision, inside)

    def gives(self, node: Node, stand_ins: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Writes a node with secret items; what it gives."""
        self.nodes.append(node)
        return [self.given(each, {"made": len(self.nodes) - 1, "item": at}) for at, each in enumerate(stand_ins)]

    def _finest(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is to come out, made of its largest form: with the digits that this has below a real's last."""
        if not self.is_secret(tensor) or "secret" in self.traces.reference(tensor):
            return tensor
        remembered = self.traces.all_remembered(tensor)
        larger = {shift: made for shift, made in remembered.items() if type(shift) is int}
        if not larger:
            return tensor
        shift = max(larger)
        made: torch.Tensor = self.apply(torch.ops.aten.mul.Scalar, larger[shift], 2.0**-shift)
        return made

    def _output(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.traces.reference(self._finest(value))
        if isinstance(value, tuple):
            return {"tuple": [self._output(item) for item in value]}
        if isinstance(value, list):
            return [self._output(item) for item in value]
        if isinstance(value, Mapping):
            return {"map": {key: self._output(item) for key, item in value.items()}}
        return value
