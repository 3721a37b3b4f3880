"""Numbers of bytes, as people read them."""

from __future__ import annotations

from typing import Final

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
