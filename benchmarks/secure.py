"""What secret shares cost: networks, a training step, functions, at real peers, over the grid's own WebSockets.

Peers are processes on this machine; a model is stored at one party, and what it works on is shared anew in every run.
Each job is measured in two ways, in turns, in one session, by the parties' own clocks (medians of many):

    online   of runs that were dealt for before (`grid.prepare`): from the first share to the result's shares. `ours`
    all_in   of runs that nothing was dealt for: the same and all dealing, from the request to the result's shares

Each has its bar (`online_bar`, `all_in_bar`). Where nothing is dealt ahead (three parties that do without a dealer),
online is what is left of a run without what the parties make beforehand. Beside them, as fields: `run_ms` and
`prepared_run_ms`, all of `g.run` as its user waits for it (search, capture, the run, decoding), without and with
dealing ahead; `waited_ms`, how much of `all_in` the parties wait for the dealer; `first_ms`, the first run, which makes
processes and opens the masks of weights; `rounds`, `bytes_online` and `bytes_dealt`, of everybody together. The
reference is plain torch; CrypTen and SPU where they are installed. With `malicious_linear` the ratio is the price of
MACs: two layers without comparisons, against the usual mode.
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
from torch.nn import functional

import grid
from benchmarks import accuracy, macs
from benchmarks.harness import Figure, Options, options, report
from benchmarks.mnist import lenet, perceptron
from grid.client import Grid
from grid.secure import Revealed
from protocol import limits

_OTHERS: Final = ("crypten", "spu")


@dataclass(frozen=True)
class Bars:
    """What a job is held to: milliseconds, rounds between the parties, megabytes in both directions together."""

    online: float
    all_in: float | None = None
    rounds: int | None = None
    megabytes: float | None = None


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
    bars: Bars
    plan: Callable[..., Any]
    stored: Mapping[str, Any] = field(default_factory=dict)
    sent: Mapping[str, torch.Tensor] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    parties: tuple[str, ...] = ("alice", "bob")

    def plain(self) -> None:
        """The same in the clear, here."""
        self.plan(**self.stored, **self.sent, **self.own)


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


def jobs() -> dict[str, Job]:
    """All of them, by their ids."""
    torch.manual_seed(1)
    mlp, convolutions = {"model": perceptron(500)}, {"model": lenet()}
    batch = {"images": torch.rand(64, 1, 28, 28), "labels": torch.randint(0, 10, (64,))}
    return {
        "mlp_b1": Job("784-500-10, one image", Bars(8, 12, 8, 0.2), scores, mlp, _images(1)),
        "mlp_b1_labels": Job("784-500-10 and argmax, one image", Bars(15, 22, 16), labels, mlp, _images(1)),
        "mlp_b200": Job("784-500-10 and argmax, 200 images", Bars(100, 180, megabytes=20), labels, mlp, _images(200)),
        "mlp_b1_three": Job(
            "784-500-10, one image, three parties without a dealer",
            Bars(15),
            scores,
            mlp,
            _images(1),
            parties=("alice", "bob", "dave"),
        ),
        "lenet_b1": Job("LeNet with max pooling, one image", Bars(60), scores, convolutions, _images(1)),
        "lenet_b32": Job(
            "LeNet with max pooling, 32 images", Bars(550, megabytes=200), scores, convolutions, _images(32)
        ),
        "relu_1e6": Job(
            "relu of 1e6", Bars(250, rounds=6, megabytes=60), lambda x: x.relu(), sent={"x": torch.randn(10**6)}
        ),
        "train_step": Job(
            "SGD step, 784-128-10, batch 64, cross-entropy",
            Bars(70, rounds=40),
            training,
            sent=batch,
            own={"model": perceptron(128)},
        ),
        "softmax": Job("softmax of 1e4 x 10", Bars(150), lambda x: x.softmax(1), sent={"x": torch.randn(10**4, 10)}),
        "reciprocal": Job("1 / x of 1e5", Bars(90), lambda x: 1 / x, sent={"x": torch.rand(10**5) + 0.5}),
    }


_SLOW: Final = ("lenet_b32", "train_step")  # not with --quick
_AHEAD: Final = 5  # runs that are dealt for at once, if a party keeps so much


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

    @property
    def all_in(self) -> list[float]:
        return [sum(each) for each in zip(self.online, self.offline, strict=True)]


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
    first, plainly, ahead = _Runs(), _Runs(), _Runs()
    await first.add(g, job, told)
    while len(plainly.whole) < repeats:
        count = min(_AHEAD, repeats - len(plainly.whole))
        for _ in range(count):
            await plainly.add(g, job, told)
        for _ in range(await _dealt(g, job, told, count, plainly)):
            await ahead.add(g, job, told)
    assert plainly.last is not None
    cost, online = plainly.last.cost, ahead.online or plainly.online
    fields = {
        "online_bar": job.bars.online,
        "all_in_ms": _ms(plainly.all_in),
        **({} if job.bars.all_in is None else {"all_in_bar": job.bars.all_in}),
        "waited_ms": _ms(plainly.offline),
        "run_ms": _ms(plainly.whole),
        **({"prepared_run_ms": _ms(ahead.whole)} if ahead.whole else {}),
        "first_ms": _ms(first.whole),
        "rounds": float(cost.online.rounds),
        "bytes_online": float(cost.online.nbytes),
        "bytes_dealt": float(cost.offline.nbytes),
    }
    plain = statistics.median(_seconds(job.plain) for _ in range(max(repeats, 5)))
    return Figure(
        id, job.what, "ms", _ms(online), {"plain": 1e3 * plain}, _shown(job.bars, _ms(online), fields), fields
    )


async def _dealt(g: Grid, job: Job, told: Mapping[str, Any], count: int, before: _Runs) -> int:
    """Deals ahead for `count` runs, or as many as a party keeps; for how many. Nobody deals for three parties alone."""
    assert before.last is not None
    if told["provider"] is None:
        return 0
    count = min(count, limits.SECURE_STOCK // max(before.last.cost.offline.nbytes, 1))
    if count:
        await g.prepare(job.plan, runs=count, **told)
    return count


def _shown(bars: Bars, online: float, fields: Mapping[str, float]) -> str:
    """Each figure beside its bar."""

    def beside(value: str, bar: float | None) -> str:
        return value if bar is None else f"{value} of {bar:g}"

    megabytes = f"{fields['bytes_online'] / 1e6:.3g} MB"
    return ", ".join(
        (
            beside(f"online {online:.1f}", bars.online),
            beside(f"all in {fields['all_in_ms']:.1f}", bars.all_in),
            beside(f"{fields['rounds']:.0f} rounds", bars.rounds),
            beside(megabytes, bars.megabytes),
            f"run {fields['run_ms']:.0f}",
        )
    )


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
