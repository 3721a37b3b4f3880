"""What the benchmark `accuracy_10k` says, held: a network labels MNIST on shares as well as in the clear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.accuracy import labels_on_shares, measured
from benchmarks.mnist import Digits
from tests.full import minutes_long

pytestmark = pytest.mark.usefixtures("one_thread")


def test_labels_come_batch_by_batch_and_the_last_may_be_smaller() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), torch.randn(230, 1, 6, 6)
    got, scores = labels_on_shares(model, images), model(images).detach()
    assert got.shape == (230,)
    assert bool((scores.max(1).values - scores.gather(1, got[:, None])[:, 0] < 1e-3).all())


@minutes_long
@pytest.mark.timeout(3_600)
def test_all_test_images_of_mnist(mnist: Digits) -> None:
    found = measured(mnist)
    print(found)
    assert found.plain > 97.8 and found.on_shares > 97.8
    assert abs(found.on_shares - found.plain) <= 0.1
