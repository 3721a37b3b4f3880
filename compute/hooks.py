"""torch's own operators for loops and branches, while a function is captured: torch.cond, torch.while_loop, and scan,
map and associative_scan of torch._higher_order_ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch

from compute import bodies, loops, scans
from compute.recorder import Recorder
from compute.refusals import refusal


def _recorder(name: str) -> Recorder:
    found = bodies.active()
    if found is None:
        raise refusal(f"{name} inside a transform of torch.func is not written into a program; use torch.where there")
    return found


def _cond(pred: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: Sequence[Any]) -> Any:
    if not isinstance(pred, torch.Tensor):
        return yes(*operands) if pred else no(*operands)
    return loops.cond(_recorder("torch.cond"), pred, yes, no, tuple(operands))


def _while(test: Callable[..., Any], step: Callable[..., Any], carried: Sequence[Any], more: Sequence[Any]) -> Any:
    return loops.while_loop(
        _recorder("torch.while_loop"),
        lambda *values: test(*values, *more),
        lambda *values: tuple(step(*values, *more)),
        tuple(carried),
        None,
    )


def _scan(combine: Callable[..., Any], init: Sequence[Any], xs: Sequence[Any], more: Sequence[Any]) -> Any:
    """torch gives the step flat values, and takes (carried, kept) from it; what it gives itself is flat too."""

    def step(carried: Any, slices: Any) -> tuple[Any, Any]:
        found = list(combine(*carried, *slices, *more))
        if len(found) == 2 and not all(isinstance(part, torch.Tensor) for part in found):
            return list(torch.utils._pytree.tree_leaves(found[0])), list(torch.utils._pytree.tree_leaves(found[1]))
        return found[: len(init)], found[len(init) :]

    carried, kept = scans.scan(_recorder("scan"), step, list(init), list(xs), False)
    return carried, kept


def _map(function: Callable[..., Any], xs: Sequence[Any], more: Sequence[Any]) -> Any:
    return loops.mapped(_recorder("map"), lambda slices: function(*slices, *more), list(xs), ())


LOOPS: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {"cond": _cond, "while_loop": _while, "scan": _scan, "map_impl": _map}
)
