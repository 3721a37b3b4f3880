"""Functions as users write them, which run as plans and as jails alike; and what cannot be shipped."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import relu

import grid
from grid import load

SCALE = 3.0
SIZES = (2, 4)
TABLE = {"a": 1, "b": [2.0, None]}
WEIGHT = torch.arange(16.0).reshape(4, 4) / 10


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


def scaled(x: torch.Tensor, by: float = SCALE) -> Any:
    y: torch.Tensor = x * by
    return y, {"sum": y.sum(), "max": y.max(dim=1)}


def closed_over(x: torch.Tensor) -> torch.Tensor:
    return x @ WEIGHT + TABLE["a"] + math.sqrt(SIZES[1])


def layers(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(relu(F.linear(x, WEIGHT)), SIZES[1:]).softmax(-1)


def indexed(x: torch.Tensor) -> Any:
    return x[1:, ::2], x[:, None, -1], x[torch.tensor([0, 2])], x.T


def looped(x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(4)
    for row in range(x.shape[0]):
        total = total + x[row] ** 2
    return total


def sorted_rows(x: torch.Tensor) -> Any:
    values, order = x.sort(dim=0)
    return [values, order, torch.cat([x, x]).cumsum(0), x.argmax()]


def decomposed(x: torch.Tensor) -> Any:
    square = x.T @ x + torch.eye(4)
    return torch.linalg.inv(square), torch.linalg.eigh(square)[0], torch.linalg.det(square)


def gradient(x: torch.Tensor) -> Any:
    return torch.func.grad(lambda w: ((x @ w) ** 2).mean())(torch.ones(4))


def written(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[0] += 1
    y[:, 1] = 0
    y.mul_(2)
    return y


def images(x: torch.Tensor) -> torch.Tensor:
    picture = x.reshape(1, 1, 4, 4)
    return F.max_pool2d(F.conv2d(picture, WEIGHT.reshape(1, 1, 4, 4), padding=2), 2)


def of_integers(x: torch.Tensor) -> Any:
    n = (x * 10).long()
    return n % 3, n @ n, (n > 2).sum(), F.one_hot(n.abs() % 4, 4), x.to(torch.float64).sum()


def named(x: torch.Tensor, *, order: Any = ("sum", "mean")) -> dict[str, torch.Tensor]:
    return {name: x.sum() if name == "sum" else x.mean() for name in order}


def packed(x: torch.Tensor) -> Any:
    net = nn.GRU(2, 3)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    out, last = net(nn.utils.rnn.pack_padded_sequence(x.reshape(4, 2, 2), [4, 2]))
    padded, lengths = nn.utils.rnn.pad_packed_sequence(out)
    return padded.detach(), last.detach(), lengths


SAME = (
    normalised,
    scaled,
    closed_over,
    layers,
    indexed,
    looped,
    sorted_rows,
    decomposed,
    gradient,
    written,
    images,
    of_integers,
    named,
    packed,
)


# --- ordinary Python --------------------------------------------------------------------------------------


def trimmed(x: torch.Tensor, most: float = 1.0) -> Any:
    rounds = 0
    while x.std() > most and rounds < 50:
        x = x[(x - x.mean()).abs() < 1.5 * x.std()]
        rounds += 1
        print(f"{len(x)} are left")
    return {"mean": x.mean(), "rounds": rounds, "kept": x}


def trained(x: torch.Tensor, y: torch.Tensor) -> Any:
    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first = nn.Linear(4, width)
            self.second = nn.Linear(width, 1)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(given)))

    torch.manual_seed(7)
    net = Net(8)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(net(x).squeeze(1), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 1e-3:
            break
    return net.state_dict(), losses


def caught(x: torch.Tensor) -> Any:
    import itertools
    from functools import reduce

    found: list[Any] = []
    try:
        x[100]
    except IndexError as error:  # and not merely a RuntimeError
        found.append("100" in str(error))
    for bad in (lambda: x @ torch.ones(3), lambda: int("x"), lambda: torch.ones(2) + torch.ones(3)):
        try:
            bad()
        except (RuntimeError, ValueError) as error:
            found.append(isinstance(error, Exception))
        finally:
            found.append(len(found))
    return found, reduce(lambda a, b: a + b, itertools.chain([1], [2])), isinstance(x, torch.Tensor)


def joined() -> Any:
    first = grid.load("#jails #first")
    return (first + load("#jails #second")).sum()


def deep(x: torch.Tensor) -> Any:
    def inner(y: torch.Tensor) -> torch.Tensor:
        print("so far")
        return y[99]

    return inner(x)


# --- what cannot be shipped -------------------------------------------------------------------------------


def helper(x: Any) -> Any:
    return x


class Kept:
    pass


NET = nn.Linear(2, 2)
OTHER = object()


def with_helper(x: Any) -> Any:
    return helper(x)


def with_class(x: Any) -> Any:
    return Kept()


def with_numpy(x: Any) -> Any:
    return np.mean(x)


def with_os(x: Any) -> Any:
    return os.getcwd()


def with_random(x: Any) -> Any:
    return random.random()


def with_module(x: Any) -> Any:
    return NET(x)


def with_object(x: Any) -> Any:
    return OTHER


def with_nothing(x: Any) -> Any:
    return undefined_name  # type: ignore[name-defined]  # noqa: F821


def with_open(x: Any) -> Any:
    return open("/etc/passwd")


def with_format(x: Any) -> Any:
    return "{}".format(x)  # noqa: UP032


def with_query_made_up(x: Any) -> Any:
    return grid.load("#a" + "b")


REFUSED = {
    with_helper: "helper is a function outside the jail, which is not shipped: define it inside",
    with_class: "Kept is a class",
    with_numpy: "the module numpy is not there",
    with_os: "the module os is not there",
    with_random: "the module random is not there",
    with_module: "give its state_dict()",
    with_object: "OTHER is of type object",
    with_nothing: "undefined_name is not defined",
    with_open: "open: it is not there in a jail",
    with_format: "write an f-string",
    with_query_made_up: "write the query into the call",
}
