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

from protocol import limits
from protocol.errors import BadRequest, Unreachable

SUBPROTOCOL: Final = "peergrid.1"
Socket = ClientConnection | ServerConnection

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


class GuardedServerConnection(ServerConnection):
    """Drops an end that pings without reading: the library would buffer its pongs without bound."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        transport = self.transport
        if transport is not None and transport.get_write_buffer_size() > limits.WRITE_BUFFER:
            transport.abort()


class GuardedClientConnection(ClientConnection):
    """The same guard for the dialling side."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        transport = self.transport
        if transport is not None and transport.get_write_buffer_size() > limits.WRITE_BUFFER:
            transport.abort()


class _Direct(connect):
    """Follows no redirects: a peer could otherwise have others dial any address."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def dial(url: str, timeout: float = limits.DIAL_TIMEOUT) -> ClientConnection:
    """A WebSocket to `url` (ws://host:port).

    Raises:
        BadRequest: not such a URL.
        Unreachable: nobody answers there in time, or what answers is no peer.
    """
    if not _is_address(url):
        raise BadRequest(f"{url!r} is no address of a peer; they look like ws://127.0.0.1:7700")
    try:
        async with asyncio.timeout(timeout):
            return await _Direct(
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


async def listen(host: str, port: int, handler: Callable[[ServerConnection], Awaitable[None]]) -> Server:
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
