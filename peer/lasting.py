"""A link to one member that outlives its connections: what was asked over it is asked again over the next one.

Requests keep their order. Each has a number (`once`, SPEC.md, Requests): an end that has it already answers as it did,
so none takes effect twice. Where the other end has forgotten (it was restarted, or the lease was over: its memory in
the handshake is another), what may be repeated is asked again, and of the rest it is said that its effect is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any

from peer.asking import Asked, wait_for
from peer.calls import Response, Statistics
from peer.connection import Connection
from peer.lasted import Lasted
from peer.patience import misunderstanding
from protocol import limits
from protocol.errors import GridError, HandshakeFailed, LinkError, PeerLost, Unreachable

_log = logging.getLogger("peergrid.lasting")


class Lasting:
    """Requests to one member, over whatever connection there is. It dials when the first one is asked.

    After a loss it dials again, for `patience` seconds in all; then what waits fails, and it goes on trying for as long
    as the other end keeps what is leased here (limits.LEASE_GRACE). Transfers under way wait for RESUME_TIMEOUT. Where
    the ends do not understand each other, what waits is told after limits.BLOCK_TRIES times without an answer.

    Args:
        name: the member's, for messages.
        connect: an open connection; one try.
        has_ended: whether it is known that the member's process is gone.
        loop: in which it waits; else the one that runs.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[Connection]],
        has_ended: Callable[[], bool] = lambda: False,
        patience: float = limits.RECONNECT_TIMEOUT,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.name = name
        self.loop = loop or asyncio.get_running_loop()
        self.era = 0  # how often the member forgot what this end had there
        self.is_closed = False
        self.on_open: Callable[[], None] = lambda: None  # there is a connection, and what waited was asked
        self.on_forgotten: Callable[[], None] = lambda: None  # a new era has begun
        self.on_failure: Callable[[GridError], None] = lambda _: None  # the member is given up for now
        self._connect = connect
        self._has_ended = has_ended
        self._patience = patience
        self.connection: Connection | None = None  # the one that it uses now
        self._memory: int | None = None
        self._unanswered: dict[int, Lasted] = {}
        self._next = 1
        self._trouble: _Trouble | None = None
        self._misunderstandings = 0  # since the last answer, or since they were told
        self._opened = 0.0
        self._dialling: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # somebody asks: no time for waiting between two tries

    def __repr__(self) -> str:
        return f"<Lasting link to {self.name}, {'not open' if self.connection is None else 'open'}>"

    @property
    def peer_name(self) -> str:
        return self.name

    @property
    def asked(self) -> int:
        """Grows with each request."""
        return self._next

    def statistics(self) -> Statistics:
        """Of the connection that it uses now."""
        return self.connection.statistics() if self.connection is not None else Statistics()

    # --- asking -------------------------------------------------------------------------------------------

    def post(
        self,
        op: str,
        args: dict[str, Any],
        payload: bytes = b"",
        then: Callable[[Response | GridError], None] | None = None,
        *,
        now: bool = False,
        first: dict[str, Any] | None = None,
    ) -> Asked:
        """Ask without waiting; as Connection.post. While there is no connection, requests wait in their order. With
        `now` it leaves at once where that can be, and not at the end of this turn of the loop. `first` are arguments
        that mean the same over the connection that there is now, and over no other."""
        number = self._next
        asked = Lasted(self, number, op, args, payload, then)
        if self.is_closed:
            asked.fail(self._closed(op))
            return asked
        self._next = number + 1
        unanswered = self._unanswered
        unanswered[number] = asked
        connection = self.connection
        if connection is not None:
            asked.memory = self._memory
            short = args if first is None else first
            connection.ask(asked, op, short, payload, asked.once, next(iter(unanswered)), now)
        elif len(unanswered) > limits.MAX_WAITING:
            asked.fail(
                Unreachable(f"{self.name} cannot be reached, and {limits.MAX_WAITING} requests wait for it already")
            )
        else:
            self.dial()
        return asked

    async def request(
        self, op: str, args: dict[str, Any], payload: bytes = b"", timeout: float | None = None
    ) -> Response:
        """Ask and wait for the answer; as Connection.request.

        Raises:
            GridError: what the other end answered with; PeerLost where it is not known whether it took effect;
                Unreachable where it was never sent; TimedOut.
        """
        return await wait_for(self.post(op, args, payload), timeout, op, self.name)

    def send_now(self) -> None:
        """Send what was posted now, if that can be done, and not at the end of this turn of the loop."""
        if self.connection is not None:
            self.connection.send_now()

    def over(self, number: int) -> None:
        """The answer to a request is there, or nobody wants it any more."""
        self._unanswered.pop(number, None)
        self._trouble = None
        self._misunderstandings = 0

    # --- connections --------------------------------------------------------------------------------------

    def met(self, memory: int | None) -> None:
        """A connection to the member was opened, this link's or another: what it remembers of our lease."""
        if memory == self._memory:
            return
        was_known, self._memory = self._memory is not None, memory
        if was_known:
            self.era += 1
            self.on_forgotten()

    def dial(self) -> None:
        """Have a connection soon, if there is none."""
        self._wanted.set()
        if self.connection is None and not self.is_closed and (self._dialling is None or self._dialling.done()):
            self._dialling = self.loop.create_task(self._dial(), name=f"dial {self.name}")

    async def _dial(self) -> None:
        try:
            await self._dial_until_open()
        except Exception:
            _log.exception("defect while dialling %s", self.name)
            self._fail(PeerLost("a defect at this end; its log has the traceback", peer=self.name))

    async def _dial_until_open(self) -> None:
        if self._trouble is None:
            self._trouble = _Trouble(self.loop.time())
        trouble = self._trouble
        if self._opened:
            await self._pause(trouble)
        while True:
            self._wanted.clear()
            try:
                connection = await self._connect()
                if connection.is_closed:
                    raise Unreachable(f"the connection to {self.name} broke at once", peer=self.name)
            except GridError as error:
                if not self._is_to_go_on(error, trouble):
                    return
                await self._pause(trouble)
            else:
                self._adopt(connection)
                return

    async def _pause(self, trouble: _Trouble) -> None:
        """Between two tries; short where somebody asks for a member that was given up already."""
        wait, left = trouble.next_wait(), trouble.began + self._patience - self.loop.time()
        if left > 0:
            await asyncio.sleep(min(wait, left))
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wanted.wait()

    def _is_to_go_on(self, error: GridError, trouble: _Trouble) -> bool:
        """After a failed try. What has waited long enough is told that the member is not there."""
        age = self.loop.time() - trouble.began
        if self._is_final(error):
            self._fail(error)
        elif age >= self._patience_after(error):
            self._fail(error, age)
        else:
            return True
        return bool(self._unanswered) or self._is_worth_trying(error, trouble)

    def _is_final(self, error: GridError) -> bool:
        """Whether there is nothing to wait for."""
        if not isinstance(error, LinkError):
            return True
        is_misunderstood = misunderstanding(error) is not None
        self._misunderstandings += is_misunderstood
        is_refused = error.fields.get("refused") is True
        if not self._opened and (is_refused or isinstance(error, HandshakeFailed)):
            return True
        return is_misunderstood and self._misunderstandings >= limits.BLOCK_TRIES

    def _patience_after(self, error: GridError) -> float:
        """How long after the line broke what waits is told."""
        is_gone = error.fields.get("refused") is True and self._has_ended()
        return min(self._patience, limits.RECONNECT_ENDED) if is_gone else self._patience

    def _is_worth_trying(self, error: GridError, trouble: _Trouble) -> bool:
        """Whether the member may still have what is leased here, if it can be reached again."""
        if not self._opened or (error.fields.get("refused") is True and self._has_ended()):
            return False
        return self.loop.time() - trouble.began < limits.LEASE_GRACE

    def _adopt(self, connection: Connection) -> None:
        self.met(connection.remote.memory)
        self.connection = connection
        self._opened = self.loop.time()
        connection.on_over = self._on_over
        for asked in list(self._unanswered.values()):
            if not asked.may_go_to(self._memory):
                asked.fail(asked.unknown(f"{self.name} was restarted, or was out of reach for too long"))
        again = list(self._unanswered.values())
        for asked in again:
            asked.memory = self._memory
            connection.ask(asked, asked.op, asked.args, asked.payload, asked.once, again[0].number)
        self.on_open()

    def _on_over(self, reason: LinkError | None) -> None:
        connection, self.connection = self.connection, None
        if self.is_closed:
            return
        if connection is not None and connection.is_abandoned:
            self._end()
            return
        if reason is not None and misunderstanding(reason) is not None:
            self._misunderstood(reason)
        now = self.loop.time()
        if self._trouble is None or now - self._opened > limits.RECONNECT_MOST:
            self._trouble = _Trouble(now)
        elif (age := now - self._trouble.began) > self._patience:  # it comes and goes, and answers nothing
            self._fail(PeerLost("it is reached, and lost again at once", peer=self.name), age)
        self.dial()

    def _misunderstood(self, reason: LinkError) -> None:
        """A bad line may do that to a request or an answer once; to say it ever again would end the same way."""
        self._misunderstandings += 1
        if self._misunderstandings >= limits.BLOCK_TRIES:
            for asked in list(self._unanswered.values()):
                if asked.is_sent:
                    asked.fail(asked.unknown(reason.message))
            self._misunderstandings = 0

    # --- the end ------------------------------------------------------------------------------------------

    def _fail(self, error: GridError, age: float = math.inf) -> None:
        """What waits is told that the member is not there; so long after the line broke not all of it, perhaps."""
        trouble, misunderstandings = self._trouble, self._misunderstandings
        for asked in list(self._unanswered.values()):
            if not asked.waits_on(age):
                asked.fail(asked.unknown(error.message) if asked.is_sent else asked.unsent(error))
        self._trouble = trouble  # nothing was answered
        self._misunderstandings = misunderstandings if self._unanswered else 0  # all were told: it counts anew
        self.on_failure(error)

    def stop(self) -> None:
        """No new connection is made. What is under way over the present one may end in order before `close`."""
        self.is_closed = True
        if self._dialling is not None:
            self._dialling.cancel()

    async def close(self) -> None:
        """Everything that waits fails with PeerLost."""
        self._end()
        if self._dialling is not None:
            await asyncio.gather(self._dialling, return_exceptions=True)

    def _end(self) -> None:
        self.stop()
        for asked in list(self._unanswered.values()):
            asked.fail(self._closed(asked.op))

    def _closed(self, op: str) -> PeerLost:
        return PeerLost(
            f"the link to {self.name} is closed at this end: connect again (async with grid.connect() as g)",
            operation=op,
            peer=self.name,
        )


class _Trouble:
    """A time without answers: when it began, and how long to wait before the next try."""

    __slots__ = ("_wait", "began")

    def __init__(self, began: float) -> None:
        self.began = began
        self._wait = limits.RECONNECT_FIRST

    def next_wait(self) -> float:
        wait = self._wait
        self._wait = min(2 * wait, limits.RECONNECT_MOST)
        return wait * random.uniform(0.5, 1.0)  # so that not all clients come back at once
