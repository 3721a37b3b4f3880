"""Types of a program's values: whether every operation's arguments fit its schema, and dtypes and shapes each other.

Followed from what the inputs are declared to be (compute/following.py). A size with a name is tried out: a program is
refused only where it fits for none of the sizes in _SAMPLES. Where an input may be of any dtype or shape, or a shape
hangs on data, the check ends for what is computed of it, and the run itself checks that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from compute.dtypes import DTYPE_OF, NAME_OF
from compute.estimate import Estimate, infer
from compute.following import follow
from compute.program import Input, Program
from compute.table import Entry
from compute.unknown import UNKNOWN
from protocol.errors import BadProgram, BadRequest, GridError, OperationNotAllowed, TooLarge

# One size for all; a larger one with many divisors for all; such a one for each. What names sizes wants other sizes to
# work as well, but perhaps not these: windows and positions bound some, and reshaping wants multiples of others.
_SAMPLES: Final[tuple[Callable[[int], int], ...]] = (lambda at: 12, lambda at: 840, lambda at: 840 * (at + 1))


def check_types(program: Program) -> None:
    """Returns if the program may run on some inputs that are as declared; nothing runs.

    Raises:
        BadProgram: it cannot; the message names the node and its operation.
        OperationNotAllowed: an operation that this torch does not have.
        TooLarge: what it computes is larger than any result may be, whatever its sizes.
    """
    refusal: GridError | None = None
    for sample in _SAMPLES if _names(program.inputs) else _SAMPLES[:1]:
        try:
            follow(program, [_stand_in(given, sample, program.inputs) for given in program.inputs], _infer)
        except OperationNotAllowed:
            raise
        except TooLarge as error:
            if not _names(program.inputs):
                raise
            refusal = error
        except GridError as error:
            refusal = error if refusal is None or isinstance(refusal, TooLarge) else refusal
        else:
            return
    if isinstance(refusal, TooLarge):
        raise refusal
    assert refusal is not None
    raise _as_bad_program(refusal)


def _infer(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Estimate:
    """The estimate; besides what meta tensors find out, products want their factors to be of one dtype."""
    if entry.name in _OF_ONE_DTYPE:
        given = [value.dtype for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if len(set(given)) > 1:
            names = ", ".join(NAME_OF.get(dtype, str(dtype)) for dtype in given)
            raise BadRequest(f"it takes tensors of one dtype, not {names}", operation=entry.name)
    return infer(entry, args, kwargs)


_OF_ONE_DTYPE: Final = frozenset(
    f"aten.{name if '.' in name else name + '.default'}"
    for name in (
        *("mm", "bmm", "mv", "dot", "vdot", "matmul", "linalg_matmul", "addmm", "addmv", "addbmm", "baddbmm", "linear"),
        *("convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input"),
        *("conv_transpose3d.input", "conv1d.padding", "conv2d.padding", "conv3d.padding"),
    )
)


def _names(inputs: Sequence[Input]) -> list[str]:
    """The names of sizes, each once, in order."""
    return list(dict.fromkeys(dim for given in inputs for dim in given.shape or () if isinstance(dim, str)))


def _stand_in(given: Input, sample: Callable[[int], int], inputs: Sequence[Input]) -> Any:
    if given.dtype is None or given.shape is None or None in given.shape or given.dtype not in DTYPE_OF:
        return UNKNOWN
    names = _names(inputs)
    shape = [sample(names.index(dim)) if isinstance(dim, str) else dim for dim in given.shape]
    return torch.empty([int(dim) for dim in shape if dim is not None], dtype=DTYPE_OF[given.dtype], device="meta")


def _as_bad_program(error: GridError) -> BadProgram:
    node, body = error.fields.get("node"), error.fields.get("body")
    where = "" if node is None else f"node {node} ({error.operation}): "
    where = where if body is None else f"body {body}, {where}"
    fields = {"node": node} if body is None else {"node": node, "body": body}
    return BadProgram(f"{where}{error.message}", operation=error.operation, **fields)
