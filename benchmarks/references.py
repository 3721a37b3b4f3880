"""What transfers are held against: other ways to move as many bytes between two processes of this machine, each in
processes of its own, and given up where it says nothing for a while.

    copy = Reference("tcp", nbytes); copy.measure()    MB/s of one copy, into memory that is there already; close() it

tcp        blocking sockets, sends of 1 MiB
disk       a plain write and fsync of a file
gloo       torch.distributed send and recv
torch_rpc  torch.distributed.rpc, a tensor as the argument of a call
grpc       a stream of messages of 1 MiB, as grpc.aio has it
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

MIB = 1 << 20
_STARTS_WITHIN = 30.0  # seconds
_ENDS_WITHIN = 60.0


def rate(nbytes: int, seconds: float) -> float:
    """MB/s, with MB = 2^20 bytes."""
    return nbytes / MIB / seconds


class Child:
    """A process that runs one of the functions below, or in another module, and says what it has to say in lines."""

    def __init__(
        self, function: str, *args: object, process_group: int | None = None, module: str = "benchmarks.references"
    ) -> None:
        command = [sys.executable, "-W", "ignore", "-m", module, function, *map(str, args)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=process_group,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def say(self, line: str) -> None:
        self._input.write(line.encode() + b"\n")

    def hear(self, seconds: float) -> str:
        """The next line. RuntimeError if there is none in time."""
        ready, _, _ = select.select([self._output], [], [], seconds)
        line = self._output.readline().decode().strip() if ready else ""
        if not line:
            raise RuntimeError(f"a reference has ended, or said nothing for {seconds:g} s")
        return line

    def close(self) -> None:
        self._input.close()  # all of them end with their input
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        self._process.kill()
        self._process.wait()
        self._output.close()


class Reference(Child):
    """One way to copy, or to call (calls.py); it starts at once, and does it once so that all is warm. `where`: the
    folder for files.

    Its processes are stopped while it is not measured: some of them poll, and would slow down all others.
    """

    def __init__(
        self, name: str, nbytes: int, where: Path | None = None, module: str = "benchmarks.references"
    ) -> None:
        super().__init__(name, nbytes, where or tempfile.gettempdir(), process_group=0, module=module)
        self._is_ready = False

    def measure(self) -> float:
        """MB/s of one copy, or microseconds of one call. RuntimeError if there is none in time."""
        self._signal(signal.SIGCONT)
        if not self._is_ready:
            self.hear(_STARTS_WITHIN)
            self._is_ready = True
        self.say("go")
        try:
            return float(self.hear(_ENDS_WITHIN))
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        super().close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def installed() -> list[str]:
    """The names of the references that can be had here."""
    names = ["tcp", "disk"]
    if _has_distributed():
        names += ["gloo", "torch_rpc"]
    return names + (["grpc"] if importlib.util.find_spec("grpc") is not None else [])


def _has_distributed() -> bool:
    import torch

    return torch.distributed.is_available()


def _say(what: object) -> None:
    print(what, flush=True)


def serve(copy: Callable[[], float]) -> None:
    """Measure once, so that all is warm; then whenever told to."""
    copy()
    _say("ready")
    for _ in sys.stdin:
        _say(copy())


def _warm(nbytes: int) -> memoryview:
    memory = mmap.mmap(-1, nbytes)
    for at in range(0, nbytes, MIB):
        memory[at : at + MIB] = b"\x01" * min(MIB, nbytes - at)
    return memoryview(memory)


# --- the ways ---------------------------------------------------------------------------------------------


def tcp(nbytes: int, where: str) -> None:
    data = _warm(nbytes)
    with closing(Child("tcp_sink", nbytes)) as beside, _dial(beside) as line:

        def copy() -> float:
            started = time.perf_counter()
            for at in range(0, nbytes, MIB):
                line.sendall(data[at : at + MIB])
            line.recv(1)
            return rate(nbytes, time.perf_counter() - started)

        serve(copy)


def _dial(beside: Child) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(beside.hear(_STARTS_WITHIN))))


def tcp_sink(nbytes: int) -> None:
    data = _warm(nbytes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        _say(server.getsockname()[1])
        line, _ = server.accept()
        with line:
            while True:
                at = 0
                while at < nbytes:
                    got = line.recv_into(data[at:])
                    if not got:
                        return
                    at += got
                line.sendall(b"k")


def disk(nbytes: int, where: str) -> None:
    data = _warm(nbytes)

    def copy() -> float:
        with tempfile.NamedTemporaryFile(dir=where or None, prefix="reference-") as file:
            started = time.perf_counter()
            for at in range(0, nbytes, MIB):
                os.write(file.fileno(), data[at : at + MIB])
            os.fsync(file.fileno())
            return rate(nbytes, time.perf_counter() - started)

    serve(copy)


def gloo(nbytes: int, where: str) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Child("gloo_sink", nbytes, folder)):
        torch = _join_gloo(0, folder)
        data, done = torch.ones(nbytes, dtype=torch.uint8), torch.zeros(1)

        def copy() -> float:
            started = time.perf_counter()
            torch.distributed.send(data, 1)
            torch.distributed.recv(done, 1)
            return rate(nbytes, time.perf_counter() - started)

        serve(copy)


def gloo_sink(nbytes: int, folder: str) -> None:
    torch = _join_gloo(1, folder)
    data, done = torch.ones(nbytes, dtype=torch.uint8), torch.zeros(1)
    while True:
        torch.distributed.recv(data, 0)
        torch.distributed.send(done, 0)


def _join_gloo(rank: int, folder: str) -> Any:
    import torch

    _on_loopback()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    return torch


def _on_loopback() -> None:
    name = "lo" if sys.platform == "linux" else "lo0"
    os.environ.update(GLOO_SOCKET_IFNAME=name, TP_SOCKET_IFNAME=name)


def torch_rpc(nbytes: int, where: str) -> None:
    import torch
    from torch.distributed import rpc

    with tempfile.TemporaryDirectory() as folder, closing(Child("rpc_sink", folder)):
        join_rpc(0, folder)
        data = torch.ones(nbytes, dtype=torch.uint8)

        def copy() -> float:
            started = time.perf_counter()
            assert rpc.rpc_sync("1", _size_of, args=(data,)) == nbytes
            return rate(nbytes, time.perf_counter() - started)

        serve(copy)


def rpc_sink(folder: str) -> None:
    join_rpc(1, folder)
    sys.stdin.read()


def join_rpc(rank: int, folder: str) -> None:
    from torch.distributed import rpc

    _on_loopback()
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{folder}/store")
    init: Any = rpc.init_rpc
    init(str(rank), rank=rank, world_size=2, rpc_backend_options=options)


def _size_of(data: Any) -> int:
    return int(data.numel())


def kept_there(count: int) -> Any:
    """What an RRef is to refer to. This and the next are for calls.py: the other end finds them by their module."""
    import torch

    return torch.randn(count)


def sum_there(x: Any, y: Any) -> Any:
    return x.local_value() + y.local_value()


def grpc(nbytes: int, where: str) -> None:
    library: Any = importlib.import_module("grpc")

    data = _warm(nbytes)
    settings = [("grpc.max_receive_message_length", 4 * MIB)]
    with closing(Child("grpc_sink", nbytes)) as beside:
        channel = library.insecure_channel(f"127.0.0.1:{beside.hear(_STARTS_WITHIN)}", options=settings)
        send = channel.stream_unary("/grid.Reference/Copy")

        def copy() -> float:
            started = time.perf_counter()
            send(bytes(data[at : at + MIB]) for at in range(0, nbytes, MIB))
            return rate(nbytes, time.perf_counter() - started)

        serve(copy)


def grpc_sink(nbytes: int) -> None:
    asyncio.run(_serve_grpc(nbytes))


async def _serve_grpc(nbytes: int) -> None:
    library: Any = importlib.import_module("grpc")

    data = _warm(nbytes)

    async def copy(messages: Any, context: Any) -> bytes:
        at = 0
        async for message in messages:
            data[at : at + len(message)] = message
            at += len(message)
        return b"k"

    handler = library.method_handlers_generic_handler(
        "grid.Reference", {"Copy": library.stream_unary_rpc_method_handler(copy)}
    )
    server = library.aio.server(options=[("grpc.max_receive_message_length", 4 * MIB)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _say(port)
    await server.wait_for_termination()


def main() -> None:
    """`python -m benchmarks.references FUNCTION NBYTES ...`: for Child."""
    function, *args = sys.argv[1:]
    ways: dict[str, Callable[..., None]] = {
        each.__name__: each for each in (tcp, tcp_sink, disk, gloo, gloo_sink, torch_rpc, rpc_sink, grpc, grpc_sink)
    }
    ways[function](*(int(value) if value.isdigit() else value for value in args))


if __name__ == "__main__":
    main()
