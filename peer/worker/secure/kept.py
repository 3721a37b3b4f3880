"""What a process of a session keeps from run to run: shares, masks of fixed inputs, programs, what was dealt ahead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from compute.dtypes import DTYPE_OF
from compute.program import Program
from mpc.dealer import Drawn
from mpc.masks import SEED as SEED_BYTES
from mpc.script import Script
from mpc.secret import Secret
from mpc.standing import number_of
from mpc.staying import as_given
from mpc.trio import Pieces
from peer.worker.secure.mail import Mail
from peer.worker.secure.part import Given, Part
from protocol import limits
from protocol.errors import BadRequest, NotFound
from protocol.sizes import check_limit


@dataclass(frozen=True, slots=True)
class Known:
    """A program that came, and its public values."""

    program: Program
    public: tuple[torch.Tensor, ...]


@dataclass(slots=True)
class Stocked:
    """What was dealt ahead for one run of a program: this party's seed, and the corrections at the last party; and all
    that follows from these, where there was room for so many bytes more."""

    seed: bytes
    corrections: bytearray | None
    drawn: Drawn | None = None
    drawn_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return SEED_BYTES + len(self.corrections or b"")


@dataclass(slots=True)
class Stock:
    """What was dealt ahead in one batch. `takes`: what the runs have to be like; `items`: those not used yet."""

    takes: tuple[object, ...]
    items: dict[int, Stocked] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.items.values())

    @property
    def drawn_bytes(self) -> int:
        return sum(each.drawn_bytes for each in self.items.values())


class Kept:
    """See the module's docstring.

    Attributes:
        masks: at the dealer: the masks of fixed inputs, by their numbers (mpc/standing.py).
        pieces: of such masks, at each of three parties that do without a dealer.
        places: of kept shares whose mask was opened: which of all that were fixed in this session it is.
        fixed: how many those are, with those that were let go.
        scripts: of the runs that this process knows.
    """

    def __init__(self) -> None:
        self._shares: dict[bytes, Secret] = {}
        self._stocks: dict[bytes, Stock] = {}
        self._stocked = self._drawn = 0  # bytes in them, and of masks that were drawn
        self._programs: OrderedDict[str, Known] = OrderedDict()
        self.masks: dict[int, torch.Tensor] = {}
        self.pieces: dict[int, Pieces] = {}
        self.places: dict[bytes, int] = {}
        self.fixed = 0
        self.scripts: OrderedDict[tuple[object, ...], Script] = OrderedDict()

    # --- shares -------------------------------------------------------------------------------------------

    def share(self, given: Given, precision: int) -> Secret:
        """One that was kept, as the run expects it: as who finds the script takes it (`as_given`), whatever it was in
        the run that made it. NotFound, BadRequest."""
        found = self._shares.get(given.id)
        if found is None:
            raise NotFound("shares that a run needs were let go, or never kept")
        if (tuple(found.shape), found.bits, found.dtype) != (given.shape, given.bits, DTYPE_OF[given.dtype]):
            raise BadRequest("kept shares are of another shape or dtype than what was agreed on")
        return replace(as_given(found.share, found.bits, found.dtype, precision), fixed=found.fixed)

    def keep(self, id: bytes, secret: Secret) -> None:
        """TooLarge: there is no room for more."""
        nbytes = sum(each.share.nbytes for other, each in self._shares.items() if other != id) + secret.share.nbytes
        sentence = "more shares than a session may keep: let some of them go, or work on smaller ones"
        check_limit("SECURE_KEPT", nbytes, sentence)
        self._shares[id] = Secret(secret.share, secret.bits, secret.dtype, secret.fixed)

    def drop(self, ids: Iterable[bytes]) -> None:
        for id in ids:
            self._shares.pop(id, None)
            if (stock := self._stocks.pop(id, None)) is not None:
                self._stocked -= stock.nbytes
                self._drawn -= stock.drawn_bytes
            if id in self.places:
                number = number_of(self.places.pop(id))
                self.masks.pop(number, None)
                self.pieces.pop(number, None)

    def place(self, ids: Sequence[bytes]) -> int:
        """The masks of these are open from now on; the place of the first."""
        before = self.fixed
        for id in ids:
            self.places[id] = self.fixed
            self.fixed += 1
        return before

    # --- programs -----------------------------------------------------------------------------------------

    def program(self, part: Part, mail: Mail) -> Known:
        """That of this run, which came now or before. NotFound: it did not."""
        if part.code is not None:
            public = tuple(mail.value(id).clone() for id in part.public)
            self._programs[part.program] = Known(Program.from_bytes(part.code), public)
            while len(self._programs) > limits.SECURE_PROGRAMS:
                self._programs.popitem(last=False)
        found = self._programs.get(part.program)
        if found is None:
            raise NotFound("the program of this run did not come along, and is not known here")
        self._programs.move_to_end(part.program)
        return found

    def remember(self, key: tuple[object, ...], script: Script) -> None:
        """What a run takes."""
        self.scripts[key] = script
        while len(self.scripts) > limits.SECURE_PROGRAMS:
            self.scripts.popitem(last=False)

    # --- what was dealt ahead -----------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """For so many bytes of masks that are drawn ahead."""
        return limits.SECURE_DRAWN - self._drawn

    def put(self, batch: bytes, takes: tuple[object, ...], item: int, stocked: Stocked) -> None:
        """Keeps what was dealt for one run. TooLarge."""
        stock = self._stocks.setdefault(batch, Stock(takes))
        before = stock.items.get(item)
        self._stocked += stocked.nbytes - (before.nbytes if before is not None else 0)
        self._drawn += stocked.drawn_bytes - (before.drawn_bytes if before is not None else 0)
        stock.items[item] = stocked
        check_stock(self._stocked)

    def used(self, batch: bytes, takes: tuple[object, ...], item: int) -> Stocked:
        """What was dealt for this run; it is gone then. BadRequest: it was used, or is for something else."""
        stock = self._stocks.get(batch)
        if stock is None:
            raise NotFound("what was dealt ahead is gone: prepare the plan anew")
        if stock.takes != takes:
            raise BadRequest("this was dealt ahead for another program, or for inputs of other shapes")
        stocked = stock.items.pop(item, None)
        if stocked is None:
            raise BadRequest(f"what was dealt ahead for run {item} was used before: masks are used once")
        self._stocked -= stocked.nbytes
        self._drawn -= stocked.drawn_bytes
        return stocked


def check_stock(nbytes: int) -> None:
    """TooLarge where no party may keep so much of what was dealt ahead."""
    sentence = "{size} bytes dealt ahead would be more than a party keeps: prepare fewer runs at once"
    check_limit("SECURE_STOCK", nbytes, sentence)


def taken_by(part: Part, kept: Kept) -> tuple[object, ...]:
    """What decides what a run takes from the dealer, when the masks of all fixed inputs are open."""
    inputs = tuple((each.dtype, each.shape, each.bits) for each in part.inputs)
    places = tuple(kept.places[each.kept_as] if each.is_fixed else None for each in part.inputs)
    return part.program, inputs, places, part.reveals, part.stays, part.precision, part.parties, part.is_checked
