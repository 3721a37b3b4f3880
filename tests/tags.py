"""Tags for tests whose peers others use at the same time."""

from __future__ import annotations

import os


def fresh_tag() -> str:
    """A tag of one test's own."""
    return f"t{os.urandom(6).hex()}"
