"""Tensors replaced in place: the Python objects stay, and with them what optimisers hold; what they are changes."""

from __future__ import annotations

import torch
from torch import nn

from grid.modules import named_tensors
from protocol.errors import BadRequest


def exchange(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """Each is from now on what the other one was: class, values, history and all.

    Raises:
        BadRequest: something besides Python's own references holds one of them, such as a computation that is to run
            backward still.
    """
    with torch._C.DisableTorchFunctionSubclass():
        try:
            torch.utils.swap_tensors(tensor, other)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise BadRequest(
                "this cannot be changed in place, for a computation or a weak reference holds it still: let go of what "
                f"was computed with it (del loss), or use await peer.send(...), which makes another one ({error})"
            ) from None


def exchange_tensors(module: nn.Module, other: nn.Module) -> None:
    """The parameters and buffers of two modules of one structure, exchanged."""
    theirs = dict(named_tensors(other))
    done: set[int] = set()
    for name, tensor in named_tensors(module):
        if id(tensor) not in done and tensor is not theirs[name]:
            done.add(id(tensor))
            exchange(tensor, theirs[name])
