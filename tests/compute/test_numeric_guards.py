"""What transforms, factors, alignments, histograms and special functions would follow out of bounds."""

from typing import Any

import pytest
import torch

from compute.interpreter import execute
from compute.numeric_guards import SHAPES, VALUES
from compute.operations import OPERATIONS
from compute.table import lookup
from protocol.errors import BadRequest, TooLarge

LONG = torch.int64


def ints(*values: int, dtype: torch.dtype = LONG) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def scores(steps: int = 4, batch: int = 2, classes: int = 3) -> torch.Tensor:
    return torch.randn(steps, batch, classes).log_softmax(2)


REAL, COMPLEX = torch.randn(3, 4), torch.randn(3, 4, dtype=torch.complex64)
MATRIX, SQUARE = torch.randn(5, 2), torch.randn(3, 3)
HOSTILE: list[tuple[str, list[Any]]] = [
    ("_fft_r2c", [REAL, [0, 0], 0, True]),
    ("_fft_r2c", [REAL, [], 0, True]),
    ("_fft_r2c", [COMPLEX, [1], 0, True]),
    ("_fft_r2c", [REAL, [1], 7, True]),
    ("_fft_c2c", [REAL, [1], 0, True]),
    ("_fft_c2c", [COMPLEX, [1, -1], 0, True]),
    ("_fft_c2r", [COMPLEX, [1], 0, 100]),
    ("_fft_c2r", [COMPLEX, [1], 0, 0]),
    ("lu_unpack", [SQUARE, ints(1, 2, 99, dtype=torch.int32)]),
    ("lu_unpack", [SQUARE, ints(0, 2, 3, dtype=torch.int32)]),
    ("lu_unpack", [SQUARE, torch.tensor(1, dtype=torch.uint8)]),
    ("linalg_ldl_solve", [SQUARE, ints(1, 2, 9, dtype=torch.int32), SQUARE]),
    ("linalg_ldl_solve", [SQUARE, ints(1, 2, -3, dtype=torch.int32), SQUARE]),
    ("linalg_ldl_solve", [SQUARE, ints(0, 2, 3, dtype=torch.int32), SQUARE]),
    ("_pdist_backward", [torch.ones(3), MATRIX, 2.0, torch.ones(10)]),
    ("_pdist_backward", [torch.ones(0), torch.ones(0, 1), 2.0, torch.ones(0)]),
    ("embedding_renorm_", [torch.ones(5, 2), ints(7), 1.0, 2.0]),
    ("_ctc_loss", [scores(), torch.tensor([[1, 9], [1, 2]]), [4, 4], [2, 2]]),
    ("_ctc_loss", [scores(), torch.tensor([[1, -1], [1, 2]]), [4, 4], [2, 2]]),
    ("_ctc_loss", [scores(), torch.tensor([[1, 2], [1, 2]]), [9, 4], [2, 2]]),
    ("_ctc_loss", [scores(), torch.tensor([[1, 2], [1, 2]]), [4, 4], [2, 9]]),
    ("_ctc_loss", [scores(), ints(1, 2, 1), [4, 4], [2, 2]]),
    ("_ctc_loss", [scores(), torch.tensor([[1, 2], [1, 2]]), [4, 4], [2, 2], 5]),
    ("_ctc_loss.Tensor", [scores(), torch.tensor([[1, 9], [1, 2]]), ints(4, 4), ints(2, 2)]),
    (
        "_ctc_loss_backward",
        [
            torch.ones(2),
            scores(),
            torch.tensor([[1, 2], [1, 2]]),
            [4, 4],
            [2, 2],
            torch.ones(2),
            torch.ones(2, 4, 3),
            0,
        ],
    ),
    ("special_hermite_polynomial_h.n_scalar", [REAL, 10**9]),
    *((name, [REAL + 5, 10**6]) for name in ("mvlgamma", "mvlgamma_", "special_multigammaln")),
    ("mvlgamma", [torch.ones(1).expand(10**7), 4_000]),
    ("special_legendre_polynomial_p", [REAL, torch.full((3, 4), 1e9)]),
    ("special_zeta", [torch.full((2,), 2.0, dtype=torch.float64), torch.full((2,), -1e12 + 0.5, dtype=torch.float64)]),
    ("histogram.bins_tensor", [REAL, torch.ones(1)]),
    ("fractional_max_pool2d", [torch.randn(1, 1, 5, 5), [2, 2], [9, 9], torch.rand(1, 1, 2)]),
    ("fractional_max_pool2d", [torch.randn(1, 1, 5, 5), [2, 2], [2, 2], torch.full((1, 1, 2), 99.0)]),
    (
        "fractional_max_pool2d_backward",
        [torch.ones(1, 1, 2, 2), torch.randn(1, 1, 5, 5), [2, 2], [2, 2], torch.full((1, 1, 2, 2), 10**9)],
    ),
    (
        "fractional_max_pool2d_backward",  # one index in memory, which is read as if there were four
        [torch.ones(1, 1, 2, 2), torch.randn(1, 1, 5, 5), [2, 2], [2, 2], ints(0).expand(1, 1, 2, 2)],
    ),
]
HONEST: list[tuple[str, list[Any]]] = [
    ("_fft_r2c", [REAL, [0, 1], 0, True]),
    ("_fft_c2r", [COMPLEX, [1], 2, 6]),
    ("_fft_c2c", [COMPLEX, [1], 0, False]),
    ("lu_unpack", [SQUARE, ints(1, 2, 3, dtype=torch.int32)]),
    ("linalg_ldl_solve", [SQUARE, ints(1, -3, -3, dtype=torch.int32), SQUARE]),
    ("_pdist_forward", [MATRIX]),
    ("_ctc_loss", [scores(), torch.tensor([[1, 2], [1, -100]]), [4, 3], [2, 1]]),
    ("_ctc_loss", [scores(), ints(1, 2, 1), [4, 3], [2, 1]]),
    ("special_hermite_polynomial_h.n_scalar", [REAL, 5]),
    ("special_multigammaln", [torch.full((3,), 9.0), 5]),
    ("special_zeta", [torch.full((2,), 2.0), torch.ones(2)]),
    ("histogram.bin_ct", [REAL, 5]),
    ("geqrf", [REAL]),
    ("linalg_lstsq", [MATRIX, torch.randn(5, 3)]),
    ("fractional_max_pool2d", [torch.randn(1, 1, 5, 5), [2, 2], [3, 3], torch.rand(1, 1, 2)]),
]


def full(name: str) -> str:
    return f"aten.{name if '.' in name else name + '.default'}"


@pytest.mark.parametrize(("name", "args"), HOSTILE, ids=[f"{at}-{name}" for at, (name, _) in enumerate(HOSTILE)])
def test_what_a_kernel_would_follow_out_of_bounds_is_refused(name: str, args: list[Any]) -> None:
    with pytest.raises((BadRequest, TooLarge)) as caught:
        execute(lookup(full(name)), args, {})
    assert caught.value.operation == full(name)


@pytest.mark.parametrize(("name", "args"), HONEST, ids=[f"{at}-{name}" for at, (name, _) in enumerate(HONEST)])
def test_honest_calls_give_what_torch_gives(name: str, args: list[Any]) -> None:
    entry = lookup(full(name))
    found, wanted = execute(entry, args, {}), entry.overload(*args)
    if name == "_ctc_loss":  # the states are not all computed
        found, wanted = found[0], wanted[0]
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_guards_are_of_operations_of_the_table() -> None:
    assert set(SHAPES) | set(VALUES) <= set(OPERATIONS)
