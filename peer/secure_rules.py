"""What owners have said of the private objects that a secure run derives from, and how one peer tells another of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from protocol import limits
from protocol.codec import Buffer


@dataclass(frozen=True, slots=True)
class Rule:
    """What an owner has said of a private object: as much as permissions look at."""

    owner: str
    labels: frozenset[str]
    reveal: tuple[str, ...]
    is_published: bool = False


Rules = frozenset[Rule]


def packed_leave(digest: bytes, rules: Mapping[int, Rules]) -> bytes:
    """The rules of our inputs to one run, by input, for its parties."""
    told = [[at, [[rule.owner, sorted(rule.labels), list(rule.reveal)] for rule in each]] for at, each in rules.items()]
    packed: bytes = msgpack.packb([digest, told])
    return packed


def leave_of(piece: Buffer) -> tuple[bytes, dict[int, Rules]]:
    """The run's digest and the rules that another tells; ValueError for what makes no sense."""
    try:
        digest, told = msgpack.unpackb(bytes(piece), raw=False)
        if type(digest) is bytes:
            return digest, {at: _rules_of(rules) for at, rules in told}
        raise ValueError("a run is named by its digest")
    except (TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(str(error)) from None


def _rules_of(told: Any) -> Rules:
    rules = frozenset(Rule(str(owner), frozenset(map(str, labels)), tuple(map(str, to))) for owner, labels, to in told)
    if len(rules) > limits.SECURE_RULES:
        raise ValueError("too many rules")
    return rules
