"""What is due in a run: who may send which kind of message, under which number, of which size.

Asked with a message's head alone, before there is memory for the rest of it; it may be asked twice about one message.
What another party sends of a round to which this one has not come yet is read if it is small; else it waits where it
is, and once its size is known it is that or nothing.
"""

from __future__ import annotations

from typing import Final

import torch

from mpc.masks import SEED as SEED_BYTES
from mpc.script import DIGEST_BYTES
from peer.worker.secure.part import CORRECTIONS, CREDIT, MASK, READY, RESULT, ROUND, SEED, SHARE, Blame, Part
from protocol import limits

Sizes = tuple[int, int]
"""The least and the most bytes of a message."""


class Due:
    """Of one run, for one of those who take part.

    Attributes:
        round: the number of the round that this party is in.
        asked: how many bytes of it are due from each other; None: that is not known yet.
        dealt: at the dealer: bytes of corrections that it sent.
        credited: at the last party: bytes of corrections that it said it had used.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._holders = {each.holder for each in part.inputs}
        self._came = self._pieces = self._credits = 0  # bytes of corrections, how many pieces, how many credits
        self.round = self.dealt = self.credited = 0
        self.asked: int | None = None

    def check(self, sender: int, kind: int, number: int, size: int) -> bool:
        """Whether it is to be read now. Blame: it is not due."""
        sizes = self._round(sender, number) if kind == ROUND else self._sizes(sender, kind, number)
        if sizes is None:
            raise Blame(sender, f"sent what is not due: kind {kind}, number {number}")
        least, most = sizes
        if not least <= size <= most:
            raise Blame(sender, f"sent {size} bytes where {most} are due")
        is_unasked = kind == ROUND and (number > self.round or self.asked is None)
        return not is_unasked or size <= limits.SECURE_UNASKED

    def came(self, kind: int, size: int) -> None:
        """A whole message did."""
        if kind == CORRECTIONS:
            self._came += size
            self._pieces += 1
        elif kind == CREDIT:
            self._credits += 1

    def _round(self, sender: int, number: int) -> Sizes | None:
        """Nobody is more than a round ahead."""
        if not self._part.is_party or sender >= self._part.parties:
            return None
        if not self.round <= number <= self.round + 1:
            raise Blame(sender, f"sent round {number} where {self.round} is due")
        if number > self.round or self.asked is None:
            return 0, limits.SECURE_MESSAGE
        return self.asked, self.asked

    def _sizes(self, sender: int, kind: int, number: int) -> Sizes | None:
        part = self._part
        is_dealt = part.is_party and sender == part.dealer
        if kind == CORRECTIONS and is_dealt and part.is_last and number == self._pieces:
            room = self.credited + limits.SECURE_AHEAD + limits.SECURE_PIECE - self._came
            return 1, min(room, limits.SECURE_PIECE)
        if kind == SEED and is_dealt and number <= max(part.ahead, 1):  # one more where masks are opened
            return _DEALT, _DEALT
        if kind == SEED and part.dealer is None and part.is_party and number < _DEALS and not part.batch:
            return (SEED_BYTES, SEED_BYTES) if sender == (part.index + 1) % part.parties else None
        if kind == CREDIT and part.index == part.dealer and sender == part.parties - 1 and number == self._credits:
            return (_U64, _U64) if (number + 1) * (limits.SECURE_AHEAD // 8) <= self.dealt else None
        if kind == READY and part.is_party and sender == part.parties - 1 and number == 0:
            return 0, 0
        masks = sender in self._holders or (part.is_checked and sender == part.receiver)
        if kind == MASK and number == 0 and masks:
            return (SEED_BYTES, SEED_BYTES) if part.is_party or part.is_checked else None
        if kind == SHARE and part.is_party and number < len(part.inputs) and part.inputs[number].holder == sender:
            nbytes = torch.Size(part.inputs[number].shape).numel() * torch.int64.itemsize
            return nbytes, nbytes
        if kind == RESULT and part.index == part.receiver and sender < part.parties and number < len(_RESULT):
            return _RESULT[number]
        return None


_U64: Final = 8
_DEALT: Final = SEED_BYTES + _U64 + DIGEST_BYTES
_DEALS: Final = 2  # of a run: for masks that are opened in it, and for the program
_RESULT: Final = ((1, limits.SECURE_AGREEMENT), (0, limits.SECURE_MESSAGE))  # what came out, and shares of it
