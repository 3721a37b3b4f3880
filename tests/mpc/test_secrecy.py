"""What parties send and are sent is uniform, whatever the data are: no opened word, share or dealt byte tells of them.

A test of chance here fails by mistake with odds below 1e-9.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

import mpc
from mpc import correlations, masks
from mpc.arithmetic import fix, multiply, multiply_fixed
from mpc.bilinear import Convolve, MatrixProduct, Multiply
from mpc.comparison import Mask, as_numbers, mask, negative_bits, truncate, truncate_and_choose, zero_bits
from mpc.correlations import Correlation, Dealt, deal
from mpc.dealer import Dealer, Supply
from mpc.magnitude import leading_digit, leading_digit_and_sign
from mpc.operations import SECURE
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Opening, Protocol, message
from mpc.script import Script, script_of
from mpc.secret import Secret, rescaled, settled
from mpc.together import run_together, shares_of
from mpc.waves import exp
from protocol.errors import BadRequest

_ODDS = 1e-10
_COUNT = 512  # elements

Run = Callable[..., Protocol[Any]]


# --- the protocols ------------------------------------------------------------------------------------------


def _signs(party: Party, x: torch.Tensor) -> Protocol[Any]:
    masked = yield from mask(party, x, 16)
    packed = yield from negative_bits(party, masked)
    return (yield from as_numbers(party, packed, masked))


def _two_signs(party: Party, x: torch.Tensor) -> Protocol[Any]:
    """Of one opening, as clamp has them."""
    masked = yield from mask(party, x)
    for each in (masked, replace(masked, c=masked.c - 77)):
        packed = yield from negative_bits(party, each)
        yield from as_numbers(party, packed, each)


def _zero(party: Party, x: torch.Tensor) -> Protocol[Any]:
    masked = yield from mask(party, x)
    packed = yield from zero_bits(party, masked)
    return (yield from as_numbers(party, packed))


def _fixed(party: Party, x: torch.Tensor) -> Protocol[Any]:
    weight = yield from fix(party, x[:64].view(8, 8))
    for at in range(3):
        yield from multiply_fixed(party, MatrixProduct(), x[64 * at : 64 * at + 64].view(8, 8), weight.mT)


def _bilinear(operation: Any, *shapes: tuple[int, ...]) -> Run:
    def protocol(party: Party, x: torch.Tensor) -> Protocol[Any]:
        one, other = (x[: torch.Size(shape).numel()].view(shape) for shape in shapes)
        return (yield from multiply(party, operation, one, other))

    return protocol


def _operation(name: str, shape: tuple[int, ...] = (-1,), **arguments: Any) -> Run:
    def protocol(party: Party, x: torch.Tensor) -> Protocol[Any]:
        own = Secret(x.reshape(shape), PRECISION, torch.float32)
        return (yield from SECURE[f"aten.{name}"](party, f"aten.{name}", {"self": own, **arguments}))

    return protocol


def _exp(party: Party, x: torch.Tensor) -> Protocol[Any]:
    return (yield from exp(party, Secret(x, PRECISION, torch.float32)))


def _digit(party: Party, x: torch.Tensor) -> Protocol[Any]:
    return (yield from leading_digit(party, x & 0xFFFFFFFF, 9)).chosen(range(1, 10))


def _digit_and_sign(party: Party, x: torch.Tensor) -> Protocol[Any]:
    first, _, size = yield from leading_digit_and_sign(party, x, 9)
    return first.chosen(range(1, 10)), size


def _quotient(party: Party, x: torch.Tensor) -> Protocol[Any]:
    own = Secret(x, PRECISION, torch.float32)
    return (yield from SECURE["aten.div.Tensor"](party, "aten.div.Tensor", {"self": own, "other": own}))


def _truncation_and_choice(party: Party, x: torch.Tensor) -> Protocol[Any]:
    every_other = torch.full((_COUNT // 8,), 0x55 * party.is_first, dtype=torch.uint8, device=x.device)
    return (yield from truncate_and_choose(party, x, 16, every_other))


PROTOCOLS: dict[str, Run] = {
    "truncate": lambda party, x: truncate(party, x, 16),
    "signs": _signs,
    "two signs": _two_signs,
    "zero": _zero,
    "multiply": _bilinear(Multiply(), (256,), (256,)),
    "a square": _bilinear(Multiply(), (512,), (512,)),
    "fix": _fixed,
    "matmul": _bilinear(MatrixProduct(), (16, 32), (32, 16)),
    "conv": _bilinear(Convolve((1, 1), (1, 1), (1, 1)), (2, 4, 8, 8), (4, 4, 3, 3)),
    "leading digit": _digit,
    "leading digit and sign": _digit_and_sign,
    "truncation and choice": _truncation_and_choice,
    "exp": _exp,
    "cos": _operation("cos.default"),
    "sigmoid": _operation("sigmoid.default"),
    "relu": _operation("relu.default"),
    "clamp": _operation("clamp.default", min=-1, max=1),
    "argmax": _operation("argmax.default", (-1, 8), dim=1),
    "softmax": _operation("softmax.int", (-1, 8), dim=1),
    "reciprocal": _operation("reciprocal.default"),
    "quotient": _quotient,
}
_WIDTHS = {torch.int32: 21}
"""Where words are opened modulo less than all that they hold: so many bits."""

_INPUTS = {
    "zeros": torch.zeros(_COUNT, dtype=torch.int64),
    "a large one": torch.full((_COUNT,), (1 << 35) - 12345),
    "small ones below zero": torch.arange(_COUNT) * -3 - 1,
}


def script_for(name: str, count: int) -> Script:
    shape = torch.empty(_COUNT, dtype=torch.int64, device="meta")
    return script_of(lambda party: PROTOCOLS[name](party, shape), count)


def _sent(run: Run, words: torch.Tensor, count: int) -> list[Opening]:
    """What each party sends, round by round: of the first round that of all parties, and so on."""
    _, ledger = run_together(run, [(each,) for each in shares_of(words, count)])
    return ledger.openings


# --- uniform ------------------------------------------------------------------------------------------------


def odds_of(bits: torch.Tensor) -> float:
    """How likely so uneven counts of byte values are, of uniform bytes: chi-square."""
    seen = torch.bincount(bits.reshape(-1).to(torch.int64), minlength=256).to(torch.float64)
    expected = seen.sum() / 256
    chi = ((seen - expected) ** 2).sum() / expected
    half = torch.tensor(255 / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, chi / 2))


def _is_narrow(*shares: torch.Tensor) -> bool:
    width = _WIDTHS.get(shares[0].dtype)
    return width is not None and all(bool((share >> width == 0).all()) for share in shares)


def _bytes(share: torch.Tensor) -> torch.Tensor:
    """Those that are uniform where the words are: all, or of words of fewer bits the whole ones of these."""
    own = share.contiguous().reshape(-1)
    whole = _WIDTHS[own.dtype] // 8 if _is_narrow(own) else own.element_size()
    return own.view(torch.uint8).view(-1, own.element_size())[:, :whole]


def opened_bytes(openings: list[Opening], count: int) -> list[torch.Tensor]:
    """The bytes of each opened value of each round, and of each party's share of it."""
    found = []
    for at in range(0, len(openings), count):
        sent = openings[at : at + count]
        for group, add in (("sums", torch.add), ("xors", torch.bitwise_xor)):
            for shares in zip(*(getattr(each, group) for each in sent), strict=True):
                total = reduce(add, shares)
                if _is_narrow(*shares):
                    total = total & ((1 << _WIDTHS[total.dtype]) - 1)
                found += [_bytes(each) for each in (total, *shares)]
    return found


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_opened_word_and_every_share_of_it_is_uniform(name: str, count: int) -> None:
    for words in _INPUTS.values():
        collected: list[list[torch.Tensor]] = []
        for _ in range(2):
            collected.append(opened_bytes(_sent(PROTOCOLS[name], words, count), count))
        for parts in zip(*collected, strict=True):
            assert odds_of(torch.cat([part.reshape(-1) for part in parts])) > _ODDS


