"""Dealing: the dealer's side, and how a party comes to what was dealt for it.

With each deal the dealer tells the digest of the script that it deals (mpc/script.py). A party that takes another one
goes no further: what it took would be of no use, and nobody would see it but by a wrong result.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mpc.correlations import Correlation, Dealt
from mpc.dealer import Dealer, Supply
from mpc.masks import SEED as SEED_BYTES
from mpc.script import DIGEST_BYTES, Script
from mpc.standing import masks_of
from peer.worker.secure.kept import Kept, Known, Stocked, check_stock
from peer.worker.secure.mail import Mail
from peer.worker.secure.part import CORRECTIONS, CREDIT, READY, SEED, Blame, Part
from peer.worker.secure.protocols import script_to_fix
from protocol import limits
from protocol.errors import BadRequest

_U64: Final = struct.Struct("<Q")

Take = Callable[[int, Correlation], Dealt]
"""Where a party's correlations come from, by their numbers."""


class Dealing:
    """The dealer in one run: deals scripts one after the other, no faster than the last party takes them."""

    def __init__(self, part: Part, mail: Mail, kept: Kept) -> None:
        self._part, self._mail, self._kept = part, mail, kept
        self._last = part.parties - 1
        self._deals = self._sent = self._used = self._pieces = self._credits = 0

    def fix(self, places: Sequence[int]) -> int:
        """Deals for the masks of these inputs to be opened, and keeps the masks; how many bytes that was."""
        script = script_to_fix(self._part, places)
        dealer = Dealer(script, self._part.parties)
        before = self._kept.place([self._part.inputs[at].kept_as for at in places])
        self._kept.masks |= masks_of(script.correlations, dealer.seeds, before)
        return self._deal(script, dealer)

    def deal(self, script: Script) -> int:
        """Deals for one run of the program; how many bytes that was."""
        return self._deal(script, Dealer(script, self._part.parties, self._kept.masks))

    def _deal(self, script: Script, dealer: Dealer) -> int:
        """A seed to each party, the corrections to the last."""
        part, mail = self._part, self._mail
        for rank, seed in enumerate(dealer.seeds):
            mail.tell([rank], SEED, self._deals, seed + _U64.pack(script.dealt) + script.digest)
        self._deals += 1
        for correction in dealer.corrections():
            mail.busy()
            for start in range(0, len(correction), limits.SECURE_PIECE):
                self._wait()
                piece = correction[start : start + limits.SECURE_PIECE]
                mail.tell([self._last], CORRECTIONS, self._pieces, piece)
                self._sent, self._pieces = self._sent + len(piece), self._pieces + 1
                mail.due.dealt = self._sent
        return script.dealt + part.parties * SEED_BYTES

    def _wait(self) -> None:
        while self._sent - self._used > limits.SECURE_AHEAD:
            self._used += _U64.unpack(self._mail.take(self._last, CREDIT, self._credits, _U64.size))[0]
            self._credits += 1
            if self._used > self._sent:
                raise Blame(self._last, "says that it used more than it was sent")


class Corrections:
    """What the dealer sends to the last party, in order: `total` bytes of one deal after the other."""

    def __init__(self, part: Part, mail: Mail) -> None:
        self._part = part
        self._mail = mail
        self.left = 0
        self._piece = memoryview(b"")
        self._pieces = self._credits = self._used = 0
        self.waited = 0.0  # seconds, for the dealer

    def begin(self, total: int) -> None:
        """So many more are due."""
        self.left += total

    def end(self) -> None:
        """Blame: some were not taken."""
        if self.left:
            raise Blame(self._dealer, "has dealt more than the program takes")

    def read(self, nbytes: int) -> memoryview:
        """The next ones."""
        if nbytes > self.left:
            raise Blame(self._dealer, "has dealt less than the program takes")
        got = bytearray(nbytes)
        at = 0
        while at < nbytes:
            if not len(self._piece):
                self._piece = memoryview(self._next())
            took = self._piece[: nbytes - at]
            got[at : at + len(took)] = took
            at += len(took)
            self._piece = self._piece[len(took) :]
            self._credit(len(took))  # before all is here: the dealer may wait for it
        self.left -= nbytes
        return memoryview(got)

    @property
    def _dealer(self) -> int:
        assert self._part.dealer is not None
        return self._part.dealer

    def _next(self) -> bytearray:
        began = time.perf_counter()
        piece = self._mail.take(self._dealer, CORRECTIONS, self._pieces)
        self._pieces, self.waited = self._pieces + 1, self.waited + time.perf_counter() - began
        return piece

    def _credit(self, nbytes: int) -> None:
        """Says what was used. What the dealer does not need any more it does not read (Mail)."""
        self._used += nbytes
        if self._used >= limits.SECURE_AHEAD // 8:
            self._mail.tell([self._dealer], CREDIT, self._credits, _U64.pack(self._used))
            self._mail.due.credited += self._used
            self._used, self._credits = 0, self._credits + 1


