"""Shares of inputs: given out by who has an input, taken by the parties.

All parties but one draw their shares of a holder's inputs from a seed that the holder gives them. That one is the
holder itself where it is a party, else the first, which is sent its shares.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from compute.dtypes import DTYPE_OF
from compute.values import tensor_bytes
from mpc.masks import SEED as SEED_BYTES
from mpc.masks import Masks, fresh_seed
from mpc.ring import encode
from mpc.secret import Secret
from mpc.staying import as_given
from peer.worker.secure.kept import Kept
from peer.worker.secure.mail import Mail
from peer.worker.secure.part import ASKER, KEPT, MASK, SHARE, Given, Part


def share_inputs(part: Part, mail: Mail) -> dict[int, torch.Tensor]:
    """Gives the others their shares of what is here; the words that are this peer's own share, by input."""
    own = [at for at, each in enumerate(part.inputs) if each.holder == part.index]
    if not own:
        return {}
    full = part.index if part.is_party else 0
    seeds = {rank: fresh_seed() for rank in range(part.parties) if rank != full}
    for rank, seed in seeds.items():
        mail.tell([rank], MASK, 0, seed)
    kept = {}
    for at in own:
        each = part.inputs[at]
        words = encode(mail.value(each.id), each.bits)
        for seed in seeds.values():
            words = words - Masks(seed, at).draw(each.shape, torch.int64)
        if full == part.index:
            kept[at] = words
        else:
            mail.tell([full], SHARE, at, tensor_bytes(words))
    return kept


def shares(part: Part, mail: Mail, own: Mapping[int, torch.Tensor], kept: Kept) -> list[Secret]:
    """This party's share of every secret input."""
    seeds: dict[int, bytes] = {}
    found = []
    for at, each in enumerate(part.inputs):
        if each.holder == KEPT:
            found.append(kept.share(each, part.precision))
            continue
        if at in own:
            words = own[at]
        elif each.holder == ASKER and not _nbytes(each):
            words = torch.empty(each.shape, dtype=torch.int64)  # of nothing, nothing was sent
        elif each.holder == ASKER:
            given = part.shares.get(at)
            words = mail.value(given) if given is not None else Masks(part.seed, at).draw(each.shape, torch.int64)
        elif each.holder >= part.parties and part.index == 0:
            words = _words(mail.take(each.holder, SHARE, at, _nbytes(each)), each.shape)
        else:
            if each.holder not in seeds:
                seeds[each.holder] = bytes(mail.take(each.holder, MASK, 0, SEED_BYTES))
            words = Masks(seeds[each.holder], at).draw(each.shape, torch.int64)
        found.append(as_given(words, each.bits, DTYPE_OF[each.dtype], part.precision))
    return found


def _words(data: bytearray, shape: tuple[int, ...]) -> torch.Tensor:
    if not len(data):
        return torch.empty(shape, dtype=torch.int64)
    return torch.frombuffer(data, dtype=torch.int64).reshape(shape)


def _nbytes(given: Given) -> int:
    return torch.Size(given.shape).numel() * torch.int64.itemsize
