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
from protocol.errors import BadRequest, TooLarge
from protocol.identity import is_peer_id
from protocol.tensors import TensorHeader

RUN_BYTES: Final = 16
DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class SecretInput:
    """One secret tensor: who has it ("" is the asker), under which id there, and what it is like."""

    holder: str
    id: bytes
    header: TensorHeader


@dataclass(frozen=True)
class Agreement:
    """One secure run, as everybody who takes part is told of it.

    Attributes:
        run: its id, random and used once.
        asker: the principal that asks.
        parties: ids of the peers that compute, in order.
        provider: id of the peer that deals.
        inputs: the secret ones, in the order of the program's inputs.
        public: headers of the public ones, which follow them.
        program: the SHA-256 of the program and the public values, in hex.
        reveal: the principal that learns the result.
        patience: seconds that one waits for another.
        name: what people call it.
        digest: of the bytes of all this.
    """

    run: bytes
    asker: str
    parties: tuple[str, ...]
    provider: str
    inputs: tuple[SecretInput, ...]
    public: tuple[TensorHeader, ...]
    program: str
    reveal: str
    patience: float
    name: str
    digest: bytes

    @cached_property
    def everybody(self) -> tuple[str, ...]:
        """Ids of all peers that take part: parties, provider, holders that are neither."""
        holders = (each.holder for each in self.inputs if each.holder)
        return tuple(dict.fromkeys((*self.parties, self.provider, *holders)))

    def counterparts(self, index: int) -> list[int]:
        """With whom the one of this index exchanges messages: everybody for a party, parties for all others."""
        count = len(self.everybody) if index < len(self.parties) else len(self.parties)
        return [each for each in range(count) if each != index]

    @classmethod
    def of(cls, data: bytes) -> Agreement:
        """BadRequest, TooLarge for what is none."""
        if len(data) > limits.SECURE_AGREEMENT:
            raise TooLarge(
                f"an agreement of {len(data)} bytes", limit="SECURE_AGREEMENT", allowed=limits.SECURE_AGREEMENT
            )
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
        if not all(is_peer_id(id) for id in (*parties, provider, told["asker"], told["reveal"])):
            raise BadRequest("parties, provider, asker and whom the result is revealed to are ids")
        if type(told["patience"]) not in (int, float) or not 0 < told["patience"] <= limits.SECURE_PATIENCE:
            raise BadRequest(f"patience is a positive number of seconds, at most {limits.SECURE_PATIENCE:g}")
        if len(told["inputs"]) > limits.SECURE_INPUTS or len(told["public"]) > limits.SECURE_INPUTS:
            raise BadRequest(f"more than {limits.SECURE_INPUTS} inputs")
        name = told["name"]
        if not (isinstance(name, str) and 0 < len(name) <= limits.MAX_OBJECT_NAME and name.isprintable()):
            raise BadRequest("a secure run has a name that can be printed")
        if len(check_id(told["run"])) != RUN_BYTES or not isinstance(told["program"], str):
            raise BadRequest("a secure run has an id, and a program")
        return cls(
            told["run"],
            told["asker"],
            parties,
            provider,
            tuple(_input(*each) for each in told["inputs"]),
            tuple(TensorHeader(dtype, tuple(shape)) for dtype, shape in told["public"]),
            told["program"],
            told["reveal"],
            float(told["patience"]),
            name,
            digest,
        )


def _input(holder: str, id: bytes, dtype: str, shape: Sequence[int]) -> SecretInput:
    if holder and not is_peer_id(holder):
        raise BadRequest("a holder is a peer's id")
    return SecretInput(holder, check_id(id), TensorHeader(dtype, tuple(shape)))


def program_hash(program: bytes, public: bytes) -> str:
    """As `Agreement.program` has it."""
    return hashlib.sha256(hashlib.sha256(program).digest() + public).hexdigest()
