"""Factors that are opened under their masks once, for all runs of one team: a model's weights between requests.

Fixing them is a run of its own (`fixing`, whose script is dealt like any other). In later runs their masks have numbers
below zero: -1 for the first that was ever fixed, and so on. The dealer keeps the masks' values (`masks_of`, from the
seeds of the fixing run), the parties their `Secret.fixed`. Each later run has seeds of its own, and opens only what is
multiplied by them; a mask that stands hides its own factor and nothing else.

    1 round, 8 bytes an element, once; then nothing for them in any run

Adversary: semi-honest, all parties but one may collude, but not with the dealer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mpc import arithmetic
from mpc.arithmetic import Fixed
from mpc.correlations import Correlation, drawn
from mpc.party import Party
from mpc.rounds import Protocol, together
from mpc.secret import Secret


def fixing(party: Party, secrets: Sequence[Secret], before: int = 0) -> Protocol[list[Secret]]:
    """The same secrets, ready to be factors in all later runs. A run of its own, of one round.

    Args:
        before: how many were fixed before for the same team.
    """
    made = yield from together(*(arithmetic.fix(party, secret.share) for secret in secrets))
    return [
        replace(secret, fixed=replace(each, number=number_of(before + at)))
        for at, (secret, each) in enumerate(zip(secrets, made, strict=True))
    ]


def number_of(place: int) -> int:
    """The number of the mask that was fixed after so many others."""
    return -1 - place


def shape_of(secret: Secret, place: int) -> Secret:
    """A secret on the meta device as `fixing` gives it: what scripts of later runs are found with."""
    meta = torch.empty(secret.share.shape, dtype=torch.int64, device="meta")
    return replace(secret, share=meta, fixed=Fixed(meta, meta, number_of(place)))


def masks_of(correlations: Sequence[Correlation], seeds: Sequence[bytes], before: int = 0) -> dict[int, torch.Tensor]:
    """The dealer's: the masks of a fixing run by their later numbers.

    Args:
        correlations: those of the fixing run's script.
        seeds: that it was dealt with.
    """
    return {number_of(before + at): drawn(each, at, seeds) for at, each in enumerate(correlations)}
