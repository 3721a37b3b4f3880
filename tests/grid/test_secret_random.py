"""Random views, changes in place and operations, on secrets as in the clear, whenever something is awaited between."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.full import FULL
from tests.grid.secret_stand_in import secret, secrets

RUNS = 200 if FULL else 12
_STEPS = 25

Change = Callable[[Any], Any]


def _view(draw: random.Random, x: torch.Tensor) -> Change:
    """Some view of a tensor of this shape."""
    if x.dim() == 0:
        return lambda t: t.unsqueeze(0)
    dim = draw.randrange(x.dim())
    size = x.shape[dim]
    first = draw.randrange(size)
    other = draw.randrange(x.dim())
    choices: list[Change] = [
        lambda t: t.select(dim, first),
        lambda t: t.narrow(dim, first, size - first),
        lambda t: t.transpose(dim, other),
        lambda t: t.unsqueeze(dim),
        lambda t: t.unbind(dim)[first],
        lambda t: t.split(max(size // 2, 1), dim)[0],
        lambda t: t[(slice(None),) * dim + (slice(None, None, 2),)],
        lambda t: t.reshape(-1),
        lambda t: t.detach(),
        lambda t: t.permute(*reversed(range(t.dim()))),
    ]
    if x.dim() >= 2:
        choices.append(lambda t: t.diagonal(0, 0, 1))
    return draw.choice(choices)


def _write(draw: random.Random, x: torch.Tensor, given: torch.Tensor) -> Change:
    """Some change in place; `given` has the shape of the tensor."""
    choices: list[Change] = [
        lambda t: t.add_(0.5),
        lambda t: t.mul_(0.5),
        lambda t: t.copy_(given),
        lambda t: t.sub_(given),
        lambda t: t.zero_(),
        lambda t: t.clamp_(-1, 1),
        lambda t: t.masked_fill_(given > 0, 0.25),
        lambda t: t.fill_(0.75),
    ]
    if x.dim():
        choices.append(lambda t: t.__setitem__(t > 0.5, 0.5))
        row = draw.randrange(x.shape[0])
        choices.append(lambda t: t.__setitem__(row, t[0] * 0.5))
        choices.append(lambda t: t.index_add_(0, torch.tensor([row]), given[:1]))
    return draw.choice(choices)


def _new(draw: random.Random) -> Change:
    return draw.choice([lambda t: t * 0.5, lambda t: t + t, lambda t: t.relu(), lambda t: t.clone(), lambda t: t.abs()])


def _steps(x: torch.Tensor) -> list[int]:
    """Strides, but for those that lead nowhere."""
    return [step for size, step in zip(x.shape, x.stride(), strict=True) if size > 1]


@pytest.mark.parametrize("seed", range(RUNS))
async def test_whatever_is_done_to_views_is_seen_as_in_the_clear(seed: int) -> None:
    draw, of = random.Random(seed), secrets()
    torch.manual_seed(seed)
    x = torch.randn(draw.choice([(3, 4), (2, 3, 2), (5,), (4, 4)]))
    pairs: list[tuple[Any, Any]] = [(x, secret(of, x))]
    for _ in range(_STEPS):
        plain, shared = draw.choice(pairs)
        kind = draw.random()
        if kind < 0.4:
            change = _view(draw, plain)
            pairs.append((change(plain), change(shared)))
        elif kind < 0.75:
            change = _write(draw, plain, torch.randn(plain.shape))
            change(plain)
            change(shared)
        elif kind < 0.85:
            change = _new(draw)
            pairs.append((change(plain), change(shared)))
        elif kind < 0.95:
            torch.testing.assert_close(await shared.get(), plain, atol=2e-3, rtol=2e-3)
        elif len(pairs) > 1:
            pairs = [pair for pair in pairs if pair[1] is not shared]
    for plain, shared in pairs:
        assert (shared.shape, _steps(shared)) == (plain.shape, _steps(plain))
        torch.testing.assert_close(await shared.get(), plain, atol=2e-3, rtol=2e-3)
