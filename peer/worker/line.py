"""One worker process as its peer hears it: what it was asked, what came back, and its end.

A worker is not trusted. Whatever it says is checked here, and one that breaks the rules of its channel is killed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from peer.awake import Due, awake
from peer.buffers import Buffer
from peer.worker import answers
from peer.worker.answers import Exported, Far, Refusal
from peer.worker.channel import LoopChannel
from peer.worker.ending import KILLED, Ending, lost
from peer.worker.framing import close_all
from peer.worker.pending import Pending, fail, refuse
from peer.worker.stopping import Stopping
from peer.worker.turns import Stretch
from peer.worker.watch import Watch
from protocol import limits
from protocol.errors import Corrupt, InternalError, ProtocolError, WorkerLost

T = TypeVar("T")


class WorkerKey(NamedTuple):
    """Values of different principals, or under different labels, never meet in one process."""

    principal: str
    labels: frozenset[str]


class Line:
    """The channel to one worker process, and who waits for what. What can be asked is in remote.Worker.

    `gone` is told once, before anybody else, that the process is to be dead: it sees to that. `holds` is told what the
    worker says that it holds, when that has changed by much.
    """

    def __init__(
        self,
        key: WorkerKey,
        channel: socket.socket,
        gone: Callable[[Any], None],
        holds: Callable[[Any, int], None],
        seconds: float,
    ) -> None:
        self.key = key
        self.pid: int | None = None
        self._loop = asyncio.get_running_loop()
        self.idle_since = self._loop.time()
        self._awake = awake()
        self._answered = Due(self._awake, limits.AWAKE_NEXT)
        self.lost: asyncio.Future[WorkerLost] = self._loop.create_future()
        self._gone = gone
        self._holds = holds
        self._watch = Watch(seconds)
        self._seconds = seconds
        self._pending: dict[int, Pending] = {}
        self._stretch = Stretch()
        self._stopping: Stopping | None = None
        self._seq = 0
        self.channel = LoopChannel(
            channel, self._heard, self._ended, send_limit=limits.WORKER_MESSAGE, receive_limit=limits.WORKER_REPLY
        )
        self._ending = Ending(self.channel, self.lose)

    def _over(self) -> None:
        """What it held is gone."""
        raise NotImplementedError

    def _distrust(self, error: Corrupt) -> None:
        """It has found that something it was given is damaged."""
        raise NotImplementedError

    # --- its end ------------------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        return self.lost.done()

    @property
    def is_wanted(self) -> bool:
        """Whether the process is to go on."""
        return not self.lost.done()

    def on_lost(self, callback: Callable[[WorkerLost], None]) -> None:
        """Called from the loop when the process is gone, with the error that its values have become."""
        self.lost.add_done_callback(lambda future: None if future.cancelled() else callback(future.result()))

    def kill(self) -> None:
        """Ends the process now. What was under way fails with WorkerLost."""
        self.lose(KILLED)

    @property
    def is_busy(self) -> bool:
        return bool(self._pending)

    def in_stretches(self, elapsed: float) -> float:
        """Seconds since it was last asked, `elapsed` ago, that belong to long stretches of having something to do."""
        return self._stretch.taken(self._loop.time(), self.is_busy)

    def look(self, elapsed: float, waits: Callable[[int], Mapping[int, float]]) -> bool:
        """Kills it if one request has taken it too long; True if so. For the pool, once in each beat of its watch.

        Args:
            elapsed: since the last look.
            waits: seconds for which each thread of a process, by its pid, has waited for a processor so far.
        """
        at = self._at()
        if at is None or self.pid is None:
            self._watch.look(None, elapsed)
            return False
        if not self._watch.look(at, elapsed, waits(self.pid)):
            return False
        self.lose(
            f"was killed, because one operation or program may take {self._seconds:g} s of the clock (work on smaller "
            "pieces, or have the peer's owner raise --worker-seconds),"
        )
        return True

    def _at(self) -> tuple[int, int] | None:
        """What it does now: the first request that it has not answered, and how far that is."""
        if self.pid is None or self.is_lost:
            return None
        for seq, pending in self._pending.items():
            return seq, pending.done
        return (0, 0) if self.channel.unsent_bytes else None

    def lose(self, how: str, status: int | None = None) -> None:
        """Marks it as gone (once): every pending future fails, and `lost` is told. For the pool."""
        if self.is_lost:
            return
        self._ending.stop()
        self.channel.close()
        self._gone(self)
        pending, self._pending = list(self._pending.values()), {}
        self.lost.set_result(lost(how, status, self.pid, pending))
        for request in pending:
            request.fail(lost(how, status, self.pid, pending))
        self._over()

    def exited(self, status: int) -> None:
        """The zygote's word that the process is dead. What it said before that is still read. For the pool."""
        self._ending.exited(status)

    def _ended(self, error: Exception | None) -> None:
        if isinstance(error, ProtocolError):
            self.lose(f"broke the rules of its channel ({error.message})")
        else:
            self._ending.settle()

    # --- the channel --------------------------------------------------------------------------------------

    def _tell(self, message: list[Any], descriptors: Sequence[int] = ()) -> None:
        if self.is_lost:
            return
        try:
            self.channel.send(message, descriptors)
        except OSError as error:
            raise InternalError(f"the peer has no file descriptor left for this ({error.strerror})") from None

    def _ask(self, what: str, parse: Callable[[list[Any], list[int]], T], kind: str, *fields: Any) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(Pending(future, what, parse), kind, *fields)
        return future

    def _put(self, pending: Pending, kind: str, *fields: Any) -> int:
        """Asks; the number of the request. It is over already where the process is gone.

        The answer is waited for awake; where cores are few, that to one thing that somebody waits for asleep: to give
        way again and again is no help to a worker on the same core. The scheduler still gives each what is due to it, a
        worker's part is small, and turning counts as work.
        """
        if self.lost.done():
            fail(pending.asker, self.lost.result().again())
            return 0
        self._seq = seq = self._seq + 1
        is_first, apart = not self._pending, self._awake.apart
        # One that has nothing to do gets it now; what is asked while it works goes together.
        self.channel.send([kind, seq, *fields], now=is_first)
        self._pending[seq] = pending
        is_waiting = is_first and len(pending.operations) <= 1  # for one thing, not some of many that follow each other
        if apart is not None:
            apart.look(is_waiting=is_waiting)
        if is_first:
            self._stretch.began = self._loop.time()
            if apart is None or not is_waiting:
                self._answered.expect()
        return seq

    def _heard(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case _ if not self._stretch.is_up and message != ["up"]:
                close_all(descriptors)
                self.lose("did not begin as a worker does")
            case ["done", int(seq), *fields] if seq in self._pending:
                self._answer(seq, fields, descriptors)
            case ["fault", int(seq), dict(fault)] if seq in self._pending:
                self._pending[seq].parse = refuse
                self._answer(seq, [fault], descriptors)
            case ["settled", int(seq), headers, small] if seq == self._first() and self._pending[seq].told is not None:
                close_all(descriptors)
                self._settle(seq, [headers, small, None])
            case ["up"] if not self._stretch.is_up:
                close_all(descriptors)
                self._stretch.starts(self._loop.time())
            case ["held", int(nbytes)]:
                close_all(descriptors)
                self._holds(self, nbytes)
            case ["progress", int(seq), int(done)] if self._has_come_to(seq, done):
                close_all(descriptors)
                self._pending[seq].done = done
            case ["progress", int(seq), list(far)] if seq == self._first() and answers.is_far(far):
                close_all(descriptors)
                self._pending[seq].far = Far(*far)
            case ["defect", str(text)] if self._ending.defect is None:
                close_all(descriptors)
                self._ending.note("of which nothing is shown: it has private data" if self.key.labels else text)
            case _:
                close_all(descriptors)
                self.lose("answered what it was not asked")
        if not self._pending:
            self.idle_since = now = self._loop.time()
            self._stretch.ends(now)

    def _has_come_to(self, seq: int, done: int) -> bool:
        """Whether that may be so: it goes forward, and through what is first in line."""
        return seq == self._first() and self._pending[seq].done < done < len(self._pending[seq].operations)

    def _settle(self, seq: int, fields: list[Any]) -> None:
        try:
            tell = self._pending[seq].settle(fields)
        except Exception as error:
            self._nonsense(self._pending.pop(seq), error)
        else:
            tell()

    def _nonsense(self, request: Pending, error: Exception) -> None:
        """Whatever it says must not leave somebody waiting."""
        request.fail(InternalError(f"the worker's answer makes no sense: {error}"))
        self.lose("gave an answer that makes no sense")

    def _answer(self, seq: int, fields: list[Any], descriptors: list[int]) -> None:
        request = self._pending.pop(seq)
        if not self._pending:
            self._answered.met()
        if self._stopping is not None:
            self._stopping.answered(seq)
        try:
            value = request.parse(fields, descriptors)
        except Refusal as refusal:
            if type(refusal.error) is Corrupt:
                self._distrust(refusal.error)
            request.fail(refusal.error)
            return
        except Exception as error:
            self._nonsense(request, error)
            return
        finally:
            if descriptors:
                close_all(descriptors)  # those that a result kept have left the list
        if not request.asker.done():
            request.asker.set_result(value)
        elif isinstance(value, Exported) and isinstance(value.data, Buffer):
            value.data.release()

    def _first(self) -> int | None:
        return None if self.is_lost else next(iter(self._pending), None)
