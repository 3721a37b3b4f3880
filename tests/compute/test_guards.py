"""Calls that crash torch, or read foreign memory, when nobody checks: each is refused before it runs."""

from typing import Any

import pytest
import torch

from compute.interpreter import execute
from compute.shape_guards import SHAPE_GUARDS
from compute.table import lookup
from compute.value_guards import VALUE_GUARDS
from protocol.errors import BadRequest, GridError, OperationFailed, RequestError, TooLarge


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    return execute(lookup(name), args, kwargs)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape).to(dtype)


def ints(*values: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def far(*shape: int) -> torch.Tensor:
    return torch.full(shape, FAR, dtype=torch.int64)


LSTM = [rand(24, 4), rand(24, 6), rand(24), rand(24)]
LOW64, LOW32 = -(1 << 63), -(1 << 31)
FAR = 1 << 40

HOSTILE: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "int64 lowest / -1": ("aten.div.Tensor_mode", [ints(LOW64), ints(-1)], {"rounding_mode": "trunc"}),
    "int32 lowest / -1": (
        "aten.div_.Tensor_mode",
        [ints(LOW32, dtype=torch.int32), ints(-1, dtype=torch.int32)],
        {"rounding_mode": "trunc"},
    ),
    "lowest / plain -1": ("aten.div.Scalar_mode", [ints(LOW64, 4), -1], {"rounding_mode": "trunc"}),
    "lowest // -1": ("aten.floor_divide.default", [ints(LOW64), ints(-1)], {}),
    "lowest % -1": ("aten.remainder.Tensor", [ints(LOW64), ints(-1)], {}),
    "lowest fmod -1": ("aten.fmod.Scalar", [ints(LOW64), -1], {}),
    "lcm of the lowest": ("aten.lcm.default", [ints(LOW64), ints(7)], {}),
    "gcd of the lowest": ("aten.gcd_.default", [ints(LOW64), ints(-1)], {}),
    "batch norm with one mean for 400 channels": (
        "aten.native_batch_norm.default",
        [rand(2, 400, 4), None, None, rand(1), rand(1), False, 0.1, 1e-5],
        {},
    ),
    "batch norm of the composite kind": (
        "aten.batch_norm.default",
        [rand(2, 400, 4), rand(1), rand(400), rand(400), rand(400), False, 0.1, 1e-5, False],
        {},
    ),
    "batch norm, legit": (
        "aten._native_batch_norm_legit.default",
        [rand(3, 1), rand(1), rand(1), rand(0), rand(1), True, 0.0, 1e-5],
        {},
    ),
    "batch norm of an evaluation without statistics": (
        "aten.native_batch_norm.default",
        [rand(1, 40, 8), None, None, None, None, False, 0.0, 1e-5],
        {},
    ),
    "batch norm of an evaluation that has no place for statistics": (
        "aten._native_batch_norm_legit.no_stats",
        [rand(1, 40, 8), None, None, False, 0.0, 1e-5],
        {},
    ),
    "batch norm backward with a short mean": (
        "aten.native_batch_norm_backward.default",
        [rand(4, 3, 2), rand(4, 3, 2), rand(3), rand(3), rand(3), rand(1), rand(3), True, 1e-5, [True] * 3],
        {},
    ),
    "batch norm backward without a deviation": (
        "aten.native_batch_norm_backward.default",
        [rand(3, 1), rand(3, 1), rand(1), rand(1), rand(1), rand(1), rand(0), True, 1e-5, [True] * 3],
        {},
    ),
    "batch norm backward of an evaluation without a variance": (
        "aten.native_batch_norm_backward.default",
        [rand(3, 1), rand(3, 1), rand(1), rand(1), None, rand(1), rand(1), False, 1e-5, [True] * 3],
        {},
    ),
    "gelu backward of fewer numbers than there are gradients": (
        "aten.gelu_backward.default",
        [rand(1).expand(10, 10), rand(10, 1)],
        {},
    ),
    "layer norm backward with short statistics": (
        "aten.native_layer_norm_backward.default",
        [rand(4, 8), rand(4, 8), [8], rand(1), rand(1), rand(8), rand(8), [True] * 3],
        {},
    ),
    "group norm backward with other channels": (
        "aten.native_group_norm_backward.default",
        [rand(4, 6, 2), rand(4, 6, 2), rand(4, 3), rand(4, 3), rand(6), 400, 6, 2, 3, [True] * 3],
        {},
    ),
    "embedding gradient to a far row": (
        "aten.embedding_dense_backward.default",
        [rand(2, 4), ints(0, FAR), 10, -1, False],
        {},
    ),
    "embedding gradient to a negative row": (
        "aten.embedding_dense_backward.default",
        [rand(2, 4), ints(0, -5), 10, -1, True],
        {},
    ),
    "embedding gradient of another shape": (
        "aten.embedding_backward.default",
        [rand(3, 0, 0, 8), ints(), 3, 2, True, False],
        {},
    ),
    "max pool gradient to a far pixel": (
        "aten.max_pool2d_with_indices_backward.default",
        [
            rand(1, 2, 2, 2),
            rand(1, 2, 4, 4),
            [2, 2],
            [2, 2],
            [0, 0],
            [1, 1],
            False,
            torch.full((1, 2, 2, 2), FAR, dtype=torch.int64),
        ],
        {},
    ),
    "max pool gradient of another shape": (
        "aten.max_pool2d_with_indices_backward.default",
        [
            rand(1, 2, 400, 400),
            rand(1, 2, 4, 4),
            [2, 2],
            [2, 2],
            [0, 0],
            [1, 1],
            False,
            torch.zeros(1, 2, 400, 400, dtype=torch.int64),
        ],
        {},
    ),
    "max pool gradient in three dimensions": (
        "aten.max_pool3d_with_indices_backward.default",
        [
            rand(1, 2, 2, 2, 2),
            rand(1, 2, 4, 4, 4),
            [2] * 3,
            [2] * 3,
            [0] * 3,
            [1] * 3,
            False,
            torch.full((1, 2, 2, 2, 2), -FAR, dtype=torch.int64),
        ],
        {},
    ),
    "adaptive max pool gradient to a far pixel": (
        "aten.adaptive_max_pool2d_backward.default",
        [rand(3, 4, 1, 1), rand(3, 4, 1, 4), torch.full((3, 4, 1, 1), FAR, dtype=torch.int64)],
        {},
    ),
    "adaptive average pool gradient of another batch": (
        "aten._adaptive_avg_pool2d_backward.default",
        [rand(400, 8, 4, 3), rand(3, 8, 4, 3)],
        {},
    ),
    "adaptive average pool gradient in three dimensions": (
        "aten._adaptive_avg_pool3d_backward.default",
        [rand(2, 3, 5, 4, 6), rand(2, 3, 0, 3, 5)],
        {},
    ),
    "max pool with an absurd kernel": ("aten.max_pool1d.default", [rand(1, 1, 8), [1 << 31]], {}),
    "unpooling to a far pixel": (
        "aten.max_unpool2d.default",
        [rand(1, 1, 2, 2), torch.full((1, 1, 2, 2), FAR, dtype=torch.int64), [4, 4]],
        {},
    ),
    "padding gradient of another shape": (
        "aten.reflection_pad2d_backward.default",
        [rand(1, 1, 40, 40), rand(1, 1, 4, 4), [1, 1, 1, 1]],
        {},
    ),
    "grid sampling gradient of another shape": (
        "aten.grid_sampler_2d_backward.default",
        [rand(2, 3, 1, 10), rand(2, 3, 5, 20), rand(2, 13, 10, 2), 2, 1, False, [True, False]],
        {},
    ),
    "grid sampling gradient at no number": (
        "aten.grid_sampler_2d_backward.default",
        [rand(2, 3, 13, 10), rand(2, 3, 5, 20), rand(2, 13, 10, 2) * float("nan"), 0, 1, False, [True, True]],
        {},
    ),
    "an upsampling scale that leads elsewhere": (
        "aten._upsample_nearest_exact1d.default",
        [rand(2, 3, 4), [6], 1e-30],
        {},
    ),
    "a far class in a loss gradient": (
        "aten.nll_loss_backward.default",
        [rand(), rand(4, 3), ints(0, 1, 2, FAR), None, 1, -100, rand()],
        {},
    ),
    "a far class in an image's loss gradient": (
        "aten.nll_loss2d_backward.default",
        [rand(), rand(1, 3, 1, 2), ints(0, -FAR).reshape(1, 1, 2), None, 1, -100, rand()],
        {},
    ),
    "class weights for other classes": (
        "aten.nll_loss_backward.default",
        [rand(), rand(4, 3), ints(0, 1, 2, 2), rand(1), 1, -100, rand()],
        {},
    ),
    "margin loss gradient of nothing": (
        "aten.multi_margin_loss_backward.default",
        [rand(0), rand(5), ints(4), 2, 1.0, None],
        {},
    ),
    "softmax gradient of another shape": (
        "aten._log_softmax_backward_data.default",
        [rand(8, 2, 3), rand(1), 1, torch.float32],
        {},
    ),
    "an integer gradient": (
        "aten.smooth_l1_loss_backward.default",
        [ints(1, 2), ints(1, 2), ints(3, 4), 1, 0.5],
        {},
    ),
    "attention with a shorter value": (
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        [rand(4, 4, 3, 8), rand(4, 4, 6, 8), rand(4, 3, 6, 8)],
        {},
    ),
    "attention over nothing": (
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        [rand(4, 4, 0, 8), rand(4, 4, 6, 8), rand(4, 4, 6, 8), 0.0, True],
        {},
    ),
    "lstm with a state for another batch": (
        "aten.lstm.input",
        [
            rand(5, 3, 4),
            [rand(1, 2, 6), rand(1, 3, 6)],
            [rand(24, 4), rand(24, 6), rand(24), rand(24)],
            True,
            1,
            0.0,
            False,
            False,
            False,
        ],
        {},
    ),
    "lstm with narrow weights": (
        "aten.lstm.input",
        [
            rand(5, 3, 400),
            [rand(1, 3, 6)] * 2,
            [rand(24, 4), rand(24, 6), rand(24), rand(24)],
            True,
            1,
            0.0,
            False,
            False,
            False,
        ],
        {},
    ),
    "pivots outside the matrix": (
        "aten.linalg_lu_solve.default",
        [rand(3, 3), ints(1, 2, 1 << 30, dtype=torch.int32), rand(3, 1)],
        {},
    ),
    "a sorter outside the sequence": (
        "aten.searchsorted.Tensor",
        [rand(3), rand(2)],
        {"sorter": ints(0, 1, FAR)},
    ),
    "a stride that overflows 32 bits": (
        "aten.conv2d.default",
        [rand(2, 3, 8, 8, dtype=torch.bfloat16), rand(4, 3, 3, 3, dtype=torch.bfloat16), None, [1, (1 << 31) - 1]],
        {},
    ),
    "a view beyond the tensor": ("aten.as_strided.default", [rand(100)[:10], [20], [1]], {}),
    "a view before the tensor": ("aten.as_strided.default", [rand(100)[50:], [4], [1], 0], {}),
    "repeats that add up to 2**63": ("aten.repeat_interleave.Tensor", [ints(1 << 62, 1 << 62)], {}),
    "negative repeats": ("aten.repeat_interleave.self_Tensor", [rand(2), ints(-1, 3)], {}),
    "repeats that do not fit output_size": (
        "aten.repeat_interleave.Tensor",
        [ints(400, 400)],
        {"output_size": 3},
    ),
    "a histogram of one huge number": ("aten.bincount.default", [ints(FAR)], {}),
    "one hot of one huge number": ("aten.one_hot.default", [ints(FAR)], {}),
    "lowest / -1 as 2**64 - 1": ("aten.divide.Scalar_mode", [ints(LOW64), (1 << 64) - 1], {"rounding_mode": "trunc"}),
    "lowest / -1 by wrapping around": (
        "aten.div.Tensor_mode",
        [ints(LOW32, dtype=torch.int32), torch.tensor((1 << 32) - 1)],
        {"rounding_mode": "trunc"},
    ),
    "the median of one number repeated": ("aten.median.dim", [rand(1).expand(4), 0], {}),
    "group norm with one weight repeated": (
        "aten.native_group_norm.default",
        [rand(1, 6, 3), rand(6), rand(1).expand(6), 1, 6, 3, 2, 0.5],
        {},
    ),
    "group norm backward of a column": (
        "aten.native_group_norm_backward.default",
        [rand(1, 3), rand(2, 3).t()[:, :1].expand(3, 3)[:1], rand(1, 1), rand(1, 1), rand(3), 1, 3, 1, 1, [True] * 3],
        {},
    ),
    "attention to one number repeated": (
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        [rand(4, 4, 3, 8), rand(1).expand(4, 4, 6, 8), rand(4, 4, 6, 8), 0.0, True],
        {},
    ),
    "queries that share no heads": (
        "aten._scaled_dot_product_attention_math.default",
        [rand(5, 8, 3), rand(0, 8, 3), rand(8, 8, 3)],
        {"enable_gqa": True},
    ),
    "pooled indices of another layout": (
        "aten.adaptive_max_pool3d_backward.default",
        [rand(4, 4, 3, 5), rand(4, 4, 3, 5), torch.zeros(1, dtype=torch.int64).expand(4, 4, 3, 5)],
        {},
    ),
    "a billion rows of nothing": ("aten.adaptive_max_pool3d.default", [rand(4, 4, 3, 5), [1 << 30, 0, 0]], {}),
    "negative truth": ("aten._neg_view.default", [rand(3) > 0.5], {}),
    "random from the highest number on": ("aten.random_.from", [rand(4), (1 << 63) - 1, None], {}),
    "eigenvalues of no numbers": ("aten.linalg_eigvals.default", [rand(5, 5) * float("nan")], {}),
    "too many factors": ("aten.linalg_multi_dot.default", [[rand(2, 2)] * 400], {}),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_call_is_refused(attack: str) -> None:
    name, args, kwargs = HOSTILE[attack]
    with pytest.raises((BadRequest, TooLarge)) as caught:
        run(name, *args, **kwargs)
    assert caught.value.operation == name


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.index_select.default", [rand(3), 0, ints(5)]),
        ("aten.gather.default", [rand(3), 0, ints(5)]),
        ("aten.scatter.src", [rand(3), 0, ints(5), rand(1)]),
        ("aten.index.Tensor", [rand(3), [ints(-4)]]),
        ("aten.embedding.default", [rand(3, 2), ints(3)]),
        ("aten.take.default", [rand(3), ints(FAR)]),
        ("aten.nll_loss_forward.default", [rand(2, 3), ints(0, 3), None, 1, -100]),
        ("aten.floor_divide.default", [ints(4), ints(0)]),
        ("aten.max_pool2d_with_indices.default", [rand(1, 1, 2, 2), [4, 4]]),
    ],
)
def test_what_torch_checks_itself_comes_back_as_its_refusal(name: str, args: list[Any]) -> None:
    with pytest.raises(RequestError) as caught:
        run(name, *args)
    assert "Traceback" not in str(caught.value)
    if isinstance(caught.value, OperationFailed):
        assert caught.value.fields["type"] in ("IndexError", "RuntimeError", "ZeroDivisionError")


