"""What is queued for a peer leaves in order, early where there is much of it, whichever thread queues it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import grid
from grid.handle import Handle
from grid.outbox import Outbox
from peer.folders import Folders
from protocol.errors import BadRequest
from tests.waiting import until

_MANY = 400


class Link:
    """Notes the requests that are posted, as [op, args], and how many of them were to be sent at once."""

    name = "alice"
    era = 0
    is_closed = False
    connection: object = True

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.at_once = 0

    def post(
        self, op: str, args: dict[str, Any], then: Any = None, now: bool = False, first: Any = None
    ) -> asyncio.Future[Any]:
        self.posted.append((op, args))
        return asyncio.get_running_loop().create_future()

    def send_now(self) -> None:
        self.at_once = len(self.posted)

    def operations(self) -> list[Any]:
        return [operation for _, args in self.posted for operation in args.get("operations", ())]


def _outbox() -> tuple[Outbox, Link]:
    link: Any = Link()
    return Outbox(link, asyncio.get_running_loop()), link


def _here(outbox: Outbox, id: bytes) -> Handle:
    home: Any = SimpleNamespace(outbox=outbox, loop=outbox.loop, name="alice")
    return Handle(home, id, owns=True)


def _operation(number: int) -> list[Any]:
    return ["aten.neg.default", [number.to_bytes(16, "big")], {}, []]


async def test_a_few_operations_wait_for_the_end_of_the_turn() -> None:
    outbox, link = _outbox()
    outbox.post(_operation(1), ())
    outbox.post(_operation(2), ())
    assert link.posted == []
    await asyncio.sleep(0)
    assert link.posted == [("run", {"operations": [_operation(1), _operation(2)]})]


async def test_of_many_the_first_leave_while_the_turn_goes_on() -> None:
    outbox, link = _outbox()
    for number in range(_MANY):
        outbox.post(_operation(number), ())
    assert link.at_once > 1 and link.at_once == len(link.posted)
    await asyncio.sleep(0)
    assert link.operations() == [_operation(number) for number in range(_MANY)]


async def test_a_closed_line_is_sent_nothing_early() -> None:
    outbox, link = _outbox()
    link.connection = None
    link.dial = lambda: None
    for number in range(_MANY):
        outbox.post(_operation(number), ())
    assert link.posted == []


async def test_operations_of_threads_all_leave_once_and_no_id_before_the_operation_that_needs_it() -> None:
    outbox, link = _outbox()

    def use(thread: int) -> None:
        for number in range(_MANY):
            operation = _operation(thread * _MANY + number)
            outbox.post(operation, ())
            outbox.release(operation[1][0])

    threads = [threading.Thread(target=use, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    # With the operations, or a moment later.
    await until(lambda: len(link.operations()) == len(_released(link)) == 4 * _MANY)
    queued = link.operations()
    assert sorted(queued) == [_operation(number) for number in range(4 * _MANY)]
    for first in range(0, 4 * _MANY, _MANY):
        of_it = [_operation(first + number) for number in range(_MANY)]
        assert [operation for operation in queued if operation in of_it] == of_it
    _check_order(link)


def _released(link: Link) -> list[bytes]:
    return [id for _, args in link.posted for id in (*args.get("release", ()), *args.get("ids", ()))]


def _check_order(link: Link) -> None:
    gone: set[bytes] = set()
    for _, args in link.posted:
        for _, given, _, _ in args.get("operations", ()):
            assert gone.isdisjoint(given)
        gone.update(args.get("release", ()), args.get("ids", ()))


async def test_a_published_object_is_fetched_behind_queued_operations(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(3.0), tags="#outbox")
        y = x + 1
        assert (await x.fetch()).tolist() == [0, 1, 2]
        assert (await y.get()).tolist() == [1, 2, 3]
        await x.delete()


async def test_short_lived_pointers_leave_nothing(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        x = await alice.send(torch.arange(3.0))
        before = len(await alice.objects())
        for _ in range(5):
            for _ in range(_MANY):
                z = x + 1
                z.add_(x)
            await z.fetch()
        del z
        await alice.outbox.settle()
        assert len(await alice.objects()) == before
        assert not alice.outbox._underway and not alice.outbox._queue and not alice.outbox._released


@pytest.mark.parametrize("tags", [(), ("#refused",)], ids=["at once", "published, so that it takes a task"])
async def test_what_failed_is_known_where_the_value_was_refused_with_it(peers: Folders, tags: tuple[str, ...]) -> None:
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        x, at = await alice.send(torch.ones(2), tags=tags), await alice.send(torch.tensor([5]))
        lost = x[at]
        with pytest.raises(grid.OperationFailed) as caught:
            await (lost * 2).fetch()
        assert "results" not in caught.value.fields
        with pytest.raises(grid.OperationFailed):
            lost + 1
        assert (await (x + 1).get()).tolist() == [2, 2]
        await x.delete()


async def test_a_value_that_was_made_before_is_wished_for_by_itself() -> None:
    outbox, link = _outbox()
    here, other = _here(outbox, bytes(16)), _here(outbox, bytes(15) + b"\1")
    outbox.post(_operation(1), [here])
    outbox.run_and_fetch(here.id)
    assert link.posted == [("run", {"operations": [_operation(1)], "fetch": here.id})]
    link.posted.clear()
    outbox.post(_operation(2), [other])
    outbox.run_and_fetch(here.id)
    assert link.posted == [
        ("run", {"operations": [_operation(2)]}),
        ("run", {"operations": [], "fetch": here.id}),
    ]


async def test_what_nobody_has_any_more_is_let_go_of_with_the_request_that_makes_it() -> None:
    outbox, link = _outbox()
    x, y, z = (bytes(15) + bytes([number]) for number in (1, 2, 3))
    first, second = ["aten.neg.default", [x], {}, [y]], ["aten.neg.default", [y], {}, [z]]
    wanted = _here(outbox, z)
    outbox.post(first, [_here(outbox, y)])
    outbox.post(second, [wanted])
    outbox.run_and_fetch(z)
    assert link.posted == [("run", {"release": [y], "fetch": z, "operations": [first, second]})]
    del wanted
    outbox.close()


async def test_what_hangs_on_a_changed_object_that_nobody_has_any_more_fails_with_the_change() -> None:
    outbox, link = _outbox()
    x, y, coming = (bytes(15) + bytes([number]) for number in (1, 2, 3))
    arriving, kept = _here(outbox, coming), _here(outbox, y)
    hold = outbox.hold(arriving)
    change = ["aten.add_.Tensor", [x, coming], {}, []]
    outbox.post(change, [_here(outbox, x)])  # its last pointer is gone
    outbox.post(["aten.neg.default", [x], {}, [y]], [kept])
    outbox.let_go(hold, BadRequest("it never came"))
    await asyncio.sleep(0)
    with pytest.raises(BadRequest, match="never came"):
        kept.check()
    assert link.operations() == [change], "the peer refuses it, and so what else is on that memory"
    outbox.close()
