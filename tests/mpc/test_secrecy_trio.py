"""Three parties make their own correlations: programs give what they give in the clear, and nobody is a dealer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compute.capture import capture
from mpc.correlations import Words
from mpc.interpreter import run
from mpc.masks import fresh_seed
from mpc.party import Party
from mpc.replicated import prepare
from mpc.ring import PRECISION, decode
from mpc.rounds import Opening, Protocol
from mpc.script import Script, script_of
from mpc.secret import Secret
from mpc.together import Ledger, run_together, shares_of
from mpc.trio import Trio
from mpc.waves import LARGEST, LOWEST, exp
from protocol.errors import BadRequest
from tests.mpc.shares import alone
from tests.mpc.test_interpreter import _flat, _secrets
from tests.mpc.test_secrecy import PROTOCOLS, odds_of, opened_bytes, script_for

_WORDS = torch.randint(-(1 << 40), 1 << 40, (512,))
_WAVES = ("exp", "cos", "sigmoid", "softmax", "reciprocal", "quotient")
_PRODUCTS = [name for name in PROTOCOLS if name not in _WAVES]


def _values(results: list[Any]) -> list[torch.Tensor]:
    if results[0] is None:
        return []
    if isinstance(results[0], Secret):
        return [torch.stack([each.share for each in results]).sum(0)]
    if isinstance(results[0], tuple):
        parts = [list(each) for each in zip(*results, strict=True) if each[0] is not None]
        return [torch.stack(each).sum(0) for each in parts]
    return [torch.stack(results).sum(0)]


@pytest.mark.parametrize("name", _PRODUCTS)
def test_a_protocol_gives_what_it_gives_with_a_dealer(name: str) -> None:
    shares = [(each,) for each in shares_of(_WORDS, 3)]
    with_dealer, usual = run_together(PROTOCOLS[name], shares)
    made, ledger = run_together(alone(PROTOCOLS[name], script_for(name, 3)), shares)
    for one, other in zip(_values(made), _values(with_dealer), strict=True):
        assert ((one - other).abs() <= 1).all()  # truncation rounds either way
    assert ledger.dealt == 0
    assert ledger.rounds <= usual.rounds + 15


@pytest.mark.parametrize("name", PROTOCOLS)
def test_all_that_is_opened_is_uniform_in_the_preparation_too(name: str) -> None:
    shares = [(each,) for each in shares_of(torch.full((512,), (1 << 35) - 12345), 3)]
    _, ledger = run_together(alone(PROTOCOLS[name], script_for(name, 3)), shares)
    assert min(map(odds_of, opened_bytes(ledger.openings, 3))) > 1e-10


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_a_party_sees_is_uniform_given_all_that_it_knows(name: str) -> None:
    """Each message less what its receiver can draw of the sender's: the pieces that both have."""
    script = script_for(name, 3)
    common = [bytes([at]) * 16 for at in range(3)]

    def protocol(party: Party) -> Protocol[Any]:
        yield from prepare(party.rank, (common[party.rank], common[(party.rank + 1) % 3]), script)

    first = run_together(protocol, [()] * 3)[1].openings
    common[2] = b"another one that party 0 does not know."[:16]
    second = run_together(protocol, [()] * 3)[1].openings
    # Party 0 knows the seeds 0 and 1. What the others send it differs as two draws do, if the third seed does.
    for at, (one, other) in enumerate(zip(first, second, strict=True)):
        if at % 3:
            for a, b in zip([*one.sums, *one.xors], [*other.sums, *other.xors], strict=True):
                assert odds_of(_bytes_of(a) ^ _bytes_of(b)) > 1e-10


def _bytes_of(share: torch.Tensor) -> torch.Tensor:
    return share.contiguous().reshape(-1).view(torch.uint8)


# Of values from 1/4 to 4: how far it may be from the true one, relative to the larger of that and 1.
_FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    "exp": (torch.exp, 3e-5),
    "cos": (torch.cos, 5e-5),
    "sigmoid": (torch.sigmoid, 1e-4),
    "softmax": (lambda x: x.view(-1, 8).softmax(1), 1e-4),
    "reciprocal": (torch.reciprocal, 2e-4),
    "quotient": (torch.ones_like, 3e-4),
}


