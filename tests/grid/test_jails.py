"""@grid.jail: source that runs where the data are, as its function runs here and as a plan of it runs there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import grid
from compute.jail.source import source_of
from peer.folders import Folders
from peer.jail_rules import JailRules
from peer.keys import Identity
from peer.pool_settings import PoolSettings
from protocol.errors import BadJail, BadRequest, Denied, GridError, JailFailed
from tests.grid import jail_sources
from tests.grid.jailers import jailing
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jails run on Linux")

FRIEND = Identity.generate()


@pytest.fixture(scope="module")
def jailers() -> Iterator[Folders]:
    """alice runs everybody's jails, bob those of a friend."""
    with jailing(alice=JailRules(for_all=True), bob=JailRules(principals=(FRIEND.id,))) as folders:
        yield folders


@asynccontextmanager
async def connected(folders: Folders, identity: Identity | None = None) -> AsyncIterator[grid.Grid]:
    async with grid.connect(folders=folders, identity=identity or Identity.generate()) as g:
        yield g


async def values(result: Any) -> Any:
    """The same with values for its pointers."""
    if isinstance(result, torch.Tensor):
        return await result.get() if isinstance(result, grid.Pointer) else result
    if isinstance(result, dict):
        return {key: await values(item) for key, item in result.items()}
    if isinstance(result, list | tuple):
        return [await values(item) for item in result]
    return result


def equal(one: Any, other: Any, nearly: bool = False) -> bool:
    if isinstance(one, torch.Tensor):
        same = torch.allclose(one, other, atol=1e-6) if nearly else torch.equal(one, other)
        return one.dtype == other.dtype and one.shape == other.shape and same
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key], nearly) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b, nearly) for a, b in zip(one, other, strict=True))
    return bool(one == other)


X = torch.linspace(-2, 2, 16).reshape(4, 4).sin()


@pytest.mark.parametrize("function", jail_sources.SAME, ids=lambda function: function.__name__)
async def test_a_plan_and_a_jail_of_one_function_give_the_same(function: Any, jailers: Folders) -> None:
    async with connected(jailers) as g:
        x = await g["alice"].send(X)
        jailed = await values(await g.run(grid.jail(function), x))
        planned = await values(await g.run(grid.plan(function), x))
        assert equal(jailed, planned)
        assert equal(jailed, await values(function(X)), nearly=True)


async def test_values_decide_what_it_does(jailers: Folders) -> None:
    torch.manual_seed(0)
    data = torch.randn(400) ** 3
    async with connected(jailers) as g:
        trimmed = grid.jail(jail_sources.trimmed)
        result = await g.run(trimmed, await g["alice"].send(data))
        expected = jail_sources.trimmed(data)
        assert equal(await values(result), expected)
        assert type(result["rounds"]) is int and result["rounds"] > 1
        assert result.printed == trimmed.printed
        assert result.printed.count(" are left\n") == result["rounds"]


async def test_a_training_loop_with_modules_and_an_optimiser(jailers: Folders) -> None:
    torch.manual_seed(1)
    x = torch.randn(32, 4)
    y = x.sum(1)
    async with connected(jailers) as g:
        state, losses = await g.run(grid.jail(jail_sources.trained), x=await g["alice"].send(x), y=y)
        assert len(losses) == 30 and losses[-1] < losses[0] / 2
        with torch.random.fork_rng():
            expected, expected_losses = jail_sources.trained(x, y)
        assert equal(await values(state), dict(expected), nearly=True)
        assert torch.allclose(torch.tensor(losses), torch.tensor(expected_losses), atol=1e-5)


async def test_exceptions_are_caught_inside_by_their_names(jailers: Folders) -> None:
    async with connected(jailers) as g:
        x = await g["alice"].send(torch.ones(2, 2))
        found, total, is_tensor = await g.run(grid.jail(jail_sources.caught), x)
        assert found == [True, True, 2, True, 4, True, 6]
        assert (total, is_tensor) == (3, True)


async def test_queries_are_found_before_it_begins(jailers: Folders) -> None:
    async with connected(jailers) as g:
        kept = [
            await g["alice"].send(torch.full((3,), n), tags=["jails", tag])
            for n, tag in ((1.0, "first"), (2.0, "second"))
        ]
        assert await (await g.run(grid.jail(jail_sources.joined))).get() == 9.0
        total = await g.run(grid.jail(jail_sources.named), x="#jails #second")
        assert equal(await values(total), {"sum": torch.tensor(6.0), "mean": torch.tensor(2.0)})
        for pointer in kept:
            await pointer.delete()


async def test_called_on_a_pointer_it_runs_there_and_on_a_tensor_here(jailers: Folders) -> None:
    looped = grid.jail(jail_sources.looped)
    async with connected(jailers) as g:
        there = await looped(await g["alice"].send(X))
        assert isinstance(there, grid.Pointer) and there.location.name == "alice"
        assert equal(await there.fetch(), looped(X))
        assert equal(await (there + 1).get(), looped(X) + 1)  # a pointer like any other


async def test_an_error_shows_the_users_own_lines_and_what_was_printed(jailers: Folders) -> None:
    async with connected(jailers) as g:
        deep = grid.jail(jail_sources.deep)
        with pytest.raises(JailFailed, match="IndexError: index 99 is out of bounds") as met:
            await deep(await g["alice"].send(X))
        lines = Path(jail_sources.__file__).read_text().splitlines()  # noqa: ASYNC240
        number = lines.index("        return y[99]") + 1
        shown = "\n".join(met.value.__notes__)
        assert f'File "{jail_sources.__file__}", line {number}, in inner\n    return y[99]' in shown
        assert "in deep\n    return inner(x)" in shown
        assert met.value.fields["printed"] == deep.printed == "so far\n"
        assert "torch/" not in shown


