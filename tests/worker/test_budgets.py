"""What a principal may take: memory, over all of its workers, and processors, by the peer's own account."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from peer import machine
from peer.pool_settings import PoolSettings
from peer.worker.budgets import Budgets
from peer.workers import PrincipalStatistics, Settings
from protocol import limits
from protocol.errors import BadRequest, GridError, TooLarge
from tests.waiting import until
from tests.worker.conftest import Asker, Workplace, new_id

MEMORY = 256 * limits.MIB
QUARTER = [64 * limits.MIB // 4]  # the shape of as many float32 as fill a quarter of it


# --- the books --------------------------------------------------------------------------------------------


def test_what_one_worker_holds_is_not_there_for_the_others_of_its_principal() -> None:
    books = Budgets(memory=1000)
    one, two, foreign = object(), object(), object()
    books.began("ann", one)
    books.began("ann", two)
    books.began("bob", foreign)
    books.holds("ann", one, 300)
    assert books.allowed("ann", one) == 1000
    assert books.allowed("ann", two) == 700
    assert books.allowed("bob", foreign) == 1000
    books.holds("ann", two, 2000)
    assert books.allowed("ann", one) == 0
    books.ended("ann", two)
    assert books.allowed("ann", one) == 1000


def test_the_word_of_a_worker_that_is_gone_or_makes_no_sense_changes_nothing() -> None:
    books = Budgets(memory=1000)
    one, two = object(), object()
    books.began("ann", one)
    books.began("ann", two)
    books.holds("ann", one, -(10**9))
    assert books.allowed("ann", two) == 1000
    books.ended("ann", one)
    books.holds("ann", one, 500)
    books.holds("bob", one, 500)
    assert books.allowed("ann", two) == 1000


def test_a_share_of_the_processors_is_a_bucket() -> None:
    books = Budgets(cpu=0.5, burst=10.0)
    books.began("ann", object())
    books.took("ann", 9.0, now=100.0)
    books.check("ann", now=100.0)
    books.took("ann", 5.0, now=102.0)  # 9 - 1 + 5
    with pytest.raises(TooLarge) as caught:
        books.check("ann", now=102.0)
    assert caught.value.fields == {"limit": "worker_cpu", "size": 13, "allowed": 10, "wait": 8}
    assert "your share of 0.5 of a core" in caught.value.message
    assert "ask again in 8 s" in caught.value.message
    books.check("bob", now=102.0)
    with pytest.raises(TooLarge):
        books.check("ann", now=107.0)
    books.check("ann", now=110.0)
    assert books.statistics() == (PrincipalStatistics("ann", 1, 0, 14.0, 0),)


@pytest.mark.parametrize(("cores", "words"), [(0.25, "0.25 of a core,"), (1, "one core,"), (2.5, "2.5 cores,")])
def test_a_share_is_said_in_cores(cores: float, words: str) -> None:
    books = Budgets(cpu=cores, burst=10.0)
    books.began("ann", object())
    books.took("ann", 90.0, now=100.0)
    with pytest.raises(TooLarge, match=f"your share of {words} and are more than 10 s ahead of it: ask again in"):
        books.check("ann", now=100.0)


def test_without_a_share_nobody_waits() -> None:
    books = Budgets()
    books.began("ann", object())
    books.took("ann", 1e6, now=0.0)
    books.check("ann", now=0.0)
    assert books.statistics()[0].cpu == 1e6


def test_what_is_on_its_way_is_bounded_for_each_principal() -> None:
    books = Budgets(memory=100 * limits.MIB)
    books.began("ann", object())
    books.began("bob", object())
    books.goes_out("ann", 150 * limits.MIB)  # the first one always: its worker had room for it
    with pytest.raises(TooLarge, match=r"take 150 MiB .* of 1 MiB, .* the 100 MiB .* --worker-memory") as caught:
        books.goes_out("ann", limits.MIB)
    assert caught.value.fields == {"limit": "worker_memory", "size": 151 * limits.MIB, "allowed": 100 * limits.MIB}
    books.goes_out("bob", 60 * limits.MIB)
    books.goes_out("bob", 40 * limits.MIB)
    books.came_out("ann", 150 * limits.MIB)
    books.goes_out("ann", 100 * limits.MIB)
    books.came_out("somebody who was forgotten", 1)


def test_only_so_many_principals_are_remembered_and_debtors_longest() -> None:
    books = Budgets(cpu=0.001, burst=1.0)
    present, debtor = object(), object()
    books.began("present", present)
    books.began("debtor", debtor)
    books.took("debtor", 50.0, now=0.0)
    books.ended("debtor", debtor)
    for number in range(2 * limits.KNOWN_PRINCIPALS):
        worker = object()
        books.began(f"passer-by {number}", worker)
        books.ended(f"passer-by {number}", worker)
    known = [each.principal for each in books.statistics()]
    assert len(known) <= limits.KNOWN_PRINCIPALS + 1
    assert "present" in known
    assert "debtor" in known


@pytest.mark.parametrize("changes", [{"cpu": 0}, {"cpu": float("inf")}, {"cpu": -1}, {"burst": 0}])
def test_a_share_is_a_positive_number(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        PoolSettings(**changes)


@pytest.mark.parametrize("changes", [{"memory": 0}, {"memory": 1.5e9}, {"seconds": 0}, {"seconds": float("inf")}])
def test_a_worker_has_memory_and_time(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Settings(**changes)


def test_settings_go_through_json() -> None:
    settings = PoolSettings(Settings(memory=MEMORY, seconds=2.5), cpu=0.5, burst=3.0)
    assert PoolSettings.from_plain(settings.to_plain()) == settings


# --- workers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[Workplace]:
    """Workers with little memory, and half of a core."""
    place = Workplace(PoolSettings(dataclasses.replace(PoolSettings().worker, memory=MEMORY), cpu=0.001, burst=0.3))
    yield place
    place.close()


@pytest.fixture
def poor(small: Workplace) -> Iterator[Asker]:
    someone = small.asker()
    yield someone

    someone.end()


def held_by(asker: Asker) -> int:
    """In the peer's books."""
    return next(each.held for each in asker.pool.statistics().principals if each.principal == asker.principal)


