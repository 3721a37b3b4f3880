"""Programs of sums and products with malicious security: what interpreter.py does, on shares with MACs.

Linear layers, convolutions, polynomials: operations of this file's table. All that is opened is checked before the
outputs are revealed (authenticated.py has the protocols, the adversary and the costs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from compute.prepared import arguments, outputs, prepare
from compute.program import Program
from mpc import field
from mpc.authenticated import MAGNITUDE, Authenticated, Tagged, private_mask
from mpc.bilinear import Bilinear, Convolve, MatrixProduct, Multiply
from mpc.field import P
from mpc.operations.linear import _call, result_type
from mpc.party import Party
from mpc.ring import decode, encode
from mpc.rounds import Protocol
from mpc.secret import Secret, bits_of
from protocol.errors import BadRequest, OperationNotAllowed


@dataclass(frozen=True, slots=True)
class Checked:
    """A secret with its tag, its fractional bits, and the dtype that it stands for."""

    tagged: Tagged
    bits: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return self.tagged.value.shape

    def map(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> Checked:
        return Checked(Tagged(linear(self.tagged.value), linear(self.tagged.tag)), self.bits, self.dtype)


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
    block, constants = prepared.main, prepared.constants()
    values: list[Any] = [*inputs, *[None] * len(block.steps), *(constants[at] for at in block.constants)]
    for step in block.steps:
        args, kwargs = arguments(step, values)
        if step.flow is not None:
            raise OperationNotAllowed(
                f"{step.operation} of so many iterations has no form with malicious security: take fewer in one run",
                operation=step.operation,
            )
        if step.entry is None or not any(isinstance(each, Checked) for each in (*args, *kwargs.values())):
            raise OperationNotAllowed(f"{step.operation} on public values: lower the program first")
        values[step.number] = yield from _operation(own, step.operation, step.entry.named(args, kwargs))
    return outputs(block.outputs, values)


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


def _operation(own: Authenticated, name: str, named: dict[str, Any]) -> Protocol[Checked]:
    kind = name.split(".")[1]
    if kind in _MOVES:
        source: Checked = named["self"]
        return source.map(lambda share: _call(name, {**named, "self": share}))
    if kind in ("sum", "neg"):
        summand: Checked = named["self"]
        return summand.map(partial(_sum, name, named) if kind == "sum" else field.opposite)
    if kind in ("add", "sub", "rsub") and named.get("alpha", 1) == 1:
        one, other = named["self"], named["other"]
        return _sum_of(own, *(other, one) if kind == "rsub" else (one, other), -1 if "sub" in kind else 1)
    if kind in ("mul", "square"):
        return (yield from _product(own, Multiply(), named["self"], named.get("other", named["self"])))
    if kind in ("mm", "matmul", "bmm"):
        return (yield from _product(own, MatrixProduct(), named["self"], named.get("mat2", named.get("other"))))
    if kind in ("addmm", "linear"):
        x, y = (named["mat1"], named["mat2"]) if kind == "addmm" else (named["input"], _turned(named["weight"]))
        made = yield from _product(own, MatrixProduct(), x, y)
        bias = named["self"] if kind == "addmm" else named.get("bias")
        return made if bias is None else _sum_of(own, made, bias, 1)
    if kind in ("conv2d", "convolution") and not named.get("transposed"):
        return (yield from _convolve(own, named))
    raise OperationNotAllowed(f"{name} has no form with malicious security: sums and products have", operation=name)


_MOVES: Final = frozenset(
    "view reshape permute transpose t expand squeeze unsqueeze select slice flatten clone detach _unsafe_view".split()
)


def _turned(value: Any) -> Any:
    return value.map(lambda share: share.mT) if isinstance(value, Checked) else value.mT


def _sum(name: str, named: dict[str, Any], share: torch.Tensor) -> torch.Tensor:
    return field.summed(share, lambda part: _call(name, {**named, "self": part, "dtype": None}))


def _sum_of(own: Authenticated, one: Any, other: Any, sign: int) -> Checked:
    dtype = result_type(*map(_stand_in, (one, other)))
    bits = max(each.bits if isinstance(each, Checked) else bits_of(each, own.precision) for each in (one, other))
    if not isinstance(other, Checked):
        return Checked(_plus(own, _finer(one, bits), _elements(other, bits), sign), bits, dtype)
    right = _finer(other, bits) if sign > 0 else _finer(other, bits).map(field.opposite)
    if not isinstance(one, Checked):
        return Checked(_plus(own, right, _elements(one, bits), 1), bits, dtype)
    return Checked(_finer(one, bits).tagged + right.tagged, bits, dtype)


def _stand_in(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Checked) else value


def _plus(own: Authenticated, secret: Checked, public: torch.Tensor, sign: int) -> Tagged:
    public = public.to(secret.tagged.value.device)  # in a script, of shapes alone
    shape = (secret.tagged.value + public).shape
    wide = secret.map(lambda share: share.expand(shape))
    return own.plus(wide.tagged, (public if sign > 0 else field.opposite(public)).expand(shape))


def _finer(secret: Checked, bits: int) -> Checked:
    moved = secret.map(lambda share: field.turned(share, bits - secret.bits))
    return Checked(moved.tagged, bits, secret.dtype)


def _elements(value: Any, bits: int) -> torch.Tensor:
    return field.from_words(encode(torch.as_tensor(value), bits))


def _product(own: Authenticated, operation: Bilinear, x: Any, y: Any) -> Protocol[Checked]:
    x, y = (yield from _settled(own, x)), (yield from _settled(own, y))
    if isinstance(x, Checked) and isinstance(y, Checked):
        made = yield from own.multiply(operation, x.tagged, y.tagged)
        return Checked(made, x.bits + y.bits, x.dtype)
    secret, public = (x, y) if isinstance(x, Checked) else (y, x)
    bits = bits_of(public, own.precision)
    words = _elements(public, bits)
    if isinstance(x, Checked):
        made = secret.tagged.by(operation, words)
    else:
        made = Tagged(*(field.apply(operation, words, each) for each in (secret.tagged.value, secret.tagged.tag)))
    return Checked(made, secret.bits + bits, secret.dtype)


def _settled(own: Authenticated, value: Any) -> Protocol[Any]:
    if not isinstance(value, Checked) or value.bits <= own.precision:
        return value
    made = yield from own.truncate(value.tagged, value.bits - own.precision)
    return Checked(made, own.precision, value.dtype)


def _convolve(own: Authenticated, named: dict[str, Any]) -> Protocol[Checked]:
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    rank = len(weight.shape) - 2

    def each(key: str, default: int) -> tuple[int, ...]:
        value = named.get(key, default)
        return (value,) * rank if isinstance(value, int) else tuple(value) * (rank if len(value) == 1 else 1)

    operation = Convolve(each("stride", 1), each("padding", 0), each("dilation", 1), named.get("groups", 1))
    made = yield from _product(own, operation, x, weight)
    if bias is None:
        return made
    wide = (-1, *(1,) * rank)
    return _sum_of(own, made, bias.map(lambda t: t.view(wide)) if isinstance(bias, Checked) else bias.view(wide), 1)
