"""WebSockets as the grid uses them: settings of the websockets library, in one place, with their reasons."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import InvalidHandshake, InvalidURI
from websockets.frames import DATA_OPCODES, Opcode
from websockets.protocol import State

from protocol import limits
from protocol.errors import BadRequest, Unreachable

SUBPROTOCOL: Final = "peergrid.1"

_log = logging.getLogger("peergrid.transport")
# The library logs a traceback for every connection that breaks; ours says what matters, in a line.
_quiet = logging.getLogger("peergrid.websockets")
_quiet.setLevel(logging.CRITICAL)

_SETTINGS: Final[dict[str, Any]] = {
    "compression": None,  # tensors do not compress, and deflate can amplify 1000-fold
    "max_size": limits.MAX_FRAME,
    "max_queue": 4,  # messages read ahead: bounds memory at 4 chunks, and is the measured best
    "ping_interval": limits.PING_INTERVAL,
    "ping_timeout": limits.PING_TIMEOUT,
    "open_timeout": limits.HANDSHAKE_TIMEOUT,
    "close_timeout": 1.0,
    "logger": _quiet,
}


Sink = Callable[[bytes | bytearray], bool]
"""Takes a whole binary message at once; False if it wants it queued instead."""


class _Guard:
    """What both sides of a WebSocket add to the library's.

    An end that pings without reading is dropped: the library would buffer its pongs without bound. And a message
    that is one frame can go straight to a `sink`, without a queue and a waiting task: half of what a small message
    costs.
    """

    sink: Sink | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]  # mixed into the library's classes below
        transport: asyncio.Transport | None = self.transport  # type: ignore[attr-defined]
        if transport is not None and transport.get_write_buffer_size() > limits.WRITE_BUFFER:
            transport.abort()

    def process_event(self, event: Any) -> None:
        sink = self.sink
        if sink is not None and event.opcode in DATA_OPCODES:
            if event.opcode is Opcode.BINARY and event.fin:
                if sink(event.data):
                    return
            else:
                self.sink = None  # text, or a message in pieces: from here on everything keeps its order in the queue
        super().process_event(event)  # type: ignore[misc]


class GuardedServerConnection(_Guard, ServerConnection):
    """The accepting side."""


class GuardedClientConnection(_Guard, ClientConnection):
    """The dialling side."""


Socket = GuardedClientConnection | GuardedServerConnection


def can_send_now(socket: Socket) -> bool:
    """Whether a message can be sent without waiting for the other end to read."""
    return socket.protocol.state is State.OPEN and not socket.paused


def send_now(socket: Socket, message: bytes) -> None:
    """Send without waiting; only while `can_send_now`. A link that breaks under it says so to whoever reads."""
    socket.protocol.send_binary(message)
    socket.send_data()


class _Direct(connect):
    """Follows no redirects: a peer could otherwise have others dial any address."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def dial(url: str, timeout: float = limits.DIAL_TIMEOUT) -> GuardedClientConnection:
    """A WebSocket to `url` (ws://host:port).

    Raises:
        BadRequest: not such a URL.
        Unreachable: nobody answers there in time, or what answers is no peer.
    """
    if not _is_address(url):
        raise BadRequest(f"{url!r} is no address of a peer; they look like ws://127.0.0.1:7700")
    try:
        async with asyncio.timeout(timeout):
            socket = await _Direct(
                url,
                **_SETTINGS,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                proxy=None,  # a peer is reached directly, whatever the environment says
                create_connection=GuardedClientConnection,
            )
    except TimeoutError:
        raise Unreachable(f"nobody answered at {url} within {timeout:g} s") from None
    except InvalidURI:
        raise BadRequest(f"{url!r} is no address of a peer; they look like ws://127.0.0.1:7700") from None
    except (OSError, InvalidHandshake, EOFError) as error:
        raise Unreachable(f"no peer at {url}: {_reason(error)}") from None
    assert isinstance(socket, GuardedClientConnection)
    return socket


async def listen(host: str, port: int, handler: Callable[[GuardedServerConnection], Awaitable[None]]) -> Server:
    """Serve WebSockets; `handler` runs once per connection, and calls `let_in` when its end has proved itself.
    OSError as the system gives it."""
    return await serve(
        handler,
        host,
        port,
        **{**_SETTINGS, "max_size": limits.MAX_HELLO + 64},
        subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
        # Browsers always send Origin, peers and clients never do: no web page can reach a peer.
        origins=[None],
        create_connection=GuardedServerConnection,
    )


def let_in(socket: Socket) -> None:
    """The end has proved its key: it may send messages of any size that the protocol has."""
    socket.protocol.max_message_size = limits.MAX_FRAME


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket without its fellow
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is it running?"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
