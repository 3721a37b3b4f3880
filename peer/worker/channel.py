"""The two ends' forms of a channel of framed messages (framing.py): blocking, and in a loop."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from peer.worker.framing import (
    ANCILLARY,
    CLOEXEC,
    CUT,
    Controls,
    Decoder,
    Message,
    ancillary,
    close_all,
    copies,
    descriptors_in,
    encode,
)
from protocol import limits
from protocol.codec import packer
from protocol.errors import ProtocolError

if TYPE_CHECKING:
    import asyncio

_READ: Final = 64 * limits.KIB
_GATHER: Final = 64  # messages in one sendmsg
_QUEUE: Final = 256  # messages unsent
_PINNED: Final = 32  # descriptors in them, copies of the peer's
_READS_PER_WAKEUP: Final = 16  # then the loop's other work has its turn
_MANY: Final = 8  # messages, after which it has that as well: what each of them means takes 50 us
_NOW: Final = CLOEXEC | int(socket.MSG_DONTWAIT)


class BlockingChannel:
    """The form for a process that does one thing at a time: the worker, the zygote."""

    def __init__(self, sock: socket.socket, *, send_limit: int, receive_limit: int) -> None:
        self._socket = sock
        self._send_limit = send_limit
        self._pack = packer()
        self._decoder = Decoder(receive_limit)
        self._view = memoryview(bytearray(_READ))
        self._into = [self._view]
        self._queued = bytearray()
        self._arrivals = select.poll()
        self._arrivals.register(sock, select.POLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    def queue(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """The same, but what has no descriptors waits for `flush`, so that several messages wake the other end once."""
        if descriptors:
            self.flush()
            self.send(message, descriptors)
            return
        self._queued += encode(message, 0, self._send_limit, self._pack)
        if len(self._queued) > limits.INLINE_PAYLOAD:
            self.flush()

    def flush(self) -> None:
        if self._queued:
            queued, self._queued = self._queued, bytearray()
            self._socket.sendall(queued)

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Sends it all. The descriptors stay the caller's. Raises TooLarge before a byte has gone."""
        view = memoryview(encode(message, len(descriptors), self._send_limit, self._pack))
        sent = self._begin(view, descriptors)
        if sent < len(view):
            self._socket.sendall(view[sent:])

    def _begin(self, view: memoryview, descriptors: Sequence[int]) -> int:
        while True:
            try:
                return self._socket.sendmsg([view], ancillary(descriptors))
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
            time.sleep(0.001)  # too many of this user's are under way, other processes' too: until some are received

    def receive(self) -> list[Message] | None:
        """The next messages (perhaps none yet), or None when the other end is gone."""
        try:
            size, controls, flags, _ = self._socket.recvmsg_into(self._into, ANCILLARY, CLOEXEC)
        except ConnectionResetError:
            return None
        return self._decoded(size, controls, flags) if size else None

    def receive_now(self) -> list[Message]:
        """The messages that are there already. At the end of the other end there are none: `receive` finds that."""
        try:
            size, controls, flags, _ = self._socket.recvmsg_into(self._into, ANCILLARY, _NOW)
        except (BlockingIOError, ConnectionResetError):
            return []
        return self._decoded(size, controls, flags) if size else []

    def glance(self) -> list[Message]:
        """`receive_now`, for a look that mostly finds nothing: to ask whether there is something costs a fifth."""
        return self.receive_now() if self._arrivals.poll(0) else []

    def _decoded(self, size: int, controls: Controls, flags: int) -> list[Message]:
        data = self._view[:size]
        if controls or flags & CUT:  # where none could be taken, there is nothing but the flag
            descriptors = descriptors_in(controls, flags)
            if flags & CUT:
                close_all(descriptors)
                raise ProtocolError("no descriptor is left here for what came")
            return list(self._decoder.feed(data, descriptors))
        alone = self._decoder.alone(data)
        return list(self._decoder.feed(data)) if alone is None else [(alone, [])]

    def close(self) -> None:
        self._decoder.close()
        self._socket.close()


