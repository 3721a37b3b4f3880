"""Rounds: how protocols are written, without sockets.

A protocol is a generator. Each `opened = yield Opening(...)` is one round: every party gives its shares of masked
values, all parties send them to all others, and each gets the values back. What is in one Opening travels in one
message; `together` runs several protocols so that they share their rounds.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import torch

from compute.values import tensor_bytes
from mpc.ring import words_in
from protocol.errors import BadRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Opening:
    """A party's shares of what is to be opened: values that are sums of their shares, and such that are their XOR.

    Whatever stands here is seen by all parties, so that only what is masked, or meant to be seen, may stand here.
    """

    sums: Sequence[torch.Tensor] = ()
    xors: Sequence[torch.Tensor] = ()

    @property
    def nbytes(self) -> int:
        """What one party sends to one other."""
        return sum(share.numel() * share.element_size() for share in (*self.sums, *self.xors))


@dataclass(frozen=True, slots=True)
class Opened:
    """The values of an Opening, in its order."""

    sums: Sequence[torch.Tensor] = ()
    xors: Sequence[torch.Tensor] = ()


Protocol = Generator[Opening, Opened, T]


def message(opening: Opening) -> list[memoryview]:
    """What one party sends in a round: its shares' bytes one after the other, row-major and little-endian."""
    return [tensor_bytes(share) for share in (*opening.sums, *opening.xors)]


def opened(ours: Opening, theirs: Sequence[memoryview | bytes]) -> Opened:
    """The values, from our shares and the messages of all other parties. Messages that may be written to are used up:
    the values lie where they lay.

    Raises:
        BadRequest: a message has not the size of ours.
    """
    for each in theirs:
        if memoryview(each).nbytes != ours.nbytes:
            raise BadRequest(f"a message of {memoryview(each).nbytes} bytes in a round of {ours.nbytes}")
    at = 0
    sums, xors = [], []
    for share in ours.sums:
        at += share.numel() * share.element_size()
        total, *others = (_part(each, at, share) for each in theirs)
        sums.append(reduce(torch.Tensor.add_, others, total.add_(share)))
    for share in ours.xors:
        at += share.numel() * share.element_size()
        total, *others = (_part(each, at, share) for each in theirs)
        xors.append(reduce(torch.Tensor.bitwise_xor_, others, total.bitwise_xor_(share)))
    return Opened(sums, xors)


def _part(data: memoryview | bytes, end: int, like: torch.Tensor) -> torch.Tensor:
    start = end - like.numel() * like.element_size()
    return words_in(memoryview(data)[start:end], like.dtype, tuple(like.shape))


def merged(openings: Sequence[Opening]) -> Opening:
    """One opening of all of them."""
    return Opening(
        [share for each in openings for share in each.sums], [share for each in openings for share in each.xors]
    )


def split(openings: Sequence[Opening], answer: Opened) -> list[Opened]:
    """The answer to `merged(openings)`, for each of them."""
    sums, xors = iter(answer.sums), iter(answer.xors)
    return [Opened([next(sums) for _ in each.sums], [next(xors) for _ in each.xors]) for each in openings]


def together(*protocols: Protocol[Any]) -> Protocol[list[Any]]:
    """Runs protocols side by side: their openings of one turn are one round. Gives their results in order."""
    results: list[Any] = [None] * len(protocols)
    asked: dict[int, Opening] = {}

    def step(index: int, answer: Opened | None) -> None:
        protocol = protocols[index]
        try:
            asked[index] = next(protocol) if answer is None else protocol.send(answer)
        except StopIteration as done:
            results[index] = done.value

    for index in range(len(protocols)):
        step(index, None)
    while asked:
        openings = dict(asked)
        asked.clear()
        answer = yield merged(list(openings.values()))
        for index, part in zip(openings, split(list(openings.values()), answer), strict=True):
            step(index, part)
    return results
