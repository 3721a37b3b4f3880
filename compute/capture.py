"""A Python function as a program: `capture`.

The function runs on fake tensors, which have shapes and no values, and what it does to them is written down. So Python
itself (branches on shapes, helper functions, loops over ranges) is gone from the program; loops that are to stay loops
are said as such (compute/loops.py), and what would need a value (`if x.sum() > 0`, `.item()`) cannot be captured; the
error says what to write instead.

Recorded by a dispatch mode of our own rather than make_fx or torch.export: 9 ms against 13 and 32 for a small network;
and loops may hold whole training steps, which torch's own operators for loops refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from compute import effects
from compute.capturing import LOADED, Capture, Captured, Named, Returned, load
from compute.given import Given
from compute.program_types import check_types
from compute.sizes import OpenSizes
from protocol.errors import BadProgram, CannotCapture

__all__ = ["LOADED", "Captured", "Named", "Returned", "capture", "load"]

_ATTEMPTS: Final = 6  # at sizes that are open: each leaves fewer
_FEW: Final = 8  # rows
_ALL_FIXED: Final = "all sizes are those of the examples"


def capture(
    function: Callable[..., Any],
    inputs: Mapping[str, Any] | Sequence[Any],
    loads: Mapping[str, Any] | None = None,
    dynamic: bool | Mapping[str, Any] | None = False,
) -> Captured:
    """The program of `function(**inputs)` (or `function(*inputs)`) for inputs of these shapes and dtypes.

    Inputs are examples: tensors of any kind (plain, meta, fake, pointers: only dtype and shape count), modules and
    optimisers (what they hold becomes inputs, and what the function changes in it outputs), and lists, tuples and dicts
    of those. Everything else is a constant. `loads` holds the examples that `load` gives inside the function, by query.

    Args:
        dynamic: which sizes of the inputs are left open, so that the program serves others. None: all that the function
            leaves open; sizes on which it decides something stay as they are in the example, and `notes` says so. A
            map: of the path of each input the dimensions, {"x": [0]}; CannotCapture where one of them cannot be. True:
            as None, but CannotCapture where not even the first dimension of some input can be left open. False: none.

    Raises:
        CannotCapture: the function needs a value, or an operation that peers do not run; names the file and the line.
            With `fields["load"]`: the function asked for this query, and `loads` does not hold it.
        TooLarge: what it computes is larger than any result may be.
    """
    effects.check_code(function)
    given = Given(inputs, loads or {}, LOADED)
    if dynamic is not False:
        captured = _with_open_sizes(function, given, dynamic)
        try:
            _check(captured)
            return captured
        except CannotCapture as error:
            if dynamic is not None:
                raise
            why = error.message.splitlines()[0]
        captured = dataclasses.replace(Capture(function, given, None).captured(), notes=(f"{_ALL_FIXED}: {why}",))
    else:
        captured = Capture(function, given, None).captured()
    _check(captured)
    return captured


def _check(captured: Captured) -> None:
    """As every peer does that receives it: what is refused there is refused here, before anything is sent."""
    try:
        check_types(captured.program)
    except BadProgram as error:
        raise CannotCapture(f"the function makes no program: {error.message}", **error.fields) from None


# --- sizes that are left open -----------------------------------------------------------------------------


def _with_open_sizes(function: Callable[..., Any], given: Given, dynamic: bool | Mapping[str, Any] | None) -> Captured:
    """With as many sizes open as the function leaves open."""
    wanted = _dimensions(given)
    if isinstance(dynamic, Mapping):
        wanted = {path: [dim for dim in dims if dim in _named(dynamic, path)] for path, dims in wanted.items()}
        unknown = [path for path in dynamic if path not in wanted]
        if unknown:
            raise CannotCapture(
                f"{unknown[0]!r} is no tensor among the arguments: {', '.join(wanted) or 'there is none'}"
            )
    firsts = {path: [dim for dim in dims if dim == 0] for path, dims in wanted.items()}
    every = (wanted, firsts) if dynamic is None or dynamic is True else (wanted,)
    refused: CannotCapture | None = None
    best: tuple[int, Captured, dict[str, list[int]]] | None = None
    for dims, rows in [(each, rows) for each in every for rows in _rows(given, each)]:
        try:
            captured, closed = _narrowed(function, given, dims, rows)
        except CannotCapture as error:
            if "load" in error.fields:
                raise
            refused = refused or error
            continue
        count = sum(len(_open(captured, path)) for path in dims)
        if best is None or count > best[0]:
            best = count, captured, closed
        if not any(0 in each for each in closed.values()):
            break
    if isinstance(dynamic, Mapping) and best is not None and best[2]:
        raise _not_open(best[2])
    if dynamic is True and (best is None or not any(0 in _open(best[1], path) for path in firsts)):
        raise _not_open(best[2] if best is not None else firsts)
    if best is not None:
        return dataclasses.replace(best[1], notes=_noted(best[2]))
    fixed = Capture(function, given, None).captured()  # where this fails too, its error is the one to tell
    if dynamic is not None:
        raise CannotCapture(f"sizes cannot be left open: {refused.message if refused else ''}")
    why = f": {refused.message.splitlines()[0]}" if refused else ""
    return dataclasses.replace(fixed, notes=(f"{_ALL_FIXED}{why}",))


def _rows(given: Given, dims: Mapping[str, Sequence[int]]) -> Iterator[dict[int, int]]:
    """With how many rows it is tried, by the example's: of few, many things are true that are not in general."""
    few = {given.tensors[path].shape[0] for path, each in dims.items() if 0 in each} & set(range(_FEW))
    if few:
        yield {size: size + 3 * _FEW for size in few}
    yield {1: 2, 0: 2}


