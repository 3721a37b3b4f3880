"""What secret shares cost: networks, a training step, functions, at real peers, over the grid's own WebSockets.

Peers are processes on this machine; a model is stored at one party, and what it works on is shared anew in every run.
`ours` is the time from the first share to the result's shares, by the clock of the slower party, with dealing apart
(`offline_ms`); the median of many runs in one session. Beside it, as fields: `run_ms`, all of `g.run` as its user waits
for it (search, capture, dealing, the run, decoding); `prepared_ms` and `prepared_run_ms`, the same two where it was
dealt ahead; `first_ms`, the first run, which makes processes and opens the masks of weights; `rounds`, `bytes_online`
and `bytes_dealt`, of everybody together. The reference is plain torch; CrypTen and SPU where they are installed. With
`malicious_linear` the ratio is the price of MACs: two layers without comparisons, against the usual mode.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

import grid
from benchmarks import accuracy, macs
from benchmarks.harness import Figure, Options, options, report
from grid.client import Grid
from grid.secure import Revealed
from protocol.errors import TooLarge

_OTHERS: Final = ("crypten", "spu")


@dataclass(frozen=True)
class Job:
    """A plan and what it is given.

    Attributes:
        stored: what is stored at the first party, and stays: a model.
        sent: what the last party has, and is shared anew in each run.
        own: what the asker has.
        parties: who computes; three do without a provider.
    """

    what: str
    bar: str
    plan: Callable[..., Any]
    stored: Mapping[str, Any] = field(default_factory=dict)
    sent: Mapping[str, torch.Tensor] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    parties: tuple[str, ...] = ("alice", "bob")

    def plain(self) -> None:
        """The same in the clear, here."""
        self.plan(**self.stored, **self.sent, **self.own)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 10))


def _lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def scores(model: Any, x: Any) -> Any:
    """A network's answers."""
    return model(x)


def labels(model: Any, x: Any) -> Any:
    """Which class it is."""
    return model(x).argmax(1)


def training(model: Any, images: Any, labels: Any) -> Any:
    """One step of gradient descent: the parameters after it."""
    parameters = list(model.parameters())
    loss = functional.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, parameters)
    return [each - 0.1 * slope for each, slope in zip(parameters, gradients, strict=True)]


def _images(batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.rand(batch, 1, 28, 28)}


def _step() -> dict[str, Any]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return {"model": model}


def jobs() -> dict[str, Job]:
    """All of them, by their ids."""
    torch.manual_seed(1)
    mlp, lenet = {"model": _mlp()}, {"model": _lenet()}
    batch = {"images": torch.rand(64, 1, 28, 28), "labels": torch.randint(0, 10, (64,))}
    return {
        "mlp_b1": Job("784-500-10, one image", "8 ms (12), 8 rounds", scores, mlp, _images(1)),
        "mlp_b1_labels": Job("784-500-10 and argmax, one image", "15 ms (22), 16 rounds", labels, mlp, _images(1)),
        "mlp_b200": Job("784-500-10 and argmax, 200 images", "100 ms (180), 20 MB", labels, mlp, _images(200)),
        "mlp_b1_three": Job(
            "784-500-10, one image, three parties without a dealer",
            "15 ms",
            scores,
            mlp,
            _images(1),
            parties=("alice", "bob", "dave"),
        ),
        "lenet_b1": Job("LeNet with max pooling, one image", "60 ms", scores, lenet, _images(1)),
        "lenet_b32": Job("LeNet with max pooling, 32 images", "550 ms, 200 MB", scores, lenet, _images(32)),
        "relu_1e6": Job("relu of 1e6", "250 ms, 60 MB", lambda x: x.relu(), sent={"x": torch.randn(10**6)}),
        "train_step": Job(
            "SGD step, 784-128-10, batch 64, cross-entropy", "70 ms, 40 rounds", training, sent=batch, own=_step()
        ),
        "softmax": Job("softmax of 1e4 x 10", "150 ms", lambda x: x.softmax(1), sent={"x": torch.randn(10**4, 10)}),
        "reciprocal": Job("1 / x of 1e5", "90 ms", lambda x: 1 / x, sent={"x": torch.rand(10**5) + 0.5}),
    }


