"""torch.func.linearize in a captured function: what it gives is differentiated when it is called.

torch traces the derivative by make_fx and folds what does not hang on the tangents, for which it wants values; here
each call of it is recorded as it is, with the same numbers.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._functorch import eager_transforms
from torch.utils import _pytree as pytree


@contextmanager
def linearized() -> Iterator[None]:
    """For a while linearize traces nothing."""

    def traced(derivative: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
        """`derivative` is what torch would trace: its variables are the function, and where it is to be derived."""
        found = inspect.getclosurevars(derivative).nonlocals
        function, primals, spec = found["func"], tuple(found["flat_primals"]), found["primals_argspec"]

        def flat(*values: Any) -> Any:
            return function(*pytree.tree_unflatten(values, spec))

        return lambda _: lambda *tangents: pytree.tree_leaves(torch.func.jvp(flat, primals, tangents)[1])

    folded = types.SimpleNamespace(split_const_subgraphs=lambda graph: graph)
    own: dict[str, Any] = {"make_fx": traced, "const_fold": folded, "lazy_dynamo_disallow": lambda function: function}
    with mock.patch.multiple(eager_transforms, **own):
        yield
