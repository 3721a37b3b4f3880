"""A jail's process: takes its job, gives up its channel, runs the code, writes what came of it, ends.

    peer to jail                                                   its two files
    ["provide", id, dtype, shape, offset, read_only, bytes|nil,    told    what it printed, as it came; of a fixed size
        hashes|nil, number|nil] + fd                               made    length u32 | msgpack | the results' elements
    ["blank", id, dtype, shape]
    ["job", work, [id], numbers] + 3 fds: told, made, end

`work` is what was shipped (compute/jail/running.py), the ids are of the tensors that it numbers; a blank one is of
zeros. With `numbers` those of the result become tensors. The msgpack is {"structure", "tensors": [[dtype, shape,
offset]]}, or {"fault"}. `end` is the writing end of a pipe: closed when `made` is sealed, so that nobody can change it,
or by our death. Only then does the peer read the files, and it believes nothing that they say.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

import msgpack
import torch

from compute.cost import ALLOWED
from compute.dtypes import DTYPE_OF, NAME_OF
from compute.jail import running
from compute.jail.running import Printer, Work
from compute.values import header_of
from peer.worker import export, giving, memory, sandbox
from peer.worker.channel import BlockingChannel
from peer.worker.execution import executor
from peer.worker.faults import as_error
from peer.worker.objects import Objects
from peer.worker.sandbox import Ground, Settings
from protocol import limits
from protocol.errors import BadRequest, GridError, InternalError
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader

_ALIGNED: Final = 64
_OUTPUTS: Final = 3
_LENGTH: Final = struct.Struct("<I")


class Job:
    """What came by the channel."""

    def __init__(self) -> None:
        self.objects = Objects()
        self.work: bytes = b""
        self.inputs: list[bytes] = []
        self.has_numbers = False

    def take(self, message: Any, descriptors: list[int]) -> bool:
        """One message; True if it was the last. Its descriptors are closed, but for those of the last."""
        match message:
            case ["provide", *fields]:
                giving.take(self.objects, fields, descriptors)
            case ["blank", id, dtype, shape]:
                self.objects.put(id, _zeros(TensorHeader(dtype, tuple(shape))))
            case ["job", bytes(work), list(inputs), bool(has_numbers)]:
                self.work, self.inputs, self.has_numbers = work, inputs, has_numbers
                return True
            case _:
                raise InternalError("a jail was given what is no part of a job")
        for fd in descriptors:
            os.close(fd)
        return False


def _zeros(header: TensorHeader) -> torch.Tensor:
    """Of any size, for nothing: pages that nobody has are read as zeros. Not to be written."""
    dtype = DTYPE_OF[header.dtype]
    if not header.numel:
        return torch.zeros(header.shape, dtype=dtype)
    pages = mmap.mmap(-1, header.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    return torch.frombuffer(pages, dtype=dtype).view(header.shape)


def serve(sock: socket.socket, ground: Ground, settings: Settings) -> NoReturn:
    """The process's whole life, behind the first half of its walls."""
    channel = BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_MESSAGE)
    job = Job()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(int.from_bytes(os.urandom(7), "little"))
    ALLOWED.limit(settings.memory, settings.seconds, float(settings.threads))
    if not select.select([channel.fileno()], [], [], 0)[0]:
        touch()
    outputs = _received(job, channel)
    if len(outputs) != _OUTPUTS:
        os._exit(0)  # the peer is gone, or has no more use for us
    told, made, end = sandbox.close_jail(ground, settings, outputs)
    _write_result(made, job, told)
    memory.seal(made)
    os.close(end)
    os._exit(0)


def _received(job: Job, channel: BlockingChannel) -> Sequence[int]:
    while (messages := channel.receive()) is not None:
        for message, descriptors in messages:
            if job.take(message, descriptors):
                return descriptors
    return ()


def _write_result(made: int, job: Job, told: int) -> None:
    try:
        structure, tensors = _run(job, told)
        header, places = _described(structure, tensors)
        for tensor, place in zip(tensors, places, strict=True):
            guarded = job.objects.guarded([tensor])
            for each in guarded:
                each.check()
            export.write(made, place, tensor, guarded)
    except BaseException as problem:
        header = _fault(as_error(problem, None))
    os.pwrite(made, _LENGTH.pack(len(header)) + header, 0)


def _run(job: Job, told: int) -> tuple[Any, list[torch.Tensor]]:
    tensors = [job.objects.get(id) for id in job.inputs]
    work = Work.from_wire(_unpacked(job.work))
    execute = executor(job.objects)

    def write(data: bytes) -> None:
        os.write(told, data)

    with without_dynamo(), held_tensors():
        return running.run(work, tensors, execute=execute, show=Printer(write), numbers=job.has_numbers)


