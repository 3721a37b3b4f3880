"""WebSockets as the grid uses them: settings of the websockets library, in one place, with their reasons."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import sys
import weakref
from array import array
from collections.abc import Awaitable, Callable
from fcntl import ioctl
from functools import partial
from ipaddress import ip_address
from socket import AF_INET, IPPROTO_TCP, SO_RCVLOWAT, SOCK_STREAM, SOL_SOCKET, create_server, getaddrinfo
from socket import socket as System
from termios import FIONREAD, TIOCOUTQ
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, InvalidHandshake, InvalidURI
from websockets.frames import (  # type: ignore[attr-defined]  # apply_mask: the fast one, where the library has it
    DATA_OPCODES,
    Opcode,
    apply_mask,
)
from websockets.protocol import CLIENT, Protocol, State
from websockets.streams import StreamReader

from peer import near
from protocol import limits
from protocol.codec import Buffer
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
    "ping_interval": None,  # peer/liveness.py: the library would take a slow line for a dead one
    "open_timeout": limits.HANDSHAKE_TIMEOUT,
    "write_limit": 0,  # what the system does not take at once makes us wait: what waits here could not be overtaken
    "close_timeout": 1.0,
    "logger": _quiet,
}


Sink = Callable[[bytes | bytearray], bool]
"""Takes a whole binary message at once; False if it wants it queued instead."""


_BINARY: Final = 0x82  # a whole binary message
_MASKED: Final = 0x80
_TINY: Final = 126  # in place of a length: two bytes with it follow; one more: eight bytes
_SHORT: Final = 1 << 16
_TINY_HEAD: Final = struct.Struct("!BB")
_SHORT_HEAD: Final = struct.Struct("!BBH")
_LONG_HEAD: Final = struct.Struct("!BBQ")
_MASKED_AT_ONCE: Final = 256 * limits.KIB


class _Guard:
    """What both sides of a WebSocket add to the library's.

    An end that pings without reading is dropped: the library would buffer its pongs without bound. And a message
    that is one frame can go straight to a `sink`, without a queue and a waiting task: half of what a small message
    costs. What the sink did not want is counted in `queued`, until whoever reads the queue takes it off.
    """

    sink: Sink | None = None
    queued = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]  # mixed into the library's classes below
        transport: asyncio.Transport | None = self.transport  # type: ignore[attr-defined]
        if transport is not None and transport.get_write_buffer_size() > limits.WRITE_BUFFER:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        transport: asyncio.Transport = self.transport  # type: ignore[attr-defined]
        place = memoryview(bytearray(limits.MAX_HELLO))
        pipe = transport.get_extra_info("socket")
        near.take_rest(pipe, exc, lambda _: place, lambda size: self.data_received(bytes(place[:size])))
        super().connection_lost(exc)  # type: ignore[misc]

    def process_event(self, event: Any) -> None:
        sink = self.sink
        if sink is not None and event.opcode in DATA_OPCODES:
            if event.opcode is Opcode.BINARY and event.fin:
                if sink(event.data):
                    return
                self.queued += 1
            else:
                self.sink = None  # text, or a message in pieces: from here on everything keeps its order in the queue
        super().process_event(event)  # type: ignore[misc]


def whole_message(data: memoryview, *, is_masked: bool) -> bytes | None:
    """The message, if `data`, which begins with a frame, is one short binary message in one frame; None of anything
    else, which is for the library. Nearly all that is small comes so, and the library's parser costs five times this.
    """
    size = len(data)
    if size < 6 or data[0] != _BINARY:
        return None
    length, start = data[1] ^ (_MASKED if is_masked else 0), 2
    if length >= _TINY:
        if length > _TINY:
            return None  # long, or masked where it should not be, or the other way round
        length, start = data[2] << 8 | data[3], 4
        if length < _TINY:
            return None  # not as short as it could be
    if not is_masked:
        return bytes(data[start:]) if size == start + length else None
    if size != start + 4 + length:
        return None
    return apply_mask(data[start + 4 :], bytes(data[start : start + 4]))


def _is_waiting(protocol: Protocol) -> bool:
    """Whether the parser is between two frames: then it waits in at_eof, and in no other place."""
    waits: Any = protocol.parser
    while (inner := waits.gi_yieldfrom) is not None:
        waits = inner
    return waits.gi_code is _BETWEEN_FRAMES


def is_near(socket: Socket) -> bool:
    """Whether it came, or was dialled, by the short way (near.py)."""
    return near.is_near(socket.transport.get_extra_info("socket"))


def core_of(socket: Socket) -> Callable[[], int] | None:
    """What tells the core that the other end is on, or sent from last; None where it is not one of this machine's."""
    address, system = socket.remote_address, socket.transport.get_extra_info("socket")
    if is_near(socket):
        return near.core_of(system, address)
    if not address or not ip_address(address[0]).is_loopback:
        return None
    return partial(system.getsockopt, SOL_SOCKET, _INCOMING_CPU)


