"""A value that was awaited after each use of a stretch is asked for with the next one, and is right all the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

import grid
from grid.outbox import Outbox
from grid.pointer import Pointer, _dispatch
from peer.folders import Folders
from peer.lasting import Lasting
from protocol.errors import GridError, OperationFailed

_OPERATIONS = 20  # of one stretch: more than the first that leave early
_LEARNED = 6  # uses until a value is foreseen: it is kept, that is known, and awaited


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Of each request to a peer what it is: "operations" (also by number), "with a value", or "a value" alone."""
    found: list[str] = []
    original = Lasting.post

    def post(self: Any, op: str, args: Any, *others: Any, **named: Any) -> Any:
        if op == "run":
            found.append("a value" if not args["operations"] else "with a value" if "fetch" in args else "operations")
        elif op != "release":
            found.append(op)
        return original(self, op, args, *others, **named)

    monkeypatch.setattr(Lasting, "post", post)
    yield found


@contextlib.asynccontextmanager
async def _alice(peers: Folders) -> AsyncIterator[Any]:
    _dispatch._repeated._plans.clear()
    async with grid.connect(folders=peers) as g:
        yield g["alice"]


_EARLY, _LATE = 0, 11  # operations before it: it is asked for behind the request, or in it


def _step(x: Any, before: int = _LATE) -> tuple[Any, Any]:
    """A value that is there before all is done, and what goes on after it."""
    rest = x
    for _ in range(before):
        rest = rest + x
    loss = (x * 2).sum()
    for _ in range(_OPERATIONS - before):
        rest = rest + x
    return loss, rest


async def _learned(x: Any, sent: list[str], before: int = _LATE) -> None:
    outbox = x._handle.home.outbox
    for _ in range(_LEARNED):
        loss, _ = _step(x, before)
        is_foreseen = bool(outbox._foreseen)
        await loss.get()
        await outbox.settle()
    assert is_foreseen
    sent.clear()


@pytest.mark.parametrize("before", [_EARLY, _LATE], ids=["early", "late"])
async def test_it_comes_with_the_operations_that_make_it(peers: Folders, sent: list[str], before: int) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent, before)
        for number in range(5):
            y = x + float(number)
            await y
            sent.clear()
            loss, rest = _step(y, before)
            assert sent == (["operations", "a value"] if before == _EARLY else ["with a value"])
            assert float(await loss.get()) == 2 * (3 + 3 * number)
            assert sent[-1] == "operations" and len(sent) == (3 if before == _EARLY else 2)
            assert torch.equal(await rest.get(), (torch.arange(3.0) + number) * (_OPERATIONS + 1))


@pytest.mark.parametrize("before", [_EARLY, _LATE], ids=["early", "late"])
async def test_it_is_not_what_the_object_was_before_it_was_written_to(
    peers: Folders, sent: list[str], before: int
) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent, before)
        loss, _ = _step(x, before)
        loss += 1
        assert float(await loss.get()) == 7
        await _learned(x, sent, before)
        loss, _ = _step(x, before)
        loss.view(1).mul_(2)  # by another name of its memory
        assert float(await loss.get()) == 12
        await _learned(x, sent, before)
        loss, _ = _step(x, before)
        await asyncio.sleep(0)  # it has left, and the writing comes after it
        with torch.no_grad():
            loss.detach().fill_(5)
        assert float(await loss.fetch()) == 5
        assert float(await loss.get()) == 5


async def test_what_a_program_has_written_to_is_asked_for_anew(peers: Folders, sent: list[str]) -> None:
    @grid.plan
    def double(value: Any) -> Any:
        return value * 2

    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent)
        loss, _ = _step(x)
        assert float(await (await alice.grid.run(double, loss)).get()) == 12
        sent.clear()
        assert float(await loss.get()) == 6
        assert sent and "with a value" not in sent


async def test_what_nobody_awaits_is_not_asked_for_again(peers: Folders, sent: list[str]) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent)
        for _ in range(3):
            _step(x)
            await alice.outbox.settle()
        assert sent.count("with a value") == 1
        assert not alice.outbox._foreseen


async def test_it_can_be_fetched_twice_and_by_two_at_once(peers: Folders, sent: list[str]) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent)
        loss, _ = _step(x)
        assert list(map(float, await asyncio.gather(loss.fetch(), loss.fetch()))) == [6, 6]
        assert float(await loss.get()) == 6


async def test_who_gives_up_waiting_for_it_may_ask_again(peers: Folders, sent: list[str]) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent)
        loss, rest = _step(x)
        waiting = asyncio.ensure_future(loss.fetch())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert float(await loss.get()) == 6
        assert torch.equal(await rest.get(), torch.arange(3.0) * (_OPERATIONS + 1))


