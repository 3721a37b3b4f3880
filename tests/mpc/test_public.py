"""What all parties know, beside secrets: as exact as it has to be, and the same at all of them."""

from __future__ import annotations

import pytest
import torch

from mpc.bilinear import MatrixProduct
from mpc.ring import PRECISION, decode, encode
from mpc.together import shares_of
from tests.mpc.test_interpreter import secure


@pytest.mark.parametrize("count", [3, 784, 10_000])
def test_a_mean_over_many_is_as_exact_as_one_over_few(count: int) -> None:
    x = torch.linspace(-1, 9, count).unsqueeze(0)
    assert torch.allclose(secure(lambda x: x.mean(1), {"x": x}), x.mean(1), rtol=1e-4, atol=2**-15)


def test_a_small_public_factor_keeps_its_digits() -> None:
    x = torch.tensor([30_000.0, -12_345.0])
    assert torch.allclose(secure(lambda x: x * 0.0003, {"x": x}), x * 0.0003, rtol=1e-4)


def test_equality_with_a_public_tensor() -> None:
    x, y = torch.arange(12), torch.arange(12) % 5
    got = secure(lambda x: (x == y).to(torch.int64), {"x": x})
    assert torch.equal(got, (x == y).to(torch.int64))


def test_division_by_a_public_tensor() -> None:
    x, y = torch.linspace(-3, 3, 6), torch.tensor([1.0, 3.0, -7.0, 0.1, 9.0, 2.5])
    assert torch.allclose(secure(lambda x: x / y, {"x": x}), x / y, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_alone_times_a_matrix(rows: int) -> None:
    one, other = torch.randint(-(1 << 62), 1 << 62, (rows, 33)), torch.randint(-(1 << 62), 1 << 62, (33, 5))
    wanted = (one.unsqueeze(2) * other).sum(1)
    assert torch.equal(MatrixProduct()(one, other), wanted)
    assert torch.equal(MatrixProduct()(one, other.mT.contiguous().mT), wanted)


def test_negative_values_are_decoded_exactly() -> None:
    """Each of them, of which others' libraries have 0.8 % wrong by one."""
    x = torch.arange(-70_000, 70_000, dtype=torch.float64) / (1 << PRECISION)
    one, other = shares_of(encode(x), 2)
    assert torch.equal(decode(one + other, PRECISION, torch.float64), x)
