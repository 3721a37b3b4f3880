"""Links that outlive their connections: what was asked takes effect once, in order, or it is said that it may have."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import Server

from peer import closing, transport
from peer.calls import Answer, Call, Response
from peer.connection import Connection
from peer.keys import Identity
from peer.lasting import Lasting
from peer.leases import Leases
from peer.ledger import Ledgers
from peer.links import Links
from peer.membership import Member, Membership
from peer.opening import open_as_acceptor
from peer.payloads import MemoryPayload
from protocol import handshake, limits
from protocol.errors import (
    BadRequest,
    GridError,
    HandshakeFailed,
    LinkError,
    PeerLost,
    TimedOut,
    Unreachable,
)
from protocol.handshake import Introduction, Remote
from protocol.messages import Hello
from tests.faults import FaultProxy
from tests.waiting import until

ALICE, DORA = Identity.generate(), Identity.generate()
LEASE = bytes(range(16))


class Acceptor:
    """A peer's end of sessions, with leases and ledgers; `restart` forgets them. `done` are the requests that took
    effect, in order; those named "wait" go on when `go` is set."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.started: list[Any] = []
        self.go = asyncio.Event()
        self.sessions: list[Connection] = []
        self.server: Server | None = None
        self.restart()

    def restart(self) -> None:
        self.ledgers = Ledgers()
        self.leases = Leases(60, self.ledgers.forget)

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def handle(self, call: Call) -> Answer:
        number = call.args.get("n")
        self.started.append(number)
        if call.op == "refuse":
            raise BadRequest("no")
        if call.args.get("waits"):
            await self.go.wait()
        self.done.append(number)
        return Answer({"n": number, "op": call.op}, MemoryPayload(bytes(call.payload)))

    async def accept(self, socket: transport.GuardedServerConnection) -> None:
        def memory_of(principal: str, lease: bytes | None) -> int | None:
            return None if lease is None else self.leases.memory((principal, lease), time.monotonic())

        def ledger_of(remote: Remote) -> Any:
            return None if remote.lease is None else self.ledgers.of((remote.id, remote.lease))

        introduction = Introduction("peer", "alice")
        try:
            session = await open_as_acceptor(socket, introduction, ALICE, self.handle, None, memory_of, ledger_of)
        except LinkError:
            return
        self.sessions.append(session)
        await asyncio.shield(session.closed)

    async def __aenter__(self) -> Acceptor:
        self.server = await transport.listen("127.0.0.1", 0, self.accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.server is not None
        await asyncio.gather(*(session.close() for session in self.sessions))
        await closing.stop(*self.ledgers.tasks)
        self.server.close()
        await self.server.wait_closed()


class Setting:
    """A link to a peer, through a proxy."""

    def __init__(self, peer: Acceptor, proxy: FaultProxy, links: Links, member: Member) -> None:
        self.peer = peer
        self.proxy = proxy
        self.links = links
        self.member = member
        self.link = links.lasting(member)

    async def cut(self, *, reset: bool = False) -> None:
        """Cut the line, and wait until this end knows."""
        connection = self.link.connection
        assert connection is not None
        self.proxy.cut(reset=reset)
        await asyncio.shield(connection.closed)


@contextlib.asynccontextmanager
async def linked(patience: float = 10.0) -> AsyncIterator[Setting]:
    async with Acceptor() as peer, FaultProxy(peer.url) as proxy:
        member = Member(ALICE.id, "alice", (proxy.url,))
        membership = Membership()
        membership.learn([member])
        links = Links(DORA, Introduction("client", "dora", lease=LEASE), membership, patience=patience)
        try:
            yield Setting(peer, proxy, links, member)
        finally:
            await links.close()


async def test_requests_are_answered_over_one_connection() -> None:
    async with linked() as it:
        answers = await asyncio.gather(*(it.link.request("run", {"n": n}, b"x") for n in range(20)))
        assert [answer.result["n"] for answer in answers] == it.peer.done == list(range(20))
        assert bytes(answers[3].payload) == b"x" and it.proxy.connections == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_what_is_under_way_when_the_line_is_cut_takes_effect_once_and_is_answered(reset: bool) -> None:
    async with linked() as it:
        asked = [it.link.post("run", {"n": n, "waits": True}) for n in range(5)]
        await until(lambda: len(it.peer.started) == 5)
        await it.cut(reset=reset)
        after = it.link.post("run", {"n": 5})
        it.peer.go.set()
        answers = await asyncio.gather(*asked, after)
        assert [answer.result["n"] for answer in answers] == list(range(6))
        assert sorted(it.peer.done) == list(range(6)) and it.proxy.connections == 2


async def test_an_answer_that_was_cut_off_comes_again_with_its_payload() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        it.proxy.down.stall_after = 0
        asked = it.link.post("fetch", {"n": 1}, b"value" * 1_000)
        await until(lambda: it.peer.done == [0, 1])
        await it.cut()
        it.proxy.down.stall_after = None
        it.proxy.resume()
        assert bytes((await asked).payload) == b"value" * 1_000
        assert it.peer.done == [0, 1]


async def test_an_error_comes_again_too() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        it.proxy.down.stall_after = 0
        asked = it.link.post("refuse", {"n": 1})
        await until(lambda: it.peer.started == [0, 1])
        await it.cut()
        it.proxy.down.stall_after = None
        it.proxy.resume()
        with pytest.raises(BadRequest, match="no"):
            await asked
        assert it.peer.started == [0, 1]


async def test_requests_keep_their_order_over_cuts() -> None:
    async with linked() as it:
        rng = random.Random(7)
        asked = []
        for n in range(300):
            asked.append(it.link.post("run", {"n": n}))
            if n % 3 == 0:
                await asyncio.sleep(rng.uniform(0, 0.004))
            if rng.random() < 0.08:
                it.proxy.cut(reset=rng.random() < 0.5)
        answers = await asyncio.gather(*asked)
        assert [answer.result["n"] for answer in answers] == it.peer.done == list(range(300))
        assert it.proxy.connections > 3


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_cut_at_any_byte_changes_nothing(direction: str) -> None:
    async with linked() as it:
        faults = getattr(it.proxy, direction)
        await it.link.request("run", {"n": -1})
        for n, at in enumerate(range(1, 1_500, 61)):
            faults.cut_after, faults.cuts = at, 1  # of the next connection
            await it.cut()
            assert (await it.link.request("run", {"n": n})).result["n"] == n
        assert it.peer.done == [-1, *range(n + 1)]


async def test_one_that_comes_and_goes_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_MOST", 0.05)
    async with linked(patience=0.3) as it:
        await it.link.request("run", {"n": 0})
        it.proxy.up.cut_after = 500  # in the middle of every request
        await it.cut()
        with pytest.raises(LinkError):
            await it.link.request("run", {"n": 1}, bytes(10_000))
        it.proxy.up.cut_after = None
        assert (await it.link.request("run", {"n": 2})).result["n"] == 2


async def test_after_a_restart_what_may_be_repeated_is_and_the_rest_says_that_it_is_not_known() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        asked = {op: it.link.post(op, {"n": op, "waits": True}) for op in ("run", "execute", "put", "describe")}
        await until(lambda: len(it.peer.started) == 5)
        it.peer.restart()
        it.peer.go.set()
        era = it.link.era
        await it.cut()
        for op in ("run", "execute"):
            with pytest.raises(PeerLost, match=f"while {op} was under way, and whether it took effect is not known"):
                await asked[op]
        assert (await asked["put"]).result["n"] == "put" and (await asked["describe"]).result["n"] == "describe"
        assert it.link.era == era + 1


async def test_a_welcome_that_was_lost_does_not_hide_a_restart() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        asked = it.link.post("run", {"n": 1, "waits": True})
        await until(lambda: it.peer.started == [0, 1])
        it.peer.restart()
        it.peer.go.set()
        it.proxy.down.cut_after, it.proxy.down.cuts = 500, 1  # the restarted peer's first Welcome
        sessions = len(it.peer.sessions)
        await it.cut()
        with pytest.raises(PeerLost, match="not known"):
            await asked
        assert it.peer.started.count(1) == 1 and len(it.peer.sessions) >= sessions


async def test_what_was_not_sent_is_sent_to_the_restarted_peer() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        it.proxy.refuse = True
        await it.cut()
        asked = it.link.post("run", {"n": 1})
        it.peer.restart()
        it.proxy.refuse = False
        assert (await asked).result["n"] == 1


async def test_an_idle_link_comes_back_by_itself() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        await it.cut()
        await until(lambda: it.link.connection is not None)
        assert it.proxy.connections == 2 and it.link.era == 0


async def test_a_peer_that_stays_away_fails_what_waits_and_is_tried_again_when_asked() -> None:
    async with linked(patience=0.2) as it:
        await it.link.request("run", {"n": 0})
        asked = it.link.post("run", {"n": 1, "waits": True})
        await until(lambda: it.peer.started == [0, 1])
        it.proxy.refuse = True
        await it.cut()
        later = it.link.post("run", {"n": 2})
        with pytest.raises(PeerLost, match="whether it took effect is not known: alice cannot be reached"):
            await asked
        with pytest.raises(Unreachable, match="alice cannot be reached"):
            await later
        with pytest.raises(Unreachable):
            await it.link.request("run", {"n": 3})
        it.proxy.refuse = False
        it.peer.go.set()
        assert (await it.link.request("run", {"n": 4})).result["n"] == 4
        assert 2 not in it.peer.started and 3 not in it.peer.started


async def test_a_peer_that_was_given_up_is_found_again_within_the_grace() -> None:
    async with linked(patience=0.1) as it:
        await it.link.request("run", {"n": 0})
        it.proxy.refuse = True
        await it.cut()
        failed: list[GridError] = []
        it.link.on_failure = failed.append
        await until(lambda: failed)
        it.proxy.refuse = False
        await until(lambda: it.link.connection is not None)
        assert it.link.era == 0


async def test_nobody_at_the_first_address_is_said_at_once() -> None:
    async with linked(patience=60) as it:
        nowhere = Member(Identity.generate().id, "bob", ("ws://127.0.0.1:1",))
        with pytest.raises(Unreachable, match="bob cannot be reached"):
            await it.links.lasting(nowhere).request("run", {})
        stranger = Member(Identity.generate().id, "carol", (it.proxy.url,))
        with pytest.raises(HandshakeFailed, match="wrong peer"):
            await it.links.lasting(stranger).request("run", {})


async def test_a_process_that_is_known_to_have_ended_is_given_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_ENDED", 0.1)
    refused = Unreachable("connection refused", refused=True)
    async with linked() as it:
        connection = await it.links.to(it.member)

        async def connect() -> Connection:
            if connection.is_closed:
                raise refused
            return connection

        link = Lasting("alice", connect, lambda: True, patience=1_000)
        await link.request("run", {"n": 0})
        await connection.close()
        with pytest.raises(Unreachable, match="connection refused"):
            await link.request("run", {"n": 1})
        await link.close()


async def test_giving_up_a_request_gives_it_up_there_and_does_not_ask_again() -> None:
    async with linked() as it:
        asked = it.link.post("run", {"n": 0, "waits": True})
        await until(lambda: it.peer.started == [0])
        asked.cancel()
        (task,) = it.peer.ledgers.tasks
        await asyncio.wait([task])
        assert task.cancelled()
        await it.cut()
        await it.link.request("run", {"n": 1})
        assert it.peer.started == [0, 1]


async def test_one_given_up_while_there_is_no_connection_is_not_sent() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        it.proxy.refuse = True
        await it.cut()
        asked, kept = it.link.post("run", {"n": 1}), it.link.post("run", {"n": 2})
        asked.cancel()
        it.proxy.refuse = False
        await kept
        assert it.peer.started == [0, 2]


async def test_one_that_somebody_hears_of_goes_on_when_its_future_is_cancelled() -> None:
    async with linked() as it:
        heard: list[Response | GridError] = []
        asked = it.link.post("run", {"n": 0, "waits": True}, b"", heard.append)
        await until(lambda: it.peer.started == [0])
        asked.cancel()
        await it.cut()
        it.peer.go.set()
        await until(lambda: heard)
        assert isinstance(heard[0], Response) and it.peer.done == [0]


async def test_a_deadline_holds_while_there_is_no_connection() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        it.proxy.refuse = True
        await it.cut()
        with pytest.raises(TimedOut, match="no answer within"):
            await it.link.request("run", {"n": 1}, timeout=0.05)


async def test_a_payload_that_needs_a_stream_is_not_repeated() -> None:
    async with linked() as it:
        large = bytes(limits.INLINE_PAYLOAD + 1)
        await it.link.request("run", {"n": 0})
        it.proxy.down.stall_after = 0
        asked = it.link.post("execute", {"n": 1}, large)
        await until(lambda: it.peer.started == [0, 1])
        await it.cut()
        it.proxy.down.stall_after = None
        it.proxy.resume()
        with pytest.raises(PeerLost, match="not known"):
            await asked
        await it.link.request("run", {"n": 2})
        assert it.peer.started == [0, 1, 2]


async def test_an_answer_too_large_to_keep_says_that_it_is_gone() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        it.proxy.down.stall_after = 0
        asked = it.link.post("run", {"n": 1}, bytes(60_000))
        await until(lambda: it.peer.done == [0, 1])
        it.peer.ledgers.of((DORA.id, LEASE)).drop_answers()
        await it.cut()
        it.proxy.down.stall_after = None
        it.proxy.resume()
        with pytest.raises(PeerLost, match="its answer is not kept"):
            await asked


async def test_more_than_may_be_under_way_at_once_are_all_answered_over_a_cut() -> None:
    async with linked() as it:
        count = limits.MAX_REQUESTS + 300
        asked = [it.link.post("run", {"n": n, "waits": True}) for n in range(count)]
        await until(lambda: len(it.peer.started) == limits.MAX_REQUESTS)
        await it.cut()
        it.peer.go.set()
        answers = await asyncio.gather(*asked)
        assert [answer.result["n"] for answer in answers] == list(range(count))
        assert sorted(it.peer.done) == list(range(count))


async def test_what_waits_for_a_connection_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITING", 10)
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        it.proxy.refuse = True
        await it.cut()
        asked = [it.link.post("run", {"n": n}) for n in range(12)]
        failed = [each.exception() for each in asked if each.done()]
        assert len(failed) == 2 and all(isinstance(error, Unreachable) for error in failed)


async def closing_in_each_state(it: Setting, state: str) -> Awaitable[Response]:
    if state == "never dialled":
        return it.link.post("run", {"n": 0})
    await it.link.request("run", {"n": 0})
    if state == "dialling again":
        it.proxy.refuse = True
        await it.cut()
    asked = it.link.post("run", {"n": 1, "waits": True})
    if state == "under way":
        await until(lambda: it.peer.started == [0, 1])
    return asked


@pytest.mark.parametrize("state", ["never dialled", "dialling again", "under way"])
async def test_closing_ends_every_wait_at_once(state: str) -> None:
    async with linked() as it:
        asked = await closing_in_each_state(it, state)
        async with asyncio.timeout(60):
            await it.links.close()
            with pytest.raises(PeerLost):
                await asked
            with pytest.raises(PeerLost, match="closed"):
                await it.link.request("run", {})


async def test_what_runs_on_after_a_cut_ends_when_its_lease_is_over() -> None:
    async with linked() as it:
        asked = it.link.post("run", {"n": 0, "waits": True})
        await until(lambda: it.peer.started == [0])
        await it.links.close()
        await asyncio.gather(*(session.close() for session in it.peer.sessions))
        (task,) = it.peer.ledgers.tasks
        assert not task.done(), "the client may come back for it"
        it.peer.leases.expire(time.monotonic() + 61)
        await asyncio.wait([task])
        assert task.cancelled() and isinstance(asked.exception(), PeerLost)


async def test_a_transfer_under_way_waits_for_a_peer_that_has_ended_to_be_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "RECONNECT_ENDED", 0.05)
    async with linked() as it:
        away = False

        async def connect() -> Connection:
            if away:
                raise Unreachable("connection refused", refused=True)
            return await it.links.to(it.member)

        link = Lasting("alice", connect, lambda: True)
        moving, running = link.post("pull", {"n": 1, "waits": True}), link.post("run", {"n": 2, "waits": True})
        await until(lambda: len(it.peer.started) == 2)
        away = True
        it.peer.restart()
        it.proxy.cut()
        with pytest.raises(PeerLost, match="not known: connection refused"):
            await running
        with pytest.raises(Unreachable):  # what has not begun does not wait
            await link.request("pull", {"n": 3})
        assert not moving.done()
        away = False
        it.peer.go.set()
        assert (await moving).result["n"] == 1 and it.peer.started.count(3) == 0
        await link.close()