def origin(socket: Socket) -> str:
    """Where the other end is, for logs."""
    address = socket.remote_address
    if is_near(socket):
        return f"process {near.process_of(socket.transport.get_extra_info('socket')) or '?'} of this machine"
    return "{}:{}".format(*address[:2]) if address else "?"


def is_between_frames(socket: Socket) -> bool:
    """Whether all that came so far are whole frames, and the library has taken them."""
    return socket.protocol.state is State.OPEN and _is_waiting(socket.protocol)


_INCOMING_CPU: Final = 49  # of Linux; the socket module has no name for it
_BETWEEN_FRAMES: Final = StreamReader.at_eof.__code__


class GuardedServerConnection(_Guard, ServerConnection):
    """The accepting side."""


class GuardedClientConnection(_Guard, ClientConnection):
    """The dialling side."""


Socket = GuardedClientConnection | GuardedServerConnection


def can_send_now(socket: Socket) -> bool:
    """Whether a message can be sent without waiting for the other end to read."""
    return socket.protocol.state is State.OPEN and not socket.protocol.eof_sent and not socket.paused


def send_now(socket: Socket, message: bytes) -> None:
    """Send without waiting; only while `can_send_now`. A link that breaks under it says so to whoever reads."""
    protocol = socket.protocol
    if protocol.writes:  # something of the library's own goes first
        protocol.send_binary(message)
        socket.send_data()
        return
    # What the library would write (RFC 6455, 5.2), at a quarter of the cost, and without a copy of what is large.
    size, mark = len(message), _MASKED if protocol.side is CLIENT else 0
    head = _SHORT_HEAD.pack(_BINARY, mark | _TINY, size) if _TINY <= size < _SHORT else _head(size, mark)
    if mark:
        mask = _masks.pop() if _masks else _fresh_mask()
        head += mask
        message = apply_mask(message, mask)
    if size < _SHORT:
        socket.transport.write(head + message)
    else:
        socket.transport.writelines((head, message))


def send_large(socket: Socket, head: bytes, payload: Buffer) -> None:
    """One message, of two parts, without waiting and without a copy of the payload: it may change only after
    `wait_sent`. Only while the WebSocket is open, and nothing of the library's own waits to be sent.

    ConnectionClosed: the other end has gone, which is no end of the WebSocket before the system says so.
    """
    if socket.protocol.eof_sent:
        raise ConnectionClosedError(None, None)
    size = len(head) + len(payload)
    transport = socket.transport
    if socket.protocol.side is not CLIENT:
        transport.writelines((_head(size, 0) + head, payload))  # together: each write wakes the other end
        return
    mask = _fresh_mask()
    transport.write(_head(size, _MASKED) + mask + apply_mask(head, mask))
    at = len(head) % 4
    mask = mask[at:] + mask[:at]
    view = memoryview(payload)
    for start in range(0, len(view), _MASKED_AT_ONCE):  # pieces that the processor's cache holds until they are sent
        transport.write(apply_mask(view[start : start + _MASKED_AT_ONCE], mask))


