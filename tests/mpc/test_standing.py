"""A factor that is fixed once, for many runs: masks with numbers below zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpc.arithmetic import Fixed, multiply_fixed
from mpc.bilinear import MatrixProduct, Multiply
from mpc.correlations import drawn
from mpc.dealer import Dealer, Supply
from mpc.party import Party
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import Protocol, message, opened
from mpc.script import Script, script_of
from mpc.secret import Secret
from mpc.standing import fixing, masks_of, shape_of
from mpc.together import shares_of


def _by_weight(party: Party, x: Secret, weight: Secret) -> Protocol[Any]:
    made = yield from multiply_fixed(party, MatrixProduct(), x.share, weight.fixed)  # type: ignore[arg-type]
    return Secret(made, 2 * PRECISION, torch.float64)


@pytest.mark.parametrize("count", [2, 3])
def test_a_factor_is_fixed_once_for_many_runs(count: int) -> None:
    torch.manual_seed(2)
    weights = [torch.randn(6, 3, dtype=torch.float64) for _ in range(2)]
    standing: dict[int, torch.Tensor] = {}
    fixed: list[list[Secret]] = [[] for _ in range(count)]
    for place, weight in enumerate(weights):
        shares = [Secret(each, PRECISION, torch.float64) for each in shares_of(encode(weight), count)]
        script = script_of(lambda party, each=shares[0]: fixing(party, [shape_of(each, 0)]), count)
        dealer = Dealer(script, count)
        made = _all(dealer, script, [lambda p, s=s, at=place: fixing(p, [s], at) for s in shares])  # type: ignore[misc]
        standing |= masks_of(script.correlations, dealer.seeds, place)
        for rank, (each,) in enumerate(made):
            fixed[rank].append(each)
    assert sorted(standing) == [-2, -1]
    meta = Secret(torch.empty(4, 6, dtype=torch.int64, device="meta"), PRECISION, torch.float64)
    for at in (0, 1, 0):
        x = torch.randn(4, 6, dtype=torch.float64)
        shares = [Secret(each, PRECISION, torch.float64) for each in shares_of(encode(x), count)]
        like = shape_of(fixed[0][at], at)
        script = script_of(lambda party, like=like: _by_weight(party, meta, like), count)  # type: ignore[misc]
        assert (script.rounds, script.nbytes) == (1, 8 * 24)  # only x is opened
        dealer = Dealer(script, count, standing)
        runs = [lambda p, s=s, w=fixed[rank][at]: _by_weight(p, s, w) for rank, s in enumerate(shares)]  # type: ignore[misc]
        words = sum(each.share for each in _all(dealer, script, runs))
        assert torch.allclose(decode(words, 2 * PRECISION, torch.float64), x @ weights[at], atol=1e-3)  # type: ignore[arg-type]


def test_two_runs_of_a_factor_that_stands_open_what_is_uniform_and_unlike() -> None:
    """The same x twice: what is opened of it has nothing to do with what was opened before."""
    x = encode(torch.ones(64, 64, dtype=torch.float64))
    seen = []
    for _ in range(2):
        script = script_of(
            lambda party: multiply_fixed(party, Multiply(), torch.empty_like(x, device="meta"), _meta_fixed(x)), 2
        )
        dealer = Dealer(script, 2, {-1: torch.zeros_like(x)})
        masks = [drawn(script.correlations[0], 0, dealer.seeds)]
        seen.append(x - masks[0])
    assert not bool((seen[0] == seen[1]).any())


def _meta_fixed(x: torch.Tensor) -> Fixed:
    meta = torch.empty_like(x, device="meta")
    return Fixed(meta, meta, -1)


def _all(dealer: Dealer, script: Script, runs: list[Any]) -> list[Any]:
    """All parties in step, supplied by this dealer."""
    data = bytearray(b"".join(bytes(piece) for piece in dealer.corrections()))
    assert len(data) == script.dealt
    place = [0]

    def read(nbytes: int) -> memoryview:
        place[0] += nbytes
        return memoryview(data)[place[0] - nbytes : place[0]]

    last = len(runs) - 1
    supplies = [Supply(seed, read if rank == last else None) for rank, seed in enumerate(dealer.seeds)]
    going = [run(Party(rank, len(runs), supplies[rank])) for rank, run in enumerate(runs)]
    answers: list[Any] = [None] * len(runs)
    results: list[Any] = []
    while not results:
        asked = []
        for each, answer in zip(going, answers, strict=True):
            try:
                asked.append(each.send(answer))
            except StopIteration as done:
                results.append(done.value)
        sent = [b"".join(message(each)) for each in asked]
        answers = [opened(each, sent[:at] + sent[at + 1 :]) for at, each in enumerate(asked)]
    return results
