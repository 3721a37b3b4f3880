"""What is told of a tensor by a few numbers is all that it is."""

from __future__ import annotations

import torch

from grid.patterns import band, is_one_number, is_ramp


def _triangle(size: int = 6) -> torch.Tensor:
    return torch.ones(size, size).triu()


def test_a_square_is_plain_in_the_last_two_dimensions_alone() -> None:
    """Where other dimensions are as long, sizes do not tell which of them it lies in."""
    square = _triangle()
    for shape, is_plain in (((1, 6, 6), True), ((6, 1, 6), False), ((6, 6, 1), False)):
        found = band(square.reshape(shape).expand(6, 6, 6))
        assert found is not None and found.is_plain is is_plain, shape
    plain = band(square)
    assert plain is not None and plain.is_plain
    repeated = band(square.repeat(6, 1, 1))
    assert repeated is not None and repeated.is_plain


def test_zeros_of_both_signs_are_two_numbers() -> None:
    square = torch.eye(6)
    assert band(square) is not None
    square[0, 1] = -0.0
    assert band(square) is None
    zeros = torch.zeros(4)
    assert is_one_number(zeros) and is_one_number(-zeros)
    zeros[1] = -0.0
    assert is_one_number(torch.ones(0, 3)) and is_one_number(torch.tensor(2.0))
    assert not is_one_number(zeros) and not is_one_number(torch.complex(torch.ones(4), zeros))


def test_of_dtypes_that_torch_does_not_calculate_with_nothing_is_found_out() -> None:
    for dtype in (torch.uint16, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to(dtype)
        assert band(tensor) is None and not is_ramp(tensor[0]) and not is_one_number(tensor)