def held_by_itself(asker: Asker) -> int:
    async def work() -> int:
        return (await asker.worker.usage()).bytes_held

    return asker.do(work())


def fill(asker: Asker) -> bytes:
    made = asker.op("aten.zeros.default", QUARTER)
    assert isinstance(made, bytes)
    return made


def change(asker: Asker, object_id: bytes) -> GridError | None:
    """In place."""
    (result,) = asker.run(["aten.add_.Scalar", [object_id, 1], {}, []])
    return result if isinstance(result, GridError) else None


def test_a_principal_gets_what_it_may_have_and_more_when_it_lets_go(poor: Asker) -> None:
    mine = [fill(poor) for _ in range(4)]
    with pytest.raises(TooLarge) as caught:
        fill(poor)
    error = caught.value
    assert error.fields["limit"] == "worker_memory"
    assert error.fields["allowed"] == MEMORY
    assert error.fields["held"] == MEMORY
    assert "--worker-memory" in error.message
    assert "delete()" in error.message
    assert poor.value(mine[0]).sum() == 0  # and all else goes on
    poor.drop(mine[0])
    fill(poor)


def test_a_value_that_finds_no_room_on_its_way_out_is_refused_and_nothing_is_lost(poor: Asker) -> None:
    wide = poor.op("aten.expand.default", poor.op("aten.ones.default", [1]), [2 * QUARTER[0]])  # of four bytes
    mine = [fill(poor) for _ in range(3)]
    before = poor.worker
    with pytest.raises(TooLarge, match=r"a value of 128 MiB .*\(x\[:1000\]\.get\(\)") as caught:
        poor.value(wide)
    assert caught.value.fields["limit"] == "worker_memory"
    poor.drop(mine[0])
    assert poor.value(wide).sum() == 2 * QUARTER[0]
    assert poor.worker is before


