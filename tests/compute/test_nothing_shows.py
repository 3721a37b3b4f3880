"""Operations that are said to write all of what they give do so for strange arguments too: nothing, what lies apart,
windows beside the image, numbers that are none. Memory is given out full of one byte, then of another."""

from __future__ import annotations

import ctypes
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import torch

from compute import interpreter, values
from compute.table import lookup
from compute.whole import is_whole
from peer.worker.execution import Unfilled, tensors_in
from protocol.errors import GridError
from tests.full import FULL

CALLS: Final = 20_000 if FULL else 150  # of each kind
_libc: Final = ctypes.CDLL(None)
_PERTURB: Final = -6
_DTYPES: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int64)
_SIZES: Final = (0, 1, 2, 3, 5, 8, 17)

Given = Iterator[tuple[str, list[Any]]]


class Strange:
    """Draws arguments."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.draw.choice(_DTYPES)

    def size(self) -> int:
        return self.draw.choice(_SIZES)

    def up_to(self, most: int, least: int = 0, count: int = 2) -> list[int]:
        return [self.draw.randint(least, most) for _ in range(count)]

    def tensor(self, *shape: int) -> torch.Tensor:
        made = torch.randn(shape, generator=self.generator).mul_(3).to(self.dtype)
        match self.draw.randrange(6):
            case 0 if made.dim() > 1:
                return made.transpose(0, -1).contiguous().transpose(0, -1)
            case 1 if made.dim():
                apart = made.new_zeros(*shape[:-1], 2 * shape[-1] + 1)[..., : 2 * shape[-1] : 2]
                return apart.copy_(made)
            case 2 if made.dim() == 4:
                return made.contiguous(memory_format=torch.channels_last)
            case 3 if made.dim() and made.numel():
                return made[:1].expand(shape)
            case 4 if made.is_floating_point():
                return made.masked_fill(made > 2, float("nan"))
        return made


def _convolutions(given: Strange) -> Given:
    draw, rank = given.draw, given.draw.randint(1, 3)
    groups, is_turned = draw.choice([1, 1, 2]), draw.random() < 0.4
    channels, made = groups * draw.choice([0, 1, 3]), groups * draw.choice([1, 2])
    x = given.tensor(draw.choice([0, 1, 2]), channels, *given.up_to(9, 1, rank))
    kernel = given.up_to(3, 1, rank)
    weight = given.tensor(*((channels, made // groups) if is_turned else (made, channels // groups)), *kernel)
    stride, padding, dilation = given.up_to(3, 1, rank), given.up_to(4, 0, rank), given.up_to(3, 1, rank)
    more = [draw.randrange(max(pair)) if is_turned else 0 for pair in zip(stride, dilation, strict=True)]
    bias = given.tensor(made) if draw.random() < 0.5 else None
    how = [stride, padding, dilation, is_turned, more, groups]
    yield "convolution", [x, weight, bias, *how]
    gradient = torch.ops.aten.convolution(x.to("meta"), weight.to("meta"), None, *how)
    yield "convolution_backward", [given.tensor(*gradient.shape), x, weight, [made], *how, [True, True, True]]


def _pools(given: Strange) -> Given:
    draw = given.draw
    x = given.tensor(draw.choice([0, 1, 2]), draw.choice([1, 5, 16]), *given.up_to(12, 1))
    kernel, stride = given.up_to(5, 1), draw.choice([[], given.up_to(5, 1)])
    padding, is_ceil = [draw.randint(0, size // 2) for size in kernel], draw.random() < 0.5
    how: list[Any] = [kernel, stride, padding, is_ceil, draw.random() < 0.5, draw.choice([None, 3])]
    yield "avg_pool2d", [x, *how]
    gradient = torch.ops.aten.avg_pool2d(x.to("meta"), *how)
    yield "avg_pool2d_backward", [given.tensor(*gradient.shape), x, *how]
    yield "max_pool2d_with_indices", [x, kernel, stride, padding, given.up_to(3, 1), is_ceil]


def _products(given: Strange) -> Given:
    batch, rows, inner, columns = (given.draw.choice([0, 3, 17, 32]) for _ in range(4))  # of large ones, oneDNN
    factors: dict[str, Any] = given.draw.choice([{}, {"beta": 0}, {"beta": 0, "alpha": 0}])
    a, b = given.tensor(batch, rows, inner), given.tensor(batch, inner, columns)
    yield "bmm", [a, b]
    yield "mv", [given.tensor(rows, inner), given.tensor(inner)]
    yield "dot", [given.tensor(inner), given.tensor(inner)]
    for name, start in itertools.product(("baddbmm", "addmm"), (given.tensor(columns), given.tensor(rows, columns))):
        pair = [a, b] if name == "baddbmm" else [given.tensor(rows, inner), given.tensor(inner, columns)]
        yield name, [start, *pair, factors]


def _rows(given: Strange) -> Given:
    draw = given.draw
    shape, inner = [given.size() for _ in range(draw.randint(1, 3))], given.size()
    x = given.tensor(*shape, inner)
    yield "native_layer_norm", [x, [inner], None, None, 1e-5]
    yield "_softmax", [x, draw.randrange(x.dim()), False]
    yield "_log_softmax", [x, draw.randrange(x.dim()), False]
    yield "mean.dim", [x, [0]]
    yield "sum.dim_IntList", [x, given.up_to(x.dim() - 1, 0, 1)]
    yield "amax", [x, [-1]]
    yield "cat", [[x, given.tensor(*shape, given.size()), torch.empty(0)], -1]
    yield "clone", [x]
    places = torch.tensor([draw.randint(0, 3) for _ in range(given.size())], dtype=torch.int64)
    yield "index_select", [x, draw.randrange(x.dim()), places]
    yield "embedding", [given.tensor(4, inner), places]
    yield "nll_loss_forward", [given.tensor(len(places), 4), places, None, draw.randrange(3), draw.choice([-100, 1])]


@pytest.mark.parametrize("kind", [_convolutions, _pools, _products, _rows])
def test_what_was_in_memory_shows_nowhere(kind: Callable[[Strange], Given]) -> None:
    ran: Counter[str] = Counter()
    for seed in range(CALLS):
        calls = kind(Strange(seed))
        while True:
            try:
                name, args = next(calls)
            except StopIteration:
                break
            except Exception:  # what torch refuses has no gradient either
                break
            one, other = (_given(name, args, byte) for byte in (0x5A, 0xA3))
            assert one == other, (name, args)
            ran[name] += one is not None
    assert min(ran.values()) > CALLS // 8


def _given(name: str, args: list[Any], byte: int) -> list[bytes] | None:
    """What it gives, as it leaves a worker; None where it is refused. The last argument may be those by name."""
    entry = lookup(f"aten.{name if '.' in name else name + '.default'}")
    assert is_whole(entry)
    args, kwargs = (args[:-1], args[-1]) if isinstance(args[-1], dict) else (args, {})
    _libc.mallopt(_PERTURB, byte)
    try:
        with Unfilled():
            return [bytes(values.tensor_bytes(each)) for each in tensors_in(interpreter.execute(entry, args, kwargs))]
    except GridError:
        return None
    finally:
        _libc.mallopt(_PERTURB, 0)
