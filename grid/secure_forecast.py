"""What a secure run will take, found from shapes alone: its script, and which of its inputs are worth fixing."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import torch

from compute.program import Program
from compute.values import tensor_bytes
from mpc.arithmetic import FixedTriple
from mpc.checked import Hidden, whole
from mpc.fresh import freshly
from mpc.interpreter import run
from mpc.lowering import Lowered, lower
from mpc.masks import SEED
from mpc.party import Party
from mpc.replicated import Pieces, prepare
from mpc.rounds import Protocol
from mpc.script import Script, script_of
from mpc.secret import Secret
from mpc.standing import shape_of

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
    """`mpc.lowering.lower`, which is asked once for what looks the same. What draws random numbers, or has public
    inputs, is lowered each time: these are worked out on the way."""
    shapes = [
        torch.empty(each.shape, dtype=each.dtype, device="meta") if is_secret else each
        for each, is_secret in zip(inputs, secret, strict=True)
    ]
    if not all(secret) or any(_RANDOM.search(each) for each in program.operations):
        return await asyncio.to_thread(lower, program, shapes, secret, precision)
    key = "lowered", program.id, tuple((each.dtype, tuple(each.shape)) for each in inputs), precision
    made: Lowered | None = _known.get(key)
    if made is None:
        made = await asyncio.to_thread(lower, program, shapes, secret, precision)
    return remembered(key, lambda: made)


_RANDOM: Final = re.compile("rand|dropout|bernoulli|normal|uniform|multinomial|poisson|exponential|geometric")


def program_key(lowered: Lowered) -> bytes:
    """Equal for programs that do the same, with the same public values."""
    hashed = hashlib.sha256(lowered.program.to_bytes())
    for each in lowered.public:
        hashed.update(tensor_bytes(each))
    hashed.update(str(lowered.precision).encode())
    return hashed.digest()


def script(
    lowered: Lowered, shapes: tuple[Shape, ...], fixed: tuple[bool, ...], count: int, *, reveals: bool
) -> Script:
    """What a run among so many parties takes when the masks of fixed inputs are open."""

    def find() -> Script:
        places = iter(range(len(shapes)))
        secrets = [
            shape_of(_secret(shape), next(places)) if is_one else _secret(shape)
            for shape, is_one in zip(shapes, fixed, strict=True)
        ]

        def protocol(party: Any) -> Any:
            made = run(party, lowered.program, [*secrets, *lowered.public])
            return freshly(party, made) if reveals else made

        return script_of(protocol, count, lowered.precision)

    return remembered(("script", program_key(lowered), shapes, fixed, count, reveals), find)


def script_with_macs(lowered: Lowered, inputs: Sequence[torch.Tensor], count: int) -> Script:
    """What a checked run takes. OperationNotAllowed: something in it has no form with MACs."""
    shapes = tuple(
        (each.dtype, tuple(each.shape), lowered.precision if each.dtype.is_floating_point else 0) for each in inputs
    )

    def find() -> Script:
        hidden = [Hidden(sizes, bits, dtype) for dtype, sizes, bits in shapes]

        def protocol(party: Party) -> Protocol[Any]:
            return whole(party, lowered.program, hidden, lowered.public, lambda at: _secret(shapes[at]).share)

        return script_of(protocol, count, lowered.precision)

    return remembered(("with MACs", program_key(lowered), shapes, count), find)


def script_alone(taken: Script) -> Script:
    """What three parties take to make what a dealer would deal: rounds and bytes."""
    seeds, standing = (bytes(SEED), bytes(SEED)), {}
    for each in taken.correlations:
        if isinstance(each, FixedTriple) and each.mask < 0:
            mask = torch.zeros(each.other, dtype=torch.int64)
            mask = mask.mT if each.is_transposed else mask
            standing[each.mask] = Pieces(mask, mask)
    return script_of(lambda party: prepare(0, seeds, taken, standing), 3)


def fixed_inputs(lowered: Lowered, shapes: tuple[Shape, ...], may: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which of the inputs that may be fixed are factors of products, so that it is worth it."""

    def find() -> tuple[bool, ...]:
        taken = script(lowered, shapes, may, 2, reveals=True).correlations
        used = {each.mask for each in taken if isinstance(each, FixedTriple)}
        numbers = iter(range(len(shapes)))
        return tuple(is_one and -1 - next(numbers) in used for is_one in may)

    return remembered(("fixed", program_key(lowered), shapes, may), find)


def _secret(shape: Shape) -> Secret:
    dtype, sizes, bits = shape
    return Secret(torch.empty(sizes, dtype=torch.int64, device="meta"), bits, dtype)
