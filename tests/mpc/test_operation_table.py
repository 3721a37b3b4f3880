"""The tables of docs/secure-operations.md are what the engine says and does. Run as a script, this writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch.nn import functional

from mpc.operations import SECURE
from mpc.ring import PRECISION
from protocol.errors import OperationNotAllowed
from tests.mpc.shares import lowered, on_shares

PAGE = Path(__file__).parents[2] / "docs" / "secure-operations.md"
UNIT: Final = 2.0**-PRECISION


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what it is called, the operation, and how near it is to the true one.

    Attributes:
        shape: of its operand(s), whose values are from `low` to `high`.
        error: at most so much, absolute; with `is_relative` so much of what is right, and never less than `UNIT * 2`.
        operands: how many it has; all are secret.
    """

    function: Callable[..., torch.Tensor]
    low: float
    high: float
    error: float
    is_relative: bool = False
    shape: tuple[int, ...] = (1000,)
    operands: int = 1


_ROWS_OF_TEN, _ROWS_OF_HUNDRED, _MATRIX, _IMAGES = (100, 10), (10, 100), (32, 32), (1, 4, 16, 16)
_TARGETS = torch.arange(100) % 10

ROWS: dict[str, Row] = {
    "x + y, x - y, sums, views, x[i]": Row(lambda x, y: x + y, -1e6, 1e6, 0, operands=2),
    "x * 0.37 (public)": Row(lambda x: x * 0.37, -1000, 1000, 3e-5, is_relative=True),
    "x * y": Row(lambda x, y: x * y, -100, 100, 2 * UNIT, operands=2),
    "x.square()": Row(torch.square, -100, 100, 2 * UNIT),
    "X @ Y, 32 x 32": Row(lambda x, y: x @ y, -10, 10, 2 * UNIT, shape=_MATRIX, operands=2),
    "conv2d, 4 to 4 channels, 3 x 3": Row(
        lambda x: functional.conv2d(x, x.view(-1)[:144].view(4, 4, 3, 3)), -3, 3, 2 * UNIT, shape=_IMAGES
    ),
    "x < y, x >= y": Row(lambda x, y: (x < y).float(), -1000, 1000, 0, operands=2),
    "x == y": Row(lambda x, y: (x == y).float(), -1000, 1000, 0, operands=2),
    "relu, leaky_relu": Row(torch.relu, -1000, 1000, 0),
    "abs": Row(torch.abs, -1000, 1000, 0),
    "sign": Row(torch.sign, -1000, 1000, 0),
    "clamp(-1, 1), hardtanh": Row(lambda x: x.clamp(-1, 1), -1000, 1000, 0),
    "where(x > 0, x, y)": Row(lambda x, y: torch.where(x > 0, x, y), -1000, 1000, 0, operands=2),
    "max over 10": Row(lambda x: x.amax(1), -1000, 1000, 0, shape=_ROWS_OF_TEN),
    "argmax over 10": Row(lambda x: x.argmax(1), -1000, 1000, 0, shape=_ROWS_OF_TEN),
    "argmax over 100": Row(lambda x: x.argmax(1), -1000, 1000, 0, shape=_ROWS_OF_HUNDRED),
    "max_pool2d(2)": Row(lambda x: functional.max_pool2d(x, 2), -1000, 1000, 0, shape=_IMAGES),
    "avg_pool2d(2)": Row(lambda x: functional.avg_pool2d(x, 2), -1000, 1000, 2 * UNIT, shape=_IMAGES),
    "sort over 10": Row(lambda x: x.sort(1)[0], -1000, 1000, 0, shape=_ROWS_OF_TEN),
    "exp": Row(torch.exp, -40, 0, 6e-5),
    "exp, beyond 0": Row(torch.exp, 0, 10, 1e-3, is_relative=True),
    "log": Row(torch.log, 0.01, 1e6, 1e-4),
    "reciprocal": Row(torch.reciprocal, 0.25, 1e5, 5e-4),
    "x / y": Row(lambda x, y: x / y, 0.01, 1e5, 5e-4, is_relative=True, operands=2),
    "sqrt": Row(torch.sqrt, 0, 1e4, 1e-3),
    "rsqrt": Row(torch.rsqrt, 0.1, 1e4, 1e-4),
    "x ** 3": Row(lambda x: x**3, -10, 10, 0.01),
    "x ** 1.3": Row(lambda x: x**1.3, 0.05, 20, 0.01),
    "sin, cos": Row(torch.sin, -300, 300, 1e-4),
    "sigmoid": Row(torch.sigmoid, -1000, 1000, 1e-4),
    "tanh": Row(torch.tanh, -1000, 1000, 2e-4),
    "erf": Row(torch.erf, -1000, 1000, 1e-4),
    "gelu": Row(lambda x: functional.gelu(x), -12, 12, 1e-3),
    "silu": Row(lambda x: functional.silu(x), -12, 12, 1e-3),
    "softmax over 10": Row(lambda x: x.softmax(1), -1000, 1000, 1e-4, shape=_ROWS_OF_TEN),
    "softmax over 100": Row(lambda x: x.softmax(1), -100, 100, 3e-4, shape=_ROWS_OF_HUNDRED),
    "log_softmax over 10": Row(lambda x: x.log_softmax(1), -1000, 1000, 1e-4, shape=_ROWS_OF_TEN),
    "cross_entropy over 10": Row(lambda x: functional.cross_entropy(x, _TARGETS), -30, 30, 3e-4, shape=_ROWS_OF_TEN),
    "layer_norm over 10": Row(lambda x: functional.layer_norm(x, (10,)), -30, 30, 1e-3, shape=_ROWS_OF_TEN),
    "norm of 10": Row(lambda x: x.norm(dim=1), -30, 30, 1e-3, shape=_ROWS_OF_TEN),
    "var of 10": Row(lambda x: x.var(1), -30, 30, 1e-4, is_relative=True, shape=_ROWS_OF_TEN),
}

