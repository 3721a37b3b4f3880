"""Samples of an operation, and their tensors at a peer: views stay views, and share memory where they did."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import torch

from grid.pointer import Pointer
from grid.remote import RemotePeer
from peer.worker.execution import tensors_in

Tensors = dict[int, torch.Tensor]


def _seed(seed: int) -> None:
    """As torch.testing does, but for devices that have nothing to do with it: each would keep where it was asked."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)


@functools.cache
def known() -> Sequence[Any]:
    """torch's OpInfo entries. Imported when they are asked for: that takes seconds."""
    from torch.testing._internal import common_utils
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo import core

    # For each sample torch.testing looks through the whole stack for a unittest, which we have not: six times what
    # making the samples and running them costs.
    common_utils.extract_test_fn = core.extract_test_fn = lambda: None
    common_utils.set_rng_seed = _seed  # type: ignore[assignment]
    return op_db


def samples_of(op: Any, dtype: torch.dtype, *, requires_grad: bool, seed: int, most: int | None) -> Iterator[Any]:
    """The samples that torch's own tests make of an operation, by this seed; `most` of them, spread over all."""
    torch.manual_seed(seed)
    random.seed(seed)
    made = op.sample_inputs("cpu", dtype, requires_grad=requires_grad)
    if most is None:
        yield from made
        return
    known = list(itertools.islice(made, 40 * most))
    step = max(1, len(known) // most)
    yield from known[seed % step :: step][:most]


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same nested value with other tensors."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    if type(value) is tuple:
        return tuple(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    return value


async def pointer_of(tensor: torch.Tensor, peer: RemotePeer) -> Pointer:
    """The tensor at the peer: same dtype, shape and strides, conjugated or negated lazily where it is so here."""
    plain = tensor.detach()
    if plain.is_conj():
        return (await pointer_of(plain.conj(), peer)).conj()  # type: ignore[return-value]
    if plain.is_neg():
        return torch._neg_view(await pointer_of(torch._neg_view(plain), peer))  # type: ignore[return-value]
    if plain.layout is not torch.strided or (plain.is_contiguous() and not plain.storage_offset()):
        return await peer.send(plain)
    there = await peer.send(_span(plain).clone())
    return there.as_strided(plain.shape, plain.stride(), plain.storage_offset())  # type: ignore[return-value]


def _span(plain: torch.Tensor) -> torch.Tensor:
    """The memory of a view from where its storage begins to where it ends."""
    if not plain.numel():
        return plain.new_zeros(plain.storage_offset() + 1)
    last = sum((size - 1) * stride for size, stride in zip(plain.shape, plain.stride(), strict=True))
    return plain.as_strided((plain.storage_offset() + last + 1,), (1,), 0)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor in other memory: same strides, and a leaf if it requires grad."""
    plain = tensor.detach()
    if plain.layout is not torch.strided:
        return tensor
    if plain.is_conj():
        copy = copied(plain.conj()).conj()
    elif plain.is_neg():
        copy = torch._neg_view(copied(torch._neg_view(plain)))
    else:
        copy = _span(plain).clone().as_strided(plain.shape, plain.stride(), plain.storage_offset())
    return copy.detach().requires_grad_(tensor.requires_grad)


async def sent(value: Any, peer: RemotePeer) -> tuple[Any, dict[int, Pointer]]:
    """The value with pointers for its tensors, and those by the id() of what they stand for."""
    pointers: dict[int, Pointer] = {}
    for tensor in tensors_in(value):
        if id(tensor) not in pointers:
            there = (await pointer_of(tensor, peer)).detach()
            pointers[id(tensor)] = there.requires_grad_(tensor.requires_grad)  # type: ignore[assignment]
    return mapped(value, lambda tensor: pointers[id(tensor)]), pointers
