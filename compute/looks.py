"""What inputs of a program look like: whether that is as declared, and whether it is as it was in an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from compute.dtypes import DTYPE_OF
from compute.program import Input
from compute.unknown import Unknown
from protocol.errors import BadRequest


def check_inputs(what: str, declared: Sequence[Input], inputs: Sequence[Any]) -> None:
    """BadRequest where these are not what is declared: in number, dtype, shape; or sizes of one name differ."""
    if len(inputs) != len(declared):
        names = ", ".join(given.name for given in declared[:20])
        raise BadRequest(f"{what} takes {len(declared)} inputs ({names}), but {len(inputs)} were given")
    sizes: dict[str, tuple[int, str]] = {}
    for given, value in zip(declared, inputs, strict=True):
        if isinstance(value, Unknown):
            continue
        if given.dtype is not None and getattr(value, "dtype", None) is not DTYPE_OF.get(given.dtype):
            have = getattr(value, "dtype", type(value).__name__)
            raise BadRequest(f"input {given.name!r} is {given.dtype}, but {have} was given")
        if given.shape is not None:
            _check_shape(given, given.shape, value, sizes)


def _check_shape(given: Input, shape: Sequence[Any], value: Any, sizes: dict[str, tuple[int, str]]) -> None:
    have = getattr(value, "shape", None)
    if have is None or len(have) != len(shape):
        raise BadRequest(f"input {given} was given as {type(value).__name__ if have is None else list(have)}")
    for want, size in zip(shape, have, strict=True):
        if type(want) is int and want != size:
            raise BadRequest(f"input {given} was given as {list(have)}")
        if type(want) is str:
            known, of = sizes.setdefault(want, (size, given.name))
            if known != size:
                raise BadRequest(
                    f"input {given} was given as {list(have)}, but {want} is {known}, the size that it has in {of!r}"
                )


def looks_of(values: Any) -> tuple[Any, ...] | None:
    """What the shapes of everything that is computed of these hang on; None where they are no plain tensors that are
    here, and numbers."""
    if not isinstance(values, list | tuple):
        values = (values,)
    key: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            if not value.is_cpu:
                return None
            key.append((value.dtype, value.shape, value.stride()))
        elif kind in _PLAIN:
            key.append((kind, value))
        else:
            inner = looks_of(value) if kind is list or kind is tuple else None
            if inner is None:
                return None
            key.append(inner)
    return tuple(key)


_PLAIN: Final = frozenset({int, float, bool, type(None)})