async def test_a_transfer_whose_peer_stays_away_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESUME_TIMEOUT", 0.3)
    async with linked(patience=0.1) as it:
        moving = it.link.post("pull", {"n": 1, "waits": True})
        await until(lambda: it.peer.started)
        it.proxy.refuse = True
        await it.cut()
        with pytest.raises(PeerLost, match="alice cannot be reached") as lost:
            await moving
        assert lost.value.fields["why"].startswith("alice cannot be reached")
        it.peer.go.set()


async def test_a_frame_that_a_bad_line_damages_costs_that_line_and_no_request() -> None:
    async with linked() as it:
        await it.link.request("run", {"n": 0})
        asked = it.link.post("run", {"n": 1, "waits": True})
        await until(lambda: it.peer.started == [0, 1])
        # The magic of the next frame, after the two bytes of its WebSocket head.
        it.proxy.down.corrupt_at, it.proxy.down.corruptions = it.proxy.down.passed + 2, 1
        it.peer.go.set()
        assert (await asked).result["n"] == 1
        assert it.peer.done == [0, 1] and it.proxy.connections == 2 and it.proxy.down.corruptions == 0


async def test_ends_that_do_not_understand_each_other_say_so_soon() -> None:
    async with linked(patience=1_000) as it:

        async def talk_nonsense(call: Call) -> Answer:
            it.peer.started.append(call.op)
            await call.connection._socket.send(b"nonsense")
            return await asyncio.Future()

        it.peer.handle = talk_nonsense  # type: ignore[method-assign]
        with pytest.raises(PeerLost, match="a frame cut off") as lost:
            await it.link.request("describe", {})
        assert it.peer.started == ["describe"] * limits.BLOCK_TRIES
        assert "a frame cut off" in lost.value.fields["why"]


