"""What a secure run will take, found from shapes alone: its script, and which of its inputs are worth fixing."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import torch

from compute.program import Node, Program
from compute.table import lookup
from compute.values import tensor_bytes
from mpc.arithmetic import FixedTriple
from mpc.checked import Hidden, whole
from mpc.fresh import freshly
from mpc.interpreter import run
from mpc.lowering import Lowered, check_looks, lower
from mpc.party import Party
from mpc.replicated import foreseen
from mpc.rounds import Protocol
from mpc.script import Script, script_of
from mpc.secret import Secret
from mpc.standing import shape_of
from mpc.staying import as_given, staying
from mpc.trio import Pieces
from protocol import limits
from protocol.sizes import check_limit

T = TypeVar("T")

Shape = tuple[torch.dtype, tuple[int, ...], int]
"""Of an input: dtype, shape, fractional bits."""

_KNOWN: Final = 64
_known: OrderedDict[Any, Any] = OrderedDict()


def remembered(key: Any, find: Callable[[], T]) -> T:
    """What `find` gave for this key before, or gives now."""
    if key in _known:
        _known.move_to_end(key)
        found: T = _known[key]
        return found
    found = _known[key] = find()
    while len(_known) > _KNOWN:
        _known.popitem(last=False)
    return found


async def lowered_once(
    program: Program, inputs: Sequence[torch.Tensor], secret: Sequence[bool], precision: int
) -> Lowered:
    """`mpc.lowering.lower`, which is asked once for what looks the same, with the same public values: these are worked
    out on the way. What draws random numbers is lowered each time."""
    shapes = [
        torch.empty(each.shape, dtype=each.dtype, device="meta") if is_secret else each
        for each, is_secret in zip(inputs, secret, strict=True)
    ]
    public = [each for each, is_secret in zip(inputs, secret, strict=True) if not is_secret]
    is_large = sum(each.nbytes for each in public) > _LARGE
    if is_large or any(map(_draws, (*program.nodes, *(each for body in program.bodies for each in body.nodes)))):
        return await asyncio.to_thread(lower, program, shapes, secret, precision)
    values = tuple(hashlib.sha256(tensor_bytes(each)).digest() for each in public)
    looks = tuple((each.dtype, tuple(each.shape), is_one) for each, is_one in zip(inputs, secret, strict=True))
    key = "lowered", program.id, looks, values, precision
    made: Lowered | None = _known.get(key)
    if made is None:
        made = await asyncio.to_thread(lower, program, shapes, secret, precision)
    return remembered(key, lambda: made)


_LARGE: Final = 16 * limits.MIB  # of public values: what is remembered of them stays in memory
_RANDOM: Final = re.compile(
    "rand|dropout|bernoulli|normal|uniform|multinomial|poisson|exponential|geometric|standard_gamma|dirichlet|binomial"
    "|cauchy|rrelu"
)


def _draws(node: Node) -> bool:
    """Whether random numbers are drawn in it; layers that recur have dropout of their own."""
    if _RANDOM.search(node.operation):
        return True
    if not _RECURS.match(node.operation):
        return False
    given = lookup(node.operation).named(node.args, node.kwargs)
    return bool(given["train"] and given["dropout"])


_RECURS: Final = re.compile(r"aten\.(lstm|gru|rnn_tanh|rnn_relu)\.")


def program_key(lowered: Lowered) -> bytes:
    """Equal for programs that do the same, with the same public values."""
    hashed = hashlib.sha256(lowered.program.to_bytes())
    for each in lowered.public:
        hashed.update(tensor_bytes(each))
    hashed.update(str((lowered.precision, lowered.more)).encode())
    return hashed.digest()


def script(
    lowered: Lowered, shapes: tuple[Shape, ...], fixed: tuple[bool, ...], count: int, stays: tuple[bool, ...] = ()
) -> Script:
    """What a run among so many parties takes when the masks of fixed inputs are open. `stays`: which outputs do; empty:
    all are revealed."""

    def find() -> Script:
        places = iter(range(len(shapes)))
        secrets = [
            shape_of(_secret(shape, lowered), next(places)) if is_one else _secret(shape, lowered)
            for shape, is_one in zip(shapes, fixed, strict=True)
        ]

        def protocol(party: Any) -> Any:
            made = _as_meant(lowered, run(party, lowered.program, [*secrets, *lowered.public]))
            if any(stays):
                made = staying(party, made, lowered.program.outputs, stays)
            return made if stays and all(stays) else freshly(party, made)

        return script_of(protocol, count, lowered.precision)

    return remembered(("script", program_key(lowered), shapes, fixed, count, stays), find)


def _as_meant(lowered: Lowered, protocol: Protocol[Any]) -> Protocol[Any]:
    made = yield from protocol
    check_looks(lowered, made)
    return made


async def check_on_shares(lowered: Lowered, inputs: Sequence[torch.Tensor], count: int) -> None:
    """What a run would fail with, whatever the values are; found out once. GridError: an operation has no form for
    these shapes, or a round would be too large."""
    shapes = _shapes(lowered, inputs)
    key = "fine", program_key(lowered), shapes, count
    if key not in _known:
        await asyncio.to_thread(_check, lowered, shapes, count)
    remembered(key, lambda: None)


def _check(lowered: Lowered, shapes: tuple[Shape, ...], count: int) -> None:
    taken = script(lowered, shapes, (False,) * len(shapes), count)
    sentence = "a round of {size} bytes, at most {allowed}: run the plan on smaller parts of the data"
    check_limit("SECURE_MESSAGE", taken.largest, sentence)


def script_with_macs(lowered: Lowered, inputs: Sequence[torch.Tensor], count: int) -> Script:
    """What a checked run takes. OperationNotAllowed: something in it has no form with MACs."""
    shapes = _shapes(lowered, inputs)

    def find() -> Script:
        hidden = [Hidden(sizes, bits, dtype) for dtype, sizes, bits in shapes]

        def protocol(party: Party) -> Protocol[Any]:
            made = whole(party, lowered.program, hidden, lowered.public, lambda at: _secret(shapes[at], lowered).share)
            return _as_meant(lowered, made)

        return script_of(protocol, count, lowered.precision)

    return remembered(("with MACs", program_key(lowered), shapes, count), find)


def script_alone(taken: Script) -> Script:
    """What three parties take to make what a dealer would deal: rounds and bytes."""
    standing = {}
    for each in taken.correlations:
        if isinstance(each, FixedTriple) and each.mask < 0:
            mask = torch.zeros(each.other, dtype=torch.int64)
            mask = mask.mT if each.is_transposed else mask
            standing[each.mask] = Pieces(mask, mask)
    return foreseen(taken, standing)


def fixed_inputs(lowered: Lowered, shapes: tuple[Shape, ...], may: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which of the inputs that may be fixed are factors of products, so that it is worth it."""

    def find() -> tuple[bool, ...]:
        taken = script(lowered, shapes, may, 2).correlations
        used = {each.mask for each in taken if isinstance(each, FixedTriple)}
        numbers = iter(range(len(shapes)))
        return tuple(is_one and -1 - next(numbers) in used for is_one in may)

    return remembered(("fixed", program_key(lowered), shapes, may), find)


def _shapes(lowered: Lowered, inputs: Sequence[torch.Tensor]) -> tuple[Shape, ...]:
    return tuple((each.dtype, tuple(each.shape), lowered.bits(at, each.dtype)) for at, each in enumerate(inputs))


def _secret(shape: Shape, lowered: Lowered) -> Secret:
    dtype, sizes, bits = shape
    return as_given(torch.empty(sizes, dtype=torch.int64, device="meta"), bits, dtype, lowered.precision)
