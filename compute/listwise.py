"""Operations on lists of tensors (`_foreach_add_`, `_fused_adam_`), one tensor after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

_PREFIX: Final = "aten._foreach_"
_BOUNDS: Final = {"maximum": "clamp_min", "minimum": "clamp_max", "maximum_": "clamp_min_", "minimum_": "clamp_max_"}
_SCALED: Final = frozenset({"addcmul", "addcmul_", "addcdiv", "addcdiv_"})  # their last number goes by name


def for_each(name: str) -> Callable[..., Any] | None:
    """The function that does what `aten._foreach_NAME` does; None for any other name."""
    if not name.startswith(_PREFIX):
        return None
    base, overload = name.removeprefix(_PREFIX).split(".")
    if base in _BOUNDS and (overload.startswith("Scalar") or base.endswith("_")):
        base = _BOUNDS[base]
    one = {"norm": torch.linalg.vector_norm, "max": torch.max}.get(base) or getattr(torch.ops.aten, base, None)
    if one is None or (base in _SCALED and overload == "Tensor"):
        return None

    def each(*args: Any, **kwargs: Any) -> Any:
        lists = [value for value in (*args, *kwargs.values()) if isinstance(value, list | tuple)]
        made = []
        for number in range(len(lists[0])):
            given = [_of(value, number) for value in args]
            named = {"value" if key == "scalars" else key: _of(value, number) for key, value in kwargs.items()}
            if base in _SCALED and len(given) == 4:
                named["value"] = given.pop()
            made.append(one(*given, **named))
        return None if base.endswith("_") else made

    return each


def _of(value: Any, number: int) -> Any:
    return value[number] if isinstance(value, list | tuple) else value


# --- the fused steps of optimisers: the same as steps of single tensors, which count for themselves --------------

_ONE_BY_ONE: Final = {"foreach": False, "fused": False, "grad_scale": None, "found_inf": None}
_ADAM: Final = {**_ONE_BY_ONE, "capturable": False, "differentiable": False, "has_complex": False}


def _before(steps: Any) -> list[Any]:
    return [step - 1 for step in steps]


def fused_adam(params: Any, grads: Any, averages: Any, squares: Any, most: Any, steps: Any, **options: Any) -> None:
    adam(params, grads, averages, squares, most, _before(steps), **{**options, **_ADAM})


def fused_adamw(params: Any, grads: Any, averages: Any, squares: Any, most: Any, steps: Any, **options: Any) -> None:
    adamw(params, grads, averages, squares, most, _before(steps), **{**options, **_ADAM})


def fused_sgd(params: Any, grads: Any, buffers: Any, *, is_first_step: bool, **options: Any) -> None:
    if is_first_step:  # what is in the buffers does not count yet, nor is the first gradient dampened
        options["dampening"] = 0.0
        for buffer in buffers:
            buffer.zero_()
    sgd(params, grads, list(buffers) or [None] * len(params), has_sparse_grad=False, **{**options, **_ONE_BY_ONE})


def fused_adagrad(params: Any, grads: Any, sums: Any, steps: Any, **options: Any) -> None:
    fixed = {**_ONE_BY_ONE, "has_sparse_grad": False, "differentiable": False, "has_complex": False}
    adagrad(params, grads, sums, _before(steps), **{**options, **fixed})


def unscale(tensors: Any, found_inf: Any, inv_scale: Any) -> None:
    """What `torch.amp.GradScaler` does to the gradients before a step: whether that is made is for its own code to
    look at, and so for this."""
    is_bad = not bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
    for tensor in tensors:
        tensor.mul_(inv_scale)
    if is_bad:
        found_inf.fill_(1.0)
