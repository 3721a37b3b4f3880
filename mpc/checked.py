"""Programs of sums and products with malicious security: what interpreter.py does, on shares with MACs.

Linear layers, convolutions, polynomials, and loops of these (macs.py has the operations). All that is opened is checked
before the outputs are revealed (authenticated.py has the protocols, the adversary and the costs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compute.flow import Flow
from compute.prepared import Block, Prepared, arguments, outputs, prepare, resolve
from compute.program import Program
from mpc import field
from mpc.authenticated import MAGNITUDE, Authenticated, Tagged, private_mask
from mpc.field import P
from mpc.macs import Checked, finer, operation, public, settled
from mpc.party import Party
from mpc.ring import decode, encode
from mpc.rounds import Protocol
from mpc.secret import Secret
from protocol.errors import BadRequest, OperationNotAllowed


def run(own: Authenticated, program: Program, inputs: Sequence[Any]) -> Protocol[Any]:
    """The program's outputs, revealed to all parties: every input is a Checked, or a tensor that all know.

    Raises:
        OperationNotAllowed: an operation on a secret that is not one of sums and products.
        PartyFailed: somebody did not do as agreed: there are no outputs.
    """
    made = yield from _computed(own, program, inputs)
    secrets = list(_secrets(made))
    words = iter((yield from own.reveal(*(each.tagged for each in secrets))))
    return _with(made, lambda secret: decode(next(words), secret.bits, secret.dtype))


@dataclass(frozen=True, slots=True)
class Hidden:
    """A secret input: its shape, fractional bits and dtype."""

    shape: tuple[int, ...]
    bits: int
    dtype: torch.dtype


def hide(value: torch.Tensor, bits: int, seed: bytes, at: int) -> torch.Tensor:
    """What the holder of input number `at` tells all parties: its elements less their mask (authenticated.private).

    Raises:
        BadRequest: a value does not fit.
    """
    words = encode(value, bits)
    if words.numel() and int(words.abs().max()) >= 1 << MAGNITUDE:
        raise BadRequest(f"a value is {2.0 ** (MAGNITUDE - bits):g} or more: runs with MACs hold smaller ones")
    return field.sub(field.from_words(words), private_mask(seed, at, tuple(words.shape)))


def shown(masked: torch.Tensor, bits: int, dtype: torch.dtype, seed: bytes, at: int) -> torch.Tensor:
    """Output number `at`, of what all parties have told who has the seed (they have to tell the same)."""
    elements = field.sub(field.reduced(masked & P), private_mask(seed, at, tuple(masked.shape)))
    return decode(field.to_words(elements), bits, dtype)


def whole(
    party: Party,
    program: Program,
    inputs: Sequence[Hidden],
    public: Sequence[torch.Tensor],
    masked: Callable[[int], torch.Tensor],
    seeds: Callable[[int], bytes] = lambda at: b"",
) -> Protocol[Any]:
    """A run for somebody who is no party: inputs come masked (`hide`), and what secrets come out leave masked (`shown`,
    numbered on behind the inputs), as Secrets of elements. Parties learn nothing, and whoever is given what they open
    has a result only if all that went before was right.

    Args:
        masked: what the holder of an input has told this party.
        seeds: at the dealer: of each input and then of each output, that of who is to know its mask.
    """
    own = Authenticated(party)
    masks = [own.private(each.shape, at, seeds(at)) for at, each in enumerate(inputs)]
    secrets = [
        Checked(own.plus(mask, masked(at)), each.bits, each.dtype)
        for at, (mask, each) in enumerate(zip(masks, inputs, strict=True))
    ]
    made = yield from _computed(own, program, [*secrets, *public])
    yield from own.check()  # before anything of the result is opened to somebody who knows its mask
    hidden = []
    for at, each in enumerate(_secrets(made), len(inputs)):
        hidden.append(each.tagged + own.private(tuple(each.shape), at, seeds(at)))
    opened = iter((yield from own.open(*hidden)))
    yield from own.check()
    return _with(made, lambda secret: Secret(next(opened), secret.bits, secret.dtype))


def _computed(own: Authenticated, program: Program, inputs: Sequence[Any]) -> Protocol[Any]:
    prepared = prepare(program)
    values = yield from _Run(own, prepared).block(prepared.main, inputs)
    return outputs(prepared.main.outputs, values)


class _Run:
    """Step by step: their rounds are not shared."""

    def __init__(self, own: Authenticated, prepared: Prepared) -> None:
        self._own, self._prepared = own, prepared
        self._constants = prepared.constants()

    def block(self, block: Block, given: Sequence[Any]) -> Protocol[list[Any]]:
        """All values of a block."""
        values = [*given, *[None] * len(block.steps), *(self._constants[at] for at in block.constants)]
        for step in block.steps:
            if step.flow is not None:
                values[step.number] = yield from self._loop(step.flow, values)
                continue
            args, kwargs = arguments(step, values)
            if step.entry is None or not any(_secrets([*args, *kwargs.values()])):
                raise OperationNotAllowed(f"{step.operation} on public values: lower the program first")
            values[step.number] = yield from operation(self._own, step.operation, step.entry.named(args, kwargs))
        return values

    def _loop(self, flow: Flow, values: list[Any]) -> Protocol[list[Any]]:
        """What an iteration has opened is checked at its end: nobody remembers more of it, and what is carried on is
        right."""
        if flow.name not in ("flow.repeat", "flow.scan"):
            raise OperationNotAllowed(f"{flow.name} has no form with malicious security", operation=flow.name)
        carried, sliced, operands = (
            [resolve(each, values) for each in group] for group in (flow.carried, flow.sliced, flow.operands)
        )
        count = resolve(flow.value, values) if flow.name == "flow.repeat" else sliced[0].shape[0]
        state, rows = (yield from self._alike(carried)), dict[int, list[Checked]]()
        for done in self._own.party.iterations(count, lambda: [(each.bits, each.dtype) for each in state]):
            at = count - 1 - done if flow.reverse else done
            first = [torch.tensor(at)] if flow.name == "flow.repeat" else []
            given = [*first, *state, *(_row(each, at) for each in sliced), *operands]
            block = self._prepared.bodies[flow.bodies[0]]
            inner = yield from self.block(block, given)
            made = yield from self._alike([resolve(each, inner) for each in block.outputs])
            state[:], rows[at] = made[: len(carried)], made[len(carried) :]
            if self._own.is_unchecked:
                yield from self._own.check()
        return [*state, *self._stacked(rows, count)]

    def _alike(self, values: Sequence[Any]) -> Protocol[list[Checked]]:
        """What goes on, or comes out: secrets with the run's fractional bits, so that all iterations do the same."""
        made = []
        for value in values:
            bits = self._own.precision if value.dtype.is_floating_point else 0
            if isinstance(value, Checked):
                made.append(finer((yield from settled(self._own, value)), bits))
            else:
                made.append(public(self._own, value, bits))
        return made

    @staticmethod
    def _stacked(rows: Mapping[int, list[Checked]], count: int) -> list[Checked]:
        """Of shapes alone, those of one iteration stand for all."""
        found = next(iter(rows.values()), [])
        whole = [rows.get(at, found) for at in range(count)]
        return [_stack(column) for column in zip(*whole, strict=True)]


def _row(value: Any, at: int) -> Any:
    return value.map(lambda share: share.select(0, at)) if isinstance(value, Checked) else value.select(0, at)


def _stack(column: Sequence[Checked]) -> Checked:
    words, tags = ([getattr(each.tagged, name) for each in column] for name in ("value", "tag"))
    return Checked(Tagged(torch.stack(words), torch.stack(tags)), column[0].bits, column[0].dtype)


def _secrets(made: Any) -> Iterator[Checked]:
    """Those in a result, in the order of `_with`."""
    if isinstance(made, Checked):
        yield made
    elif isinstance(made, Mapping):
        for key in sorted(made):
            yield from _secrets(made[key])
    elif isinstance(made, list | tuple):
        for each in made:
            yield from _secrets(each)


def _with(made: Any, change: Callable[[Checked], Any]) -> Any:
    """A result, in which each secret was changed."""
    if isinstance(made, Checked):
        return change(made)
    if isinstance(made, Mapping):
        return {key: _with(made[key], change) for key in sorted(made)}
    if isinstance(made, list | tuple):
        return type(made)(_with(each, change) for each in made)
    return made
