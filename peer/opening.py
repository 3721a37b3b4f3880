"""How a session begins: dial or accept, shake hands in time, and only then there is a Connection."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from websockets.exceptions import ConnectionClosed

from peer import closing
from peer.calls import AtOnce, Handler
from peer.connection import Connection, next_message
from peer.keys import verify
from peer.ledger import Ledger
from peer.transport import Socket, dial, let_in
from protocol import limits
from protocol.errors import LinkError, TimedOut, Unreachable
from protocol.handshake import Introduction, MemoryOf, Remote, forgetful
from protocol.identity import Signer
from protocol.session import Session

LedgerOf = Callable[[Remote], Ledger | None]
PARTY: Final = "party"  # the role of who dials a line between peers for secure runs
ROUNDS: Final = "rounds"  # and of who dials one that goes to the processes of a secure session


async def open_as_dialer(
    url: str, ours: Introduction, signer: Signer, handler: Handler | None = None, timeout: float = limits.DIAL_TIMEOUT
) -> Connection:
    """Dial `url`, shake hands, and return the open connection.

    Raises:
        Unreachable, HandshakeFailed, TimedOut, BadRequest (for the URL).
    """
    socket = await dial(url, timeout)
    session = Session(ours, signer, verify, os.urandom(32), dialer=True)
    return Connection(socket, session, await _met(socket, session), handler)


async def open_as_acceptor(
    socket: Socket,
    ours: Introduction,
    signer: Signer,
    handler: Handler | None = None,
    at_once: AtOnce | None = None,
    memory_of: MemoryOf = forgetful,
    ledger_of: LedgerOf = lambda _: None,
) -> Connection:
    """Shake hands on a WebSocket that came in. HandshakeFailed, ProtocolError, TimedOut: it is closed then.

    `memory_of` says what is remembered of a lease, `ledger_of` has the requests of it that take effect once.
    """
    session = Session(ours, signer, verify, os.urandom(32), dialer=False, memory_of=memory_of)
    remote = await _met(socket, session)
    return Connection(socket, session, remote, handler, at_once, ledger_of(remote))


async def open_or_line(
    socket: Socket,
    ours: Introduction,
    signer: Signer,
    handler: Handler | None,
    at_once: AtOnce | None,
    memory_of: MemoryOf,
    ledger_of: LedgerOf,
    line_of: Callable[[Socket, Remote], object],
) -> Connection | None:
    """The same; None where it is to be no session but a line of secure runs: `line_of` took it."""
    session = Session(ours, signer, verify, os.urandom(32), dialer=False, memory_of=memory_of)
    remote = await _met(socket, session)
    if remote.role in (PARTY, ROUNDS):
        line_of(socket, remote)
        return None
    return Connection(socket, session, remote, handler, at_once, ledger_of(remote))


async def shaken_hands(socket: Socket, ours: Introduction, signer: Signer, nonce: bytes, *, dialer: bool) -> Remote:
    """The other end, which has proved its key; the WebSocket is the caller's. Errors as those of `open_as_dialer`."""
    return await _met(socket, Session(ours, signer, verify, nonce, dialer=dialer))


async def _met(socket: Socket, session: Session) -> Remote:
    try:
        async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT):
            return await _shake_hands(socket, session)
    except ConnectionClosed:
        error: LinkError = Unreachable("the other end closed the connection during the handshake")
    except LinkError as failed:
        error = failed
    except TimeoutError:
        error = TimedOut(f"no handshake within {limits.HANDSHAKE_TIMEOUT:g} s")
    except BaseException:
        socket.transport.abort()
        raise
    try:
        await closing.within_patience(_send_all(socket, session))
        await closing.within_patience(closing.hang_up(socket, 4401))
    finally:
        socket.transport.abort()
    raise error


async def _shake_hands(socket: Socket, session: Session) -> Remote:
    while session.remote is None:
        await _send_all(socket, session)
        session.receive(await next_message(socket, session))
    let_in(socket)  # before they hear of it, and send more than a stranger may
    await _send_all(socket, session)
    return session.remote


async def _send_all(socket: Socket, session: Session) -> None:
    for message in session.data_to_send():
        await socket.send(message)