@pytest.mark.parametrize("function", jail_sources.REFUSED, ids=lambda function: function.__name__)
def test_what_cannot_be_shipped_is_said_before_anything_is_sent(function: Any) -> None:
    with pytest.raises(BadJail) as met:
        source_of(function, grid.load)
    assert jail_sources.REFUSED[function] in met.value.message
    assert f"line {function.__code__.co_firstlineno + 1}" in met.value.message


def test_what_is_no_function_cannot_be_shipped() -> None:
    for what, said in ((lambda x: x, "def name"), (len, "def name"), (torch.nn.Linear(1, 1), "def name")):
        with pytest.raises(BadJail, match=said):
            source_of(what)
    made: dict[str, Any] = {}
    exec("def made(x): return x", made)
    with pytest.raises(BadJail, match="source of made is not to be had"):
        source_of(made["made"])


async def test_arguments_that_cannot_go_in_are_said(jailers: Folders) -> None:
    async with connected(jailers) as g:
        x = await g["alice"].send(X)
        scaled = grid.jail(jail_sources.scaled)
        with pytest.raises(BadJail, match=r"state_dict\(\)"):
            await g.run(scaled, x, by=torch.nn.Linear(1, 1))
        with pytest.raises(BadJail, match="64 bits"):
            await g.run(scaled, x, by=10**30)
        with pytest.raises(BadRequest, match="bye"):
            await g.run(scaled, x, bye=1)


async def test_a_peer_runs_them_only_if_its_owner_said_so(jailers: Folders) -> None:
    looped = grid.jail(jail_sources.looped)
    async with connected(jailers) as g:
        with pytest.raises(Denied) as met:
            await looped(await g["bob"].send(X))
        assert f"grid start bob --jails-for {g.id}" in met.value.message
    async with connected(jailers, FRIEND) as g:
        assert equal(await (await looped(await g["bob"].send(X))).get(), looped(X))


async def test_results_are_private_to_all_whose_data_went_in(jailers: Folders) -> None:
    async with connected(jailers) as owner, connected(jailers) as other:
        kept = await owner["alice"].send(X, tags=["jails", "private"], private=True)
        mean, number, _ = await owner.run(grid.jail(_mean), x="#jails #private")
        assert torch.isclose(await mean.get(), X.mean()) and number == X.mean().item()  # its owner is told all
        mean, number, text = await other.run(grid.jail(_mean), x="#jails #private")
        assert text == "text" and isinstance(number, grid.Pointer)  # numbers are values like those of tensors
        for pointer in (mean, number, mean + 1, number * 2):
            with pytest.raises(Denied):
                await pointer.get()
        await kept.delete()


def _mean(x: Any) -> Any:
    print(x.mean())
    return x.mean(), x.mean().item(), "text"


async def test_one_that_runs_is_listed_and_ended(jailers: Folders) -> None:
    async with connected(jailers) as g:
        running = asyncio.create_task(_endless(await g["alice"].send(X)))

        async def listed() -> list[Any]:
            return [run for run in await g.running() if run.kind == "jail"]

        async with asyncio.timeout(PATIENCE):
            while not (found := await listed()) or found[0].process is None:
                assert not running.done(), running.exception()
                await asyncio.sleep(0.02)
        (run,) = found
        assert run.name == "_endless" and run.peer == "alice" and run.seconds >= 0
        await g.cancel(run)
        with pytest.raises(grid.GridError) as met:
            await running
        assert met.value.code == "cancelled"
        assert await listed() == []
        await until(lambda: not _is_alive(run.process))


async def test_cancelled_it_ends_there(jailers: Folders) -> None:
    async with connected(jailers) as g:
        running = asyncio.create_task(_endless(await g["alice"].send(X)))
        async with asyncio.timeout(PATIENCE):
            while not (found := [run for run in await g.running() if run.process]):
                assert not running.done(), running.exception()
                await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: not _is_alive(found[0].process))


@grid.jail
def _endless(x: Any) -> Any:
    while True:
        x = x + 1


def _is_alive(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended between the two steps of this
        return False


async def test_many_at_once_wait_their_turn(jailers: Folders) -> None:
    async with connected(jailers) as g:
        x = await g["alice"].send(X)
        looped = grid.jail(jail_sources.looped)
        results = await asyncio.gather(*(looped(x + n) for n in range(12)))
        for n, result in enumerate(results):
            assert equal(await result.get(), looped(X + n))


def test_rules_say_what_the_owner_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = JailRules(principals=(FRIEND.id,))
    rules.check(FRIEND.id, "alice")
    with pytest.raises(Denied, match="--jails-for somebody"):
        rules.check("somebody", "alice")
    with pytest.raises(Denied, match="'grid start alice --jails' for everybody"):
        JailRules().check("somebody", "alice")
    assert JailRules.from_plain(rules.to_plain()) == rules
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Denied, match="on Linux only"):
        JailRules(for_all=True).check("somebody", "alice")


def test_without_walls_there_are_no_jails() -> None:
    usual = PoolSettings().worker
    open_worker = type(usual)(threads=usual.threads, is_sandboxed=False)
    with pytest.raises(BadRequest, match="behind the sandbox's walls or not at all"):
        PoolSettings(worker=open_worker, jails=JailRules(for_all=True))
    assert issubclass(JailFailed, GridError)
