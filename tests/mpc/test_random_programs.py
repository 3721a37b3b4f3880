"""Programs of secure operations put together at random give what they give in the clear."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.full import FULL
from tests.mpc.shares import lowered

EXAMPLES = 300 if FULL else 25

_Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Each keeps the shape [3, 4], and values of about the size that it is given.
_STEPS: dict[str, _Step] = {
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: x - y * 0.5,
    "product": lambda x, y: (x * y).clamp(-4, 4),
    "matrices": lambda x, y: (x @ y.T @ x) / 16,
    "relu": lambda x, y: torch.relu(x) - y,
    "where": lambda x, y: torch.where(y > 0.1, x, y),
    "larger": torch.maximum,
    "sigmoid": lambda x, y: torch.sigmoid(x) * 2 - 1,
    "tanh": lambda x, y: torch.tanh(y) + x * 0.25,
    "exp": lambda x, y: torch.exp(x.clamp(max=1)),
    "softmax": lambda x, y: x.softmax(1) * 3,
    "root": lambda x, y: (x.abs() + 0.5).sqrt(),
    "reciprocal": lambda x, y: 1 / (y * y + 1),
    "log": lambda x, y: (x.abs() + 0.5).log(),
    "mean": lambda x, y: x - x.mean(1, keepdim=True),
    "a public factor": lambda x, y: x * torch.tensor([0.5, -1.0, 0.001, 2.0]),
    "turned": lambda x, y: x.T.reshape(3, 4).flip(1).cumsum(1) / 4,
    "cut": lambda x, y: torch.cat([x[1:], y[:1]]),
    "sine": lambda x, y: torch.sin(x * 3),
}


@settings(max_examples=EXAMPLES)
@given(
    st.lists(st.tuples(st.sampled_from(list(_STEPS)), st.booleans()), min_size=1, max_size=5), st.integers(0, 1 << 30)
)
def test_a_program_gives_the_same_on_shares(steps: list[tuple[str, bool]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.round((torch.rand(3, 4, generator=generator, dtype=torch.float64) * 4 - 2) * 65536) / 65536
    y = torch.round((torch.rand(3, 4, generator=generator, dtype=torch.float64) * 4 - 2) * 65536) / 65536

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for name, swaps in steps:
            x, y = (_STEPS[name](y, x), x) if swaps else (_STEPS[name](x, y), y)
        return torch.stack([x, y])

    got, want = lowered(function, {"x": x, "y": y}).result(2 + seed % 2), function(x, y)
    # What is near a bound of `where` may go either way; the steps let errors grow threefold each.
    gap = (got - want).abs() / want.abs().clamp(min=1)
    near = (gap < 1e-3 * 3 ** (len(steps) - 1)).double().mean()
    assert float(near) == 1 or (any(name == "where" for name, _ in steps) and float(near) > 0.5)
