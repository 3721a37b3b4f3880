"""Random numbers in checkpoints: what is computed once more draws nothing, and gets what was drawn the first time.

torch.utils.checkpoint lets go of what a part of a model computed, and computes it again for the gradients. For that it
sets the random numbers of this process back, which says nothing to a peer: a dropout there would leave out others, and
the gradients would be those of another function. So the results of operations that draw are kept with the checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

_CHECKPOINTS: Final = "torch.utils.checkpoint"
_KEPT: Final = "_drawn_at_peers"

Run = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]


class _Drawn:
    """The results of one checkpoint's operations that draw, in order."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.is_busy = False  # an operation is under way: those that it is made of are not its equals
        self._pass = -1  # the backward() that computes again
        self._next = 0

    def again(self) -> Any:
        """What comes next in this pass; None where the checkpoint does not go as it went."""
        now = torch._C._current_graph_task_id()
        if now != self._pass:
            self._pass, self._next = now, 0
        self._next += 1
        return self.results[self._next - 1] if self._next <= len(self.results) else None


def drawn(run: Run, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`run(function, args, kwargs)`, of an operation that draws; in a checkpoint computed again, what it gave first."""
    keeping: list[_Drawn] = []
    before = None
    for kept, is_again in _checkpoints(sys._getframe(1)):
        if kept.is_busy:
            return run(function, args, kwargs)
        if is_again:
            before = kept.again()
            break
        keeping.append(kept)
    if before is None:
        result = _busy(keeping, run, function, args, kwargs)
    elif function._schema.is_mutable:
        result = args[0].copy_(before)
    else:
        result = _clone(before)
    for kept in keeping:
        kept.results.append(_clone(result))
    return result


def _busy(keeping: list[_Drawn], run: Run, *call: Any) -> Any:
    for kept in keeping:
        kept.is_busy = True
    try:
        return run(*call)
    finally:
        for kept in keeping:
            kept.is_busy = False


def _clone(result: Any) -> Any:
    # Not the same pointer: it gets a history, and may be changed in place.
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, result)


def _checkpoints(frame: FrameType | None) -> Iterator[tuple[_Drawn, bool]]:
    """The checkpoints that are under way, innermost first, and whether each is computed again."""
    while frame is not None:
        if frame.f_globals.get("__name__") == _CHECKPOINTS:
            owner, is_again = _owner(frame.f_code.co_name, frame.f_locals)
            if owner is not None:
                if not hasattr(owner, _KEPT):
                    setattr(owner, _KEPT, _Drawn())
                yield getattr(owner, _KEPT), is_again
        frame = frame.f_back


def _owner(name: str, values: Mapping[str, Any]) -> tuple[Any, bool]:
    """What lives as long as a checkpoint, from the frame of a function of torch.utils.checkpoint that runs it."""
    if name == "checkpoint" and values.get("preserve") and "gen" in values:
        inner = values["gen"].gi_frame
        return (inner.f_locals.get("new_frame") if inner is not None else None), False
    if name == "unpack_hook":
        return values["frame"], True
    if name == "forward" and values.get("preserve_rng_state"):
        return values["ctx"], False
    if name == "backward" and values["ctx"].preserve_rng_state:
        return values["ctx"], True
    return None, False
