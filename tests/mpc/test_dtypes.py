"""Dtypes of what is made of a secret and a public tensor: those that torch gives, in whatever form it is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from protocol.errors import BadRequest, OperationNotAllowed
from tests.mpc.shares import on_shares

pytestmark = pytest.mark.usefixtures("one_thread")

_SECRET = {
    "float32": torch.tensor([0.5, -1.25, 2.0, -3.0]),
    "float64": torch.tensor([0.5, -1.25, 2.0, -3.0], dtype=torch.float64),
    "int64": torch.tensor([3, -5, 7, 2]),
}
_USUAL = torch.tensor([0.5, 2.0, 4e-2, -1.0], dtype=torch.float64)
_PUBLIC = {
    "usual": _USUAL,
    "small": _USUAL * 1e-3,
    "one": _USUAL[:1] * 1e-3,
    "number": torch.tensor(0.37, dtype=torch.float64),
    "float32": _USUAL.float(),
    "float16": _USUAL.half(),
    "int64": torch.tensor([2, 3, -4, 5]),
}
_OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "times": lambda x, p: x * p,
    "by": lambda x, p: p * x,
    "over": lambda x, p: x / p,
    "plus": lambda x, p: x + p,
    "less": lambda x, p: p - x,
}


@pytest.mark.parametrize("public", _PUBLIC.values(), ids=_PUBLIC.keys())
@pytest.mark.parametrize("secret", _SECRET.values(), ids=_SECRET.keys())
def test_it_is_that_in_the_clear(secret: torch.Tensor, public: torch.Tensor) -> None:
    for operation in _OPERATIONS.values():
        got, want = on_shares(operation, {"x": secret, "p": public}, public=["p"]), operation(secret, public)
        assert got.dtype == want.dtype and got.shape == want.shape
        assert (got.double() - want.double()).abs().max() <= 1e-3 * max(1.0, float(want.abs().max()))


def test_nothing_is_divided_by_a_public_zero() -> None:
    with pytest.raises(BadRequest, match="public zero"):
        on_shares(_OPERATIONS["over"], {"x": _SECRET["float32"], "p": torch.tensor([1.0, 0.0, 2.0, 3.0])}, public=["p"])


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x // 3,
        lambda x: x % 3,
        lambda x: x.float() // 3,
        lambda x: torch.fmod(x, 3),
        lambda x: torch.div(x, 3, rounding_mode="trunc"),
    ],
)
def test_a_rounded_quotient_is_refused_with_what_to_write(operation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(OperationNotAllowed, match=r"\.float\(\) \+ 0\.5\) / n\)\.floor\(\)"):
        on_shares(operation, {"x": _SECRET["int64"]})


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 100, 999])
def test_what_is_to_be_written_is_right(n: int) -> None:
    x = torch.tensor([0, 1, n - 1, n, n + 1, -1, -n, -n - 1, 7 * n, 7 * n - 1, 32_767 // n * n, 32_767, -32_767])
    got = on_shares(lambda x: ((x.float() + 0.5) / n).floor(), {"x": x})
    assert torch.equal(got, (x // n).float())
