"""The table of costs in mpc/README.md is what scripts say. Run as a script, this prints it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mpc
from mpc.arithmetic import fix, multiply, multiply_fixed
from mpc.authenticated import Authenticated
from mpc.bilinear import MatrixProduct, Multiply
from mpc.comparison import as_numbers, mask, negative_bits, truncate, zero_bits
from mpc.magnitude import leading_digit, leading_digit_and_sign
from mpc.operations import SECURE
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Protocol
from mpc.script import script_of
from mpc.secret import Secret
from mpc.waves import exp

_COUNT = 1024
_README = Path(mpc.__path__[0]) / "README.md"


def _secret(*shape: int) -> Secret:
    return Secret(torch.empty(*shape, dtype=torch.int64, device="meta"), PRECISION, torch.float32)


_X = _secret(_COUNT)


def _signs(party: Party, is_chosen: bool) -> Protocol[Any]:
    masked = yield from mask(party, _X.share)
    packed = yield from negative_bits(party, masked)
    return (yield from as_numbers(party, packed, masked if is_chosen else None))


def _zero(party: Party) -> Protocol[Any]:
    masked = yield from mask(party, _X.share)
    packed = yield from zero_bits(party, masked)
    return (yield from as_numbers(party, packed))


def _fixed(party: Party) -> Protocol[Any]:
    weight = yield from fix(party, _secret(32, 32).share)
    return (yield from multiply_fixed(party, MatrixProduct(), _secret(32, 32).share, weight))


def _matrices(party: Party) -> Protocol[Any]:
    return (yield from multiply(party, MatrixProduct(), _secret(32, 32).share, _secret(32, 32).share))


def _of(name: str, *shape: int, **arguments: Any) -> Any:
    own = _secret(*shape) if shape else _X
    return lambda party: SECURE[name](party, name, {"self": own, **arguments})


def _authenticated(party: Party) -> Protocol[Any]:
    own = Authenticated(party)
    x = own.mask((_COUNT,))
    return (yield from own.truncate((yield from own.multiply(Multiply(), x, x)), 16))


ROWS: dict[str, Any] = {
    "truncate": lambda party: truncate(party, _X.share, 16),
    "x < 0 as a number": lambda party: _signs(party, False),
    "x < 0 and the choice of x or 0": lambda party: _signs(party, True),
    "x == 0": _zero,
    "x * y": lambda party: multiply(party, Multiply(), _X.share, _X.share),
    "X @ Y, 32 x 32": _matrices,
    "fix Y, and X @ Y": _fixed,
    "leading digit": lambda party: leading_digit(party, _X.share, 9),
    "leading digit and sign": lambda party: leading_digit_and_sign(party, _X.share, 9),
    "the table of exp": lambda party: exp(party, _X),
    "relu": _of("aten.relu.default"),
    "x * y and truncate, with MACs": _authenticated,
}


def row(name: str) -> str:
    script = script_of(ROWS[name], 2)
    each, dealt = script.nbytes / _COUNT, script.dealt / _COUNT
    return f"| {name} | {script.rounds} | {each:.4g} | {dealt:.4g} |"


@pytest.mark.parametrize("name", ROWS)
def test_the_table_says_what_it_costs(name: str) -> None:
    assert row(name) in _README.read_text().splitlines()


def test_every_file_is_in_the_list() -> None:
    """In the order of the package's own docstring, which has them in import order."""
    text = _README.read_text()
    names = [path.stem for path in Path(mpc.__path__[0]).glob("*.py") if path.stem != "__init__"]
    assert mpc.__doc__ is not None
    for name in names:
        assert f"`{name}.py`" in text
        assert f"    {name} " in mpc.__doc__


if __name__ == "__main__":
    print("\n".join(map(row, ROWS)))