async def wait_sent(socket: Socket) -> None:
    """Wait until the system has all that was sent. ConnectionClosed."""
    await socket.drain()
    if socket.protocol.state is not State.OPEN:
        await socket.wait_closed()
        raise socket.close_exc


_TCP_INFO: Final = 11 if sys.platform == "linux" else -1
_BYTES_ACKED: Final = struct.Struct("=120xQ")  # in Linux's tcp_info


def acknowledged(socket: Socket) -> int:
    """How many bytes the other end's system has taken of what was sent over this line; 0 where ours does not tell, or
    is the same."""
    try:
        info = socket.transport.get_extra_info("socket").getsockopt(IPPROTO_TCP, _TCP_INFO, 192)
        (taken,) = _BYTES_ACKED.unpack_from(info)
    except (OSError, AttributeError, struct.error):
        return 0
    return int(taken)


def under_way(socket: Socket) -> int:
    """How many bytes were sent that the other end's system has not taken yet; 0 where it is ours."""
    return 0 if is_near(socket) else _not_taken(socket)


def progress(socket: Socket) -> tuple[int, int]:
    """How much the other end has taken of what was sent, and how much that will be when it has all that was sent so
    far: its system, or by the short way its process. Numbers to be compared with each other only."""
    if is_near(socket):
        return -_not_taken(socket), 0
    waiting = under_way(socket)  # first: what is taken in between is then counted twice, not left out
    taken = acknowledged(socket)
    return taken, taken + waiting


def _not_taken(socket: Socket) -> int:
    waiting = array("i", [0])
    with contextlib.suppress(OSError, AttributeError, ValueError):
        ioctl(socket.transport.get_extra_info("socket").fileno(), TIOCOUTQ, waiting)
    return waiting[0] + socket.transport.get_write_buffer_size()


def waiting_to_be_read(socket: Socket) -> int:
    """How many bytes came that the system has kept for us so far."""
    waiting = array("i", [0])
    with contextlib.suppress(OSError, AttributeError, ValueError):
        ioctl(socket.transport.get_extra_info("socket").fileno(), FIONREAD, waiting)
    return waiting[0]


class LowWater:
    """How much must have come on a line before its loop is woken to read: each time costs as much as copying 50 KB.

    Nothing happens where the system, TLS or the short way (near.py) does not have it. After `forget` nothing more is
    set: the line's descriptor may then be another's.
    """

    def __init__(self, socket: Socket) -> None:
        self._mark = 1
        self._pipe: System | None = None
        transport = socket.transport
        if transport.get_extra_info("sslcontext") is None:
            with contextlib.suppress(OSError, AttributeError, ValueError):  # the line may have ended by now
                # What uvloop gives as the socket makes another descriptor for each call.
                self._pipe = System(AF_INET, SOCK_STREAM, fileno=transport.get_extra_info("socket").fileno())
                # A socket that is dropped closes its descriptor, which is the transport's.
                self._let_go = weakref.finalize(self, self._pipe.detach)

    def set(self, nbytes: int) -> None:
        """Read only when so many bytes have come, or the line has ended."""
        if nbytes != self._mark and self._pipe is not None:
            self._mark = nbytes
            with contextlib.suppress(OSError):
                self._pipe.setsockopt(SOL_SOCKET, SO_RCVLOWAT, nbytes)

    def forget(self) -> None:
        if self._pipe is not None:
            self._pipe = None
            self._let_go()


def _head(size: int, mark: int) -> bytes:
    if size < _TINY:
        return _TINY_HEAD.pack(_BINARY, mark | size)
    if size < _SHORT:
        return _SHORT_HEAD.pack(_BINARY, mark | _TINY, size)
    return _LONG_HEAD.pack(_BINARY, mark | _TINY + 1, size)


_masks: list[bytes] = []


