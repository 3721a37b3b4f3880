"""Asking several peers at once: one answer for each of them, and one error that names all that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

from protocol.errors import BadRequest, GridError

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer


async def settled(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """All at once; for each what it gave, or its exception."""
    if len(calls) == 1:  # without a task
        try:
            return [await calls[0]]
        except Exception as error:
            return [error]
    return await asyncio.gather(*calls, return_exceptions=True)


async def ask_all(doing: str, names: Sequence[str], calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """Ask all peers (of these names) at once; what each gave. See raise_failures."""
    answers = await settled(calls)
    raise_failures(doing, names, answers, "what the others have is as it was, in `children`")
    return answers


def raise_failures(doing: str, names: Sequence[str], answers: Sequence[Any], rest: str) -> None:
    """One error that names all peers that failed, of the class of the first failure; `rest` is said of the others."""
    failed = [(name, answer) for name, answer in zip(names, answers, strict=True) if isinstance(answer, BaseException)]
    errors = [answer for _, answer in failed if isinstance(answer, GridError)]
    if not failed:
        return
    if len(errors) < len(failed):
        raise next(answer for _, answer in failed if not isinstance(answer, GridError))
    told = "; ".join(f"{name}: {error.message}" for (name, _), error in zip(failed, errors, strict=True))
    error = errors[0].again()
    error.peer = ", ".join(name for name, _ in failed)
    error.message = f"{doing} failed at {len(failed)} of {len(names)} peers: {told}"
    error.message += f" ({rest})" if len(failed) < len(names) else ""
    error.args = (error.message,)
    raise error


def check_apart(peers: Sequence[RemotePeer]) -> None:
    """BadRequest unless there are peers, and no two are the same."""
    if not peers:
        raise BadRequest("there is nothing to combine: give pointers at one or more peers")
    for number, peer in enumerate(peers):
        if peer.id in [earlier.id for earlier in peers[:number]]:
            raise BadRequest(
                f"two of these are at {peer.name}: a multi-pointer has one for each peer. torch.cat or "
                "torch.stack puts those of one peer together"
            )


def names_of(pointers: Sequence[Pointer]) -> str:
    """Their peers' names, for people."""
    return ", ".join(child.location.name for child in pointers)
