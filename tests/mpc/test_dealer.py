"""What the dealer sends is all that parties need; it hangs on shapes alone, and nothing of it is used twice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from compute.capture import capture
from mpc.dealer import Dealer, Supply
from mpc.interpreter import run
from mpc.party import Party
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import message, opened
from mpc.script import Script, script_of
from mpc.secret import Secret
from mpc.together import shares_of
from protocol.errors import BadRequest


def _function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x @ y.T).softmax(1) + torch.relu(x).mean()


_X, _Y = torch.linspace(-2, 2, 12).reshape(3, 4), torch.linspace(1, -1, 20).reshape(5, 4)
_PROGRAM = capture(_function, {"x": _X, "y": _Y}).program


def _script(count: int) -> Script:
    shapes = [Secret(torch.empty(v.shape, dtype=torch.int64, device="meta"), PRECISION, v.dtype) for v in (_X, _Y)]
    return script_of(lambda party: run(party, _PROGRAM, shapes), count)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __call__(self, nbytes: int) -> bytes:
        self._at += nbytes
        return self._data[self._at - nbytes : self._at]

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_seeds_and_corrections_are_enough(count: int) -> None:
    script = _script(count)
    dealer = Dealer(script, count)
    reader = _Reader(b"".join(dealer.corrections()))
    supplies = [Supply(seed, reader if seed is dealer.seeds[-1] else None) for seed in dealer.seeds]
    shares = list(zip(*(shares_of(encode(v), count) for v in (_X, _Y)), strict=True))
    runs = [
        run(Party(at, count, supplies[at]), _PROGRAM, [Secret(each, PRECISION, torch.float32) for each in shares[at]])
        for at in range(count)
    ]
    answers: list[Any] = [None] * count
    results: list[Secret] = []
    while not results:
        asked = []
        for each, answer in zip(runs, answers, strict=True):
            try:
                asked.append(each.send(answer))
            except StopIteration as done:
                results.append(done.value)
        sent = [b"".join(message(each)) for each in asked]
        answers = [
            opened(each, [other for at, other in enumerate(sent) if at != own]) for own, each in enumerate(asked)
        ]
    assert reader.is_at_end
    value = decode(torch.stack([each.share for each in results]).sum(0), results[0].bits, torch.float32)
    assert torch.allclose(value, _function(_X, _Y), atol=1e-3)


def test_the_corrections_are_as_long_as_the_script_says() -> None:
    script = _script(2)
    assert sum(piece.nbytes for piece in Dealer(script, 2).corrections()) == script.dealt


def test_two_dealings_have_nothing_in_common() -> None:
    script = _script(2)
    one, other = (b"".join(Dealer(script, 2).corrections()) for _ in range(2))
    same = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    assert abs(same - 1 / 256) < 8 * math.sqrt(1 / 256 / len(one))  # odds of 1e-15


def test_a_correlation_is_taken_once_and_in_order() -> None:
    correlation = _script(2).correlations[0]
    supply = Supply(bytes(16))
    supply(0, correlation)
    for number in (0, 2):
        with pytest.raises(BadRequest, match="used once"):
            supply(number, correlation)


@pytest.mark.parametrize("is_last", [False, True])
def test_what_is_drawn_ahead_is_what_is_drawn_in_the_run_and_taken_once(is_last: bool) -> None:
    script = _script(2)
    dealer = Dealer(script, 2)
    corrections = b"".join(dealer.corrections())
    usual, other = (Supply(dealer.seeds[is_last], _Reader(corrections) if is_last else None) for _ in range(2))
    ahead = other.ahead(script)
    for number, correlation in enumerate(script.correlations):
        one, two = usual(number, correlation), ahead(number, correlation)
        assert all(map(torch.equal, (*one.free, *one.derived), (*two.free, *two.derived)))
        with pytest.raises(BadRequest, match="used once"):
            ahead(number, correlation)
    another = Supply(bytes(16)).ahead(script)
    with pytest.raises(BadRequest, match="not drawn"):
        another(0, script.correlations[-1])
