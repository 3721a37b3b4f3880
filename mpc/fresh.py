"""Outputs under new shares, before they leave the parties.

Whoever is given all shares of an output must learn its value alone. The dealer's masks see to that for everybody but
the dealer: if who has a result revealed to it has dealt, or is told what was dealt, the shares of a product are linear
equations in what was opened, whose coefficients it knows. So parties add shares of zero that hang on a seed of their
own: each says 16 random bytes to the others in the first round, and the XOR of these is known to no one else. No round
more, except where a program has none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mpc.masks import SEED, Masks, fresh_seed
from mpc.party import Party
from mpc.rounds import Opening, Protocol, together
from mpc.secret import Secret


def freshly(party: Party, run: Protocol[Any]) -> Protocol[Any]:
    """What `run` gives, every Secret in it under shares that are uniform, but for their sum, to all but the parties."""
    made, seed = yield from together(run, _common_seed())
    streams = [Masks(seed, rank) for rank in (party.rank, (party.rank + 1) % party.count)]

    def fresh(value: Any) -> Any:
        if isinstance(value, Secret):
            if value.share.is_meta:
                return value
            one, other = (stream.draw(tuple(value.share.shape), torch.int64) for stream in streams)
            return replace(value, share=value.share + one - other, fixed=None)
        if isinstance(value, list | tuple):
            return type(value)(fresh(each) for each in value)
        if isinstance(value, dict):
            return {key: fresh(each) for key, each in value.items()}
        return value

    return fresh(made)


def _common_seed() -> Protocol[bytes]:
    """16 bytes that no party chose, and that only parties know. One round."""
    opened = yield Opening(xors=[torch.frombuffer(bytearray(fresh_seed()), dtype=torch.uint8)])
    seed: torch.Tensor = opened.xors[0]
    return bytes(SEED) if seed.is_meta else bytes(seed.tolist())
