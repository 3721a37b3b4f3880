"""The training step that programs.py measures: a small convolutional network, as a function of all that it changes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import torch
from torch.func import functional_call, grad_and_value
from torch.nn import functional

import grid
from benchmarks import training

STEPS = 20  # in a sample
_RATE, _MOMENTUM = 0.01, 0.9
_Tensors = dict[str, torch.Tensor]


def step(network: torch.nn.Module) -> Callable[..., tuple[_Tensors, _Tensors, torch.Tensor]]:
    """One step of SGD with momentum on cross entropy: (parameters, momenta, images, labels) -> (parameters, momenta,
    loss)."""

    def train(weights: _Tensors, momenta: _Tensors, images: torch.Tensor, labels: torch.Tensor) -> Any:
        def loss_of(weights: _Tensors) -> torch.Tensor:
            return functional.cross_entropy(functional_call(network, weights, (images,)), labels)

        gradients, loss = grad_and_value(loss_of)(weights)
        momenta = {name: gradients[name].add(momentum, alpha=_MOMENTUM) for name, momentum in momenta.items()}
        weights = {name: weight.add(momenta[name], alpha=-_RATE) for name, weight in weights.items()}
        return weights, momenta, loss

    return train


class Training:
    """What is trained: as plain tensors, and as a plan."""

    def __init__(self) -> None:
        network = training.network()
        self._step = step(network)
        self.weights = {name: weight.detach() for name, weight in network.named_parameters()}
        self.momenta = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.images, self.labels = training.batch()

    def plan(self) -> grid.Plan:
        """The step as a plan, built."""
        return grid.plan(self._step).build(self.weights, self.momenta, self.images, self.labels)


class RemoteTraining:
    """The same at a peer: a stored plan, which is run by its hash, and pointers."""

    def __init__(self, g: grid.Grid, plan: Any, weights: Any, momenta: Any, images: Any, labels: Any) -> None:
        self._grid = g
        self._plan = plan
        self.weights, self.momenta, self.images, self.labels = weights, momenta, images, labels

    @classmethod
    async def of(cls, g: grid.Grid, alice: grid.RemotePeer, local: Training) -> RemoteTraining:
        plan = await local.plan().send(alice, tags=["#step"])
        weights, momenta = await alice.send(local.weights), await alice.send(local.momenta)
        return cls(g, plan, weights, momenta, await alice.send(local.images), await alice.send(local.labels))

    async def step(self) -> float:
        made = await self._grid.run(
            self._plan, weights=self.weights, momenta=self.momenta, images=self.images, labels=self.labels
        )
        self.weights, self.momenta, loss = made
        return float(await loss.get())


async def milliseconds(step: Callable[[], Awaitable[float]]) -> float:
    """Of one step, until its loss is here; the median of many."""
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        await step()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3