async def test_after_ends_that_did_not_understand_each_other_a_line_that_is_down_is_waited_for_again() -> None:
    async with linked() as it:
        connection = await it.links.to(it.member)
        other = HandshakeFailed("the other end speaks versions [2], this one 1: upgrade one", versions=[2])
        refused = Unreachable("connection refused", refused=True)
        tries: list[GridError] = [other] * limits.BLOCK_TRIES + [refused] * 2

        async def connect() -> Connection:
            if connection.is_closed:
                if tries:
                    raise tries.pop(0)
                return await it.links.to(it.member)
            return connection

        link = Lasting("alice", connect, patience=1_000)
        await link.request("run", {"n": 0})
        failed: list[GridError] = []

        def ask_again(error: GridError) -> None:
            failed.append(error)
            link.on_failure = failed.append
            later.append(link.post("run", {"n": 1}))

        later: list[Awaitable[Response]] = []
        link.on_failure = ask_again
        await connection.close()
        await until(lambda: later)
        assert (await later[0]).result["n"] == 1
        assert failed == [other] and not tries
        await link.close()


async def test_a_peer_that_was_upgraded_meanwhile_says_so_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(patience=1_000) as it:
        moving = it.link.post("pull", {"n": 1, "waits": True})
        await until(lambda: it.peer.started)
        monkeypatch.setattr(handshake, "VERSION", 2)  # at either end: what comes is another than what is understood
        monkeypatch.setattr(handshake.Handshake, "hello", _old_hello(handshake.Handshake.hello))
        await it.cut()
        with pytest.raises(PeerLost, match=r"speaks versions \[1\], this one 2: upgrade one"):
            await moving
        it.peer.go.set()


def _old_hello(hello: Callable[[Any], Hello]) -> Callable[[Any], Hello]:
    return lambda self: dataclasses.replace(hello(self), versions=[1])
