"""What secret shares cost: networks, a training step, functions; two parties as processes, a dealer beforehand.

The parties are this process and others, over TCP sockets on loopback; `ours` is the time from shares to shares,
online. Beside it, as fields: `offline_ms` (dealing, sending and unpacking what was dealt, and opening the masks of a
model's weights, once for all runs), `rounds`, and `bytes_per_party` sent online. The reference is plain torch. With
`malicious_linear` the ratio is the price of MACs: two layers without comparisons, against the usual mode.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks import macs
from benchmarks.harness import Figure, Options, options, report
from compute.capture import capture
from compute.program import Program
from mpc.correlations import Correlation, Dealt
from mpc.dealer import Dealer, Supply
from mpc.interpreter import fix, run
from mpc.lowering import lower
from mpc.masks import Masks, fresh_seed
from mpc.party import Party
from mpc.replicated import prepare
from mpc.ring import PRECISION, encode
from mpc.rounds import Protocol, message, opened
from mpc.script import Script, script_of
from mpc.secret import Secret

_PARTIES = 2
_SEED = b"inputs' shares.."

Values = Mapping[str, Any]


# --- jobs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A program on shares of all its inputs.

    Attributes:
        fixed: which of the inputs are a model's, whose masks are opened once.
    """

    program: Program
    public: tuple[torch.Tensor, ...]
    inputs: tuple[torch.Tensor, ...]
    fixed: tuple[int, ...]
    plain: Callable[[], Any]

    def secrets(self, rank: int | None) -> list[Secret]:
        """One party's shares; without a rank, shapes alone."""
        made = []
        for at, value in enumerate(self.inputs):
            bits = PRECISION if value.is_floating_point() else 0
            if rank is None:
                share = torch.empty(value.shape, dtype=torch.int64, device="meta")
            else:
                share = Masks(_SEED, at).draw(tuple(value.shape), torch.int64)
                share = encode(value, bits) - share if rank == 1 else share * (rank == 0)
            made.append(Secret(share, bits, value.dtype))
        return made

    def prepare(self, party: Party, secrets: Sequence[Secret]) -> Protocol[list[Any]]:
        given: list[Any] = [*secrets, *self.public]
        for at, secret in zip(self.fixed, (yield from fix(party, [secrets[at] for at in self.fixed])), strict=True):
            given[at] = secret
        return given

    def online(self, party: Party, given: list[Any]) -> Protocol[Any]:
        return (yield from run(party, self.program, given))


def _job(function: Callable[..., Any], inputs: Values, *, is_fixed: bool = True) -> Job:
    captured = capture(function, inputs)
    flat: dict[str, torch.Tensor] = {}
    fixed = []
    for name, value in inputs.items():
        if isinstance(value, nn.Module):
            parts = {f"{name}.{key}": each.detach() for key, each in value.state_dict(keep_vars=True).items()}
            fixed += [key for key, each in parts.items() if each.dim() > 1 and is_fixed]
            flat.update(parts)
        else:
            flat[name] = value
    values = [flat[name] for name in captured.inputs]
    lowered = lower(captured.program, values, [True] * len(values))
    at = tuple(captured.inputs.index(name) for name in fixed if name in captured.inputs)
    return Job(lowered.program, lowered.public, tuple(values), at, lambda: function(*inputs.values()))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 10))


def _lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def _training(model: Any, images: torch.Tensor, labels: torch.Tensor) -> Any:
    parameters = list(model.parameters())
    loss = functional.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, parameters)
    return [each - 0.1 * slope for each, slope in zip(parameters, gradients, strict=True)]


def _network(model: nn.Module, batch: int, *, labels: bool = False) -> Job:
    if labels:
        return _job(lambda model, x: model(x).argmax(1), {"model": model, "x": torch.rand(batch, 1, 28, 28)})
    return _job(lambda model, x: model(x), {"model": model, "x": torch.rand(batch, 1, 28, 28)})


def _step() -> Job:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    inputs = {"model": model, "images": torch.rand(64, 1, 28, 28), "labels": torch.randint(0, 10, (64,))}
    return _job(_training, inputs, is_fixed=False)


