"""Runs in which every share has a MAC (mpc/checked.py): whoever changes a bit of anything, nobody has a result.

Who has an input draws its masks from a seed, tells the dealer that seed (MASK) and all parties the masked elements
(SHARE, by input). The asker does the same with its request. Outputs come masked under the seed of who learns them, who
is told them by each party, and takes them if all say the same: the asker, or who receives the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from compute.dtypes import DTYPE_OF
from compute.values import tensor_bytes
from mpc.checked import Hidden, hide, whole
from mpc.masks import SEED as SEED_BYTES
from mpc.masks import fresh_seed
from mpc.party import Party
from mpc.ring import words_in
from mpc.rounds import Protocol
from mpc.script import Script, script_of
from peer.worker.secure import protocols, results
from peer.worker.secure.dealing import Begun, Dealing, Receiving
from peer.worker.secure.kept import Kept, Known, taken_by
from peer.worker.secure.mail import Mail
from peer.worker.secure.part import ASKER, MASK, SHARE, Part
from peer.worker.secure.rounds import Rounds
from protocol.errors import BadRequest

Elements = Mapping[int, torch.Tensor]
"""Masked inputs, by their numbers."""


def run(part: Part, mail: Mail, kept: Kept) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """What one of those who take part does; what it cost, and what a party tells the asker."""
    told: dict[str, Any] = {"offline": 0.0, "online": 0.0, "rounds": 0, "sent": 0, "dealt": 0, "outputs": []}
    seed = fresh_seed()
    _tell_seed(part, mail, seed)
    tensors: list[torch.Tensor] = []
    begun = _begin(part, mail, kept) if part.is_party else None
    own = _give(part, mail, seed)
    if part.index == part.dealer:
        told |= _deal(part, mail, kept, seed)
    if begun is not None:
        made, tensors = _compute(part, mail, kept, own, begun)
        told |= made
    if part.receiver == part.index:
        mine = (told["outputs"], tensors) if part.is_party else None
        told["received"], tensors = results.received_masked(part, mail, mine, seed)
    elif part.receiver is not None and part.is_party:
        results.give(part, mail, told["outputs"], tensors)
        tensors = []
    return told, tensors


def _tell_seed(part: Part, mail: Mail, seed: bytes) -> None:
    """Tells the dealer the seed of the masks of inputs, where some are here; who receives the result has the seed of
    its masks."""
    has_some = any(each.holder == part.index for each in part.inputs)
    if (has_some or part.index == part.receiver) and part.index != part.dealer:
        assert part.dealer is not None
        mail.tell([part.dealer], MASK, 0, seed)


def _give(part: Part, mail: Mail, seed: bytes) -> Elements:
    """Tells the parties the masked inputs, where some are here."""
    found = {
        at: hide(mail.value(each.id), each.bits, seed, at)
        for at, each in enumerate(part.inputs)
        if each.holder == part.index
    }
    for at, elements in found.items():
        mail.tell([rank for rank in range(part.parties) if rank != part.index], SHARE, at, tensor_bytes(elements))
    return found


def _deal(part: Part, mail: Mail, kept: Kept, own: bytes) -> dict[str, Any]:
    began = time.perf_counter()
    if len(part.seed) != SEED_BYTES:
        raise BadRequest("the provider of a run with MACs is told a seed by who asks")
    known = kept.program(part, mail)
    seeds = {part.index: own, ASKER: part.seed}
    learns = ASKER if part.receiver is None else part.receiver
    for other in dict.fromkeys([*(each.holder for each in part.inputs), learns]):
        if other not in seeds:
            seeds[other] = bytes(mail.take(other, MASK, 0, SEED_BYTES))

    def of(at: int) -> bytes:
        return seeds[part.inputs[at].holder if at < len(part.inputs) else learns]

    script = _script(part, mail, known, of)
    dealt = Dealing(part, mail, kept).deal(script)
    return {"offline": time.perf_counter() - began, "dealt": dealt}


def _script(part: Part, mail: Mail, known: Known, seeds: Callable[[int], bytes] = lambda at: b"") -> Script:
    """What a run takes; at the dealer with the seeds of masks that others know, which are no part of its digest."""

    def meta(at: int) -> torch.Tensor:
        return torch.empty(part.inputs[at].shape, dtype=torch.int64, device="meta")

    def protocol(party: Party) -> Protocol[Any]:
        return protocols.slowly(mail, whole(party, known.program, _hidden(part), known.public, meta, seeds))

    return script_of(protocol, part.parties, part.precision)


def _begin(part: Part, mail: Mail, kept: Kept) -> Begun:
    """What a party knows before anything is shared: as in runs without MACs (process.py)."""
    began = time.perf_counter()
    known, receiving, key = kept.program(part, mail), Receiving(part, mail), taken_by(part, kept)
    script = kept.scripts.get(key)
    if script is None:
        script = _script(part, mail, known)
        kept.remember(key, script)
        receiving.begin([script])
    return Begun(known, script, receiving, time.perf_counter() - began)


def _compute(
    part: Part, mail: Mail, kept: Kept, own: Elements, begun: Begun
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    began, known, rounds = time.perf_counter(), begun.known, Rounds(part, mail)
    supply = begun.receiving.supply(begun.script)
    offline, began = begun.seconds + time.perf_counter() - began, time.perf_counter()

    def masked(at: int) -> torch.Tensor:
        if at in own:
            return own[at]
        each = part.inputs[at]
        if each.holder == ASKER:
            return mail.value(part.shares[at])
        nbytes = torch.Size(each.shape).numel() * torch.int64.itemsize
        return words_in(memoryview(mail.take(each.holder, SHARE, at, nbytes)), torch.int64, each.shape)

    party = Party(part.index, part.parties, supply, part.precision)
    outputs = rounds.drive(whole(party, known.program, _hidden(part), known.public, masked))
    begun.receiving.end()
    listed, tensors = results.kept_and_told(part, kept, known, outputs)
    waited = begun.receiving.waited
    online = time.perf_counter() - began - waited
    took = {"offline": offline + waited, "online": online, "rounds": rounds.number, "sent": mail.sent}
    return {**took, "outputs": listed}, tensors


def _hidden(part: Part) -> list[Hidden]:
    return [Hidden(each.shape, each.bits, DTYPE_OF[each.dtype]) for each in part.inputs]
