"""Which arguments an operation changes in place, known from its name alone. Torch-free, for the peer's own process.

A test holds it against the schemas of all operations of the table.
"""

from __future__ import annotations

from typing import Final

_OTHERS: Final = {  # running statistics of batch norms, and the noise that rrelu draws
    "aten.batch_norm.default": (3, 4),
    "aten.native_batch_norm.default": (3, 4),
    "aten._native_batch_norm_legit.default": (3, 4),
    "aten._batch_norm_with_update.default": (3, 4),
    "aten.instance_norm.default": (3, 4),
    "aten.rrelu_with_noise.default": (1,),
    "aten.rrelu_with_noise_.default": (0, 1),
}

CHECK: Final = "aten._linalg_check_errors.default"
"""Looks whether the last factorisation was good; of a singular matrix, what that gave is of no use from then on."""


def written_positions(name: str) -> tuple[int, ...]:
    """The positions of arguments that the operation may write; none for a name that is no operation."""
    if name in _OTHERS:
        return _OTHERS[name]
    base = name.split(".")[1] if name.count(".") == 2 else ""
    if (base.endswith("_") and not base.startswith("__")) or base.startswith("__i"):
        return (0,)
    return ()
