"""Runs in which every share has a MAC (mpc/checked.py): whoever changes a bit of anything, nobody has a result.

Who has an input draws its masks from a seed, tells the dealer that seed (MASK) and all parties the masked elements
(SHARE, by input). The asker does the same with its request, and is told the outputs masked, by each party the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
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
from mpc.script import script_of
from peer.worker.secure import protocols, results
from peer.worker.secure.dealing import Dealing, Receiving
from peer.worker.secure.kept import Kept, Known
from peer.worker.secure.mail import Mail
from peer.worker.secure.part import ASKER, MASK, SHARE, Part
from peer.worker.secure.rounds import Rounds
from protocol.errors import BadRequest

Elements = Mapping[int, torch.Tensor]
"""Masked inputs, by their numbers."""


def run(part: Part, mail: Mail, kept: Kept) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """What one of those who take part does; what it cost, and what a party tells the asker."""
    if part.receiver is not None:
        raise BadRequest("a run with MACs reveals its result to its asker: leave out who receives it")
    told: dict[str, Any] = {"offline": 0.0, "online": 0.0, "rounds": 0, "sent": 0, "dealt": 0, "outputs": []}
    seed = fresh_seed()
    own = _give(part, mail, seed)
    if part.index == part.dealer:
        return told | _deal(part, mail, kept, seed), []
    if not part.is_party:
        return told, []
    made, tensors = _compute(part, mail, kept, own)
    return told | made, tensors


def _give(part: Part, mail: Mail, seed: bytes) -> Elements:
    """Tells the dealer the seed and the parties the masked inputs, where some are here."""
    found = {
        at: hide(mail.value(each.id), each.bits, seed, at)
        for at, each in enumerate(part.inputs)
        if each.holder == part.index
    }
    if found and part.index != part.dealer:
        assert part.dealer is not None
        mail.tell([part.dealer], MASK, 0, seed)
    for at, elements in found.items():
        mail.tell([rank for rank in range(part.parties) if rank != part.index], SHARE, at, tensor_bytes(elements))
    return found


def _deal(part: Part, mail: Mail, kept: Kept, own: bytes) -> dict[str, Any]:
    began = time.perf_counter()
    if len(part.seed) != SEED_BYTES:
        raise BadRequest("the provider of a run with MACs is told a seed by who asks")
    known = kept.program(part, mail)
    seeds = {part.index: own, ASKER: part.seed}
    for holder in dict.fromkeys(each.holder for each in part.inputs):
        if holder not in seeds:
            seeds[holder] = bytes(mail.take(holder, MASK, 0, SEED_BYTES))

    def of(at: int) -> bytes:
        return seeds[part.inputs[at].holder] if at < len(part.inputs) else part.seed

    def meta(at: int) -> torch.Tensor:
        return torch.empty(part.inputs[at].shape, dtype=torch.int64, device="meta")

    def protocol(party: Party) -> Protocol[Any]:
        return whole(party, known.program, _hidden(part), known.public, meta, of)

    script = script_of(lambda party: protocols.slowly(mail, protocol(party)), part.parties, part.precision)
    dealt = Dealing(part, mail, kept).deal(script)
    return {"offline": time.perf_counter() - began, "dealt": dealt}


def _compute(part: Part, mail: Mail, kept: Kept, own: Elements) -> tuple[dict[str, Any], list[torch.Tensor]]:
    began = time.perf_counter()
    known: Known = kept.program(part, mail)
    supply, rounds = Receiving(part, mail).supply(), Rounds(part, mail)
    offline, began = time.perf_counter() - began, time.perf_counter()

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
    listed, tensors = results.kept_and_told(part, kept, known, outputs)
    took = {"offline": offline, "online": time.perf_counter() - began, "rounds": rounds.number, "sent": mail.sent}
    return {**took, "outputs": listed}, tensors


def _hidden(part: Part) -> list[Hidden]:
    return [Hidden(each.shape, each.bits, DTYPE_OF[each.dtype]) for each in part.inputs]
