"""A program: tensors and modules to begin with, and a function that trains on them, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

Values = Mapping[str, Any]
"""Tensors and modules, by the names that the training function gives them."""


@dataclass(frozen=True, slots=True)
class Program:
    """`make` gives what there is to begin with; `train(**values)` trains, and gives what is to be compared."""

    name: str
    make: Callable[[], Values]
    train: Callable[..., Any]


PROGRAMS: Final[dict[str, Program]] = {}


def program(make: Callable[[], Values]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the function below it to PROGRAMS, under its own name."""

    def add(train: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS[train.__name__] = Program(train.__name__, make, train)
        return train

    return add


def classes(count: int, *shape: int) -> torch.Tensor:
    """Labels at random."""
    return torch.randint(0, count, shape)
