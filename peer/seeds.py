"""What a principal's random numbers begin with: decides which seed each of its workers gets.

A peer draws in workers, one for each set of labels, which come and go. One that starts for the first time since a seed
was set begins with that seed, so that the same operations give the same numbers; one that has to start again does not
repeat what was drawn already.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

from protocol import limits
from protocol.errors import BadRequest

SEED = "grid.manual_seed"
"""The name of the operation [SEED, [seed], {}, []]."""


def check_seed(args: list[Any], kwargs: dict[str, Any], outs: list[Any]) -> int:
    """BadRequest unless these are those of a SEED."""
    if len(args) != 1 or type(args[0]) is not int or not 0 <= args[0] <= limits.MAX_ID or kwargs or outs:
        raise BadRequest(f"{SEED} takes one integer from 0 to 2**63 - 1 and gives nothing", operation=SEED)
    return args[0]


class Seeds:
    """The seed of each principal that set one; the latest limits.MAX_SESSIONS of them."""

    def __init__(self) -> None:
        self._seeds: OrderedDict[str, tuple[int, dict[frozenset[str], int]]] = OrderedDict()

    def set(self, principal: str, seed: int) -> None:
        self._seeds[principal] = (seed, {})
        self._seeds.move_to_end(principal)
        if len(self._seeds) > limits.MAX_SESSIONS:
            self._seeds.popitem(last=False)

    def of_worker(self, principal: str, labels: frozenset[str]) -> int | None:
        """That of a worker for these labels, which is there from now on; None where no seed was set."""
        found = self._seeds.get(principal)
        if found is None:
            return None
        seed, started = found
        times = started[labels] = started.get(labels, -1) + 1
        if not times:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed} {times}".encode()).digest()[:7], "big")
