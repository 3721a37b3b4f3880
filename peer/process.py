"""A peer in this process, until it is told to stop: `run`, and `python -m peer.process NAME` around it.

processes.py starts the latter. The two then share a socket: the child writes one line of JSON to it, what it is or the
error that kept it, and each learns from its end of file that the other one is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from peer import failpoints
from peer.folders import Folders
from peer.logs import log_to_stderr as log_to_stderr  # for who runs one in a terminal
from peer.peer import Peer, Settings
from peer.pool_settings import PoolSettings
from protocol import limits
from protocol.errors import GridError, InternalError

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_log = logging.getLogger("peergrid.process")
T = TypeVar("T")


def run(settings: Settings, on_ready: Callable[[Peer], None], parent: socket.socket | None = None) -> None:
    """A peer in this process; returns when a signal has stopped it, or when `parent` is closed at its other end.

    Stopping is orderly: sessions are closed, what was being stored is finished. A second signal ends the process.

    Raises:
        what Peer.start raises.
    """
    steady_allocator()
    enough_descriptors()
    run_loop(_serve(settings, on_ready, parent))


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, on uvloop where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def enough_descriptors() -> None:
    """As many as the system lets this process have: the lower limit that processes begin with is for those that pass
    descriptors to select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS has another bound besides
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def steady_allocator() -> None:
    """Raise glibc's dynamic thresholds once: fresh ones make the heap grow and shrink with every 1 MiB frame.

    Measured: 0.9 against 2.4 GB/s for frames of 1 MiB. Freed at once; elsewhere it costs nothing and does nothing.
    """
    bytes(31 << 20)


async def _serve(settings: Settings, on_ready: Callable[[Peer], None], parent: socket.socket | None) -> None:
    stopped = asyncio.Event()
    starting = asyncio.create_task(Peer.start(settings))

    def stop() -> None:
        stopped.set()
        starting.cancel()  # no effect once it is running

    _on_signals(stop)
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent.fileno(), stop)  # a parent never writes: this is its end
    try:
        peer = await starting
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
        return
    try:
        if not stopped.is_set():
            on_ready(peer)
        await stopped.wait()
        _log.info("stopping; a second signal ends it at once")
    finally:
        if parent is not None:
            asyncio.get_running_loop().remove_reader(parent.fileno())
        await peer.close()


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def first() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)  # the next one is the kernel's to handle
        stop()

    for number in _SIGNALS:
        loop.add_signal_handler(number, first)


# --- as a child -------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a peer as the command line says; 0 after an orderly stop, 1 if it could not start."""
    options = _parser().parse_args(arguments)
    log_to_stderr(options.log_level)
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    parent = None
    if options.ready_fd is not None:
        parent = socket.socket(fileno=options.ready_fd)
        parent.set_inheritable(False)

    def say(line: dict[str, Any]) -> None:
        if parent is not None:
            with contextlib.suppress(OSError):  # a parent that is gone is noticed elsewhere
                parent.sendall(json.dumps(line).encode() + b"\n")

    def on_ready(peer: Peer) -> None:
        print(f"{peer.name} is ready at {peer.url} (id {peer.id[:12]}, process {os.getpid()})", flush=True)
        say({"name": peer.name, "id": peer.id, "url": peer.url})

    try:
        run(_settings(options), on_ready, parent if options.with_parent else None)
    except GridError as error:
        print(error, file=sys.stderr)
        say({"error": _fault(error)})
        return 1
    except Exception as error:
        say({"error": _fault(InternalError(f"a defect while starting: {type(error).__name__}: {error}"))})
        raise
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m peer.process", description="Runs one peer.")
    parser.add_argument("name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--join", action="append", default=[], metavar="URL")
    parser.add_argument("--advertise", action="append", default=[], metavar="URL")
    parser.add_argument("--lease-grace", type=float, default=limits.LEASE_GRACE)
    parser.add_argument(
        "--workers", type=json.loads, default={}, metavar="JSON", help="how operations run (PoolSettings)"
    )
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--folders", nargs=3, type=Path, metavar=("CONFIG", "DATA", "RUNTIME"))
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument("--ready-fd", type=int, help="a socket to say on that the peer is ready")
    parser.add_argument("--with-parent", action="store_true", help="stop when the other end of --ready-fd is closed")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    folders = Folders(*options.folders) if options.folders else Folders.default()
    return Settings(
        options.name,
        options.host,
        options.port,
        tuple(options.join),
        options.data_dir,
        folders,
        tuple(options.advertise),
        options.lease_grace,
        PoolSettings.from_plain(options.workers),
    )


def _fault(error: GridError) -> dict[str, Any]:
    fault = error.to_fault()
    # JSON, unlike the wire, has no bytes.
    return {**fault, "fields": {name: value for name, value in fault["fields"].items() if _is_plain(value)}}


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
