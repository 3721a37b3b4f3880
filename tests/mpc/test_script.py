"""A script's digest: the same for who computes the same, another for everybody else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest
import torch

from compute.values import tensor_bytes
from mpc import script
from mpc.arithmetic import FixedTriple, Triple
from mpc.authenticated import Key, PrivateMask, TaggedMask, TaggedShift, TaggedTriple
from mpc.bilinear import Convolve, MatrixProduct, Multiply
from mpc.comparison import ALL, CARRY, Choice, Level, Mask
from mpc.correlations import Correlation, deal
from mpc.inverse import Start, Wave
from mpc.magnitude import Pair, Prefix, Which
from mpc.script import Loop, Script
from mpc.waves import Angles
from tests.mpc.shares import lowered

PRODUCT = Triple(Multiply(), (8,), (8,))
ONE = Script((PRODUCT, Mask(8, 16)), 2, 100, 60)


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, parts=ONE.parts[::-1]),
        replace(ONE, parts=ONE.parts[:1]),
        replace(ONE, parts=(PRODUCT, Mask(8, 15))),
        replace(ONE, parts=(PRODUCT, Mask(8, 16, True))),
        replace(ONE, parts=(Triple(Multiply(), (8,), (1,)), Mask(8, 16))),
        replace(ONE, parts=(Triple(MatrixProduct(), (2, 4), (4, 2)), Mask(8, 16))),
        replace(ONE, parts=(Loop(ONE.parts, 0, 2, 1),)),
        replace(ONE, rounds=3),
        replace(ONE, nbytes=101),
        replace(ONE, largest=61),
    ],
)
def test_what_is_not_the_same_has_another_digest(other: Script) -> None:
    assert other.digest != ONE.digest


def test_a_loop_has_another_digest_for_another_count() -> None:
    def looped(times: int) -> Script:
        return Script((Loop((PRODUCT,), 0, 1, times),), 1, 1, 1)

    assert looped(5).digest == looped(5).digest != looped(6).digest


def test_a_seed_that_one_alone_is_told_is_no_part_of_it() -> None:
    def dealt(seed: bytes) -> Script:
        return Script((Key(), PrivateMask(0, (2,), 1, seed)), 1, 1, 1)

    assert dealt(b"").digest == dealt(bytes(range(16))).digest


def test_another_form_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = replace(ONE).digest
    monkeypatch.setattr(script, "FORM", script.FORM + 1)
    assert replace(ONE).digest != before


def _several(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return ((x @ w).relu() / (w.abs().sum() + 1)).exp()


def test_all_parties_and_the_dealer_find_the_same() -> None:
    def found(function: Callable[..., torch.Tensor] = _several) -> bytes:
        return lowered(function, {"x": torch.randn(3, 4), "w": torch.randn(4, 2)}).script(2).digest

    assert found() == found() != found(lambda x, w: _several(x, w).log())


# --- what is dealt ----------------------------------------------------------------------------------------

SEEDS = [bytes([rank]) * 16 for rank in range(3)]
DEALT: Final[dict[Correlation, str]] = {
    PRODUCT: "cdae548b12a0aacc",
    Triple(MatrixProduct(), (2, 3), (3, 2)): "c005d2ca5f86fde0",
    Triple(Convolve((1,), (1,), (1,), 1), (1, 2, 5), (3, 2, 3)): "ae151da611828da1",
    FixedTriple(MatrixProduct(), (4, 4), (4, 4), -1): "bef009abdad36cfc",
    Mask(64, 16, True): "b383d5a26e980bc3",
    Choice(64, -1): "a16a3e9c86be614a",
    Choice(64, -1, 16): "8a18a5c864079e9d",
    Level(16, torch.int16, (*CARRY, ALL)): "688b31ae4aa5588d",
    Prefix(16, 1, True): "2d6c75b2801f5b44",
    Prefix(16, 4, True, True): "bf68dbcdcb0cb16d",
    Prefix(16, 1, False): "bad0083bace99bc8",
    Pair(16): "455c81fadcdbe718",
    Which(16, 8): "a1a3ce94d0ab8524",
    Start(16): "85705983939146bb",
    Wave(16): "b78e05fe5ee20f9a",
    Angles(16, (1, 3)): "76bd40d774d658f7",
    TaggedMask(0, (4,)): "daf19f26b3b2533e",
    PrivateMask(0, (4,), 1, bytes(16)): "663d6ce082529503",
    TaggedTriple(0, Multiply(), (4,), (4,)): "6c477eba68407854",
    TaggedShift(0, (4,), 16): "777d0bb5bccbc850",
}


@pytest.mark.parametrize("correlation", DEALT, ids=lambda each: type(each).__name__)
def test_what_is_dealt_is_what_this_form_deals(correlation: Correlation) -> None:
    """Who deals otherwise under the same names counts `mpc.script.FORM` on, and writes down here what is dealt."""
    assert _dealt(correlation) == DEALT[correlation]


def _dealt(correlation: Correlation) -> str:
    kept = None if correlation.kept is None else torch.arange(-32, 32, dtype=torch.int64) * (1 << 55) + 12345
    if isinstance(correlation, FixedTriple):
        assert kept is not None
        kept = kept[:16].reshape(4, 4)
    if kept is not None and correlation.kept == 0:  # a key of tags
        kept = torch.tensor([1 << 60])
    shares = deal(correlation, 7, SEEDS, kept).shares
    return hashlib.sha256(b"".join(bytes(tensor_bytes(each)) for each in shares)).hexdigest()[:16]