def test_honest_gradients_pass() -> None:
    x = rand(2, 3, 8, 8).requires_grad_()
    pooled, indices = torch.ops.aten.max_pool2d_with_indices(x, [2, 2], [2, 2])
    (wanted,) = torch.autograd.grad(pooled.sum(), x)
    given = run(
        "aten.max_pool2d_with_indices_backward.default",
        *(torch.ones_like(pooled), x.detach(), [2, 2], [2, 2], [0, 0], [1, 1], False, indices),
    )
    assert torch.equal(given, wanted)
    grad = run("aten.embedding_dense_backward.default", rand(3, 4), ints(0, 9, 9), 10, -1, False)
    assert grad.shape == (10, 4)
    assert run("aten.div.Tensor_mode", ints(LOW64, 7), ints(2, -2), rounding_mode="trunc").tolist() == [LOW64 // 2, -3]
    assert run("aten.repeat_interleave.self_Tensor", rand(2, 3), ints(1, 2), 0).shape == (3, 3)
    assert run("aten.as_strided.default", rand(4, 5), [2, 2], [5, 1], 3).shape == (2, 2)


def test_ignored_classes_and_padding_rows_pass() -> None:
    loss = run("aten.nll_loss_backward.default", *(rand(), rand(2, 3), ints(0, -100), None, 1, -100, torch.ones(())))
    assert loss.shape == (2, 3)
    assert run("aten.embedding_dense_backward.default", rand(2, 4), ints(0, 9), 10, 9, False)[9].sum() == 0


def test_guards_stand_at_operations_of_the_table() -> None:
    for name in {**SHAPE_GUARDS, **VALUE_GUARDS}:
        assert lookup(name).name == name


def test_a_guard_that_meets_a_number_for_a_tensor_refuses() -> None:
    with pytest.raises(GridError):
        run("aten.native_batch_norm.default", rand(2, 3), 1, None, None, None, True, 0.1, 1e-5)