JOBS: dict[str, tuple[str, str, Callable[[], Job]]] = {
    "mlp_b1": ("784-500-10, one image", "8 ms, 8 rounds", lambda: _network(_mlp(), 1)),
    "mlp_b200": ("784-500-10 and argmax, 200 images", "100 ms", lambda: _network(_mlp(), 200, labels=True)),
    "lenet_b1": ("LeNet with max pooling, one image", "60 ms", lambda: _network(_lenet(), 1)),
    "lenet_b32": ("LeNet with max pooling, 32 images", "550 ms, 100 MB a party", lambda: _network(_lenet(), 32)),
    "relu_1e6": ("relu of 1e6", "250 ms, 30 MB a party", lambda: _job(torch.relu, {"x": torch.randn(10**6)})),
    "train_step": ("SGD step, 784-128-10, batch 64, cross-entropy", "70 ms, 40 rounds", _step),
    "softmax": ("softmax of 1e4 x 10", "150 ms", lambda: _job(lambda x: x.softmax(1), {"x": torch.randn(10**4, 10)})),
    "reciprocal": ("1 / x of 1e5", "90 ms", lambda: _job(torch.reciprocal, {"x": torch.rand(10**5) + 0.5})),
}
_SLOW = ("lenet_b32", "train_step")  # not with --quick


# --- two processes ------------------------------------------------------------------------------------------


class Line:
    """The socket to the other party."""

    def __init__(self, line: socket.socket) -> None:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._line = line

    def send_all(self, pieces: Sequence[memoryview]) -> None:
        for piece in pieces:
            self._line.sendall(piece)

    def send(self, data: memoryview | bytes) -> None:
        self._line.sendall(data)

    def receive(self, nbytes: int) -> bytearray:
        data = bytearray(nbytes)
        room = memoryview(data)
        while room.nbytes:
            room = room[self._line.recv_into(room) :]
        return data


def exchange(lines: Sequence[Line], pieces: Sequence[memoryview], nbytes: int) -> list[memoryview]:
    """Sends ours to all others, while theirs, of the same size, come in."""
    sending = []
    for line in lines:
        if nbytes < 1 << 16:
            line.send(b"".join(pieces))
        else:
            sending.append(threading.Thread(target=line.send_all, args=(pieces,)))
            sending[-1].start()
    theirs = [memoryview(line.receive(nbytes)) for line in lines]
    for each in sending:
        each.join()
    return theirs


@dataclass
class Spent:
    seconds: float = 0.0
    rounds: int = 0
    nbytes: int = 0


def drive(lines: Sequence[Line], protocol: Protocol[Any]) -> tuple[Any, Spent]:
    """One party's run to its end."""
    spent, began, answer = Spent(), time.perf_counter(), None
    while True:
        try:
            asked = protocol.send(answer)  # type: ignore[arg-type]  # None begins it
        except StopIteration as done:
            spent.seconds = time.perf_counter() - began
            return done.value, spent
        spent.rounds += 1
        spent.nbytes += asked.nbytes
        answer = opened(asked, exchange(lines, message(asked), asked.nbytes))


def _script(job: Job, count: int) -> Script:
    def whole(party: Party) -> Protocol[Any]:
        given = yield from job.prepare(party, job.secrets(None))
        return (yield from job.online(party, given))

    return script_of(whole, count)


def _once(lines: Sequence[Line], rank: int, job: Job, script: Script) -> tuple[float, Spent]:
    """Offline seconds, and what the run itself took."""
    began = time.perf_counter()
    count = len(lines) + 1
    supply = _dealt(lines[0], rank, script) if count == _PARTIES else _alone(lines, rank, script)
    party = Party(rank, count, supply)
    given, _ = drive(lines, job.prepare(party, job.secrets(rank)))
    exchange(lines, [memoryview(b"ready")], 5)
    offline = time.perf_counter() - began
    _, spent = drive(lines, job.online(party, given))
    return offline, spent


Take = Callable[[int, Correlation], Dealt]


