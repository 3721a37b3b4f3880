"""Random numbers in a worker: seeded when its principal says so, or for one operation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from protocol import limits
from protocol.errors import BadRequest

GENERATOR = "generator"
"""The keyword argument of an operation that is drawn by a seed of its own: an integer."""


def seed(args: list[Any]) -> None:
    """From now on the numbers are those that torch gives after `torch.manual_seed(seed)`."""
    torch.manual_seed(args[0])


@contextlib.contextmanager
def drawn_by(value: Any) -> Iterator[None]:
    """In it, numbers are drawn by this seed; afterwards they go on as if nothing had been drawn. BadRequest."""
    if type(value) is not int or not 0 <= value <= limits.MAX_ID:
        raise BadRequest("a generator travels as a seed, an integer from 0 to 2**63 - 1")
    with torch.random.fork_rng():
        torch.manual_seed(value)
        yield