class Receiving:
    """A party in one run: what the dealer deals for it."""

    def __init__(self, part: Part, mail: Mail) -> None:
        self._part, self._mail = part, mail
        self._corrections = Corrections(part, mail) if part.is_last else None
        self._deals = 0
        self._begun: list[bytes] = []  # seeds of deals that were waited for

    def begin(self, scripts: Sequence[Script]) -> None:
        """Waits until the dealer has begun to deal these. Blame: it deals something else."""
        self._begun += [self._seed(script) for script in scripts]

    def _seed(self, script: Script) -> bytes:
        """This party's seed of the next deal, which is of this script; the corrections behind it are due."""
        dealer = self._part.dealer
        assert dealer is not None
        told = bytes(self._mail.take(dealer, SEED, self._deals, SEED_BYTES + _U64.size + DIGEST_BYTES))
        seed, total, digest = told[:SEED_BYTES], told[SEED_BYTES:-DIGEST_BYTES], told[-DIGEST_BYTES:]
        if digest != script.digest or _U64.unpack(total)[0] != script.dealt:
            own = self._part.names[self._part.index]
            raise Blame(dealer, f"deals for another program than {own} runs: both have to run the same version")
        self._deals += 1
        if self._corrections is not None:
            self._corrections.begin(script.dealt)
        return seed

    def _next(self, script: Script) -> bytes:
        return self._begun.pop(0) if self._begun else self._seed(script)

    @property
    def waited(self) -> float:
        """Seconds that this party has waited for the dealer, since it had its seeds."""
        return 0.0 if self._corrections is None else self._corrections.waited

    def supply(self, script: Script) -> Supply:
        """For use now, while more of it comes: the first rounds open what needs seeds alone."""
        seed = self._next(script)
        return Supply(seed) if self._corrections is None else Supply(seed, self._corrections.read)

    def end(self) -> None:
        """All that was dealt was taken. Blame: it was not."""
        if self._corrections is not None:
            self._corrections.end()

    def stocked(self, script: Script, room: int) -> Stocked:
        """The same, to be kept; with all masks drawn, if these take no more than `room`."""
        stocked = Stocked(self._next(script), None)
        if self._corrections is not None:
            check_stock(self._corrections.left)
            stocked.corrections = bytearray(self._corrections.read(self._corrections.left))
        drawn = script.total(_to_hold) + (script.dealt if stocked.corrections is None else 0)
        if drawn <= room:
            stocked.drawn, stocked.drawn_bytes = _supply(stocked).ahead(script), drawn
        return stocked

    def all_stocked(self) -> None:
        """Everybody has what was dealt ahead."""
        if self._part.is_last:
            self._mail.tell(self._part.others, READY, 0)
        else:
            self._mail.take(self._part.parties - 1, READY, 0, 0)


@dataclass(frozen=True, slots=True)
class Fixes:
    """The inputs whose masks are opened in a run: at these places, after `before` others in the session."""

    places: Sequence[int]
    before: int
    script: Script | None


NOTHING: Final = Fixes((), 0, None)


@dataclass(frozen=True, slots=True)
class Begun:
    """What a party knows before anything is shared.

    Attributes:
        known: the program.
        script: what a run of it takes.
        receiving: what the dealer deals, where one does.
        seconds: how long it took to know.
        fixes: what is to be fixed in this run.
    """

    known: Known
    script: Script
    receiving: Receiving
    seconds: float
    fixes: Fixes = NOTHING


def _to_hold(correlation: Correlation) -> int:
    """Bytes that it takes to hold a correlation that was drawn, besides derived words."""
    return _OBJECTS + sum(words.nbytes for words in correlation.free)


_OBJECTS: Final = 4096


def from_stock(stocked: Stocked) -> Take:
    """What was dealt ahead, for use now."""
    return _supply(stocked) if stocked.drawn is None else stocked.drawn


def _supply(stocked: Stocked) -> Supply:
    if stocked.corrections is None:
        return Supply(stocked.seed)
    left = memoryview(stocked.corrections)

    def read(nbytes: int) -> memoryview:
        nonlocal left
        if nbytes > len(left):
            raise BadRequest("less was dealt ahead than this run takes")
        took, left = left[:nbytes], left[nbytes:]
        return took

    return Supply(stocked.seed, read)
