"""What a worker does: messages from its peer in, tensors held, answers out. One thread, one message after the other.

    peer to worker                                                    worker to peer
    ["provide", id, dtype, shape, offset, read_only, bytes|nil,       -
        hashes|nil, number|nil] + fd
    ["run", seq, operations, wanted id|nil, ids to drop]              ["done", seq, results, value|fault|nil] (+ fd)
    ["stretch", number, operations, number to forget|nil]             -
    ["again", seq, number, given, made, floats, wanted id|nil,        ["done", seq, results|nil, value|fault|nil] (+ fd)
        ids to drop]
    ["program", seq, program id, bytes|nil, inputs, outs,             ["settled", seq, headers, values], maybe; then
        is_shown, is_reported, ids to drop first]                     ["done", seq, headers|nil, values|nil, report|nil]
    ["forget", program id]                                            -
    ["sign"] + fd                                                     -
    ["export", seq, id, in_memory]                                    ["done", seq, dtype, shape, data] (+ fd)
    ["drop", ids]                                                     -
    ["spoil", ids, fault]                                             -
    ["usage", seq]                                                    ["done", seq, objects, bytes, operations, seconds]
    ["allow", bytes]                                                  -
                                                                      ["up"]
                                                                      ["held", bytes]
                                                                      ["progress", seq, operations done|how far]

`results` has for each operation a list of [dtype, shape], one for each tensor it gave, or a fault. A `value` is what an
export gives, [dtype, shape, data]. The data are bytes; or nil with a descriptor of a memory file; or nil without one:
the value is what the peer provided under this id; or [number, offset]: it is that part of the file which the peer
provided under that number (not where it is wanted `in_memory`). `hashes` are those of the file's blocks (BlockHashes):
what is read of the file is checked against them. A request that fails as a whole is answered by ["fault", seq, fault].
`spoil` is about what an operation was to change in place that went wrong before it came here (Objects.spoil).
`allow` says how many bytes the worker may hold from now on; it tells what it holds when that has changed by much, and
how far it is when a request takes long: of a program node, nodes, iterations done, iterations in all. Of one that
`is_shown` small results come along, nil for the others, before its end where they are settled by then; of one that
`is_reported`, what each node took. `up` is a worker's first word. In the memory of `sign` stands the number of the
request that is to end (stopping.py). A defect of the loop itself is told by ["defect", text] before the end.

Requests are worked at in the order in which they came, and answered in it, but for wishes for a value that is there and
settled already (ahead.py).

The principal chose names, arguments, ids and programs; whatever is wrong with them comes back as a fault. The peer
made the messages around them, so that a malformed message is a defect.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from compute import values
from compute.cost import ALLOWED
from compute.dtypes import NAME_OF
from peer.worker import export
from peer.worker.ahead import Ahead
from peer.worker.device import Device
from peer.worker.execution import execute
from peer.worker.faults import as_error
from peer.worker.framing import Message, close_all
from peer.worker.guards import BlockHashes
from peer.worker.objects import Objects
from peer.worker.programs import Programs, Wanted
from peer.worker.steps import written_by
from peer.worker.stretches import Stretch, Use, told
from protocol import limits
from protocol.errors import GridError, TooLarge
from protocol.tensors import TensorHeader

Send = Callable[[Any, Sequence[int]], None]
Receive = Callable[[], Sequence[Message]]


class Runtime:
    """What one worker holds and does. `handle` takes a message; answers go to `send(message, descriptors)`, and what
    was sent is on its way after `flush()`. `let_go` is for when the answers are on their way."""

    def __init__(
        self,
        send: Send,
        flush: Callable[[], None] = lambda: None,
        device: Device | None = None,
        receive: Receive = lambda: (),
    ) -> None:
        self._send = send
        self._flush = flush
        self._told = 0  # bytes held, as the peer knows it
        self._unwanted: Sequence[bytes] = ()  # to be dropped: nobody is to wait for that
        self._objects = Objects(device)
        self._programs = Programs(self._objects)
        self._stretches: dict[int, Stretch] = {}  # as many as the peer says: it counts them
        self.ahead = Ahead(self._objects, self._stretches, receive, self._give)
        self._tell = 0.0  # when it is to be told how far the request is that is worked at
        self._operations = 0
        self._seconds = 0.0
        self._handlers: dict[str, Callable[..., None]] = {
            "provide": self._provide,
            "run": self._run,
            "stretch": self._stretch,
            "again": self._again,
            "program": self._program,
            "forget": self._forget,
            "sign": self._sign,
            "export": self._export,
            "drop": self._drop,
            "spoil": self._spoil,
            "usage": self._usage,
            "allow": self._allow,
        }

    def handle(self, message: Any, descriptors: list[int]) -> None:
        """One message; its descriptors are closed on the way out."""
        if self._unwanted:
            self.let_go()
        try:
            self._handlers[message[0]](descriptors, *message[1:])
        finally:
            if descriptors:
                close_all(descriptors)
        if not self._unwanted:
            self._tell_held()

    def let_go(self) -> None:
        """Drop what the last request came to let go of, if anything is left of that."""
        unwanted, self._unwanted = self._unwanted, ()
        self._objects.drop(unwanted)
        self._tell_held()

    def _tell_held(self) -> None:
        held = self._objects.held
        if held != self._told and (not held or abs(held - self._told) >= limits.MEMORY_STEP):
            self._told = held
            self._send(["held", held], ())

    def _allow(self, _: list[int], nbytes: int) -> None:
        ALLOWED.memory = nbytes

    def _provide(
        self,
        descriptors: list[int],
        object_id: bytes,
        dtype: str,
        shape: list[int],
        offset: int,
        read_only: bool,
        data: bytes | None,
        hashes: list[Any] | None = None,
        number: int | None = None,
    ) -> None:
        source: Any = data if data is not None else (descriptors[0], offset)
        known = None if hashes is None else BlockHashes.from_wire(hashes)
        try:
            self._objects.provide(
                object_id,
                TensorHeader(dtype, tuple(shape)),
                source,
                read_only=read_only,
                hashes=known,
                number=number,
            )
        except Exception as problem:
            self._objects.drop([object_id])
            self._objects.fail(object_id, as_error(problem, "provide"))

    def _run(
        self, _: list[int], seq: int, operations: list[Any], wanted: bytes | None = None, dropped: Sequence[bytes] = ()
    ) -> None:
        started = time.perf_counter()
        due = started + limits.LOOK_AHEAD
        self._tell = started + limits.PROGRESS
        if dropped and 2 * ALLOWED.held > ALLOWED.memory:
            self._drop_unused(dropped, operations, wanted)
        beat = partial(self._beat, seq, len(operations), dropped, lambda done: written_by(operations[done:]))
        results: list[Any] = []
        for operation in operations:
            result = execute(self._objects, operation)
            if isinstance(result, GridError):
                results.append(result.to_fault())
            else:
                results.append(told(result))
            if time.perf_counter() > due:
                beat(len(results))
                due = time.perf_counter() + limits.LOOK_AHEAD
        self._ran(seq, len(operations), started, results, wanted, dropped)

    def _stretch(self, _: list[int], number: int, operations: list[Any], forgotten: int | None = None) -> None:
        self._stretches[number] = Stretch(operations)
        if forgotten is not None:
            self._stretches.pop(forgotten, None)

    def _again(
        self,
        _: list[int],
        seq: int,
        number: int,
        given: bytes,
        made: bytes,
        floats: Sequence[float],
        wanted: bytes | None = None,
        dropped: Sequence[bytes] = (),
    ) -> None:
        started = time.perf_counter()
        self._tell = started + limits.PROGRESS
        stretch = self._stretches[number]
        use = Use(self._objects, stretch, given, made, floats, frozenset(dropped) - {wanted})
        if dropped and 2 * ALLOWED.held > ALLOWED.memory:
            self._drop_unused(dropped, use.ids, wanted)
        count = len(stretch.operations)
        results = use.run(partial(self._beat, seq, count, dropped, lambda done: stretch.written(done, use.ids)))
        self._ran(seq, count, started, results, wanted, dropped)

    def _ran(
        self,
        seq: int,
        count: int,
        started: float,
        results: list[Any] | None,
        wanted: bytes | None,
        dropped: Sequence[bytes],
    ) -> None:
        """So many operations have come to this."""
        self._operations += count
        self._seconds += time.perf_counter() - started
        if wanted is None:
            self._done(seq, results, None)
        else:
            self._run_for(seq, results, wanted)
        self._unwanted = dropped

    def _drop_unused(self, ids: Sequence[bytes], operations: Sequence[Any], wanted: bytes | None) -> None:
        """Lets go before the operations run, which may need the memory, of what they do not name."""
        used = {wanted, *_ids_in(operations)}
        self._objects.drop([object_id for object_id in ids if object_id not in used])

    def _beat(
        self, seq: int, count: int, dropped: Sequence[bytes], rest: Callable[[int], Iterable[bytes | None]], done: int
    ) -> None:
        """What a request that takes long does between two of its operations: it says how far it is, and gives what
        waits behind it and is there. `rest` gives the ids of what the operations after the first `done` may write."""
        now = time.perf_counter()
        if now > self._tell and done < count:
            self._tell = now + limits.PROGRESS
            self._progress(seq, done)
        self.ahead.look(lambda: rest(done), dropped)

    def _run_for(self, seq: int, results: list[Any] | None, wanted: bytes) -> None:
        """The results, and a value with them: they leave before anything is done that was asked after."""
        fd: int | None = None
        try:
            value, fd = self._value(wanted)
        except Exception as problem:
            value = as_error(problem, "export").to_fault()
        if fd is None:
            self._done(seq, results, value)
        else:
            self._done_with(fd, seq, results, value)
        self._flush()

    def _program(self, _: list[int], seq: int, *fields: Any) -> None:
        started = time.perf_counter()
        *about, dropped = fields
        if dropped:
            self._objects.drop(dropped)
        wanted = Wanted(seq, *about)
        early: list[bool] = []

        def tell(*told: Any) -> None:
            with contextlib.suppress(TooLarge):  # which is said at the end
                self._send(["settled", seq, *told], ())
                early.append(True)
                self._flush()

        try:
            tensors, report = self._programs.run(wanted, lambda at: self._progress(seq, at), tell)
        except Exception as problem:
            self._fault(seq, as_error(problem, "program"))
        else:
            if early:
                self._done(seq, None, None, None)
            else:
                small = self._programs.small(tensors) if wanted.is_shown else None
                self._done(seq, [_header(tensor) for tensor in tensors], small, report)
        self._operations += 1
        self._seconds += time.perf_counter() - started

    def _progress(self, seq: int, at: int | list[int]) -> None:
        self._send(["progress", seq, at], ())
        self._flush()

    def _give(self, seq: int, object_id: bytes) -> bool:
        """Answers a wish for a small value out of turn; False where there is none to give."""
        tensor = self._objects.tensors[object_id]
        if tensor.numel() * tensor.element_size() > limits.INLINE_PAYLOAD or self._objects.is_as_provided(object_id):
            return False
        self._run_for(seq, [], object_id)
        return True

    def _sign(self, descriptors: list[int]) -> None:
        self._programs.watch_sign(descriptors[0])

    def _forget(self, _: list[int], program_id: bytes) -> None:
        self._programs.forget(program_id)

    def _export(self, _: list[int], seq: int, object_id: bytes, in_memory: bool = False) -> None:
        try:
            value, fd = self._value(object_id, in_memory)
        except Exception as problem:
            self._fault(seq, as_error(problem, "export"))
            return
        if fd is None:
            self._done(seq, *value)
        else:
            self._done_with(fd, seq, *value)

    def _value(self, object_id: bytes, in_memory: bool = False) -> tuple[Any, int | None]:
        """[dtype, shape, data], and the descriptor of a memory file for what is large: the caller's to close."""
        objects = self._objects
        tensor = objects.tensors.get(object_id)
        if tensor is None:
            tensor = objects.get(object_id)  # which says why
        value = [NAME_OF[tensor.dtype], tensor.shape]  # as `_header` has it
        if not in_memory and object_id in objects.roots and objects.is_as_provided(object_id):
            return [*value, None], None
        nbytes = tensor.numel() * tensor.element_size()
        is_small = nbytes <= limits.INLINE_PAYLOAD
        if nbytes > limits.BLOCK and not in_memory:
            place = objects.place(tensor)
            if place is not None:
                return [*value, place], None
        if not is_small:
            export.check_size(nbytes)
        guarded = objects.guarded([tensor]) if objects.guards else []
        for each in guarded:
            each.check()
        if is_small:
            data = bytes(values.tensor_bytes(tensor))
            for each in guarded:
                each.was_read()
            return [*value, data], None
        return [*value, None], export.filed(tensor, guarded)

    def _done_with(self, fd: int, seq: int, *fields: Any) -> None:
        try:
            self._send(["done", seq, *fields], [fd])
        except TooLarge as error:
            self._fault(seq, error)
        finally:
            os.close(fd)

    def _drop(self, _: list[int], ids: list[bytes]) -> None:
        self._objects.drop(ids)

    def _spoil(self, _: list[int], ids: list[bytes], fault: dict[str, Any]) -> None:
        self._objects.spoil(ids, GridError.from_fault(fault))

    def _usage(self, _: list[int], seq: int) -> None:
        self._done(seq, len(self._objects), self._objects.held, self._operations, self._seconds)

    def _done(self, seq: int, *fields: Any) -> None:
        try:
            self._send(["done", seq, *fields], ())
        except TooLarge as error:
            self._fault(seq, error)

    def _fault(self, seq: int, error: GridError) -> None:
        self._send(["fault", seq, error.to_fault()], ())


def _ids_in(value: Any) -> Iterator[bytes]:
    """Every id in the wire form of operations, results' among them."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _ids_in(item)
    elif isinstance(value, dict):
        yield from _ids_in(list(value.values()))


def _header(tensor: torch.Tensor) -> list[Any]:
    return [NAME_OF[tensor.dtype], tensor.shape]  # a torch.Size is a tuple; the peer checks both
