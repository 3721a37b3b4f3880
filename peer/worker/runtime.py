"""The worker's loop: messages from its peer in, tensors held, answers out. One thread, one message after the other.

    peer to worker                                                    worker to peer
    ["provide", id, dtype, shape, offset, read_only, bytes|nil,       -
        hashes|nil, number|nil] + fd
    ["run", seq, operations, wanted id|nil, ids to drop]              ["done", seq, results, value|fault|nil] (+ fd)
    ["program", seq, program id, bytes|nil, inputs, outs]             ["done", seq, headers]
    ["forget", program id]                                            -
    ["export", seq, id, in_memory]                                    ["done", seq, dtype, shape, data] (+ fd)
    ["drop", ids]                                                     -
    ["usage", seq]                                                    ["done", seq, objects, bytes, operations, seconds]
    ["allow", bytes]                                                  -
                                                                      ["held", bytes]
                                                                      ["progress", seq, operations done]

`results` has for each operation a list of [dtype, shape], one for each tensor it gave, or a fault. A `value` is what an
export gives, [dtype, shape, data]. The data are bytes; or nil with a descriptor of a memory file; or nil without one:
the value is what the peer provided under this id; or [number, offset]: it is that part of the file which the peer
provided under that number (not where it is wanted `in_memory`). `hashes` are those of the file's blocks (BlockHashes):
what is read of the file is checked against them. A request that fails as a whole is answered by ["fault", seq, fault].
`allow` says how many bytes the worker may hold from now on; it tells what it holds when that has changed by much, and
how far it is when a request takes long. A defect of the loop itself is told by ["defect", text] before the end.

The principal chose names, arguments, ids and programs; whatever is wrong with them comes back as a fault. The peer
made the messages around them, so that a malformed message is a defect.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from compute import interpreter, values
from compute.cost import ALLOWED
from compute.dtypes import NAME_OF
from compute.forecast import check_program
from compute.program import Program
from peer.worker import export
from peer.worker.channel import BlockingChannel, close_all
from peer.worker.device import Device
from peer.worker.execution import check_describable, execute, executor, tensors_in
from peer.worker.faults import as_defect, as_error
from peer.worker.guards import BlockHashes
from peer.worker.objects import Objects
from peer.worker.sandbox import Settings
from protocol import limits
from protocol.errors import BadRequest, GridError, NotFound, TooLarge
from protocol.tensors import TensorHeader

Send = Callable[[Any, Sequence[int]], None]


class Runtime:
    """What one worker holds and does. `handle` takes a message; answers go to `send(message, descriptors)`, and what
    was sent is on its way after `flush()`. `let_go` is for when the answers are on their way."""

    def __init__(self, send: Send, flush: Callable[[], None] = lambda: None, device: Device | None = None) -> None:
        self._send = send
        self._flush = flush
        self._told = 0  # bytes held, as the peer knows it
        self._unwanted: Sequence[bytes] = ()  # to be dropped: nobody is to wait for that
        self._objects = Objects(device)
        self._execute = executor(self._objects)
        self._programs: dict[bytes, Program | GridError] = {}
        self._operations = 0
        self._seconds = 0.0
        self._handlers: dict[str, Callable[..., None]] = {
            "provide": self._provide,
            "run": self._run,
            "program": self._program,
            "forget": self._forget,
            "export": self._export,
            "drop": self._drop,
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
        started = told = time.perf_counter()
        if dropped and 2 * ALLOWED.held > ALLOWED.memory:
            self._drop_unused(dropped, operations, wanted)
        results: list[Any] = []
        for operation in operations:
            result = execute(self._objects, operation)
            if isinstance(result, GridError):
                results.append(result.to_fault())
            else:
                results.append([_header(tensor) for tensor in result])
            if time.perf_counter() - told > limits.PROGRESS and len(results) < len(operations):
                told = time.perf_counter()
                self._send(["progress", seq, len(results)], ())
                self._flush()
        self._operations += len(operations)
        self._seconds += time.perf_counter() - started
        if wanted is None:
            self._done(seq, results, None)
        else:
            self._run_for(seq, results, wanted)
        self._unwanted = dropped

    def _drop_unused(self, ids: Sequence[bytes], operations: list[Any], wanted: bytes | None) -> None:
        """Lets go before the operations run, which may need the memory, of what they do not name."""
        used = {wanted, *_ids_in(operations)}
        self._objects.drop([object_id for object_id in ids if object_id not in used])

    def _run_for(self, seq: int, results: list[Any], wanted: bytes) -> None:
        """The results, and a value with them."""
        try:
            value, fd = self._value(wanted)
        except Exception as problem:
            self._done(seq, results, as_error(problem, "export").to_fault())
        else:
            self._done_with(fd, seq, results, value)

    def _program(
        self, _: list[int], seq: int, program_id: bytes, data: bytes | None, inputs: list[bytes], outs: list[bytes]
    ) -> None:
        started = time.perf_counter()
        try:
            program = self._known(program_id, data)
            given = [self._objects.get(object_id) for object_id in inputs]
            check_program(program, given)
            # In the plainest layout: who asked knows of the results what `_header` says.
            tensors = [tensor.contiguous() for tensor in tensors_in(interpreter.run(program, given, self._execute))]
            if len(tensors) != len(outs):
                raise BadRequest(f"the program gives {len(tensors)} tensors, but {len(outs)} result ids came with it")
            for out, tensor in zip(outs, tensors, strict=True):
                check_describable(tensor)
                self._objects.put(out, tensor)
        except Exception as problem:
            error = as_error(problem, "program")
            for out in outs:
                self._objects.fail(out, error)
            self._fault(seq, error)
        else:
            self._done(seq, [_header(tensor) for tensor in tensors])
        self._operations += 1
        self._seconds += time.perf_counter() - started

    def _known(self, program_id: bytes, data: bytes | None) -> Program:
        if data is not None:
            try:
                self._programs[program_id] = Program.from_bytes(data)
            except Exception as problem:
                self._programs[program_id] = as_error(problem, "program")
        program = self._programs.get(program_id)
        if program is None:
            raise NotFound(f"no program {program_id.hex()} is here; send the program itself")
        if isinstance(program, GridError):
            raise program
        return program

    def _forget(self, _: list[int], program_id: bytes) -> None:
        self._programs.pop(program_id, None)

    def _export(self, _: list[int], seq: int, object_id: bytes, in_memory: bool = False) -> None:
        try:
            value, fd = self._value(object_id, in_memory)
        except Exception as problem:
            self._fault(seq, as_error(problem, "export"))
        else:
            self._done_with(fd, seq, *value)

    def _value(self, object_id: bytes, in_memory: bool = False) -> tuple[list[Any], int | None]:
        """[dtype, shape, data], and the descriptor of a memory file for what is large: the caller's to close."""
        tensor = self._objects.get(object_id)
        value = _header(tensor)
        if self._objects.is_as_provided(object_id) and not in_memory:
            return [*value, None], None
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes > limits.BLOCK and not in_memory:
            place = self._objects.place(tensor)
            if place is not None:
                return [*value, place], None
        export.check_size(nbytes)
        guarded = self._objects.guarded([tensor]) if self._objects.guards else []
        for each in guarded:
            each.check()
        if nbytes <= limits.INLINE_PAYLOAD:
            data = bytes(values.tensor_bytes(tensor))
            for each in guarded:
                each.was_read()
            return [*value, data], None
        return [*value, None], export.filed(tensor, guarded)

    def _done_with(self, fd: int | None, seq: int, *fields: Any) -> None:
        if fd is None:
            self._done(seq, *fields)
            return
        try:
            self._send(["done", seq, *fields], [fd])
        except TooLarge as error:
            self._fault(seq, error)
        finally:
            os.close(fd)

    def _drop(self, _: list[int], ids: list[bytes]) -> None:
        self._objects.drop(ids)

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


