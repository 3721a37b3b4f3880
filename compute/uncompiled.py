"""torch's compiler, kept out of processes that run operations for others. For the zygote, before torch first runs.

Kernels that torch wrote in Python import it to say that they are not to be compiled: a second of a processor and 40 MB
for each peer, and behind the walls there are no files. What they ask of it is answered here.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any, Final

import torch

_NAME: Final = "torch._dynamo"
LATE: Final = (
    "torch._decomp.decompositions",
    "torch._meta_registrations",
    "torch._refs.linalg",
    "torch._refs.nn.functional",
    "torch._refs.special",
    "torch.fx.experimental.symbolic_shapes",
)
"""What torch imports when an operation first runs on tensors without data."""


def keep_out() -> None:
    """From here on this process, and those that it forks, compile nothing."""
    module: Any = _Absent(_NAME)
    module.disable = _unchanged
    sys.modules[_NAME] = torch._dynamo = module
    for late in LATE:
        importlib.import_module(late)


class _Absent(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"nothing is compiled here, and there is no {_NAME}.{name}")


def _unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else lambda given: given
