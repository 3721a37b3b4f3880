"""torch's own operators for loops and branches, while a function is captured: torch.cond, torch.while_loop, and scan,
map and associative_scan of torch._higher_order_ops."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

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
    """torch gives flat values, and functions that take flat ones; its step gives the user's structure back."""
    made = loops.while_loop(
        _recorder("torch.while_loop"),
        lambda *values: test(*values, *more),
        lambda *values: tuple(pytree.tree_leaves(step(*values, *more))),
        tuple(carried),
        None,
    )
    spec = inspect.getclosurevars(inspect.unwrap(step)).nonlocals.get("in_spec")  # of (carried, more)
    return pytree.tree_unflatten([*made, *more], spec)[0] if isinstance(spec, pytree.TreeSpec) else made


def _scan(combine: Callable[..., Any], init: Sequence[Any], xs: Sequence[Any], more: Sequence[Any]) -> Any:
    """torch gives flat values and a partial function that takes them; what the user wrote is in that."""
    recorder, given = _recorder("scan"), getattr(combine, "keywords", {})
    if {"combine_fn", "spec_init", "spec_xs"} <= given.keys():
        carried, slices = (
            pytree.tree_unflatten(list(leaves), given[spec]) for leaves, spec in ((init, "spec_init"), (xs, "spec_xs"))
        )
        return scans.scan(recorder, given["combine_fn"], carried, slices, False)

    def step(carried: Any, slices: Any) -> tuple[Any, Any]:
        found = list(combine(*carried, *slices, *more))
        return found[: len(init)], found[len(init) :]

    carried, kept = scans.scan(recorder, step, list(init), list(xs), False)
    return [*carried, *kept]


def _map(function: Callable[..., Any], xs: Sequence[Any], more: Sequence[Any]) -> Any:
    return loops.mapped(_recorder("map"), lambda slices: function(*slices, *more), list(xs), ())


LOOPS: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {"cond": _cond, "while_loop": _while, "scan": _scan, "map_impl": _map}
)
