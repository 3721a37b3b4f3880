"""What all who take part in a secure run are told of it (peer.agreement), written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def told(asker: str, parties: Sequence[str], provider: str, /, **changes: Any) -> dict[str, Any]:
    """A run without inputs and outputs, whose result goes to the asker; but for what is changed."""
    return {
        "run": bytes(16),
        "session": bytes(16),
        "asker": asker,
        "parties": list(parties),
        "provider": provider,
        "inputs": [],
        "public": [],
        "program": "x",
        "reveal": asker,
        "receives": False,
        "outputs": [],
        "batch": b"",
        "item": 0,
        "ahead": 0,
        "precision": 16,
        "patience": 8,
        "name": "x",
        **changes,
    }
