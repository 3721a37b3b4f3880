"""Values of objects at a peer, on their way here: whole, or as they come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import torch

from compute.values import tensor_from
from grid.fresh import fresh
from grid.handle import Handle
from peer.calls import Response
from peer.elsewhere import TensorName, check_name
from peer.resuming import Download, Others, Progress
from protocol import limits
from protocol.errors import GridError
from protocol.tensors import TensorHeader

if TYPE_CHECKING:
    from grid.remote import RemotePeer


async def fetch(handle: Handle, nbytes: int, progress: Progress | None = None) -> torch.Tensor:
    """The value of a tensor object of so many bytes; see Pointer.fetch."""
    home, outbox = handle.home, handle.home.outbox
    # What is published is no temporary: it is fetched in a request of its own.
    small = outbox.run_and_fetch(handle.id) if handle.owns and nbytes <= limits.INLINE_PAYLOAD else None
    if small is not None:
        answer = await small
    elif not outbox.has_operations and (came := home.came.value(handle.id)) is not None:
        return tensor_from(*came)
    elif nbytes > limits.INLINE_PAYLOAD:
        return await _fetch_large(home, handle, progress)
    else:
        answer = await (await outbox.flush()).request("fetch", {"id": handle.id})
    header = TensorHeader.from_wire(answer.result)
    return tensor_from(header, answer.payload if answer.stream is None else await into_memory(answer))


async def _fetch_large(home: RemotePeer, handle: Handle, progress: Progress | None) -> torch.Tensor:
    header, download = await open_download(home, handle, progress, home.elsewhere.of_record(handle.record))
    data = await into_memory(download)
    if download.is_mixed and download.content is not None:
        name = TensorName(header)
        await asyncio.to_thread(name.update, data)
        check_name(name, download.content)
    return tensor_from(header, data)


async def open_download(
    home: RemotePeer, handle: Handle, progress: Progress | None = None, others: Others | None = None
) -> tuple[TensorHeader, Download]:
    """The value of a tensor object as it comes, never whole in memory: its header, and its bytes, which are to be read
    to their end or given up with `abort`. When the line breaks they go on over another. For `others` see
    Download.begin.

    Raises:
        Denied, NotFound, LinkError; BadTensor where the peer describes something else.
    """
    download = await home.download(handle.id, progress, others)
    try:
        header = TensorHeader.from_wire(download.result)
        header.check_payload(download.nbytes)
    except GridError:
        download.abort()
        raise
    return header, download


async def into_memory(answer: Response | Download) -> bytearray | memoryview:
    """The payload in memory that the tensor may keep: writable, aligned."""
    if answer.stream is None:
        return bytearray(answer.payload)
    data = fresh(answer.stream.nbytes)
    await answer.stream.into(data)
    return data
