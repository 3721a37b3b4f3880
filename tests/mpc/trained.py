"""A model that is trained on shares, all parties in one process: from one step to the next everything stays shared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from compute.capture import capture
from compute.given import Given
from mpc.interpreter import run
from mpc.lowering import lower
from mpc.party import Party
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import Protocol
from mpc.secret import Secret
from mpc.together import run_together, shares_of

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_PARTIES = 2


def sgd(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """With a momentum of 0.9, at rest: as it is before the first step, but that its buffers are there."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def step_of(loss_of: Loss) -> Callable[..., torch.Tensor]:
    """One step: the lines that train in the clear."""

    def step(model: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


class Trained:
    """A copy of a model, and what its optimiser keeps, in shares; `step` changes both, `model` opens the former.

    All is secret: parameters, momentum, images and labels. The program is captured and lowered once, for batches of
    one size.
    """

    def __init__(self, model: nn.Module, rate: float, loss_of: Loss, like: Batch) -> None:
        self._model = copy.deepcopy(model)
        arguments = {"model": self._model, "optimizer": sgd(self._model, rate), "x": like[0], "y": like[1]}
        captured = capture(step_of(loss_of), arguments)
        given = Given(arguments, {}, "load:").tensors
        values = {**captured.constants, **{path: value.detach() for path, value in given.items()}}
        self._inputs = [name for name in captured.inputs if name not in captured.constants]
        is_secret = [name not in captured.constants for name in captured.inputs]
        self._lowered = lower(captured.program, [values[name] for name in captured.inputs], is_secret)
        self._shares = [dict[str, Secret]() for _ in range(_PARTIES)]
        for path, value in given.items():
            self._share(path, value.detach())

    def _share(self, name: str, value: torch.Tensor) -> None:
        bits = PRECISION if value.is_floating_point() else 0
        for party, share in zip(self._shares, shares_of(encode(value, bits), _PARTIES), strict=True):
            party[name] = Secret(share, bits, value.dtype)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self._share("x", x)
        self._share("y", y)

        def protocol(party: Party, *given: Secret) -> Protocol[Any]:
            return (yield from run(party, self._lowered.program, [*given, *self._lowered.public]))

        results, _ = run_together(protocol, [[party[name] for name in self._inputs] for party in self._shares])
        for party, result in zip(self._shares, results, strict=True):
            party.update(result["state"])

    def model(self) -> nn.Module:
        """The model as it is now, in the clear."""
        opened = {}
        for name in self._model.state_dict():
            parts = [party[f"model.{name}"] for party in self._shares]
            opened[name] = decode(torch.stack([part.share for part in parts]).sum(0), parts[0].bits, parts[0].dtype)
        model = copy.deepcopy(self._model)
        model.load_state_dict(opened)
        return model


def both_ways(model: nn.Module, rate: float, loss_of: Loss, batches: Sequence[Batch]) -> tuple[nn.Module, nn.Module]:
    """The model trained on shares, and in the clear: by the same batches in the same order."""
    shared, clear = Trained(model, rate, loss_of, batches[0]), copy.deepcopy(model)
    optimizer, step = sgd(clear, rate), step_of(loss_of)
    for x, y in batches:
        shared.step(x, y)
        step(clear, optimizer, x, y)
    return shared.model(), clear


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())
