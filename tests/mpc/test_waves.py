"""Functions that one opening computes: their error, over their whole domain."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpc.party import Party
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import Protocol
from mpc.secret import Secret, settled
from mpc.together import run_together, shares_of
from mpc.waves import cos_sin, exp


def _run(protocol: Any, x: torch.Tensor, count: int) -> list[torch.Tensor]:
    secrets = [(Secret(share, PRECISION, x.dtype),) for share in shares_of(encode(x), count)]
    results, _ = run_together(protocol, secrets)
    return [
        decode(torch.stack([each.share for each in parts]).sum(0), parts[0].bits, x.dtype)
        for parts in zip(*results, strict=True)
    ]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_exp_is_within_2e_5_of_the_larger_of_one_and_the_value(count: int) -> None:
    def protocol(party: Party, x: Secret) -> Protocol[tuple[Secret]]:
        made = yield from exp(party, x)
        return ((yield from settled(party, made)),)

    x = decode(encode(torch.linspace(-16, 13.99, 5001, dtype=torch.float64)), PRECISION, torch.float64)
    (got,) = _run(protocol, x, count)
    assert float(((got - x.exp()).abs() / x.exp().clamp(min=1)).max()) < 2.5e-5


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sine_and_cosine_are_within_5e_5_up_to_30000_radians(count: int) -> None:
    def protocol(party: Party, x: Secret) -> Protocol[tuple[Secret, Secret]]:
        cos, sin = yield from cos_sin(party, x)
        return (yield from settled(party, cos)), (yield from settled(party, sin))

    x = decode(encode(torch.linspace(-30_000, 30_000, 5001, dtype=torch.float64)), PRECISION, torch.float64)
    cos, sin = _run(protocol, x, count)
    assert float((cos - x.cos()).abs().max()) < 5e-5
    assert float((sin - x.sin()).abs().max()) < 5e-5
