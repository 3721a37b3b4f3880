"""Python's own operators and conversions, of what has no value here yet: each of them says what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_CONVERSIONS: Final = "bool float int index complex len iter contains".split()
_UNARY: Final = "eq ne lt le gt ge neg pos abs invert round getitem setitem".split()
_BINARY: Final = "add sub mul truediv floordiv mod divmod pow matmul and or xor lshift rshift".split()


def refuse_all(kind: type, refusing: Callable[[str], Any], in_place: Callable[[str], Any] | None = None) -> None:
    """Gives a class all of them; its objects stay hashable by who they are.

    Args:
        refusing: the method that refuses what is called so: "bool()", "an operator (add)".
        in_place: the same for `x += 1`; None: as the others.
    """
    hashed = kind.__hash__
    for name in _CONVERSIONS:
        setattr(kind, f"__{name}__", refusing(f"{name}()"))
    for name in _UNARY:
        setattr(kind, f"__{name}__", refusing(f"an operator ({name})"))
    # torch's own operators take a TypeError, such as NeedsAwait is, for an operand that they do not know.
    for name in _BINARY:
        for form in ("", "r"):
            setattr(kind, f"__{form}{name}__", refusing(f"an operator ({name})"))
        if name != "divmod":
            setattr(kind, f"__i{name}__", (in_place or refusing)(f"an operator ({name}, in place)"))
    kind.__hash__ = hashed  # type: ignore[method-assign]
