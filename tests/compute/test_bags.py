"""Bags of embeddings said in other operations: what torch's kernels give."""

import pytest
import torch
import torch.nn.functional as F

from compute.bags import embedding_bag

OFFSETS = torch.tensor([0, 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_halves_are_added_up_in_float32(dtype: torch.dtype, mode: str) -> None:
    weight = torch.tensor([[2048.0], [1.0], [-2048.0], [0.3], [0.5]], dtype=dtype)  # 2049 is no half
    indices = torch.arange(5)
    made = embedding_bag(weight, indices, OFFSETS, mode=["sum", "mean"].index(mode))[0]
    assert torch.equal(made, F.embedding_bag(indices, weight, OFFSETS, mode=mode))