@pytest.mark.parametrize("name", _WAVES)
def test_functions_of_a_mask_need_no_dealer(name: str) -> None:
    function, bound = _FUNCTIONS[name]
    words = torch.linspace(1 << 14, 1 << 18, 512).to(torch.int64)
    results, ledger = run_together(alone(PROTOCOLS[name], script_for(name, 3)), [(s,) for s in shares_of(words, 3)])
    got = decode(_values(results)[0], results[0].bits, torch.float64)
    want = function(words.double() / (1 << PRECISION))
    assert bool(((got - want.view_as(got)).abs() <= bound * want.view_as(got).clamp(min=1)).all())
    assert ledger.dealt == 0


def test_powers_are_right_up_to_two_below_the_largest_exponent() -> None:
    """The top cell: there the digits of both halves may carry, and what was opened carries too."""
    words = torch.linspace(LOWEST + 1, LARGEST - 2 - 2**-10, 4096, dtype=torch.float64).mul(1 << PRECISION).long()

    def protocol(party: Party, share: torch.Tensor) -> Protocol[Any]:
        return (yield from exp(party, Secret(share, PRECISION, torch.float64)))

    script = script_of(lambda party: protocol(party, words.to("meta")), 3)
    results, _ = run_together(alone(protocol, script), [(each,) for each in shares_of(words, 3)])
    got, want = decode(_values(results)[0], results[0].bits, torch.float64), (words.double() / (1 << PRECISION)).exp()
    assert bool(((got - want).abs() <= 3e-5 * want.clamp(min=1)).all())


def test_a_correlation_is_taken_once() -> None:
    script = script_for("truncate", 3)

    def protocol(party: Party) -> Protocol[None]:
        supply = yield from prepare(party.rank, (bytes(16), bytes(16)), script)
        supply(0, script.correlations[0])
        with pytest.raises(BadRequest, match="used once"):
            supply(0, script.correlations[0])

    run_together(protocol, [()] * 3)


def _network_run(batch: int) -> tuple[torch.Tensor, torch.Tensor, Ledger, Script]:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
    images = torch.rand(batch, 784)
    captured = capture(lambda m, x: m(x), {"m": net, "x": images})
    flat = {**_flat({"m": net}), "x": images}
    values = [flat[name] for name in captured.inputs]

    def protocol(party: Party, *inputs: Secret) -> Protocol[Any]:
        return (yield from run(party, captured.program, inputs))

    shapes = [Secret(torch.empty(v.shape, dtype=torch.int64, device="meta"), PRECISION, v.dtype) for v in values]
    script = script_of(lambda party: protocol(party, *shapes), 3)
    results, ledger = run_together(alone(protocol, script), _secrets(values, 3))
    words = torch.stack([each.share for each in results]).sum(0)
    return decode(words, results[0].bits, torch.float32), net(images).detach(), ledger, script


def test_a_network_by_three_partiesalone() -> None:
    got, wanted, ledger, script = _network_run(4)
    assert torch.allclose(got, wanted, atol=1e-3)
    assert ledger.rounds > script.rounds and sum(each.nbytes for each in ledger.openings[::3]) > script.nbytes


def test_pieces_add_up() -> None:
    """Of a mask: what two parties say of the piece that both know is the same, and the shares' sum is that of all."""

    common = [fresh_seed() for _ in range(3)]
    trios = [Trio(rank, (common[rank], common[(rank + 1) % 3]), 5) for rank in range(3)]
    drawn = [trio.draw(Words((64,))) for trio in trios]
    for rank in range(3):
        assert torch.equal(drawn[rank].next, drawn[(rank + 1) % 3].own)
    shares = [trio.share(each, "sum") for trio, each in zip(trios, drawn, strict=True)]
    assert torch.equal(sum(shares[1:], shares[0]), sum((each.own for each in drawn[1:]), drawn[0].own))
    assert Opening(sums=shares).nbytes == 3 * 512