def test_values_that_nobody_has_taken_yet_are_no_more_than_a_principal_may_have(poor: Asker) -> None:
    """Else the peer's memory would be full of them: it cannot know how fast somebody reads."""
    one = fill(poor)

    async def ask(count: int) -> list[Any]:
        exports = [poor.worker.export(one) for _ in range(count)]
        return list(await asyncio.gather(*exports, return_exceptions=True))

    async def used() -> int:
        return poor.pool.buffers.statistics().used_bytes

    before = poor.do(used())
    values = poor.do(ask(10))
    assert poor.do(used()) - before == MEMORY
    refused = [value for value in values if isinstance(value, TooLarge)]
    assert len(refused) == 6
    assert "one after the other" in refused[0].message
    both = new_id()

    async def with_operations() -> None:
        """The value is refused, what it is of is there."""
        heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        poor.worker.run_for(heard, [["aten.add.Scalar", [one, 1], {}, [both]]], both, (), [both])
        (made,), value = await heard
        assert isinstance(value, TooLarge)
        assert made[0].shape == tuple(QUARTER)

    poor.do(with_operations())

    async def let_go() -> None:
        for value in values:
            if not isinstance(value, TooLarge):
                value.data.release()

    poor.do(let_go())
    assert poor.value(both)[0] == 1


