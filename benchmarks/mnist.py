"""MNIST, and networks that learn it.

Its IDX files are read from `../shared/data/mnist` beside this repository (or where PEERGRID_MNIST says).
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

FOLDER = Path(os.environ.get("PEERGRID_MNIST", Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"))

MISSING = f"NOT TESTED: {FOLDER} has no train-images-idx3-ubyte.gz and the other IDX files of MNIST"


@dataclass(frozen=True, slots=True)
class Digits:
    """Images [n, 1, 28, 28] float32 from 0 to 1, and labels [n] int64: 60,000 to train, 10,000 to test."""

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    @classmethod
    def load(cls) -> Digits | None:
        """None where the files are not there."""
        if not (FOLDER / "train-images-idx3-ubyte.gz").exists():
            return None
        return cls(
            _images("train-images-idx3-ubyte.gz"),
            _labels("train-labels-idx1-ubyte.gz"),
            _images("t10k-images-idx3-ubyte.gz"),
            _labels("t10k-labels-idx1-ubyte.gz"),
        )

    def batches(self, size: int, count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """So many batches of the images to train, in an order that the seed says."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed)).repeat(
            1 + size * count // len(self.labels)
        )
        return [(self.images[rows], self.labels[rows]) for rows in order[: size * count].chunk(count)]


def logistic_regression() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def perceptron(hidden: int) -> nn.Module:
    """Of one hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def lenet() -> nn.Module:
    """LeNet-5 as it is compared by, with maxima and ReLUs."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def _bytes(name: str, header: int) -> torch.Tensor:
    data = bytearray(gzip.decompress((FOLDER / name).read_bytes()))
    return torch.frombuffer(data, dtype=torch.uint8, offset=header)


def _images(name: str) -> torch.Tensor:
    return _bytes(name, 16).view(-1, 1, 28, 28).float() / 255


def _labels(name: str) -> torch.Tensor:
    return _bytes(name, 8).long()