def _dealt(line: Line, rank: int, script: Script) -> Take:
    """The dealer sits in the first party's process: its time counts, and nothing else of it is used."""
    if rank == 0:
        dealer = Dealer(script, _PARTIES)
        line.send(dealer.seeds[1])
        for piece in dealer.corrections():
            line.send(piece)
        return Supply(dealer.seeds[0])
    seed, data = bytes(line.receive(16)), memoryview(line.receive(script.dealt))
    place = iter(_slices(script, data))
    return Supply(seed, lambda _: next(place))


def _alone(lines: Sequence[Line], rank: int, script: Script) -> Take:
    """Three parties: each draws a seed and gives it to the one before it."""
    others = [at for at in range(3) if at != rank]
    seed = fresh_seed()
    lines[others.index((rank - 1) % 3)].send(seed)
    following = bytes(lines[others.index((rank + 1) % 3)].receive(len(seed)))
    supply, _ = drive(lines, prepare(rank, (seed, following), script))
    return supply  # type: ignore[no-any-return]


def _slices(script: Script, data: memoryview) -> Iterator[memoryview]:
    at = 0
    for correlation in script.correlations:
        for words in correlation.derived:
            yield data[at : at + words.nbytes]
            at += words.nbytes


def other_party(rank: int, sockets: Sequence[socket.socket], names: Sequence[str], repeats: int) -> None:
    """What another process does."""
    torch.set_num_threads(1)
    lines = [Line(each) for each in sockets]
    for name in names:
        torch.manual_seed(1)
        job = JOBS[name][2]()
        script = _script(job, len(lines) + 1)
        for _ in range(repeats):
            _once(lines, rank, job, script)


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


@contextlib.contextmanager
def _others(count: int, names: Sequence[str], repeats: int) -> Iterator[list[Line]]:
    """The other parties' processes; lines to them, in their order."""
    sockets: list[list[socket.socket]] = [[] for _ in range(count)]
    for one in range(count):
        for other in range(one + 1, count):
            for rank, end in zip((one, other), _connected(), strict=True):
                sockets[rank].append(end)
    spawn = multiprocessing.get_context("spawn").Process
    processes = [
        spawn(target=other_party, args=(rank, sockets[rank], names, repeats), daemon=True) for rank in range(1, count)
    ]
    for each in processes:
        each.start()
    yield [Line(each) for each in sockets[0]]
    for each in processes:
        each.join(60)
    for end in (end for group in sockets for end in group):
        end.close()


def _figure(name: str, lines: Sequence[Line], repeats: int) -> Figure:
    what, bar, make = JOBS[name]
    torch.manual_seed(1)
    job = make()
    script = _script(job, len(lines) + 1)
    offline, online = [], []
    for _ in range(repeats):
        gc.collect()
        seconds, spent = _once(lines, 0, job, script)
        offline.append(seconds)
        online.append(spent.seconds)
    plain = statistics.median(_seconds(job.plain) for _ in range(max(repeats, 5)))
    fields = {
        "offline_ms": 1e3 * statistics.median(offline),
        "rounds": spent.rounds,
        "bytes_per_party": spent.nbytes * len(lines),
    }
    shown = f"{bar}; {spent.rounds} rounds, {spent.nbytes * len(lines) / 1e6:.3g} MB a party"
    shown += f", offline {fields['offline_ms']:.0f} ms"
    return Figure(name, what, "ms", 1e3 * statistics.median(online), {"plain": 1e3 * plain}, shown, fields)


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main(chosen: Options) -> list[Figure]:
    torch.set_num_threads(1)
    names = [name for name in JOBS if not (chosen.quick and name in _SLOW)]
    repeats = 3 if chosen.quick else 9
    with _others(_PARTIES, names, repeats) as lines:
        figures = [_figure(name, lines, repeats) for name in names]
    with _others(3, ["mlp_b1"], repeats) as lines:
        alone = _figure("mlp_b1", lines, repeats)
    what, bar = f"{alone.what}, by three parties without a dealer", alone.bar.replace("8 ms, 8 rounds", "15 ms")
    return [*figures, replace(alone, id="mlp_b1_three", what=what, bar=bar), macs.price(repeats)]


if __name__ == "__main__":
    given = options(__doc__)
    report("secure", main(given), given)
