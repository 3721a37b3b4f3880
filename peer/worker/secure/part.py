"""What a process is told to do in one run of its session, and what the messages of a run are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from compute.dtypes import DTYPE_OF
from protocol import limits
from protocol.errors import BadRequest

SEED, CORRECTIONS, CREDIT, READY, MASK, SHARE, ROUND, BUSY, RESULT = range(9)

ASKER: Final = -1  # who has an input: the asker,
KEPT: Final = -2  # or the parties, as shares that they kept


class Blame(Exception):
    """Somebody else broke the rules, or is not heard: index, and what of it. `is_lost`: its line ended, of which its
    peer may know more."""

    def __init__(self, index: int, why: str, *, is_lost: bool = False) -> None:
        super().__init__(why)
        self.index = index
        self.why = why
        self.is_lost = is_lost


@dataclass(frozen=True, slots=True)
class Given:
    """One secret input.

    Attributes:
        holder: the index of who has it, or ASKER, or KEPT.
        id: its id there.
        bits: fractional bits of its words.
        keep: the id under which the parties keep its shares; empty: they do not.
        is_fixed: its mask is opened, once in the session: it is a factor of many products.
    """

    holder: int
    id: bytes
    dtype: str
    shape: tuple[int, ...]
    bits: int
    keep: bytes
    is_fixed: bool

    @property
    def kept_as(self) -> bytes:
        """Its id among kept shares; empty where it is not one of them."""
        return self.id if self.holder == KEPT else self.keep


@dataclass(frozen=True, slots=True)
class Part:
    """One run, for one of those who take part.

    Attributes:
        tag: which is on every message of the run: the digest of what all have agreed on.
        index: of this peer among those who take part: parties first, then the dealer, holders, who receives.
        ids, names: of all of them; names for errors.
        parties: how many are parties.
        dealer: the index of who deals; None: nobody does, because it was dealt before, or because three parties do
            without.
        receiver: the index of who learns the result; None: the asker does.
        public: ids of the public values, which follow the secret inputs, where they came along.
        program: its hash; `code`: the program, where it came along.
        shares: ids of this party's shares of what the asker has, by input; where there are none it draws them from
            `seed`.
        outputs: of each value that comes out its id, and whether it stays with the parties; empty: none does.
        batch: of what was dealt ahead: its id; `item`: which of it is used. Empty: nothing of the kind.
        ahead: how many runs to deal for, instead of running.
        patience: seconds to wait for another.
        is_checked: whether shares have MACs (checked.py).
    """

    tag: bytes
    index: int
    ids: tuple[str, ...]
    names: tuple[str, ...]
    parties: int
    dealer: int | None
    receiver: int | None
    inputs: tuple[Given, ...]
    public: tuple[bytes, ...]
    program: str
    code: bytes | None
    shares: Mapping[int, bytes]
    seed: bytes
    outputs: tuple[tuple[bytes, bool], ...]
    batch: bytes
    item: int
    ahead: int
    patience: float
    precision: int
    is_checked: bool = False

    @property
    def is_party(self) -> bool:
        return self.index < self.parties

    @property
    def is_last(self) -> bool:
        return self.index == self.parties - 1

    @property
    def reveals(self) -> bool:
        """Whether shares of anything leave the parties."""
        return not self.outputs or not all(is_kept for _, is_kept in self.outputs)

    @property
    def stays(self) -> tuple[bool, ...]:
        """Of each value that comes out whether it stays with the parties; empty: none does."""
        stays = tuple(is_kept for _, is_kept in self.outputs)
        return stays if any(stays) else ()

    @property
    def others(self) -> list[int]:
        """The other parties."""
        return [rank for rank in range(self.parties) if rank != self.index]

    @property
    def counterparts(self) -> list[int]:
        """With whom this one exchanges messages: as Agreement.counterparts has it."""
        met = self.parties + self.is_checked
        return [at for at in range(len(self.ids) if self.index < met else met) if at != self.index]

    @classmethod
    def of(cls, what: Mapping[str, Any]) -> Part:
        """What the peer has told."""
        told = dict(what)
        told["inputs"] = tuple(Given(**{**each, "shape": tuple(each["shape"])}) for each in told["inputs"])
        for each in told["inputs"]:
            if each.dtype not in DTYPE_OF:
                raise BadRequest(f"no secret is a {each.dtype}")
        if not 0 <= told["ahead"] <= limits.SECURE_AHEAD_RUNS:
            raise BadRequest(f"more than {limits.SECURE_AHEAD_RUNS} runs are not dealt for at once")
        for name in ("ids", "names", "public"):
            told[name] = tuple(told[name])
        told["outputs"] = tuple((id, is_kept) for id, is_kept in told["outputs"])
        told["shares"] = dict(told["shares"])
        return cls(**told)
