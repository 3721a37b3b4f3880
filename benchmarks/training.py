"""One step of a small convolutional network: cross entropy, backward, SGD with momentum; for both sides the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import grid

STEPS = 20  # in a sample
_BATCH = 16


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(_BATCH, 1, 28, 28), torch.randint(0, 10, (_BATCH,))


class Trial:
    """A model, its optimiser, and the batch that it is trained with: tensors or pointers."""

    def __init__(self, model: Any, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._model = model
        self._images = images
        self._labels = labels
        self._optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(self) -> torch.Tensor:
        self._optimiser.zero_grad()
        loss = functional.cross_entropy(self._model(self._images), self._labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimiser.step()
        return loss

    async def measure(self, value: Callable[[torch.Tensor], Awaitable[Any]]) -> float:
        """Milliseconds of one step, until `value` has the loss."""
        times = []
        for _ in range(STEPS):
            started = time.perf_counter()
            await value(self.step())
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e3

    def operations(self) -> int:
        """How many operations one step has; on tensors."""
        with _Count() as count:
            self.step()
        return int(count.operations)


async def trials(alice: grid.RemotePeer) -> tuple[Trial, Trial]:
    """The same training here and at a peer, both warm."""
    images, labels = batch()
    ours = Trial(await alice.send(network()), await alice.send(images), await alice.send(labels))
    local = Trial(network(), images, labels)
    await ours.measure(remote_value)
    await local.measure(local_value)
    return ours, local


async def remote_value(loss: Any) -> Any:
    return await loss.get()


async def local_value(loss: torch.Tensor) -> float:
    return loss.item()


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: int = 0

    def __torch_dispatch__(self, function: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        self.operations += function is not torch.ops.aten.detach.default
        return function(*args, **(kwargs or {}))