def _without(run: Run, kind: type[Correlation]) -> Run:
    """The protocol where correlations of one kind mask nothing: what a forgotten mask would be."""

    def protocol(party: Party, x: torch.Tensor) -> Protocol[Any]:
        supply = party.supply

        def forget(number: int, correlation: Correlation) -> Dealt:
            dealt = supply(number, correlation)
            if not isinstance(correlation, kind):
                return dealt
            return Dealt([torch.zeros_like(each) for each in dealt.free], dealt.derived)

        party.supply = forget
        return (yield from run(party, x))

    return protocol


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_test_above_sees_each_mask_that_is_forgotten(name: str) -> None:
    for kind in {type(each) for each in script_for(name, 2).correlations}:
        openings = _sent(_without(PROTOCOLS[name], kind), _INPUTS["a large one"], 2)
        assert min(map(odds_of, opened_bytes(openings, 2))) < _ODDS, kind


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_is_sent_has_the_same_sizes_for_all_data(name: str) -> None:
    sizes = {tuple(each.nbytes for each in _sent(PROTOCOLS[name], words, 2)) for words in _INPUTS.values()}
    assert len(sizes) == 1


def test_openings_of_very_different_data_are_alike() -> None:
    """Two samples of all that is opened, against each other: as many of each byte value."""
    seen = []
    for words in (_INPUTS["zeros"], _INPUTS["a large one"]):
        parts = [opened_bytes(_sent(PROTOCOLS["softmax"], words, 2), 2) for _ in range(4)]
        everything = torch.cat([part.reshape(-1) for each in parts for part in each])
        seen.append(torch.bincount(everything.to(torch.int64), minlength=256).to(torch.float64))
    chi = ((seen[0] - seen[1]) ** 2 / (seen[0] + seen[1])).sum()
    assert float(torch.special.gammaincc(torch.tensor(255 / 2, dtype=torch.float64), chi / 2)) > _ODDS


