"""The old tutorial's encrypted classification on MNIST itself, where its files are: as many right as in the clear."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

import grid
from benchmarks.mnist import Digits, perceptron
from peer.folders import Folders


@pytest.fixture
def hooked() -> Iterator[None]:
    grid.hook()
    yield
    grid.unhook()


async def test_encrypted_classification_gets_as_many_right_as_in_the_clear(
    hooked: None, peers: Folders, mnist: Digits
) -> None:
    torch.manual_seed(0)
    model = perceptron(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for data, target in mnist.batches(128, 150, seed=0):
        optimizer.zero_grad()
        functional.cross_entropy(model(data), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    images, labels = mnist.test_images[:200], mnist.test_labels[:200]
    with torch.no_grad():
        plain = int(model(images).argmax(1).eq(labels).sum())
    assert plain > 170
    async with grid.connect(folders=peers) as g:
        workers, dealer = (g["alice"], g["bob"]), g["carol"]
        await model.fix_precision().share(*workers, crypto_provider=dealer)
        right = 0
        with torch.no_grad():
            for data, target in zip(images.split(100), labels.split(100), strict=True):
                private = data.fix_precision().share(*workers, crypto_provider=dealer)
                expected = target.fix_precision().share(*workers, crypto_provider=dealer)
                right += model(private).argmax(dim=1).eq(expected).sum()
        assert isinstance(right, grid.SecretTensor)
        count = await right.copy().get().float_precision().long().item()
        assert abs(count - plain) <= 1  # two classes of nearly one score may change places