_SLOW: Final = ("lenet_b32", "train_step")  # not with --quick
_PREPARED: Final = ("mlp_b1", "mlp_b1_labels", "mlp_b200", "lenet_b1")


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass
class _Runs:
    """What many runs of one job took, in seconds."""

    whole: list[float] = field(default_factory=list)
    online: list[float] = field(default_factory=list)
    offline: list[float] = field(default_factory=list)
    last: Revealed | None = None

    async def add(self, g: Grid, job: Job, told: Mapping[str, Any]) -> None:
        began = time.perf_counter()
        self.last = made = await g.run(job.plan, **told)
        self.whole.append(time.perf_counter() - began)
        self.online.append(made.cost.online.seconds)
        self.offline.append(made.cost.offline.seconds)


async def _told(g: Grid, id: str, job: Job) -> dict[str, Any]:
    """The job's arguments, where they belong."""
    told: dict[str, Any] = {"parties": list(job.parties), "provider": "carol" if len(job.parties) == 2 else None}
    for name, value in job.stored.items():
        told[name] = await g[job.parties[0]].send(value, tags=[f"#{id}"])
    for name, value in job.sent.items():
        told[name] = await g[job.parties[1]].send(value)
    return told | dict(job.own)


async def _figure(g: Grid, id: str, job: Job, repeats: int) -> Figure:
    told = await _told(g, id, job)
    first, runs = _Runs(), _Runs()
    await first.add(g, job, told)
    for _ in range(repeats):
        await runs.add(g, job, told)
    assert runs.last is not None
    cost = runs.last.cost
    fields = {
        "run_ms": _ms(runs.whole),
        "offline_ms": _ms(runs.offline),
        "first_ms": _ms(first.whole),
        "rounds": float(cost.online.rounds),
        "bytes_online": float(cost.online.nbytes),
        "bytes_dealt": float(cost.offline.nbytes),
    }
    if id in _PREPARED:
        fields |= await _prepared(g, job, told, repeats)
    plain = statistics.median(_seconds(job.plain) for _ in range(max(repeats, 5)))
    shown = f"{job.bar}; {cost.online.rounds} rounds, {cost.online.nbytes / 1e6:.3g} MB"
    shown += f", offline {fields['offline_ms']:.0f} ms, run {fields['run_ms']:.0f} ms"
    if "prepared_ms" in fields:
        shown += f"; dealt ahead {fields['prepared_ms']:.1f} ms, run {fields['prepared_run_ms']:.0f} ms"
    return Figure(id, job.what, "ms", _ms(runs.online), {"plain": 1e3 * plain}, shown, fields)


async def _prepared(g: Grid, job: Job, told: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """The same, dealt ahead; nothing where that is more than a party keeps."""
    try:
        await g.prepare(job.plan, runs=repeats, **told)
    except TooLarge:
        return {}
    runs = _Runs()
    for _ in range(repeats):
        await runs.add(g, job, told)
    return {"prepared_ms": _ms(runs.online), "prepared_run_ms": _ms(runs.whole)}


def _ms(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


async def measure(chosen: Options) -> list[Figure]:
    """All figures."""
    figures = []
    repeats = 5 if chosen.quick else 15
    async with grid.local("alice", "bob", "carol", "dave") as g:
        for id, job in jobs().items():
            if not (chosen.quick and id in _SLOW):
                figures.append(await _figure(g, id, job, repeats))
    figures += [] if chosen.quick else await asyncio.to_thread(accuracy.figures)
    return [*figures, macs.price(3 if chosen.quick else 9)]


def main(chosen: Options) -> list[Figure]:
    """All figures; what is missing beside them is said on standard error."""
    torch.set_num_threads(1)
    for name in _OTHERS:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: it is not measured beside ours", file=sys.stderr)
    return asyncio.run(measure(chosen))


if __name__ == "__main__":
    given = options(__doc__)
    report("secure", main(given), given)
