"""Results: what comes out of a program, told to the peer, or to whom it is revealed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgpack
import torch

from compute.dtypes import DTYPE_OF, NAME_OF
from compute.outputs import leaves
from compute.values import tensor_bytes, tensor_from
from mpc.checked import shown as unmasked
from mpc.ring import decode
from mpc.secret import Secret
from peer.worker import export, memory
from peer.worker.secure.kept import Kept, Known
from peer.worker.secure.mail import Mail
from peer.worker.secure.part import RESULT, Blame, Part
from protocol import limits
from protocol.errors import BadRequest, GridError, PartyFailed
from protocol.tensors import TensorHeader

Listed = list[list[Any]]
"""Of each value that comes out: [fractional bits or nil, dtype, shape], or ["plain", value, []]; where shares of it
stay with the parties, and do not come along, "kept" behind that."""


def kept_and_told(part: Part, kept: Kept, known: Known, outputs: Any) -> tuple[Listed, list[torch.Tensor]]:
    """Keeps what is to stay; a description of all that comes out, and this party's part of what does not stay."""
    found = list(leaves(known.program.outputs, outputs))
    stays = part.outputs or ((b"", False),) * len(found)
    if len(found) != len(stays):
        raise BadRequest(f"{len(found)} values came out where {len(stays)} were agreed on")
    listed: Listed = []
    tensors = []
    for (id, is_kept), value in zip(stays, found, strict=True):
        if isinstance(value, Secret):
            listed.append([value.bits, NAME_OF[value.dtype], list(value.share.shape)])
            if is_kept:
                kept.keep(id, value)
                listed[-1].append("kept")
            else:
                tensors.append(value.share)
        elif isinstance(value, torch.Tensor):
            listed.append([None, NAME_OF[value.dtype], list(value.shape)])
            tensors.append(value)
        else:
            listed.append(["plain", value, []])
    return listed, tensors


def _of_tensors(listed: Listed) -> Listed:
    """Of those that come along."""
    return [each for each in listed if each[0] != "plain" and len(each) == 3]


# --- to whom it is revealed, where that is not the asker ----------------------------------------------------


def give(part: Part, mail: Mail, listed: Listed, tensors: Sequence[torch.Tensor]) -> None:
    """This party's shares, to who receives the result."""
    assert part.receiver is not None
    packed = msgpack.packb(listed)
    pieces = [tensor_bytes(each) for each in tensors]
    mail.tell([part.receiver], RESULT, 0, packed)
    mail.tell([part.receiver], RESULT, 1, *pieces)


def received(
    part: Part, mail: Mail, own: tuple[Listed, list[torch.Tensor]] | None
) -> tuple[list[list[Any] | None], list[torch.Tensor]]:
    """[dtype, shape] of each value that is revealed, nil for what is no tensor, and the tensors, of all parties'
    shares; `own` are ours, where we are a party. Blame: somebody's do not fit."""
    senders = [rank for rank in range(part.parties) if rank != part.index]
    came = mail.take_all([(rank, RESULT, number) for rank in senders for number in (0, 1)])
    listed = [_unpacked(sender, data) for sender, data in zip(senders, came[::2], strict=True)]
    common = own[0] if own is not None else listed[0]
    totals: list[torch.Tensor] | None = None if own is None else list(own[1])
    for sender, each, data in zip(senders, listed, came[1::2], strict=True):
        if each != common:
            raise Blame(sender, "says that something else came out")
        parts = _parts(sender, each, data)
        if totals is None:
            totals = parts
        else:
            totals = [
                (one + other) if bits is not None else one
                for (bits, *_), one, other in zip(_of_tensors(common), totals, parts, strict=True)
            ]
    assert totals is not None
    values = [
        total if bits is None else decode(total, bits, DTYPE_OF[dtype])
        for (bits, dtype, _), total in zip(_of_tensors(common), totals, strict=True)
    ]
    stays = part.outputs or ((b"", False),) * len(common)
    if len(stays) != len(common):
        raise Blame(senders[0], "says that something else came out")
    made, shown, tensors = iter(values), list[list[Any] | None](), list[torch.Tensor]()
    for each, (_, is_kept) in zip(common, stays, strict=True):
        value = next(made) if _of_tensors([each]) else None
        if not is_kept:
            shown.append(None if value is None else each[1:])
            tensors += [] if value is None else [value]
    return shown, tensors


def received_masked(
    part: Part, mail: Mail, own: tuple[Listed, list[torch.Tensor]] | None, seed: bytes
) -> tuple[list[list[Any] | None], list[torch.Tensor]]:
    """The same of a run in which shares have MACs: all parties tell the same, under masks of our seed. PartyFailed:
    they do not, so that one of them lies."""
    senders = [rank for rank in range(part.parties) if rank != part.index]
    came = mail.take_all([(rank, RESULT, number) for rank in senders for number in (0, 1)])
    told = [(_unpacked(rank, came[2 * at]), came[2 * at + 1]) for at, rank in enumerate(senders)]
    listed, tensors = own if own is not None else (told[0][0], _parts(senders[0], *told[0]))
    data = b"".join(map(bytes, map(tensor_bytes, tensors)))
    if any(each != listed or bytes(said) != data for each, said in told):
        raise PartyFailed("the run is over, without a result: the parties do not tell the same one")
    masked, at = iter(tensors), len(part.inputs)
    shown, values = list[list[Any] | None](), list[torch.Tensor]()
    for bits, dtype, shape in listed:
        if bits == "plain":
            shown.append(None)
            continue
        value = next(masked)
        if bits is not None:
            value, at = unmasked(value, bits, DTYPE_OF[dtype], seed, at), at + 1
        shown.append([dtype, shape])
        values.append(value)
    return shown, values


def _unpacked(sender: int, data: bytearray) -> Listed:
    try:
        listed = msgpack.unpackb(bytes(data), raw=False)
        for bits, dtype, shape, *_ in listed:
            if bits != "plain":
                TensorHeader(dtype, tuple(shape))
                if bits is not None and not 0 <= bits < 64:
                    raise ValueError("bits")
        return list(listed)
    except (ValueError, TypeError, GridError, msgpack.exceptions.UnpackException, RecursionError):
        raise Blame(sender, "sent no description of a result") from None


def _parts(sender: int, listed: Listed, data: bytearray) -> list[torch.Tensor]:
    view, at, parts = memoryview(data), 0, []
    for bits, dtype, shape in _of_tensors(listed):
        header = TensorHeader("int64" if bits is not None else dtype, tuple(shape))
        if at + header.nbytes > len(view):
            raise Blame(sender, "sent less than it said")
        parts.append(tensor_from(header, bytearray(view[at : at + header.nbytes])))
        at += header.nbytes
    if at != len(view):
        raise Blame(sender, "sent more than it said")
    return parts


# --- to the peer --------------------------------------------------------------------------------------------


def tell(mail: Mail, told: dict[str, Any], tensors: Sequence[torch.Tensor]) -> None:
    """The run is over for this process: what it cost, and what comes of it."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if total <= limits.INLINE_PAYLOAD:
        mail.say(["done", {**told, "nbytes": total}, b"".join(map(tensor_bytes, tensors))])
        return
    export.check_size(total)
    fd, at = memory.new_file("grid-shares"), 0
    for tensor in tensors:
        at = export.write(fd, at, tensor)
    memory.seal(fd)
    mail.say(["done", {**told, "nbytes": total}, None], [fd])
    os.close(fd)
