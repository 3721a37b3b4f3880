"""One sample of an operation, in one form, at a peer and here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grid.pointer import Pointer
from grid.remote import RemotePeer
from peer.worker.execution import tensors_in
from protocol.errors import GridError
from tests.opinfo.forms import Form
from tests.opinfo.inputs import copied, mapped, sent

Verdict = Literal["agrees", "disagrees", "refused", "not here", "no tensor"]

# What these give is what was in memory before: at a peer it is zeros, so that only shape and dtype are alike.
_UNINITIALISED = frozenset({"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """`reason` has for what disagrees what was found, for what is refused "ErrorClass: message", and for what agrees
    the strides that a pointer says it has, where they are others than here."""

    verdict: Verdict
    reason: str = ""


NOT_HERE = Outcome("not here")
AGREES = Outcome("agrees")


async def check(op: Any, form: Form, sample: Any, peer: RemotePeer) -> Outcome:
    """Runs the sample on pointers and here; results, what was changed in place, and gradients must be the same.

    "not here": torch itself refuses the sample in this form. "no tensor": nothing of it could be at a peer.
    """
    # A copy of its own: samples share tensors, and some are changed (the statistics of a batch normalisation).
    same: dict[int, torch.Tensor] = {}
    value = mapped(
        (sample.input, list(sample.args), dict(sample.kwargs)),
        lambda tensor: same.setdefault(id(tensor), copied(tensor)),
    )
    local = [tensor for tensor in tensors_in(value) if tensor.requires_grad]
    if not any(True for _ in tensors_in(value)):
        return Outcome("no tensor")
    there, pointers = await sent(value, peer)
    try:
        wanted, wanted_change = form(*value)
    except Exception:
        return NOT_HERE
    try:
        found, change = form(*there)
        found = await awaited(found)
        remote = [pointers[id(tensor)] for tensor in local]
        problem = await _differ((found, change), (wanted, wanted_change))
        if problem and _is_random(op, form, value):
            return await _alike(found, wanted)
        gradients = None if problem else _gradients(sample, wanted, local)
        if gradients is not None:
            outputs, inner = gradients
            problem = await _same_gradients(sample, found, remote, outputs, inner, peer)
            if problem and _is_random(op, form, value):
                return AGREES
    except Exception as error:
        return failure(error)
    if problem:
        return Outcome("disagrees", problem)
    return Outcome("agrees", _other_strides(found, wanted))


def failure(error: Exception) -> Outcome:
    """What an exception of the pointers' side means: ours are refusals, but for a worker that died."""
    text = f"{type(error).__name__}: {str(error)[:300]}"
    if "its data is not allocated" in text:  # torch reads the values of an argument itself
        return Outcome("refused", text)
    is_ours = isinstance(error, GridError) and type(error).__name__ not in ("WorkerLost", "PeerLost", "InternalError")
    return Outcome("refused" if is_ours else "disagrees", text)


async def awaited(value: Any) -> Any:
    """The value with what can only be known at the peer waited for."""
    if hasattr(value, "__await__"):
        return await value
    if isinstance(value, list):
        return [await awaited(item) for item in value]
    if type(value) is tuple:
        return tuple([await awaited(item) for item in value])
    return value


