"""A value on its way here, over as many connections as it takes; see resuming.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from peer.asking import forget
from peer.calls import Response
from peer.connection import Connection
from peer.patience import Patience, Waiting
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import Corrupt, GridError, LinkError
from protocol.sizes import beyond

Connect = Callable[[], Awaitable[Connection]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value can be had: the id and name of a peer, a connection to it, and the arguments of `fetch` there."""

    peer: str
    name: str
    connect: Connect
    args: dict[str, Any]


class Others(Protocol):
    """Knows who else has contents of a name, and is told who sent them damaged (elsewhere.py). `check` refuses an
    answer, and its size, that is not what is wanted: anybody may say to have it."""

    async def having(self, content: str, struck: str) -> Sequence[Origin]: ...
    def check(self, told: dict[str, Any], nbytes: int) -> None: ...


Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class Download:
    """The value that an operation like `fetch` answers with, brought over as many connections as it takes.

    Read it once, by one task. A cancelled `async for` has lost nothing and may go on; a
    cancelled `into` has given the download up.
    """

    def __init__(
        self, connect: Connect, op: str, args: dict[str, Any], name: str, waiting: Waiting | None = None
    ) -> None:
        """For `begin`."""
        self._connect = connect
        self._op = op
        self._args = args
        self._name = name
        self._patience = Patience(name, waiting=waiting)
        self._connection: Connection | None = None
        self._part: Response | None = None  # what is being read
        self._start = 0  # where it begins in the value
        self._at = 0  # and where its next byte is
        self._done = 0  # bytes that were handed out, or put away
        self._hashes: list[int] = []  # of the blocks before `_start`
        self._token: bytes | None = None
        self._failure: GridError | None = None  # of the part, until the rest is opened
        self._others: Others | None = None
        self._sources: list[str] = []  # ids of the peers that it came from, the present one last
        self.result: dict[str, Any] = {}
        self.content: str | None = None  # the name of the published contents that it brings, as the first peer said
        self.nbytes = 0
        self.progress: Progress | None = None

    @classmethod
    async def begin(
        cls,
        connect: Connect,
        op: str,
        args: dict[str, Any],
        name: str,
        progress: Progress | None = None,
        waiting: Waiting | None = None,
        others: Others | None = None,
    ) -> Download:
        """Ask `op` with `args`, to which `offset` and `token` are added; `name` is the peer's, for errors.

        Where the peer has a published object's contents damaged, the rest is had from one of `others`: who gives them
        has to compare the whole with `content` if it came from more than one peer (`is_mixed`).

        Raises:
            GridError: what the peer answers; LinkError where it is not reached.
        """
        made = cls(connect, op, args, name, waiting)
        made.progress, made._others = progress, others
        connection = await connect()
        made._sources.append(connection.remote.id)
        while True:
            made._connection = connection
            try:
                made._begun(await connection.request(op, {**args, "offset": 0}))
                return made
            except LinkError as error:
                await asyncio.sleep(made._judged(error))
            except Corrupt as error:
                made.content = made.content or _content(error.fields.get("blob"))
                await made._go_elsewhere(error, 0, made._begin_there)
                return made
            connection = await made._reconnect()

    def _begun(self, response: Response) -> None:
        self._patience.resumed()
        self._part = response
        self.result = response.result
        self.content = self.content or _content(response.result.get("content"))
        self.nbytes = _size(response)
        token = response.result.get("token")
        self._token = token if isinstance(token, bytes) else None

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def payload(self) -> Buffer:
        """The bytes that came beside the answer: all of a small value, and none of a large one."""
        return self._part.payload if self._is_small and self._part is not None else b""

    @property
    def stream(self) -> Download | None:
        """This, where the value comes in pieces."""
        return None if self._is_small else self

    @property
    def hashes(self) -> list[int]:
        """Of all blocks of the value, when it has been read to its end."""
        return self._hashes

    def block_hash(self, number: int) -> int:
        """Of a block that was read."""
        before = self._start // limits.BLOCK
        if number < before or self._part is None or self._part.stream is None:
            return self._hashes[number]
        return self._part.stream.hashes[number - before]

    @property
    def _is_small(self) -> bool:
        return self._part is not None and self._part.stream is None and self._start == 0

    def __aiter__(self) -> Download:
        return self

    async def __anext__(self) -> memoryview:
        while self._done < self.nbytes:
            if self._failure is not None:
                await self._reopen(self._failure)
            try:
                piece = await self._next_piece()
            except GridError as error:
                self._broke(error)
                continue
            if piece:
                self._advance(self._done + len(piece))
                return piece
        self.abort()
        raise StopAsyncIteration

    async def _next_piece(self) -> memoryview:
        assert self._part is not None
        if self._part.stream is None:
            piece = memoryview(self._part.payload)
        else:
            piece = await anext(self._part.stream)
        begin, self._at = self._at, self._at + len(piece)
        return piece[self._done - begin :] if begin < self._done else piece

    async def into(self, target: memoryview) -> None:
        """Fill `target`, which is exactly `nbytes` long; nothing was read before."""
        target = target.cast("B")
        if len(target) != self.nbytes or self._done:
            raise ValueError(f"a buffer of {len(target)} for {self.nbytes} bytes, of which {self._done} were read")
        try:
            while self._done < self.nbytes:
                if self._failure is not None:
                    await self._reopen(self._failure)
                try:
                    await self._fill(target[self._start :])
                except GridError as error:
                    self._broke(error)
        finally:
            self.abort()

    async def read(self, at_most: int) -> Buffer:
        """All of it in memory, for what is small: TooLarge, and nothing is read, beyond `at_most`."""
        if self.stream is None:
            return self.payload
        if self.nbytes > at_most:
            self.abort("too large")
            sentence = "{name} sends {size} bytes, where at most {allowed} are wanted"
            raise beyond("RECEIVE_BUFFER", self.nbytes, sentence, allowed=at_most, name=self._name)
        data = bytearray(self.nbytes)
        await self.into(memoryview(data))
        return data

    async def _fill(self, target: memoryview) -> None:
        assert self._part is not None
        stream = self._part.stream
        if stream is None:
            target[:] = self._part.payload
        else:
            start, progress = self._start, self.progress
            if progress is not None:
                stream.on_arrival = lambda arrived: progress(start + arrived, self.nbytes)
            try:
                await stream.into(target)
            except GridError:
                self._advance(self._start + len(stream.hashes) * limits.BLOCK)
                raise
        self._advance(self.nbytes)

    def abort(self, message: str = "not wanted") -> None:
        """Give up what has not come yet; nothing where all came. The peer need not keep the value any longer."""
        part, self._part = self._part, None
        if part is not None and part.stream is not None:
            part.stream.abort(message)
            if self._failure is None:
                self._hashes += part.stream.hashes
        connection, token = self._connection, self._token
        self._connection = self._token = None
        if token is not None and connection is not None and not connection.is_closed:
            connection.post("fetched", {"token": token}).add_done_callback(forget)

    def _advance(self, done: int) -> None:
        self._done = min(done, self.nbytes)
        if self.progress is not None:
            self.progress(self._done, self.nbytes)

    # --- after a break ------------------------------------------------------------------------------------------

    def _broke(self, error: GridError) -> None:
        """No more comes over this line; raises where it is not to be tried again."""
        part = self._part
        assert part is not None
        if part.stream is not None:
            part.stream.abort("it broke")
            self._hashes += part.stream.hashes
        if self._token is None or self._done == self.nbytes:
            raise error
        del self._hashes[self._done // limits.BLOCK :]
        self._failure = error

    async def _reopen(self, failure: GridError) -> None:
        """Open the rest, at the last block that is whole and right."""
        offset = self._done - self._done % limits.BLOCK
        self._patience.moved(offset)
        try:
            await self._reopen_here(failure, offset)
        except Corrupt as error:
            await self._go_elsewhere(error, offset, lambda: self._open(offset))
        self._failure = None

    async def _reopen_here(self, failure: GridError, offset: int) -> None:
        wait = self._patience.refused(failure) if isinstance(failure, Corrupt) else self._judged(failure)
        while True:
            await asyncio.sleep(wait)
            try:
                await self._open(offset)
            except LinkError as error:
                wait = self._judged(error)
            else:
                return

    async def _go_elsewhere(self, error: Corrupt, offset: int, go_on: Callable[[], Awaitable[None]]) -> None:
        """Go on at another peer that has the same contents; raises `error` where there is none."""
        if self._others is None or self.content is None:
            raise error
        for origin in await self._others.having(self.content, self._sources[-1]):
            if origin.peer in self._sources:
                continue
            self._sources.append(origin.peer)
            self._connect, self._op, self._args, self._name = origin.connect, "fetch", origin.args, origin.name
            self._patience = Patience(origin.name)
            self._patience.moved(offset)
            try:
                return await go_on()
            except GridError:
                continue
        raise error

    async def _begin_there(self) -> None:
        self._connection = await self._connect()
        answer = await self._connection.request(self._op, {**self._args, "offset": 0})
        assert self._others is not None
        try:
            self._others.check(answer.result, _size(answer))
        except GridError:
            if answer.stream is not None:
                answer.stream.abort("not what was asked for")
            raise
        self._begun(answer)

    @property
    def is_mixed(self) -> bool:
        """Whether it came from more than one peer."""
        return len(self._sources) > 1

    async def _reconnect(self) -> Connection:
        while True:
            try:
                return await self._connect()
            except LinkError as error:
                self._connection = None
                await asyncio.sleep(self._judged(error))

    async def _open(self, offset: int) -> None:
        connection = self._connection = await self._reconnect()
        args = {**self._args, "offset": offset, "token": self._token}
        part = await connection.request(self._op, args)  # may wait its turn there; whether the line is good, pings tell
        if _size(part) != self.nbytes - offset:
            if part.stream is not None:
                part.stream.abort("not the rest")
            raise Corrupt(f"{self._name} has {_size(part)} bytes more, where {self.nbytes - offset} are due")
        if part.stream is not None:
            part.stream.preceding = self._hashes
        self._part, self._start, self._at = part, offset, offset
        self._patience.resumed()

    def _judged(self, error: GridError) -> float:
        """How long to wait before the next try; raises what is final."""
        return self._patience.judged(error, self._connection, self.nbytes)


def _content(told: object) -> str | None:
    return told if isinstance(told, str) else None


def _size(response: Response) -> int:
    return response.stream.nbytes if response.stream is not None else len(response.payload)