async def test_what_fails_on_the_way_to_it_fails_there(peers: Folders, sent: list[str]) -> None:
    def step(x: Any, at: Any) -> tuple[Any, Any]:
        lost = x[at]
        loss = lost.sum()
        for _ in range(_OPERATIONS):
            x = x + 1
        return loss, x

    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        here, beyond = await alice.send(torch.tensor([1])), await alice.send(torch.tensor([7]))
        for _ in range(_LEARNED):
            loss, _ = step(x, here)
            assert float(await loss.get()) == 1
            await alice.outbox.settle()
        loss, rest = step(x, beyond)
        with pytest.raises(OperationFailed):
            await loss.get()
        assert torch.equal(await rest.get(), torch.arange(3.0) + _OPERATIONS)
        with pytest.raises(GridError):
            await loss.fetch()


async def test_the_inverse_of_a_singular_matrix_is_refused_though_it_came_before_the_look(
    peers: Folders, sent: list[str]
) -> None:
    """An inverse and the look whether it is one are two operations, and may be in two requests."""

    def step(a: Any, later: int) -> Any:
        for _ in range(later):  # so that the first request ends just behind the inverse
            a = a + 0
        return torch.linalg.inv(a)

    async with _alice(peers) as alice:
        good, singular = await alice.send(torch.eye(2)), await alice.send(torch.zeros(2, 2))
        for later in range(12, 18):
            for _ in range(_LEARNED):
                inverse = step(good, later)
                for _ in range(_OPERATIONS):
                    good + 1
                assert torch.equal(await inverse.get(), torch.eye(2))
                await alice.outbox.settle()
            for has_left in (False, True):
                inverse = step(singular, later)
                for _ in range(_OPERATIONS):
                    good + 1
                if has_left:
                    await asyncio.sleep(0)
                with pytest.raises(GridError, match="singular"):
                    await inverse.get()


async def test_it_comes_over_another_connection_too(peers: Folders, sent: list[str]) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent)
        loss, rest = _step(x)
        alice.outbox.link.connection.give_up("cut by a test")
        assert float(await loss.get()) == 6
        assert torch.equal(await rest.get(), torch.arange(3.0) * (_OPERATIONS + 1))
        await _learned(x, sent)


async def test_nothing_of_it_is_left_when_its_pointers_are_gone(peers: Folders, sent: list[str]) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent)
        loss, rest = _step(x)
        outbox: Outbox = alice.outbox
        await outbox.settle()
        assert isinstance(loss, Pointer) and len(outbox._foreseen._values) == 1
        del loss, rest
        assert not outbox._foreseen


async def test_what_a_thread_writes_while_it_is_asked_for_is_in_the_value(peers: Folders, sent: list[str]) -> None:
    """The thread has counted its write, and not queued it, when the request leaves that asks for the value."""
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent)
        outbox: Outbox = alice.outbox
        counted, may_queue = threading.Event(), threading.Event()
        original = outbox.post
        writers: list[threading.Thread] = []

        def post(*given: Any, **named: Any) -> None:
            if threading.current_thread() in writers:
                counted.set()
                assert may_queue.wait(30)
            original(*given, **named)

        outbox.post = post  # type: ignore[method-assign]
        rest = x
        for _ in range(_LATE):
            rest = rest + x
        loss = (x * 2).sum()
        writers.append(threading.Thread(target=loss.add_, args=(100.0,)))
        writers[0].start()
        assert counted.wait(30)
        for _ in range(_OPERATIONS - _LATE):
            rest = rest + x
        assert outbox._foreseen
        may_queue.set()
        writers[0].join()
        assert float(await loss.get()) == 106


async def test_what_threads_queue_is_not_foreseen(peers: Folders, sent: list[str]) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        await _learned(x, sent)

        def train() -> None:
            for _ in range(_LEARNED):
                loss, _ = _step(x)
                assert loss.item() == 6

        await asyncio.to_thread(train)
        assert "with a value" not in sent


async def test_of_each_stretch_one_value_is_kept(peers: Folders, sent: list[str]) -> None:
    async with _alice(peers) as alice:
        x = await alice.send(torch.arange(3.0))
        kept: list[Any] = []
        for number in range(4 * _LEARNED):
            loss, rest = _step(x)
            early = rest + 1
            await (loss if number % 2 else early).fetch()
            kept += (loss, rest, early)
            await alice.outbox.settle()
            assert len(alice.outbox._foreseen._values) <= len(alice.outbox._stretches._kept)
        await _learned(x, sent)
        for _ in range(5):
            loss, _ = _step(x)
            await alice.outbox.settle()
            await loss.tag("#kept")
            await loss.delete()
            assert len(alice.outbox._foreseen._values) <= len(alice.outbox._stretches._kept)