async def _differ(found: Any, wanted: Any) -> str:
    """What is different, or nothing."""
    if isinstance(wanted, torch.Tensor):
        if not isinstance(found, torch.Tensor):
            return f"{type(found).__name__} instead of a tensor"
        if wanted.layout is not torch.strided:
            return f"a result of layout {wanted.layout}"
        return await _differ_as_tensors(found, wanted)
    if isinstance(wanted, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(wanted):
            return f"{type(found).__name__} instead of {len(wanted)} results"
        for one, other in zip(found, wanted, strict=True):
            if problem := await _differ(one, other):
                return problem
        return ""
    if isinstance(wanted, dict):
        return await _differ(list(found.values()), list(wanted.values()))
    is_same = found == wanted or (isinstance(wanted, float) and math.isnan(wanted) and math.isnan(found))
    return "" if is_same else f"{found!r} instead of {wanted!r}"


async def _differ_as_tensors(found: torch.Tensor, wanted: torch.Tensor) -> str:
    said = (found.dtype, tuple(found.shape))
    if said != (wanted.dtype, tuple(wanted.shape)):
        return f"{said} instead of {(wanted.dtype, tuple(wanted.shape))}"
    if found.requires_grad != wanted.requires_grad:
        return f"requires_grad={found.requires_grad}"
    value = await found.fetch() if isinstance(found, Pointer) else found.detach()
    try:
        torch.testing.assert_close(value, wanted.detach().resolve_conj().resolve_neg(), equal_nan=True)
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return ""


def _other_strides(found: Any, wanted: Any) -> str:
    for one, other in zip(tensors_in(found), tensors_in(wanted), strict=True):
        if _layout(one) != _layout(other):
            return f"strides {one.stride()} instead of {other.stride()} of {tuple(other.shape)}"
    return ""


def _layout(tensor: torch.Tensor) -> list[int]:
    """The strides that matter: those of dimensions with more than one element."""
    if not tensor.numel():
        return []
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


# --- gradients --------------------------------------------------------------------------------------------


def _differentiable(value: Any) -> list[torch.Tensor]:
    return [tensor for tensor in tensors_in(value) if tensor.requires_grad]


def _gradients(sample: Any, wanted: Any, inputs: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Any] | None:
    """Gradients of the outputs, drawn, and those of the inputs by them; None where there are none here."""
    try:
        outputs = _differentiable(sample.output_process_fn_grad(wanted))
        if not outputs or not inputs:
            return None
        drawn = [torch.randn_like(output, memory_format=torch.contiguous_format) for output in outputs]
        return drawn, torch.autograd.grad(outputs, inputs, drawn, allow_unused=True)
    except Exception:
        return None


async def _same_gradients(
    sample: Any, found: Any, inputs: Sequence[Pointer], drawn: list[torch.Tensor], wanted: Any, peer: RemotePeer
) -> str:
    outputs = _differentiable(sample.output_process_fn_grad(found))
    there, _ = await sent([gradient.detach() for gradient in drawn], peer)
    gradients = torch.autograd.grad(outputs, list(inputs), there, allow_unused=True)
    for at, (one, other) in enumerate(zip(gradients, wanted, strict=True)):
        if (one is None) != (other is None):
            return f"gradient {at} is {'missing' if one is None else 'there, but not here'}"
        if other is not None and (problem := await _differ_but_strides(one, other)):
            return f"gradient {at}: {problem}"
    return ""


async def _differ_but_strides(found: torch.Tensor, wanted: torch.Tensor) -> str:
    return await _differ_as_tensors(found.detach().contiguous(), wanted.detach().contiguous())


# --- random operations ------------------------------------------------------------------------------------


def _is_random(op: Any, form: Form, value: Any) -> bool:
    """Whether the operation draws numbers: what it gives here is by another seed."""
    if op.name in _UNINITIALISED:
        return True
    with _Drawing() as drawing:
        form(*value)
    return drawing.has_drawn


class _Drawing(TorchDispatchMode):
    """Notes whether an operation takes random numbers."""

    has_drawn = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.has_drawn |= torch.Tag.nondeterministic_seeded in function.tags
        return function(*args, **(kwargs or {}))


async def _alike(found: Any, wanted: Any) -> Outcome:
    """Of random results: shapes, dtypes, and for larger ones that the middle nine tenths have about the same mean."""
    for one, other in zip(tensors_in(found), tensors_in(wanted), strict=True):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return Outcome("disagrees", f"{one.dtype} {tuple(one.shape)} instead of {other.dtype} {tuple(other.shape)}")
        value = await one.fetch() if isinstance(one, Pointer) else one
        if not other.is_complex() and other.numel() >= 100:
            here = other.detach().double().flatten()
            ends = here.quantile(here.new_tensor([0.05, 0.95]))  # a Cauchy distribution has no mean
            middle = here.clamp(ends[0], ends[1])
            mean, expected = value.double().flatten().clamp(ends[0], ends[1]).mean(), middle.mean()
            drawn = math.prod(other.shape[:2])  # at least: some draw one number for a whole channel
            spread = float(middle.std()) / math.sqrt(drawn)
            if not abs(float(mean - expected)) <= 8 * spread + 1e-6:
                return Outcome("disagrees", f"a mean of {mean} instead of about {expected}")
    return AGREES


async def together(checks: Sequence[Any]) -> list[Outcome]:
    """The outcomes of several checks made at the same time."""
    return list(await asyncio.gather(*checks))