def test_openings_hang_on_nothing_that_was_opened_before() -> None:
    """Pairs of bytes, of one round and of another: the XOR is uniform too."""
    for name in ("signs", "two signs", "fix"):
        found = [opened_bytes(_sent(PROTOCOLS[name], _INPUTS["a large one"], 2), 2) for _ in range(8)]
        columns = [torch.cat([part.reshape(-1) for part in parts]) for parts in zip(*found, strict=True)]
        for at, one in enumerate(columns):
            for other in columns[:at]:
                if len(one) == len(other):
                    assert odds_of(one ^ other) > _ODDS


# --- once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_mask_is_drawn_twice_for_one_seed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[bytes, int]] = []

    class Watched(masks.Masks):
        def __init__(self, seed: bytes, number: int) -> None:
            drawn.append((seed, number))
            super().__init__(seed, number)

    script = script_for(name, 2)
    monkeypatch.setattr(correlations, "Masks", Watched)
    supply = Supply(bytes(16))
    for number, correlation in enumerate(script.correlations):
        supply(number, correlation)
    assert len(set(drawn)) == len(drawn) == len(script.correlations)
    with pytest.raises(BadRequest, match="used once"):
        supply(0, script.correlations[0])


def test_masks_of_two_numbers_or_seeds_have_no_block_in_common() -> None:
    blocks = set()
    for seed in (bytes(16), b"\1" + bytes(15)):
        for number in range(64):
            words = masks.Masks(seed, number).draw((256, 2), torch.int64)
            blocks |= {tuple(row) for row in words.tolist()}
    assert len(blocks) == 2 * 64 * 256


