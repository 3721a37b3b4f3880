"""How many of MNIST's 10,000 test images a network labels right on shares, and in the clear: `accuracy_10k`.

The network is the 784-500-10 of secure.py, trained in the clear first (fixed seeds, 98 %). On shares weights and images
are secret; labels alone are opened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.harness import Figure
from benchmarks.mnist import Digits, perceptron
from compute.capture import capture
from mpc.interpreter import run
from mpc.lowering import lower
from mpc.party import Party
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import Protocol
from mpc.secret import Secret
from mpc.together import run_together, shares_of

_PARTIES = 2
_BATCH = 200
_EPOCHS, _TRAINING_BATCH = 6, 128


def trained(digits: Digits) -> nn.Module:
    """784-500-10, trained in the clear: the same one each time, to within the order of sums."""
    torch.manual_seed(1)
    model = perceptron(500)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(_EPOCHS):
        optimizer.param_groups[0]["lr"] = 0.05 if epoch < _EPOCHS - 2 else 0.01
        for x, y in digits.batches(_TRAINING_BATCH, len(digits.labels) // _TRAINING_BATCH, seed=epoch):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def labels_on_shares(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Of all images, batch by batch; all parties and the dealer in this process."""
    return torch.cat(list(_labels(model, images)))


def _labels(model: nn.Module, images: torch.Tensor) -> Iterator[torch.Tensor]:
    like = images.new_zeros(_BATCH, *images.shape[1:])
    captured = capture(lambda model, images: model(images).argmax(1), {"model": model, "images": like})
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    values = [{**weights, "images": like}[name] for name in captured.inputs]
    lowered = lower(captured.program, values, [True] * len(values))

    def protocol(party: Party, *given: Secret) -> Protocol[Any]:
        return (yield from run(party, lowered.program, [*given, *lowered.public]))

    for images_here in images.split(_BATCH):  # type: ignore[no-untyped-call]
        batch = functional.pad(images_here, (0, 0) * 3 + (0, _BATCH - len(images_here)))  # programs have one size
        parties: list[list[Secret]] = [[] for _ in range(_PARTIES)]
        for name in captured.inputs:
            value = {**weights, "images": batch}[name]
            for party, share in zip(parties, shares_of(encode(value, PRECISION), _PARTIES), strict=True):
                party.append(Secret(share, PRECISION, value.dtype))
        results, _ = run_together(protocol, parties)
        yield decode(sum(each.share for each in results), 0, torch.int64)[: len(images_here)]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """In percent of all images; how many labels are others on shares than in the clear; seconds an image."""

    on_shares: float
    plain: float
    differ: int
    seconds: float


def measured(digits: Digits) -> Accuracy:
    model = trained(digits)
    began = time.perf_counter()
    ours = labels_on_shares(model, digits.test_images)
    seconds = (time.perf_counter() - began) / len(ours)
    with torch.no_grad():
        plain = model(digits.test_images).argmax(1)
    on_shares, in_the_clear = (100 * float((each == digits.test_labels).double().mean()) for each in (ours, plain))
    return Accuracy(on_shares, in_the_clear, int((ours != plain).sum()), seconds)


def figures() -> list[Figure]:
    """One; none where MNIST is not there."""
    digits = Digits.load()
    if digits is None:
        return []
    found = measured(digits)
    bar = f"above 97.8 %, within 0.1 of plain; {found.differ} labels differ"
    fields = {"differ": found.differ, "ms_an_image": 1e3 * found.seconds}
    what = "784-500-10 on all 10,000 test images of MNIST"
    return [Figure("accuracy_10k", what, "%", found.on_shares, {"plain": found.plain}, bar, fields)]