# What plain torch has, and what is refused by name before anything is shared.
WITHOUT: dict[str, Callable[[torch.Tensor], Any]] = {
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erfinv": torch.erfinv,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "round": torch.round,
    "trunc": torch.trunc,
    "remainder": lambda x: x % 1.5,
    "fmod": lambda x: x.fmod(1.5),
    "cummax": lambda x: x.cummax(0)[0],
    "logcumsumexp": lambda x: x.logcumsumexp(0),
    "mode": lambda x: x.mode()[0],
    "histc": torch.histc,
    "searchsorted": lambda x: torch.searchsorted(x, x),
    "multinomial": lambda x: x.multinomial(1),
    "linalg.qr": lambda x: torch.linalg.qr(x.view(2, 2))[0],
    "linalg.svd": lambda x: torch.linalg.svdvals(x.view(2, 2)),
    "linalg.eigh": lambda x: torch.linalg.eigvalsh(x.view(2, 2)),
    "linalg.det": lambda x: torch.linalg.det(x.view(2, 2)),
    "linalg.cholesky": lambda x: torch.linalg.cholesky(x.view(2, 2)),
    "fft": lambda x: torch.fft.rfft(x).real,
    "scatter_reduce": lambda x: x.scatter_reduce(0, torch.tensor([0, 1]), x, "amax"),
    "<<": lambda x: (x > 0).long() << 1,
}


def _values(row: Row, count: int) -> dict[str, torch.Tensor]:
    size = torch.Size(row.shape).numel()
    line = torch.linspace(row.low, row.high, size, dtype=torch.float64)
    orders = [torch.randperm(size, generator=torch.Generator().manual_seed(count + at)) for at in range(row.operands)]
    words = [(line[order] / UNIT).round() * UNIT for order in orders]
    return {name: each.view(row.shape) for name, each in zip("xy", words, strict=False)}


def _shown(error: float) -> str:
    if error == 0:
        return "exact"
    return f"{error / UNIT:.0f} x 2^-16" if error < 4 * UNIT else f"{error:.0e}".replace("e-0", "e-")


def line(name: str) -> str:
    """The row as it stands in the page: error, domain, rounds, bytes an element sent and dealt."""
    row = ROWS[name]
    script = lowered(row.function, _values(row, 0)).script()
    count = torch.Size(row.shape).numel()
    error = _shown(row.error) + (" of it" if row.is_relative else "")
    costs = " | ".join(f"{number / count:.3g}" for number in (script.nbytes, script.dealt))
    return f"| `{name}` | {error} | {row.low:g} to {row.high:g} | {script.rounds} | {costs} |"


def listed() -> str:
    """All operations of the engine's table, without what tells overloads apart."""
    names = sorted({name.split(".")[1] for name in SECURE})
    return ", ".join(f"`{name}`" for name in names if not name.startswith("_"))


def refused() -> str:
    return ", ".join(f"`{name}`" for name in WITHOUT)


def _page() -> str:
    text = PAGE.read_text()
    for mark, body in (("costs", "\n".join(map(line, ROWS))), ("operations", listed()), ("without", refused())):
        begin, end = f"<!-- {mark} -->\n", f"\n<!-- end of {mark} -->"
        head = "| operation | error at most | from, to | rounds | sent | dealt |\n|---|---|---|---|---|---|\n"
        made = begin + (head if mark == "costs" else "") + body + end
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, made=made: made, text, flags=re.DOTALL)
    return text


@pytest.mark.parametrize("name", list(ROWS))
def test_it_keeps_to_its_error(name: str) -> None:
    row = ROWS[name]
    values = _values(row, 1)
    got, want = on_shares(row.function, values).double(), row.function(**values).double()
    allowed = (row.error * want.abs()).clamp(min=2 * UNIT) if row.is_relative else torch.full_like(want, row.error)
    assert bool(((got - want).abs() <= allowed + 1e-9 * want.abs()).all()), float((got - want).abs().max())


@pytest.mark.parametrize("name", list(WITHOUT))
def test_what_has_no_secure_form_is_refused_by_name(name: str) -> None:
    with pytest.raises(OperationNotAllowed, match="no secure form"):
        lowered(WITHOUT[name], {"x": torch.tensor([0.5, 0.25, 0.25, 0.75])})


def test_the_page_says_what_the_engine_says() -> None:
    assert _page() == PAGE.read_text(), "python -m tests.mpc.test_operation_table writes it anew"


if __name__ == "__main__":
    PAGE.write_text(_page())
