"""The dealer's side of a run, and each party's supply: from a script to what travels, and back.

The dealer draws a seed for each party and sends it; and to the last party, in the order of the script, the corrections:
its shares of all derived words, one after the other, row-major and little-endian. It sees no data, nor anything that
hangs on data; it does not even learn when the parties run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from compute.values import tensor_bytes
from mpc.correlations import Correlation, Dealt, deal, take
from mpc.masks import fresh_seed
from mpc.ring import words_in
from mpc.script import Across, Script
from protocol.errors import BadRequest


class Dealer:
    """Deals one script, once.

    Args:
        standing: the masks that were fixed before the run, by their numbers (standing.masks_of).

    Attributes:
        seeds: those of the parties, in their order: each for the eyes of one party alone.
    """

    def __init__(self, script: Script, count: int, standing: Mapping[int, torch.Tensor] | None = None) -> None:
        self._script = script
        self._standing = standing or {}
        self.seeds = [fresh_seed() for _ in range(count)]
        self._has_dealt = False

    def corrections(self) -> Iterator[memoryview]:
        """What the last party is sent, piece by piece: `script.dealt` bytes. BadRequest: they were dealt before."""
        if self._has_dealt:
            raise BadRequest("these corrections were dealt before: masks are used once, so deal anew for another run")
        self._has_dealt = True
        return self._pieces()

    def _pieces(self) -> Iterator[memoryview]:
        kept = Across(self._script, self._standing)
        for stretch in self._script.stretches():
            last_use = {each.kept: number for number, each in stretch if each.kept is not None}
            own: dict[int, torch.Tensor] = {}
            for number, correlation in stretch:
                mask = None if correlation.kept is None else _either(own, kept, correlation.kept)
                made = deal(correlation, number, self.seeds, mask)
                if made.first is not None:
                    kept.put(number, made.first)
                    if number in last_use:
                        own[number] = made.first
                if correlation.kept is not None and last_use[correlation.kept] == number:
                    own.pop(correlation.kept, None)
                for share in made.shares:
                    yield tensor_bytes(share)


def _either(own: Mapping[int, torch.Tensor], kept: Across[torch.Tensor], number: int) -> torch.Tensor:
    """A mask of this stretch, or of what was before."""
    return own[number] if number in own else kept[number]


Read = Callable[[int], memoryview | bytes]
"""The next so many bytes of the corrections; they stay as they are."""


class Supply:
    """One party's correlations, from its seed, and (at the last party) from what the dealer sent.

    Each number is taken once, in order; what comes again or out of order is refused, because a mask that is used twice
    tells the difference of what it hid.
    """

    def __init__(self, seed: bytes, read: Read | None = None) -> None:
        self._seed = seed
        self._read = read
        self._taken = 0

    def __call__(self, number: int, correlation: Correlation) -> Dealt:
        """This party's shares. BadRequest: they were taken before, or those before them were not."""
        if number != self._taken:
            raise BadRequest(f"correlation {number} was asked for when {self._taken} is the next: each is used once")
        self._taken += 1
        corrections = None if self._read is None else self._corrections(correlation, self._read)
        return take(correlation, number, self._seed, corrections)

    def ahead(self, script: Script) -> Drawn:
        """All that a run of this script takes, drawn now."""
        return Drawn({at: (each, self(at, each)) for stretch in script.stretches() for at, each in stretch})

    @staticmethod
    def _corrections(correlation: Correlation, read: Read) -> Sequence[torch.Tensor]:
        shares = []
        for words in correlation.derived:
            shares.append(words_in(read(words.nbytes), words.dtype, words.shape))
        return shares


class Drawn:
    """What a Supply gives for one run, drawn before it, so that no mask is made while it goes on. Each number is taken
    once."""

    def __init__(self, dealt: dict[int, tuple[Correlation, Dealt]]) -> None:
        self._dealt = dealt

    def __call__(self, number: int, correlation: Correlation) -> Dealt:
        """This party's shares. BadRequest: they were taken before, or are of something else."""
        drawn, dealt = self._dealt.pop(number, (None, None))
        if dealt is None or drawn != correlation:
            raise BadRequest(f"correlation {number} was not drawn for this run, or was taken: each is used once")
        return dealt
