"""What a request for a secure run says, taken apart and checked, and what this peer's process is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from peer.agreement import KEPT, Agreement
from peer.calls import Call
from peer.secure_session import Session
from protocol.errors import BadRequest
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader

_ASKER: Final = -1  # in place of a holder's index: as in worker/secure/part.py
_KEPT: Final = -2
Lend = Callable[[TensorHeader, memoryview], bytes]
"""Gives a process a value that came along with the request; its id there."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. `program`: empty where it came before; `public`: the public values, one after the other; `seed` and
    `shares` (by input): of this party, of what the asker has."""

    agreement: Agreement
    program: bytes
    public: bytes
    seed: bytes
    shares: Mapping[int, bytes]

    @classmethod
    async def of(cls, call: Call) -> Asked:
        """BadRequest, TooLarge."""
        return _taken_apart(call.args, await _payload(call))

    def told(self, session: Session, lend: Lend) -> dict[str, Any]:
        """For the process (worker/secure/part.py); public values and shares are lent to it on the way."""
        agreement = self.agreement
        everybody = agreement.everybody
        places: dict[str, int] = {id: index for index, id in enumerate(everybody)} | {"": _ASKER, KEPT: _KEPT}
        ids, at = [], 0
        if self.program:
            for header in agreement.public:
                ids.append(lend(header, memoryview(self.public)[at : at + header.nbytes]))
                at += header.nbytes
        if at != len(self.public):
            raise BadRequest("the public values are not as large as was agreed on")
        return {
            "tag": agreement.digest,
            "index": places[session.own_id],
            "ids": list(everybody),
            "names": [session.name_of(id) for id in everybody],
            "parties": len(agreement.parties),
            "dealer": places[agreement.dealer] if agreement.dealer else None,
            "receiver": places[agreement.reveal] if agreement.receives and agreement.reveals else None,
            "inputs": [
                {
                    "holder": places[each.holder],
                    "id": each.id,
                    "dtype": each.header.dtype,
                    "shape": list(each.header.shape),
                    "bits": each.bits,
                    "keep": each.keep,
                    "is_fixed": each.is_fixed,
                }
                for each in agreement.inputs
            ],
            "public": ids,
            "program": agreement.program,
            "code": self.program or None,
            "shares": [
                [number, lend(TensorHeader("int64", agreement.inputs[number].header.shape), memoryview(share))]
                for number, share in self.shares.items()
            ],
            "seed": self.seed,
            "outputs": [list(each) for each in agreement.outputs],
            "batch": agreement.batch,
            "item": agreement.item,
            "ahead": agreement.ahead,
            "patience": agreement.patience,
            "precision": agreement.precision,
            "is_checked": agreement.checked,
        }


async def _payload(call: Call) -> bytes:
    sentence = "a secure run that is asked for in {size} bytes: send what is large to a peer first"
    check_limit("SECURE_REQUEST", call.nbytes, sentence)
    return bytes(call.payload) if call.stream is None else b"".join([bytes(c) async for c in call.stream])


def _taken_apart(args: Mapping[str, Any], payload: bytes) -> Asked:
    sizes = args.get("sizes")
    if not isinstance(sizes, list) or len(sizes) != 4 or not all(type(n) is int and n >= 0 for n in sizes):
        raise BadRequest("sizes are four counts of bytes: agreement, program, public values, shares")
    if sum(sizes) != len(payload):
        raise BadRequest(f"{len(payload)} bytes came where {sum(sizes)} were announced")
    parts, at = [], 0
    for size in sizes:
        parts.append(payload[at : at + size])
        at += size
    seed = args.get("seed", b"")
    if not isinstance(seed, bytes) or len(seed) not in (0, 16):
        raise BadRequest("seed is 16 bytes")
    agreement = Agreement.of(parts[0])
    shares, at = {}, 0
    if parts[3]:
        for number, each in enumerate(agreement.inputs):
            if not each.holder:
                nbytes = each.header.numel * 8
                shares[number] = parts[3][at : at + nbytes]
                at += nbytes
        if at != len(parts[3]):
            raise BadRequest("the asker's shares are not as large as its inputs")
    return Asked(agreement, parts[1], parts[2], seed, shares)