def _fresh_mask() -> bytes:
    """Four bytes that nobody can foretell, drawn from the system in batches."""
    if not _masks:
        random = os.urandom(4 * 256)
        _masks.extend(random[at : at + 4] for at in range(0, len(random), 4))
    return _masks.pop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_masks.clear)


class _Direct(connect):
    """Follows no redirects: a peer could otherwise have others dial any address."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def dial(url: str, timeout: float = limits.DIAL_TIMEOUT, *, may_be_near: bool = True) -> GuardedClientConnection:
    """A WebSocket to `url` (ws://host:port), by the short way (near.py) where there is one and it `may_be_near`.

    Raises:
        BadRequest: not such a URL.
        Unreachable: nobody answers there in time, or what answers is no peer.
    """
    if not _is_address(url):
        raise BadRequest(f"{url!r} is no address of a peer; they look like ws://127.0.0.1:7700")
    parts = urlsplit(url)
    port = parts.port if may_be_near and parts.scheme == "ws" else None
    pipe = None if port is None else near.connected(parts.hostname or "", port)
    way: dict[str, Any] = {} if pipe is None else {"unix": True, "sock": pipe}
    try:
        async with asyncio.timeout(timeout):
            socket = await _Direct(
                url,
                **way,
                **_SETTINGS,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                proxy=None,  # a peer is reached directly, whatever the environment says
                create_connection=GuardedClientConnection,
            )
    except TimeoutError:
        raise Unreachable(f"nobody answered at {url} within {timeout:g} s") from None
    except InvalidURI:  # found before anything was sent
        if pipe is not None:
            pipe.close()
        raise BadRequest(f"{url!r} is no address of a peer; they look like ws://127.0.0.1:7700") from None
    except (OSError, InvalidHandshake, EOFError) as error:
        is_refused = isinstance(error, ConnectionRefusedError)
        raise Unreachable(f"no peer at {url}: {_reason(error)}", refused=is_refused) from None
    assert isinstance(socket, GuardedClientConnection)
    return socket


def bound(host: str, port: int) -> System:
    """A socket that nobody else can have any more; who connects to it waits for `listen_at`. OSError of the system."""
    family, _, _, _, address = getaddrinfo(host, port, type=SOCK_STREAM)[0]
    return create_server(address[:2], family=family)


async def listen(host: str, port: int, handler: Callable[[GuardedServerConnection], Awaitable[None]]) -> Server:
    """`listen_at` an address. OSError as the system gives it."""
    return await listen_at(bound(host, port), handler)


async def listen_at(address: System, handler: Callable[[GuardedServerConnection], Awaitable[None]]) -> Server:
    """Serve WebSockets; `handler` runs once per connection, and calls `let_in` when its end has proved itself.

    Args:
        address: of TCP, or a Unix socket.
    """
    way: dict[str, Any] = {"unix": True} if near.is_near(address) else {}
    return await serve(
        handler,  # type: ignore[arg-type]  # every connection is of our class: `create_connection`
        sock=address,
        **way,
        **{**_SETTINGS, "max_size": limits.MAX_HELLO + 64},
        subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
        # Browsers always send Origin, peers and clients never do: no web page can reach a peer.
        origins=[None],
        create_connection=GuardedServerConnection,
    )


async def stop_listening(server: Server, *, close_connections: bool = True) -> None:
    """Nobody is accepted any more; `server.wait_closed` then waits for the connections that there are.

    Who was accepted a moment ago is still given a connection: asyncio of Python 3.11 would leave their socket open,
    with nobody at this end, until it is found to be garbage.
    """
    for socket in server.sockets:
        server.get_loop().remove_reader(socket.fileno())
    try:
        await asyncio.sleep(0)
    finally:
        server.close(close_connections)


def let_in(socket: Socket) -> None:
    """The end has proved its key: it may send messages of any size that the protocol has."""
    socket.protocol.max_message_size = limits.MAX_FRAME
    if is_near(socket):
        near.widen(socket.transport.get_extra_info("socket"))


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket without its fellow
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused, so it may not be running"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
