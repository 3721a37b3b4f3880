"""Sizes: as people read them, and held to the limits that are set for them."""

from __future__ import annotations

from typing import Final

from protocol import limits
from protocol.errors import TooLarge

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def shown(nbytes: float) -> str:
    """For sentences: 512 bytes, 1.5 KiB, 47 MiB, 8 GiB."""
    if nbytes < 1024:
        return f"{nbytes:.0f} bytes"
    amount, power = nbytes / 1024, 0
    while amount >= 999.5 and power < len(_UNITS) - 1:
        amount, power = amount / 1024, power + 1
    digits = 0 if amount >= 100 or amount == int(amount) else 1
    return f"{amount:.{digits}f} {_UNITS[power]}"


class _Size(int):
    """A number for a sentence; `{size:bytes}` shows it as bytes."""

    def __format__(self, spec: str) -> str:
        return shown(self) if spec == "bytes" else super().__format__(spec)


def check_limit(limit: str, size: int, sentence: str, *, allowed: int | None = None, **words: object) -> None:
    """TooLarge where `size` is more than is allowed. The arguments are those of `beyond`, made into words only then."""
    if size > (getattr(limits, limit) if allowed is None else allowed):
        raise beyond(limit, size, sentence, allowed=allowed, **words)


def beyond(limit: str, size: int, sentence: str, *, allowed: int | None = None, **words: object) -> TooLarge:
    """The error for a size beyond a limit.

    Args:
        limit: its name, in limits.py unless `allowed` is given.
        sentence: what is wrong and what to do next, in which {size} and {allowed} ({size:bytes} for "1.5 KiB") and what
            is in `words` are filled in.
        words: `operation` among them is also the error's.
    """
    most = getattr(limits, limit) if allowed is None else allowed
    operation = words.get("operation")
    return TooLarge(
        sentence.format(size=_Size(size), allowed=_Size(most), **words),
        operation=None if operation is None else str(operation),
        limit=limit,
        size=min(size, limits.MAX_ID),
        allowed=most,
    )
