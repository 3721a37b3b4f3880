"""What all who take part in a secure run agree on: the same bytes for each, compared before anything is shared.

Whoever asks could otherwise tell one holder that a result goes to somebody it trusts, and the parties that it goes to
somebody else. Decides; waits for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgpack

from peer.objects import check_id
from protocol import limits
from protocol.errors import BadRequest
from protocol.identity import is_peer_id
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader

DIGEST_BYTES: Final = 32
HEARSAY: Final = "accused"  # the field of an error that another peer has told: whom it blames, if not itself
KEPT: Final = "parties"  # in place of a holder: the parties have shares of it already


@dataclass(frozen=True, slots=True)
class SecretInput:
    """One secret tensor.

    Attributes:
        holder: who has it: a peer; "" is the asker, KEPT are the parties, as shares that they kept.
        id: under which it is there.
        bits: fractional bits of its words.
        keep: the id under which the parties are to keep its shares; empty: they are not.
        is_fixed: its mask is opened once, for all runs of the session: it is kept, and a factor of products.
    """

    holder: str
    id: bytes
    header: TensorHeader
    bits: int
    keep: bytes
    is_fixed: bool

    @property
    def peer(self) -> str:
        """The peer that has it; "" where none has."""
        return "" if self.holder == KEPT else self.holder

    @property
    def kept_as(self) -> bytes:
        """Its id among kept shares, when the run is over; empty: it is not one of them."""
        return self.id if self.holder == KEPT else self.keep


@dataclass(frozen=True)
class Agreement:
    """One secure run, as everybody who takes part is told of it.

    Attributes:
        run: its id, random and used once.
        session: the id of the session that it belongs to.
        asker: the principal that asks.
        parties: ids of the peers that compute, in order.
        provider: id of the peer that deals; "": three parties do without.
        inputs: the secret ones, in the order of the program's inputs.
        public: headers of the public ones, which follow them.
        program: the SHA-256 of the program and the public values, in hex.
        reveal: the principal that learns the result.
        receives: whether that is a peer, which gets the result itself; else the asker does.
        outputs: of each value that comes out, in the order of PROGRAM.md: its id, and whether shares of it stay with
            the parties under that id. What does not is revealed; to a peer, which then has it under that id. Empty:
            all is revealed to the asker.
        batch: the id of what was dealt ahead, or is to be; empty: the provider deals in the run itself.
        item: which of the batch is used up.
        ahead: for how many runs is to be dealt, instead of running; 0: it is a run.
        precision: fractional bits of secret reals.
        checked: whether every share has a MAC (mpc/checked.py): then nobody learns anything if anybody lies.
        patience: seconds that one waits for another.
        name: what people call it.
        digest: of the bytes of all this.
    """

    run: bytes
    session: bytes
    asker: str
    parties: tuple[str, ...]
    provider: str
    inputs: tuple[SecretInput, ...]
    public: tuple[TensorHeader, ...]
    program: str
    reveal: str
    receives: bool
    outputs: tuple[tuple[bytes, bool], ...]
    batch: bytes
    item: int
    ahead: int
    precision: int
    checked: bool
    patience: float
    name: str
    digest: bytes

    @property
    def dealer(self) -> str:
        """Who deals in this run; "": nobody, because it was dealt ahead, or three parties do without."""
        return self.provider if self.ahead or not self.batch else ""

    @property
    def reveals(self) -> bool:
        """Whether somebody learns something of it."""
        return not self.ahead and (not self.outputs or not all(is_kept for _, is_kept in self.outputs))

    @property
    def keeps(self) -> bool:
        """Whether shares stay with the parties."""
        return any(is_kept for _, is_kept in self.outputs) or any(each.keep for each in self.inputs)

    @property
    def new_ids(self) -> list[bytes]:
        """The ids under which the parties will keep shares after it."""
        return [each.keep for each in self.inputs if each.keep] + [id for id, is_kept in self.outputs if is_kept]

    @cached_property
    def everybody(self) -> tuple[str, ...]:
        """Ids of all peers that take part: parties, who deals, holders that are neither, who receives the result."""
        others = [self.dealer, *(each.peer for each in self.inputs), self.reveal if self.receives else ""]
        return tuple(dict.fromkeys((*self.parties, *(each for each in others if each))))

    def counterparts(self, index: int) -> list[int]:
        """With whom the one of this index exchanges messages: everybody for a party, parties for all others. Where
        shares have MACs the dealer, who comes behind the parties, has to do with everybody too."""
        met = len(self.parties) + self.checked
        count = len(self.everybody) if index < met else met
        return [each for each in range(count) if each != index]

    @classmethod
    def of(cls, data: bytes) -> Agreement:
        """BadRequest, TooLarge for what is none."""
        check_limit("SECURE_AGREEMENT", len(data), "an agreement of {size} bytes; at most {allowed}")
        try:
            told = msgpack.unpackb(data, raw=False)
            return cls._checked(told, hashlib.sha256(data).digest())
        except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException, RecursionError) as error:
            raise BadRequest(f"this is no agreement on a secure run: {type(error).__name__}") from None

    @classmethod
    def _checked(cls, told: Mapping[str, Any], digest: bytes) -> Agreement:
        parties, provider = tuple(told["parties"]), told["provider"]
        if not 2 <= len(parties) <= limits.SECURE_PARTIES or len(set(parties)) != len(parties):
            raise BadRequest(f"a secure run has 2 to {limits.SECURE_PARTIES} parties, each another peer")
        if provider in parties:
            raise BadRequest("the provider knows every mask: it cannot be a party as well. Name another peer")
        if not all(is_peer_id(id) for id in (*parties, provider or parties[0], told["asker"], told["reveal"])):
            raise BadRequest("parties, provider, asker and whom the result is revealed to are ids")
        check_patience(told["patience"])
        if max(len(told[name]) for name in ("inputs", "public", "outputs")) > limits.SECURE_INPUTS:
            raise BadRequest(f"more than {limits.SECURE_INPUTS} inputs or outputs")
        name = told["name"]
        if not (isinstance(name, str) and 0 < len(name) <= limits.MAX_OBJECT_NAME and name.isprintable()):
            raise BadRequest("a secure run has a name that can be printed")
        if not isinstance(told["program"], str) or not all(
            type(told[key]) is int and 0 <= told[key] <= limits.MAX_ID for key in ("item", "ahead", "precision")
        ):
            raise BadRequest("a secure run has a program, and numbers that count")
        made = cls(
            check_id(told["run"]),
            check_id(told["session"]),
            told["asker"],
            parties,
            provider,
            tuple(_input(*each) for each in told["inputs"]),
            tuple(TensorHeader(dtype, tuple(shape)) for dtype, shape in told["public"]),
            told["program"],
            told["reveal"],
            told["receives"] is True,
            tuple((check_id(id), is_kept is True) for id, is_kept in told["outputs"]),
            _id_or_none(told["batch"]),
            told["item"],
            told["ahead"],
            told["precision"],
            told.get("checked") is True,
            float(told["patience"]),
            name,
            digest,
        )
        made._check()
        return made

    def _check(self) -> None:
        """What contradicts itself. BadRequest."""
        if not self.provider and (len(self.parties) != _ALONE or self.batch):
            raise BadRequest("without a provider there are three parties, and nothing is dealt ahead")
        if not self.receives and self.reveal != self.asker:
            raise BadRequest("the result of a run goes to its asker, or to a peer that receives it")
        if self.ahead and (not self.batch or self.outputs):
            raise BadRequest("what is dealt ahead has an id, and nothing comes out of it: leave out outputs")
        if self.ahead > limits.SECURE_AHEAD_RUNS or self.item >= limits.SECURE_AHEAD_RUNS:
            raise BadRequest(f"nobody deals for more than {limits.SECURE_AHEAD_RUNS} runs at once: prepare fewer")
        if any(each.holder == KEPT and each.keep for each in self.inputs):
            raise BadRequest("shares that are kept already have an id: leave out keep")
        ids = [each.keep for each in self.inputs if each.keep] + [id for id, _ in self.outputs]
        if len(set(ids)) < len(ids):
            raise BadRequest("outputs, and shares that are kept, have ids of their own: draw one for each")
        if any(each.is_fixed and not each.kept_as for each in self.inputs):
            raise BadRequest("an input that is fixed is one that is kept")
        if self.checked and (
            not self.provider
            or self.batch
            or any(is_kept for _, is_kept in self.outputs)
            or any(each.kept_as for each in self.inputs)
        ):
            raise BadRequest("a run with MACs has a provider, keeps nothing, and is not dealt for ahead")


_ALONE: Final = 3


def _input(
    holder: str, id: bytes, dtype: str, shape: Sequence[int], bits: int, keep: bytes, is_fixed: bool
) -> SecretInput:
    if holder not in ("", KEPT) and not is_peer_id(holder):
        raise BadRequest("a holder is a peer's id")
    if type(bits) is not int or not 0 <= bits < 64:
        raise BadRequest("fractional bits are a number below 64")
    header = TensorHeader(dtype, tuple(shape))
    return SecretInput(holder, check_id(id), header, bits, _id_or_none(keep), is_fixed is True)


def _id_or_none(value: object) -> bytes:
    return b"" if value == b"" else check_id(value)


def check_patience(seconds: object) -> None:
    """BadRequest: nobody waits for another so long, or that is no time."""
    if type(seconds) not in (int, float) or not 0 < seconds <= limits.SECURE_PATIENCE:  # type: ignore[operator]
        raise BadRequest(f"patience is a positive number of seconds, at most {limits.SECURE_PATIENCE:g}")


def program_hash(program: bytes, public: bytes) -> str:
    """As `Agreement.program` has it."""
    return hashlib.sha256(hashlib.sha256(program).digest() + public).hexdigest()
