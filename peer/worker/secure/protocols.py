"""What all parties run, and what the dealer runs on shapes alone to find what to deal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compute.dtypes import DTYPE_OF
from mpc.fresh import freshly
from mpc.interpreter import run
from mpc.party import Party
from mpc.rounds import Protocol
from mpc.script import Script, script_of
from mpc.secret import Secret
from mpc.standing import fixing, shape_of
from mpc.staying import as_given, staying
from peer.worker.secure.kept import Kept, Known, taken_by
from peer.worker.secure.mail import Mail
from peer.worker.secure.part import Part


def to_fix(part: Part, kept: Kept) -> list[int]:
    """The inputs whose masks are to be opened in this run: those that are fixed and were not before. Of several that
    are the same kept shares the first: they have one mask."""
    found: dict[bytes, int] = {}
    for at, each in enumerate(part.inputs):
        if each.is_fixed and each.kept_as not in kept.places:
            found.setdefault(each.kept_as, at)
    return list(found.values())


def whole(part: Part, known: Known, party: Party, secrets: Sequence[Secret]) -> Protocol[Any]:
    """The run: the program, its outputs that stay as they are kept, and under new shares where they leave the
    parties."""
    made = run(party, known.program, [*secrets, *known.public])
    if any(part.stays):
        made = staying(party, made, known.program.outputs, part.stays)
    return freshly(party, made) if part.reveals else made


# --- on shapes alone --------------------------------------------------------------------------------------


def script_to_fix(part: Part, places: Sequence[int]) -> Script:
    """What opening the masks of these inputs takes."""
    return script_of(lambda party: fixing(party, [_shape(part, at) for at in places]), part.parties, part.precision)


def script_to_run(part: Part, kept: Kept, known: Known, mail: Mail) -> Script:
    """What a run takes when the masks of all fixed inputs are open."""
    key = taken_by(part, kept)
    found = kept.scripts.get(key)
    if found is None:
        secrets = [
            shape_of(_shape(part, at), kept.places[each.kept_as]) if each.is_fixed else _shape(part, at)
            for at, each in enumerate(part.inputs)
        ]
        found = script_of(lambda party: slowly(mail, whole(part, known, party, secrets)), part.parties, part.precision)
        kept.remember(key, found)
    return found


def _shape(part: Part, at: int) -> Secret:
    each = part.inputs[at]
    meta = torch.empty(each.shape, dtype=torch.int64, device="meta")
    return as_given(meta, each.bits, DTYPE_OF[each.dtype], part.precision)


def slowly(mail: Mail, protocol: Protocol[Any]) -> Protocol[Any]:
    """The same protocol; the others hear in between that we are there."""
    answer: Any = None
    while True:
        try:
            asked = protocol.send(answer)
        except StopIteration as done:
            return done.value
        mail.busy()
        answer = yield asked