def test_a_script_is_dealt_once() -> None:
    dealer = Dealer(script_for("truncate", 2), 2)
    assert list(dealer.corrections())
    with pytest.raises(BadRequest, match="dealt before"):
        dealer.corrections()


def test_what_was_truncated_or_rescaled_is_not_taken_for_what_was_fixed() -> None:
    def protocol(party: Party, x: torch.Tensor) -> Protocol[Any]:
        fixed = yield from fix(party, x)
        secret = Secret(x, 32, torch.float32, fixed)
        less = yield from settled(party, secret)
        return less.fixed, rescaled(secret, 40).fixed, secret.mT.fixed is None

    results, _ = run_together(protocol, [(each,) for each in shares_of(torch.ones(8, 8, dtype=torch.int64), 2)])
    assert results == [(None, None, False)] * 2


# --- the dealer, and who asks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_is_dealt_hangs_on_shapes_and_seeds_alone(name: str) -> None:
    """The same seeds, and data that differ: each correlation that parties take is the same, and so are its bytes."""
    seeds = [bytes([at]) * 16 for at in range(2)]
    dealt = []
    for words in _INPUTS.values():
        taken: list[Correlation] = []
        _sent(_noting(PROTOCOLS[name], taken), words, 2)
        made: list[Any] = []
        for number, correlation in enumerate(taken):
            kept = None if correlation.kept is None else made[correlation.kept].first
            made.append(deal(correlation, number, seeds, kept))
        dealt.append(b"".join(bytes(piece) for each in made for piece in message(Opening(each.shares))))
    assert dealt[0] == dealt[1] == dealt[2]


def _noting(run: Run, taken: list[Correlation]) -> Run:
    def protocol(party: Party, x: torch.Tensor) -> Protocol[Any]:
        supply = party.supply

        def note(number: int, correlation: Correlation) -> Dealt:
            if party.is_first:
                taken.append(correlation)
            return supply(number, correlation)

        party.supply = note
        return (yield from run(party, x))

    return protocol


def test_what_the_last_party_is_sent_is_uniform() -> None:
    for name in ("signs", "argmax", "softmax"):
        script = script_for(name, 3)
        pieces: dict[int, list[torch.Tensor]] = {}
        for _ in range(4):
            for at, piece in enumerate(Dealer(script, 3).corrections()):
                pieces.setdefault(at, []).append(torch.frombuffer(bytearray(piece), dtype=torch.uint8))
        for parts in pieces.values():
            assert odds_of(torch.cat(parts)) > _ODDS


def test_who_is_given_the_result_gets_its_shares_and_these_are_uniform_but_for_their_sum() -> None:
    """The asker of a run whose model is hidden: one share a party, of the size of the result; nothing else."""
    words = _INPUTS["small ones below zero"]
    firsts = []
    for _ in range(8):
        results, _ = run_together(PROTOCOLS["matmul"], [(each,) for each in shares_of(words, 2)])
        assert [each.shape for each in results] == [(16, 16)] * 2
        total = results[0] + results[1]
        assert torch.equal(total, words.view(16, 32) @ words.view(32, 16))
        firsts.append(results[0])
    assert odds_of(_bytes(torch.stack(firsts))) > _ODDS


def test_no_protocol_draws_from_torchs_own_generator() -> None:
    """It is no cryptographic one. Nor is anything else here random but masks.fresh_seed."""
    found = [
        (path.name, line)
        for path in Path(mpc.__path__[0]).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(
            r"torch\.(rand|randint|randn|bernoulli|manual_seed)|\.(random_|uniform_|normal_)\(|import random", line
        )
    ]
    assert found == []


def test_a_mask_of_bits_is_the_mask_of_the_words() -> None:
    """Else what is opened were uniform, and the result wrong."""
    made = deal(Mask(8, 4, True), 0, [bytes(16), b"\1" * 16])
    assert made.first is not None and len(made.shares) == 3