def _narrowed(
    function: Callable[..., Any], given: Given, dims: Mapping[str, Sequence[int]], rows: Mapping[int, int]
) -> tuple[Captured, dict[str, list[int]]]:
    """Captured with these dimensions open, but for those (returned too) that the function does not leave open."""
    left = {path: list(each) for path, each in dims.items()}
    closed: dict[str, list[int]] = {}
    for _ in range(_ATTEMPTS):
        sizes = OpenSizes()
        captured = Capture(function, given, sizes, left, rows).captured()
        shapes = sizes.shapes()
        settled = {(path, dim) for path, each in left.items() for dim in each if isinstance(shapes[path][dim], int)}
        # What came out as another size than the example's, because it was tried with that, is done anew.
        fixed = sizes.fixed() | {
            (path, dim) for path, dim in settled if shapes[path][dim] != given.tensors[path].shape[dim]
        }
        if not fixed:
            for path, dim in settled:
                closed.setdefault(path, []).append(dim)
            return captured, {path: sorted(each) for path, each in closed.items() if each}
        # The first dimensions are what matters most: they stay open where fixing the others is enough.
        for path, dim in {each for each in fixed if each[1]} or fixed:
            left[path].remove(dim)
            closed.setdefault(path, []).append(dim)
    raise CannotCapture("its sizes depend on each other in too many ways")


def _dimensions(given: Given) -> dict[str, list[int]]:
    """The dimensions that may be open: all of size 2 and more of what is no state, and a batch of one row."""
    tensors = {path: tensor for path, tensor in given.tensors.items() if path not in given.state}
    is_one_row = all(tensor.shape[0] == 1 for tensor in tensors.values() if tensor.dim())
    return {
        path: [dim for dim, size in enumerate(tensor.shape) if size > 1 or (dim == 0 and is_one_row)]
        for path, tensor in tensors.items()
    }


def _named(dynamic: Mapping[str, Any], path: str) -> set[int]:
    return {int(dim) for dim in dynamic.get(path, ())}


def _open(captured: Captured, path: str) -> list[int]:
    shape = next((given.shape for given in captured.program.inputs if given.name == path), None) or ()
    return [dim for dim, size in enumerate(shape) if not isinstance(size, int)]


def _not_open(closed: Mapping[str, Sequence[int]]) -> CannotCapture:
    where = "; ".join(f"{path}, dimension {', '.join(map(str, dims))}" for path, dims in closed.items())
    return CannotCapture(f"the function decides something by these sizes, so that they cannot be left open: {where}")


def _noted(closed: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    return tuple(
        f"{path}: the size of dimension {', '.join(map(str, dims))} is that of the example"
        for path, dims in closed.items()
    )