def test_views_share_memory_and_in_place_operations_need_none(poor: Asker) -> None:
    mine = [fill(poor) for _ in range(4)]
    half = poor.op("aten.slice.Tensor", mine[0], 0, 0, QUARTER[0] // 2)
    assert change(poor, mine[0]) is None
    assert held_by_itself(poor) == MEMORY
    poor.drop(mine[0])  # the view keeps all of it
    assert held_by_itself(poor) == MEMORY
    poor.drop(half)
    assert held_by_itself(poor) == MEMORY * 3 // 4


def test_what_is_mapped_counts_only_when_it_is_changed(poor: Asker, memory_file: Any) -> None:
    tensor = torch.zeros(QUARTER)
    fd = memory_file(bytes(tensor.nbytes))
    given = [poor.send(tensor, fd=fd) for _ in range(6)]
    assert held_by_itself(poor) == 0
    for object_id in given[:4]:
        assert change(poor, object_id) is None
    assert held_by_itself(poor) == MEMORY
    assert isinstance(change(poor, given[4]), TooLarge)
    assert change(poor, given[0]) is None  # has been copied already
    assert poor.value(given[0])[0] == 2
    poor.drop(*given)
    assert held_by_itself(poor) == 0


def test_what_is_held_is_known_without_looking_at_every_tensor(poor: Asker) -> None:
    ids = [poor.op("aten.zeros.default", [1000]) for _ in range(20)]
    views = [poor.op("aten.view.default", object_id, [10, 100]) for object_id in ids]
    assert held_by_itself(poor) == 20 * 4000
    poor.drop(*ids)
    assert held_by_itself(poor) == 20 * 4000
    poor.drop(*views)
    assert held_by_itself(poor) == 0


def test_workers_of_one_principal_share_its_memory(poor: Asker) -> None:
    mine = [fill(poor) for _ in range(3)]

    async def elsewhere(count: int) -> list[GridError | None]:
        worker = poor.pool.worker(poor.principal, frozenset({"somebody"}))
        results = await worker.run([["aten.zeros.default", [QUARTER], {}, [new_id()]] for _ in range(count)])
        return [result if isinstance(result, GridError) else None for result in results]

    fitted, refused = poor.do(elsewhere(2))
    assert fitted is None
    assert isinstance(refused, TooLarge)
    assert refused.fields["allowed"] == MEMORY // 4
    with pytest.raises(TooLarge):
        fill(poor)

    async def end() -> None:
        poor.pool.worker(poor.principal, frozenset({"somebody"})).kill()

    poor.do(end())
    assert held_by(poor) == MEMORY * 3 // 4
    fill(poor)
    poor.drop(*mine)


def test_a_principal_takes_nothing_of_another(poor: Asker) -> None:
    other = poor.workplace.asker()
    for _ in range(4):
        fill(poor)
    for _ in range(4):
        fill(other)
    assert held_by(other) == held_by(poor) == MEMORY
    other.end()


def test_a_worker_that_has_more_than_it_says_is_killed(poor: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    poor.op("aten.zeros.default", [1])
    worker, pid = poor.worker, poor.pid
    monkeypatch.setattr(machine, "own_memory", lambda asked: 2 * MEMORY + limits.WORKER_OWN if asked == pid else 0)

    async def lost() -> str:
        error = await asyncio.shield(worker.lost)
        return error.message

    message = poor.do(lost())
    assert "more memory than" in message
    assert "--worker-memory" in message
    assert poor.pool.statistics().principals[-1].kills == 1


def burn(asker: Asker) -> list[Any]:
    """Some tenths of a second of a processor."""
    x = asker.op("aten.rand.default", [500, 500])
    return asker.run(["aten.linalg_svd.default", [x], {}, [new_id() for _ in "usv"]])


def test_the_peer_counts_what_operations_take(poor: Asker) -> None:
    def booked() -> float:
        return next(each.cpu for each in poor.pool.statistics().principals if each.principal == poor.principal)

    burn(poor)
    before = machine.cpu_seconds(poor.pid)
    assert before is not None
    assert before > 0
    poor.do(until(lambda: booked() >= before))


def test_who_took_more_than_a_share_waits_and_others_do_not(poor: Asker) -> None:
    def check(principal: str) -> None:
        async def work() -> None:
            poor.pool.check_share(principal)

        poor.do(work())

    def is_overdrawn() -> bool:
        return poor.pool.is_overdrawn(poor.principal)

    check(poor.principal)
    while not poor.do(_soon(is_overdrawn)):
        burn(poor)
    with pytest.raises(TooLarge, match="ask again in"):
        check(poor.principal)
    check("somebody else")


async def _soon(condition: Any) -> bool:
    return bool(condition())


def test_to_die_is_no_way_not_to_be_counted(poor: Asker) -> None:
    async def die() -> float:
        worker = poor.worker
        await worker.usage()
        future = worker.run([["aten.rand.default", [[100]], {}, [new_id()]]])
        poor.pool._forks._by_pid.pop(worker.pid or 0, None)  # as if the zygote had told of its end
        poor.pool._watching._asked = asyncio.get_running_loop().time() - 0.7
        worker.kill()
        await asyncio.wait([future])
        return next(each.cpu for each in poor.pool.statistics().principals if each.principal == poor.principal)

    assert poor.pid
    assert poor.do(die()) >= 0.7


def test_workers_give_way_to_their_peer(asker: Asker) -> None:
    asker.op("aten.zeros.default", [1])
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, asker.pid) > own


def test_so_many_values_may_be_on_their_way_and_no_principal_has_them_all() -> None:
    books = Budgets()
    for name in ("ann", "bob", "cyd", "dan", "eve"):
        books.began(name, object())
    for _ in range(limits.OUTGOING_EACH):
        books.goes_out("ann", 1)
    with pytest.raises(TooLarge, match="get one after the other") as caught:
        books.goes_out("ann", 1)
    assert caught.value.fields["limit"] == "OUTGOING_EACH"
    for name in ("bob", "cyd", "dan"):
        for _ in range(limits.OUTGOING_EACH):
            books.goes_out(name, 1)
    with pytest.raises(TooLarge, match="get yours again later") as caught:
        books.goes_out("eve", 1)
    assert caught.value.fields["limit"] == "OUTGOING"
    books.came_out("ann", 1)
    books.goes_out("eve", 1)
