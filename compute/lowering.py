"""An exported graph in operations of the table: what it does not have is written out in what it has.

Only the operations that are missing are taken apart; composite ones that the table has stay whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch._decomp import decomposition_table
from torch._ops import OpOverload

from compute.operations import OPERATIONS, substitute
from compute.rewrites import REWRITES, rewritten

_COMPOSITE: Final = torch._C.DispatchKey.CompositeImplicitAutograd
_COMPOSITE_NAME: Final = "CompositeImplicitAutograd"
_CHECKS: Final = ("aten._assert", "aten.sym_constrain_range")  # they compute nothing, and are taken out
_ROUNDS: Final = 4  # what an operation is taken apart into may have to be taken apart itself


def lowered(exported: Any) -> Any:
    """The same ExportedProgram in operations of the table; as it is where that is not known, for an error to name
    what its maker wrote.
    """
    found = exported
    for _ in range(_ROUNDS):
        missing = _missing(found)
        if not missing:
            return found
        parts = {op: _parts(op) for op in missing}
        if None in parts.values():
            break
        found = found.run_decompositions({**_inner(), **parts})
    return exported


def _missing(exported: Any) -> set[OpOverload]:
    nodes = exported.graph_module.graph.nodes
    targets = {node.target for node in nodes if node.op == "call_function" and isinstance(node.target, OpOverload)}
    return {op for op in targets if not _is_known(op)}


def _is_known(op: OpOverload) -> bool:
    name = str(op)
    return name.startswith(_CHECKS) or substitute(name, (), {})[0] in OPERATIONS


def _parts(op: OpOverload) -> Callable[..., Any] | None:
    """What it is made of, as capture takes it apart: torch's own composition comes before decompositions, which may be
    in terms of `prims`, as those of transforms are."""
    found: Callable[..., Any] | None = rewritten(str(op))
    if found is None and torch._C._dispatch_has_kernel_for_dispatch_key(op._name, _COMPOSITE_NAME):
        return partial(op._op_dk, _COMPOSITE)
    return found or decomposition_table.get(op)


def _inner() -> dict[OpOverload, Callable[..., Any]]:
    """What composite operations are made of inside, and the table does not have."""
    found = {}
    for name, rewrite in REWRITES.items():
        _, base, overload = name.split(".")
        packet = getattr(torch.ops.aten, base, None)  # a name of ours; older releases of torch lack some
        if packet is not None and hasattr(packet, overload):
            found[getattr(packet, overload)] = rewrite
    return found
