"""What tests of secure runs at real peers have in common: who takes part, small plans, who is at it just now."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import torch

import grid
from compute.capture import capture
from grid.client import Grid
from mpc.lowering import Lowered, lower
from peer.folders import Folders
from peer.keys import Identity
from protocol.rows import unpack_rows

CLOSE: Final = 2e-3  # results of a few products of reals
TEAM: Final[Mapping[str, Any]] = {"parties": ["alice", "bob"], "provider": "carol"}
NAMES: Final = ("alice", "bob", "carol")


@asynccontextmanager
async def joined(folders: Folders, identity: Identity | None = None) -> AsyncIterator[Grid]:
    """A grid whose objects are gone afterwards."""
    async with grid.connect(folders=folders, identity=identity) as g:
        try:
            yield g
        finally:
            for peer in g:
                await peer.clear()


@asynccontextmanager
async def sharing(folders: Folders, identity: Identity | None = None) -> AsyncIterator[tuple[Grid, Callable[..., Any]]]:
    """Such a grid, and a function that shares with alice and bob."""
    async with joined(folders, identity) as g:

        def share(value: Any, **options: Any) -> Any:
            return grid.share(value, g["alice"], g["bob"], provider=g["carol"], **options)

        yield g, share


@grid.plan
def labels(images: Any, model: Any) -> Any:
    return model(images).argmax(1)


@grid.plan
def scores(images: Any, model: Any) -> Any:
    return model(images)


@grid.plan
def short(x: Any) -> Any:
    return x * 2


def lowered(function: Callable[..., Any], *inputs: torch.Tensor) -> Lowered:
    """A function whose inputs are all secret, as parties compute it."""
    named = dict(zip(inspect.signature(function).parameters, inputs, strict=True))
    return lower(capture(function, named).program, inputs, [True] * len(inputs))


async def secure_runs(g: Grid, peer: str) -> list[dict[str, Any]]:
    """What the peer says of the secure runs that are under way there."""
    answer = await (await g[peer].outbox.flush()).request("running", {})
    rows = unpack_rows(await answer.read(1 << 20), 1_000)
    return [row for row in rows if row["kind"] == "secure"]


async def processes_of(g: Grid, run: asyncio.Future[Any]) -> dict[str, int]:
    """The process of each of the team, once all are there; fewer where the run was over before."""
    found: dict[str, int] = {}
    while len(found) < len(NAMES) and not run.done():
        for name in NAMES:
            for row in await secure_runs(g, name):
                if row["process"] is not None:
                    found[name] = row["process"]
    return found