def warm() -> None:
    """What every worker needs, done once in the zygote: torch's settings, and the first run of its machinery."""
    warnings.simplefilter("ignore")  # torch's advice is for who wrote the program, and that one is far away
    torch.set_num_threads(1)  # more would make the zygote impossible to fork
    bytes(31 << 20)  # glibc's thresholds rise with it: else large results are asked of the system again and again
    torch.set_grad_enabled(False)  # gradients are made by the asker, out of operations
    # No operation shows what was in memory before: what it leaves out is filled. Warnings only, because some honest
    # operations have no deterministic form, and for them the filling is all that is wanted.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    runtime = Runtime(lambda message, descriptors: None)
    one, two = bytes(16), bytes(15) + b"\1"
    runtime.handle(["provide", one, "float32", [2, 2], 0, False, bytes(16)], [])
    runtime.handle(["run", 0, [["aten.mm.default", [one, one], {}, [two]]], two, []], [])
    runtime.handle(["export", 0, two], [])
    # Products of these look the processor up in the file system, which a worker has not.
    torch.ones(2, 2, dtype=torch.int64).mm(torch.ones(2, 2, dtype=torch.int64))


def serve(sock: socket.socket, settings: Settings) -> None:
    """Runs until the peer closes the channel."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(int.from_bytes(os.urandom(7), "little"))  # or all workers would draw the same numbers
    speed = float(settings.threads) if settings.device == "cpu" else limits.CPU_DEVICE
    ALLOWED.limit(settings.memory, settings.seconds, speed)
    channel = BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_MESSAGE)
    runtime = Runtime(channel.queue, channel.flush, Device.of(settings.device))
    try:
        while (messages := channel.receive()) is not None:
            begun = time.perf_counter()
            for message, descriptors in messages:
                runtime.handle(message, descriptors)
                if time.perf_counter() - begun > limits.ANSWERS_WAIT:
                    channel.flush()  # else what is done would wait for what is not
                    begun = time.perf_counter()
            channel.flush()
            runtime.let_go()
            channel.flush()
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        channel.flush()
        channel.send(["defect", as_defect(error).message])
        raise
