"""A value on its way to a peer, over as many connections as it takes; see resuming.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from peer.calls import Response
from peer.connection import Connection
from peer.downloads import Connect, Progress
from peer.hashing import hash_of
from peer.patience import Patience, Waiting, first_line
from peer.payloads import AtHand, Payload, Resumed, close_payload
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, Corrupt, GridError, LinkError, TimedOut


async def upload(
    connect: Connect,
    args: dict[str, Any],
    payload: Payload,
    name: str,
    progress: Progress | None = None,
    waiting: Waiting | None = None,
) -> Response:
    """`put` with `args` and this payload, however often the line breaks; the answer. `name` is the peer's, for errors.

    Closes the payload. Cancelling tells the peer to throw away what it has, also where that is all of it: then the
    object of that id, which is to be this upload's alone, is deleted.

    Raises:
        GridError: what the peer answers, or why the payload cannot be read; LinkError where the peer is not reached.
    """
    try:
        return await _Upload(connect, args, _Source(payload, progress), name, waiting).run()
    finally:
        close_payload(payload)


class _Source:
    """A payload that outlives the connections over which it goes. Knows how far it was read, and why it was not."""

    def __init__(self, payload: Payload, progress: Progress | None) -> None:
        self._payload = payload
        self._now = payload.now if isinstance(payload, AtHand) else None
        self._progress = progress
        self._hashes: list[int] = []  # of the first blocks
        self._most = 0
        self.nbytes = payload.nbytes
        self.read_to = 0
        self.failure: Exception | None = None

    async def read(self, offset: int, size: int) -> Buffer:
        with self._noting_failure():
            data = await self._payload.read(offset, size)
        self._was_read(offset + size)
        return data

    def now(self, offset: int, size: int) -> Buffer | None:
        with self._noting_failure():
            data = None if self._now is None else self._now(offset, size)
        if data is not None:
            self._was_read(offset + size)
        return data

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    def _was_read(self, to: int) -> None:
        self.read_to = to
        if to > self._most:
            self._most = to
            if self._progress is not None:
                self._progress(to, self.nbytes)

    @property
    def was_read_whole(self) -> bool:
        return self._most == self.nbytes

    def close(self) -> None:
        """A connection is done with it."""

    async def rest(self, offset: int) -> Payload:
        """What is to be sent from `offset` on."""
        self.read_to = offset
        if not offset:
            return self
        count = offset // limits.BLOCK
        while len(self._hashes) < count:
            block = await self._payload.read(len(self._hashes) * limits.BLOCK, limits.BLOCK)
            self._hashes.append(hash_of(block))
            await asyncio.sleep(0)
        return Resumed(self, offset, self._hashes[:count])


class _Upload:
    """One `put` until it is answered."""

    def __init__(
        self, connect: Connect, args: dict[str, Any], source: _Source, name: str, waiting: Waiting | None
    ) -> None:
        self._connect = connect
        self._args = args
        self._source = source
        self._patience = Patience(name, waiting=waiting)
        self._connection: Connection | None = None
        self._is_begun = False

    async def run(self) -> Response:
        try:
            while True:
                try:
                    return await self._try()
                except GridError as error:
                    wait = self._judged(error)
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            if self._is_begun:
                self._withdraw()
            raise

    def _withdraw(self) -> None:
        """It was given up, and the peer may have all of it by now. Waits for nothing."""
        connection = self._connection
        if connection is None or connection.is_closed:
            self._withdraw_soon()
        else:  # after what told the peer to stop, which may be lost with a line that is dead already
            connection.post(*undoing(self._args)).add_done_callback(self._was_asked)

    def _was_asked(self, asked: asyncio.Future[Response]) -> None:
        if not asked.cancelled() and isinstance(asked.exception(), LinkError):
            self._withdraw_soon()

    def _withdraw_soon(self) -> None:
        if self._source.was_read_whole:  # else it is no more than a part, which goes when nobody comes back for it
            task = asyncio.get_running_loop().create_task(self._withdraw_later())
            _background.add(task)
            task.add_done_callback(_background.discard)

    async def _withdraw_later(self) -> None:
        with contextlib.suppress(GridError):
            connection = await first_line(self._connect, lambda: limits.RECONNECT_TIMEOUT)
            known = await connection.request("resume", self._args)  # what it is finishing is waited for
            if "record" in known.result:
                await connection.request(*undoing(self._args))

    def _judged(self, error: GridError) -> float:
        if self._source.failure is not None:
            raise self._source.failure
        if not self._is_begun:
            raise error
        if isinstance(error, Corrupt):
            return self._patience.refused(error)
        return self._patience.judged(error, self._connection, self._source.nbytes)

    async def _try(self) -> Response:
        self._connection = None
        connection = self._connection = await self._connect()
        offset = 0
        if self._is_begun:
            # It may be finishing what it has, for as long as its disk takes: that the line is good, pings tell.
            known = await connection.request("resume", self._args)
            self._patience.resumed()
            if "record" in known.result:
                return known
            offset = _offset(known.result, self._source.nbytes)
            self._patience.moved(offset)
        self._is_begun = True
        return await self._send(connection, offset)

    async def _send(self, connection: Connection, offset: int) -> Response:
        rest = await self._source.rest(offset)
        asked = connection.post("put", {**self._args, "offset": offset}, rest)
        try:
            while not asked.done():
                before = connection.statistics()
                await asyncio.wait({asked}, timeout=limits.STALL_TIMEOUT)
                # When all is sent, the peer may take its time for the disk: that the line is good, pings tell.
                is_still = connection.statistics() == before and self._source.read_to < self._source.nbytes
                if is_still and not asked.done():
                    raise TimedOut(f"nothing moved for {limits.STALL_TIMEOUT:g} s", peer=connection.peer_name)
            return asked.result()
        finally:
            asked.cancel()


def _offset(result: dict[str, Any], nbytes: int) -> int:
    offset = result.get("offset")
    if type(offset) is not int or not 0 <= offset <= nbytes or offset % limits.BLOCK:
        raise BadRequest("the peer does not say how much of the upload it has")
    return offset


_background: set[asyncio.Task[None]] = set()


def undoing(args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The request that undoes a `put` with these arguments."""
    return "delete" if args.get("publish") or args.get("tags") else "release", {"ids": [args["id"]]}