class LoopChannel:
    """The form for the peer: never blocks, runs on the loop that is running when it is made.

    Args:
        on_message: called for each message with (value, descriptors); owns the descriptors.
        on_closed: called once, from the loop, when the other end is gone or broke the rules (the error, or
            None for a plain end); not called after `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Any, list[int]], None],
        on_closed: Callable[[Exception | None], None],
        *,
        send_limit: int,
        receive_limit: int,
    ) -> None:
        import asyncio  # not above: a peer that starts waits for its zygote, which has no use for it

        sock.setblocking(False)
        self._socket = sock
        self._on_message = on_message
        self._on_closed = on_closed
        self._send_limit = send_limit
        self._pack = packer()
        self._decoder = Decoder(receive_limit, limits.WORKER_CONTAINERS)
        self._view = memoryview(bytearray(_READ))
        self._into = [self._view]
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._drained: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self._is_scheduled = False  # to be sent at the end of this turn
        self._is_waiting = False  # for room
        self._rest: Iterator[Message] | None = None  # of what was read: those that were not handed on yet
        self._pinned = 0
        self.unsent_bytes = 0
        self.is_full = False  # no more is to be asked before there is room
        self.is_closed = False

    def send(self, message: Any, descriptors: Sequence[int] = (), *, now: bool = False) -> None:
        """Sends at the end of this turn of the loop, or as soon as there is room: what is asked in one turn wakes the
        other end once. The descriptors stay the caller's (copies are queued). With `now` it goes at once if it can.

        Raises:
            BadRequest, TooLarge: it cannot travel; nothing was sent.
            OSError: no descriptor left to copy one; nothing was sent.
        """
        if self.is_closed:
            return
        data = encode(message, len(descriptors), self._send_limit, self._pack)
        if now and not descriptors and not self._unsent:
            try:
                data = data[self._socket.send(data) :]
            except OSError:  # no room, or an end that is gone: `_flush` sees which
                pass
            if not data:
                return
        view = memoryview(data)
        self._unsent.append((view, copies(descriptors)))
        self._pinned += len(descriptors)
        self._count(len(view))
        if not self._is_scheduled and not self._is_waiting:
            self._is_scheduled = True
            self._loop.call_soon(self._begin)

    def _count(self, nbytes: int) -> None:
        """So many bytes more, or less, are not sent."""
        self.unsent_bytes += nbytes
        is_long = self.unsent_bytes >= limits.WORKER_QUEUE or len(self._unsent) >= _QUEUE
        self.is_full = is_long or self._pinned >= _PINNED

    async def drained(self) -> None:
        """Waits until there is room (or nothing will be sent any more). Cancelling is safe."""
        import asyncio

        while self.is_full and not self.is_closed:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def close(self) -> None:
        """Lets go of the socket and of every descriptor. What was not sent is dropped."""
        if self.is_closed:
            return
        self.is_closed = True
        self._rest = None
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._decoder.close()
        self._forget_unsent()

    def _begin(self) -> None:
        self._is_scheduled = False
        if self._unsent and not self.is_closed:
            self._flush()
            if self._unsent:
                self._is_waiting = True
                self._loop.add_writer(self._socket, self._writable)

    def _flush(self) -> None:
        try:
            while self._unsent:
                views, descriptors = self._next()
                self._sent(self._socket.sendmsg(views, ancillary(descriptors)))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # descriptors under way are bounded too: again when it has read some
                return
            # The other end is gone. What it said before is still to be read: the reader closes.
            self._forget_unsent()

    def _next(self) -> tuple[list[memoryview], list[int]]:
        """The first message with its descriptors, and those after it up to the next that has some."""
        first, descriptors = self._unsent[0]
        views = [first]
        for at in range(1, min(len(self._unsent), _GATHER)):
            view, its_descriptors = self._unsent[at]
            if its_descriptors:
                break
            views.append(view)
        return views, descriptors

    def _sent(self, size: int) -> None:
        sent = size
        view, descriptors = self._unsent[0]
        close_all(descriptors)  # they went with the first byte
        self._pinned -= len(descriptors)
        self._unsent[0] = view, []
        while size and size >= len(view):
            size -= len(view)
            self._unsent.popleft()
            if not size:
                break
            view, _ = self._unsent[0]
        if size:
            self._unsent[0] = view[size:], []
        self._count(-sent)
        if not self.is_full:
            self._wake()

    def _forget_unsent(self) -> None:
        for _, descriptors in self._unsent:
            close_all(descriptors)
        self._unsent.clear()
        self._pinned = 0
        self._count(-self.unsent_bytes)
        self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def _writable(self) -> None:
        self._flush()
        if not self._unsent:
            self._is_waiting = False
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            for _ in range(_READS_PER_WAKEUP):
                size, controls, flags, _ = self._socket.recvmsg_into(self._into, ANCILLARY, CLOEXEC)
                if not size:
                    self._end(None)
                    return
                data = self._view[:size]
                is_short = flags & CUT  # perhaps without any controls: where no descriptor was left to take one with
                if not controls and not is_short and (alone := self._decoder.alone(data)) is not None:
                    self._on_message(alone, [])
                    return
                descriptors = descriptors_in(controls, flags) if controls else ()
                messages = self._decoder.feed(data, descriptors, is_short=bool(is_short))
                if not self._hand_on(messages) or size < _READ:
                    return
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._end(error)

    def _hand_on(self, messages: Iterator[Message]) -> bool:
        """Hand on so many; whether these were all. Nothing more is read before the rest had its turn."""
        count = 0
        for message, descriptors in messages:
            self._on_message(message, descriptors)
            if self.is_closed:  # by what the message meant
                return False
            count += 1
            if count == _MANY:
                if self._rest is None:
                    self._loop.remove_reader(self._socket)
                self._rest = messages
                self._loop.call_soon(self._hand_on_rest)
                return False
        return True

    def _hand_on_rest(self) -> None:
        if self._rest is None or self.is_closed:
            return
        try:
            if self._hand_on(self._rest):
                self._rest = None
                self._loop.add_reader(self._socket, self._readable)
        except ProtocolError as error:
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if not self.is_closed:
            self.close()
            self._on_closed(error)
