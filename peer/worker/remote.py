"""The peer's end of one worker: what is asked of it, what came back, and what is lost when it dies.

A worker is not trusted. Whatever it says is checked here, and one that breaks the rules of its channel is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from peer.buffers import Buffer, BufferPool
from peer.worker import answers
from peer.worker.answers import Exported, Result, Span, Usage
from peer.worker.channel import LoopChannel, close_all
from peer.worker.ending import KILLED, Ending, lost
from peer.worker.guards import BlockHashes
from peer.worker.holdings import Holdings
from peer.worker.operation import name_of, result_ids
from peer.worker.pending import Asker, Parse, Pending, Refusal, fail, refuse
from protocol import limits
from protocol.errors import Corrupt, GridError, InternalError, NotFound, ProtocolError, TooLarge, WorkerLost
from protocol.tensors import TensorHeader

__all__ = ["BlockHashes", "Exported", "Result", "Span", "Usage", "Worker", "WorkerKey", "WorkerStatistics"]

T = TypeVar("T")


class WorkerKey(NamedTuple):
    """Values of different principals, or under different labels, never meet in one process."""

    principal: str
    labels: frozenset[str]


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    key: WorkerKey
    pid: int | None
    held: int
    pending: int
    unsent_bytes: int
    operations: int


class Worker:
    """One worker process, from the peer's side. Made by a WorkerPool; lives in one event loop.

    Requests may be made at once, whether the process is there yet or not; it answers them in order. Futures fail
    with the error of their request, or with WorkerLost when the process dies; cancelling one gives up the answer,
    not the work. Await `ready()` between requests to keep the queue bounded.
    """

    def __init__(
        self, key: WorkerKey, channel: socket.socket, buffers: BufferPool, gone: Callable[[Worker], None]
    ) -> None:
        self.key = key
        self.pid: int | None = None
        self.idle_since = asyncio.get_running_loop().time()
        self.lost: asyncio.Future[WorkerLost] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._buffers = buffers
        self._gone = gone  # told once, before anybody else: sees to it that the process is dead
        self._held = Holdings()
        self._pending: dict[int, Pending] = {}
        self._seq = 0
        self._operations = 0
        self._channel = LoopChannel(
            channel, self._heard, self._ended, send_limit=limits.WORKER_MESSAGE, receive_limit=limits.WORKER_REPLY
        )
        self._ending = Ending(self._channel, self.lose)

    # --- what it is asked ---------------------------------------------------------------------------------

    def provide(
        self,
        object_id: bytes,
        header: TensorHeader,
        data: int | bytes,
        offset: int = 0,
        read_only: bool = False,
        *,
        hashes: BlockHashes | None = None,
        origin: Any = None,
    ) -> None:
        """Gives it a value: a few bytes, or the descriptor of a file that holds the elements from `offset` on.

        The file is mapped, not copied; what the worker writes to it stays its own. The descriptor stays the
        caller's, who may close it at once. A read-only value refuses in-place operations (ReadOnly).

        Args:
            hashes: of a read-only file's blocks: whatever is read of it is checked against them (Corrupt).
            origin: what the caller knows a read-only file by. Large values that are parts of it are then not
                copied: their export is a Span with this origin.
        """
        fields = [object_id, header.dtype, list(header.shape), offset, read_only]
        if isinstance(data, int):
            number = None if origin is None else self._held.numbered(object_id, header.nbytes, origin)
            parts = None if hashes is None or not header.nbytes else hashes.of(offset, header.nbytes).to_wire()
            self._tell(["provide", *fields, None, parts, number], [data])
        else:
            header.check_payload(len(data))
            self._tell(["provide", *fields, bytes(data)])
        self._held.provided(object_id, header, again=read_only)

    def run(self, operations: Sequence[Sequence[Any]]) -> asyncio.Future[list[Result]]:
        """Runs operations [name, args, kwargs, outs] in order; gives one result for each.

        What an operation did wrong is its own result, and that of those that use what it should have made; the
        future itself fails only with the loss of the worker.

        Raises:
            TooLarge: more than limits.MAX_BATCH operations, or more bytes than a message may have.
            BadRequest: an argument that msgpack cannot hold.
        """
        count = len(operations)
        future: asyncio.Future[list[Result]] = self._loop.create_future()
        self._run(future, operations, lambda fields, _: self._results(fields, count))
        return future

    def run_for(
        self, asker: Asker, operations: Sequence[Sequence[Any]], wanted: bytes, dropped: Sequence[bytes] = ()
    ) -> None:
        """`run`, then `export` of one result (no provided value), then `drop`, as one message.

        `asker` gets the results, and the value or the error that it is not to be had for.
        """
        count = len(operations)

        def parse(fields: list[Any], descriptors: list[int]) -> tuple[list[Result], Exported | GridError]:
            return self._results(fields, count), answers.value(self._held.made, fields, descriptors, self._buffers)

        known = [object_id for object_id in dropped if object_id in self._held]
        self._run(asker, operations, parse, wanted, known)
        self._held.forget(known)

    def _run(
        self,
        asker: Asker,
        operations: Sequence[Sequence[Any]],
        parse: Parse,
        wanted: bytes | None = None,
        dropped: Sequence[bytes] = (),
    ) -> None:
        count = len(operations)
        if count > limits.MAX_BATCH:
            raise TooLarge(
                f"{count} operations in one request; send them in several",
                limit="MAX_BATCH",
                size=count,
                allowed=limits.MAX_BATCH,
            )
        what = (name_of(operations[0]) if count == 1 else None) or "operations"
        self._put(asker, what, parse, "run", operations, wanted, dropped)
        for operation in operations:
            self._held.promised(result_ids(operation))
        self._operations += count

    def run_program(
        self, program_id: bytes, program: bytes | None, inputs: Sequence[bytes], outs: Sequence[bytes]
    ) -> asyncio.Future[list[TensorHeader]]:
        """Runs a whole program on `inputs` (object ids); its results become `outs`, in order.

        Args:
            program_id: the content hash of the program.
            program: its canonical bytes; None is enough while `knows(program_id)`.
        """
        if self.knows(program_id):
            program = None
        elif program is None:
            raise NotFound("the worker does not know this program; send the program itself")
        future = self._ask(
            "program",
            lambda fields, _: answers.headers(fields[0]),
            "program",
            program_id,
            program,
            list(inputs),
            list(outs),
        )
        forgotten = self._held.ran(program_id)
        if forgotten is not None:
            self._tell(["forget", forgotten])
        self._held.promised(outs)
        return future

    def knows(self, program_id: bytes) -> bool:
        """Whether it has this program already, so that the id is enough."""
        return self._held.has_program(program_id)

    def export(self, object_id: bytes, *, in_memory: bool = False) -> asyncio.Future[Exported]:
        """The value, as soon as all that was asked before is done. Fails with the error that made it, if one did.

        With `in_memory` it is bytes or a Buffer, wherever else the peer has it; at most MAX_MEMORY_TENSOR.
        """
        given = self._held.given(object_id, in_memory)
        return self._ask(
            "export",
            lambda fields, fds: answers.exported(given, fields, fds, self._buffers),
            "export",
            object_id,
            in_memory,
        )

    def drop(self, ids: Iterable[bytes]) -> None:
        """Forgets values; unknown ids are ignored."""
        known = self._held.forget(ids)
        for start in range(0, len(known), limits.MAX_ARRAY):
            self._tell(["drop", known[start : start + limits.MAX_ARRAY]])

    def usage(self) -> asyncio.Future[Usage]:
        return self._ask("usage", lambda fields, _: answers.usage(fields), "usage")

    def holds(self, object_id: bytes) -> bool:
        """Whether it was provided, or promised as a result, and not dropped since."""
        return object_id in self._held

    @property
    def is_ready(self) -> bool:
        """Whether `ready` would not wait."""
        return not self._channel.is_full

    async def ready(self) -> None:
        """Waits until the unsent requests are few. Cancelling is safe."""
        await self._channel.drained()

    # --- its end ------------------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        return self.lost.done()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost by ending it: it is asked nothing, and holds only what can be provided again."""
        return not self._pending and not self._held.has_results

    def on_lost(self, callback: Callable[[WorkerLost], None]) -> None:
        """Called from the loop when the process is gone, with the error that its values have become."""
        self.lost.add_done_callback(lambda future: None if future.cancelled() else callback(future.result()))

    def kill(self) -> None:
        """Ends the process now. What was under way fails with WorkerLost."""
        self.lose(KILLED)

    def lose(self, how: str, status: int | None = None) -> None:
        """Marks it as gone (once): every pending future fails, and `lost` is told. For the pool."""
        if self.is_lost:
            return
        self._ending.stop()
        self._channel.close()
        self._gone(self)
        pending, self._pending = list(self._pending.values()), {}
        self.lost.set_result(lost(how, status, self.pid, pending))
        for request in pending:
            request.fail(lost(how, status, self.pid, pending))
        self._held.clear()

    def exited(self, status: int) -> None:
        """The zygote's word that the process is dead. What it said before that is still read. For the pool."""
        self._ending.exited(status)

    def _ended(self, error: Exception | None) -> None:
        if isinstance(error, ProtocolError):
            self.lose(f"broke the rules of its channel ({error.message})")
        else:
            self._ending.settle()

    # --- the channel --------------------------------------------------------------------------------------

    def _tell(self, message: list[Any], descriptors: Sequence[int] = (), *, now: bool = False) -> None:
        if self.is_lost:
            return
        try:
            self._channel.send(message, descriptors, now=now)
        except OSError as error:
            raise InternalError(f"the peer has no file descriptor left for this ({error.strerror})") from None

    def _ask(self, what: str, parse: Callable[[list[Any], list[int]], T], kind: str, *fields: Any) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(future, what, parse, kind, *fields)
        return future

    def _put(self, asker: Asker, what: str, parse: Parse, kind: str, *fields: Any) -> None:
        if self.is_lost:
            fail(asker, self.lost.result().again())
            return
        self._seq += 1
        # One that has nothing to do gets it now; what is asked while it works goes together.
        self._tell([kind, self._seq, *fields], now=not self._pending)
        self._pending[self._seq] = Pending(asker, what, parse)

    def _heard(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case ["done", int(seq), *fields] if seq in self._pending:
                self._answer(self._pending.pop(seq), fields, descriptors)
            case ["fault", int(seq), dict(fault)] if seq in self._pending:
                request = self._pending.pop(seq)
                request.parse = refuse
                self._answer(request, [fault], descriptors)
            case ["defect", str(text)] if self._ending.defect is None:
                close_all(descriptors)
                self._ending.defect = text[: limits.MAX_FAULT_TEXT]
            case _:
                close_all(descriptors)
                self.lose("answered what it was not asked")
        if not self._pending:
            self.idle_since = self._loop.time()

    def _answer(self, request: Pending, fields: list[Any], descriptors: list[int]) -> None:
        try:
            value = request.parse(fields, descriptors)
        except Refusal as refusal:
            if type(refusal.error) is Corrupt:
                self._distrust(refusal.error)
            request.fail(refusal.error)
            return
        except (GridError, ValueError, TypeError, IndexError, KeyError) as error:
            request.fail(InternalError(f"the worker's answer makes no sense: {error}"))
            self.lose("gave an answer that makes no sense")
            return
        finally:
            close_all(descriptors)  # those that a result kept have left the list
        if not request.asker.done():
            request.asker.set_result(value)
        elif isinstance(value, Exported) and isinstance(value.data, Buffer):
            value.data.release()

    def _results(self, fields: list[Any], count: int) -> list[Result]:
        results = answers.results(fields, count)
        for result in results:
            if type(result) is Corrupt:
                self._distrust(result)
        return results

    def _distrust(self, error: Corrupt) -> None:
        # The store may get a good copy: who asks for the object again is to find that one.
        with contextlib.suppress(TypeError, ValueError):
            id = bytes.fromhex(error.fields["object"]) if "object" in error.fields else b""
            self.drop([id] if self._held.can_again(id) else [])

    def statistics(self) -> WorkerStatistics:
        return WorkerStatistics(
            self.key, self.pid, len(self._held), len(self._pending), self._channel.unsent_bytes, self._operations
        )

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else f"pid {self.pid}"
        return f"<Worker for {self.key.principal[:8]}, {state}, {len(self._held)} held, {len(self._pending)} pending>"