def _unpacked(work: bytes) -> Any:
    try:
        return msgpack.unpackb(work, raw=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise BadRequest(f"a jail that does not decode: {error}") from None


def _described(structure: Any, tensors: Sequence[torch.Tensor]) -> tuple[bytes, list[int]]:
    """The header, and where in the file each tensor is to be."""
    headers = [header_of(tensor) for tensor in tensors]
    total = sum(header.nbytes + _ALIGNED for header in headers)
    check_limit("JAIL_OUTPUT", total, "a jail gives at most {allowed} bytes: give less, or in smaller parts")
    places, at = [], limits.JAIL_HEADER
    for header in headers:
        places.append(at)
        at += -(-header.nbytes // _ALIGNED) * _ALIGNED
    packed = msgpack.packb(structure)
    sentence = (
        "beside tensors a jail gives at most {allowed} bytes, not {size}: numbers, text, and what is around them; "
    )
    check_limit("JAIL_STRUCTURE", len(packed), sentence + "make tensors of long lists")
    listed = [[NAME_OF[tensor.dtype], list(tensor.shape), at] for tensor, at in zip(tensors, places, strict=True)]
    return msgpack.packb({"structure": packed, "tensors": listed}), places


def _fault(error: GridError) -> bytes:
    packed: bytes = msgpack.packb({"fault": error.to_fault()}, default=str)
    if len(packed) <= limits.JAIL_HEADER // 2:
        return packed
    short = type(error)(error.message[: limits.MAX_FAULT_TEXT])
    packed = msgpack.packb({"fault": short.to_fault()}, default=str)
    return packed


# --- getting torch ready -----------------------------------------------------------------------------------


@contextlib.contextmanager
def held_tensors() -> Iterator[None]:
    """Of tensors' methods that read memory past all operations: as a copy, which is checked, or not at all."""
    kept = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy", "__array__", "__dlpack__")}

    def tolist(self: torch.Tensor) -> Any:
        return kept["tolist"](self.clone())

    def refused(self: torch.Tensor, *_: object, **__: object) -> NoReturn:
        raise TypeError("a jail has no numpy: work with torch's operations")

    for name in kept:
        setattr(torch.Tensor, name, tolist if name == "tolist" else refused)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)


@contextlib.contextmanager
def without_dynamo() -> Iterator[None]:
    """Optimisers import a compiler to tell it that they are not to be compiled: a second, and files. There is none."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    stub: Any = types.ModuleType("torch._dynamo")
    stub.disable = lambda function=None, *_, **__: function if function is not None else (lambda given: given)
    stub.graph_break = lambda *_, **__: None
    stub.is_compiling = lambda: False
    sys.modules["torch._dynamo"] = stub
    torch._dynamo = stub
    try:
        yield
    finally:
        del sys.modules["torch._dynamo"], torch._dynamo


_SAMPLE: Final = """
def sample(x):
    from torch import nn
    import torch.nn.functional as F
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2))
    for optimizer in (torch.optim.Adam(net.parameters()), torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
    slope = torch.func.grad(lambda y: (y * y).sum())(x)
    image = nn.Conv2d(1, 2, 3)(torch.ones(1, 1, 5, 5)).mean()
    print(f"{loss.item():.3f}", x, x[0, :2].tolist())
    return {"loss": loss, "slope": slope, "image": image, "state": net.state_dict(), "n": [1, 2.0, "text"]}
""".strip()


def warm() -> None:
    """In the zygote: what jails run, run once, so that nothing has to be imported behind the walls."""
    state = torch.get_rng_state()
    with contextlib.suppress(GridError):
        _try("def sample(x):\n    return x[7]")  # an error is something that jails come to as well
    _described({}, _try(_SAMPLE))
    torch.set_rng_state(state)


def touch() -> None:
    """In a process that waits for its job: what it shares with the zygote and will write to becomes its own."""
    _try("def sample(x):\n    print(x)\n    return x.sum().item()")


def _try(source: str) -> list[torch.Tensor]:
    work = Work(source, "sample", 1, {"list": [{"tensor": 0}]}, {"dict": []}, {}, {"torch": "torch"}, {})
    execute = executor(Objects())
    with without_dynamo():
        return running.run(work, [torch.ones(2, 3)], execute=execute, show=Printer(lambda data: None))[1]
