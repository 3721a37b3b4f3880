"""What a program is made of: inputs, nodes, bodies. Torch-free; PROGRAM.md is the specification."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from compute.wire import is_index, shown
from protocol import limits
from protocol.errors import BadProgram
from protocol.tensors import ITEMSIZE

MAX_INPUT_NAME: Final = 256
_SIZE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CONTENT: Final = re.compile(r"[0-9a-f]{64}")

Dim = int | str | None


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its name, and what it must be where that is known.

    Attributes:
        dtype: None: any.
        shape: None: any. A dimension is its size; None: any; or a name: any, and the same wherever the name stands.
        content: the name of the contents that it is to have, in hex (docs/decisions/0006): who runs the program binds
            the stored object of these contents to it, and it is not asked of who wants the program run. None: it is
            given anew for each run. See compute/content.py.
    """

    name: str
    dtype: str | None = None
    shape: tuple[Dim, ...] | None = None
    content: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MAX_INPUT_NAME or not self.name.isprintable():
            raise BadProgram(f"{shown(self.name)} is no name of an input")
        if self.dtype is not None and (not isinstance(self.dtype, str) or self.dtype not in ITEMSIZE):
            raise BadProgram(f"{shown(self.dtype)} is no dtype of an input")
        content = self.content
        if content is not None and (not isinstance(content, str) or not _CONTENT.fullmatch(content)):
            raise BadProgram(f"{shown(content)} is no name of contents: 64 hexadecimal digits, lowercase")
        if self.shape is None:
            return
        if not isinstance(self.shape, tuple) or len(self.shape) > limits.MAX_NDIM:
            raise BadProgram(f"{shown(self.shape)} is no shape of an input")
        for dim in self.shape:
            is_name = isinstance(dim, str) and _SIZE_NAME.fullmatch(dim)
            if dim is not None and not is_name and not is_index(dim, limits.MAX_DIM):
                raise BadProgram(f"{shown(dim)} is no dimension of an input: an integer, nil, or a name")

    def __str__(self) -> str:
        dims = "" if self.shape is None else f"[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"
        return f"{self.name}: {self.dtype or 'any'}{dims}"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation and its arguments as wire values.

    `operation` is of the table, or number arithmetic (NUMBERS), or a loop or branch (FLOW).
    """

    operation: str
    args: list[Any] = field(default_factory=list)
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """A sub-program that flow nodes run: `outputs` is a list of references to its values, or None.

    Values are numbered as in a program, from its own first input on. It closes over nothing but the program's
    constants, and its nodes may run the bodies before it.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: list[Any]
