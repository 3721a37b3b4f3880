"""Objects into files, in pieces as they come: `grid get -o`, `await pointer.save(path)`. Without torch, but for .pt,
.pt2 and .onnx."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compute.spec import layout_of, unpack_spec
from grid.files.formats import MODELS, Layout
from grid.files.writing import check_room, check_target, is_whole, save
from grid.ids import PART_BYTES
from peer.elsewhere import check_name, name_of
from peer.resuming import Connect, Download, Others, Progress, Waiting
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadFile, BadProgram, BadRequest
from protocol.tensors import TensorHeader


@dataclass(frozen=True, slots=True)
class Source:
    """An object at a peer. `connect` gives an open connection to it; `name` is the peer's, for errors; `waiting` hears
    when the peer is away; `others` know who else has a tensor that the peer has damaged."""

    connect: Connect
    name: str
    id: bytes
    kind: str
    waiting: Waiting | None = None
    others: Others | None = None


async def save_object(
    source: Source,
    path: str | os.PathLike[str],
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write an object's value to a file, in the format that its ending says; of a model its state dict, or, in .pt2
    and .onnx, all of it.

    No more than a few pieces of it are in memory, but for .pt, .pt2 and .onnx, which torch writes from memory. The
    file appears whole or not at all; cancelled, it leaves nothing.

    Raises:
        BadFile: an ending that cannot be written, a file that is there (without `overwrite`), a value that the format
            cannot hold, a disk that refuses. StorageFull: one that has no room for it.
        BadRequest: an object without a value, such as a plan. Denied: a private one of somebody else.
        Corrupt, PeerLost, TimedOut: see peer/resuming.py.
    """
    target = check_target(path, overwrite)
    if source.kind not in ("tensor", "model", "pointer"):
        raise BadRequest(f"fetch does not work on a {source.kind}")
    is_model_file = target.suffix.lower() in MODELS
    if is_model_file and source.kind != "model":
        raise BadFile(f"{target} holds a model, and this is a {source.kind}: write .safetensors, .npy or .pt")
    download = await _begin(source, source.id, progress)
    try:
        if is_model_file:
            return await _save_model(target, source, download, overwrite)
        layout, pieces = await (_model if source.kind == "model" else _tensor)(source, download)
        if is_whole(target):
            return await _save_whole(target, source.kind, layout, pieces, overwrite)
        return await save(target, layout, pieces, overwrite)
    finally:
        download.abort()


async def _begin(source: Source, id: bytes, progress: Progress | None = None) -> Download:
    others = source.others if id == source.id else None  # a part of a model has no name of its own
    return await Download.begin(source.connect, "fetch", {"id": id}, source.name, progress, source.waiting, others)


async def _tensor(source: Source, download: Download) -> tuple[Layout, AsyncIterator[Buffer]]:
    header = TensorHeader.from_wire(download.result)
    header.check_payload(download.nbytes)
    return [("value", header)], _compared(source, download)


async def _compared(source: Source, download: Download) -> AsyncIterator[Buffer]:
    """Its pieces; Corrupt at the end, where what came from several peers is not what it was to be."""
    content = download.content
    name = name_of(download.result) if source.others is not None and content is not None else None
    async for piece in download:
        if name is not None:
            name.update(piece)
        yield piece
    if name is not None and content is not None and download.is_mixed:
        check_name(name, content)


async def _model(source: Source, download: Download) -> tuple[Layout, AsyncIterator[Buffer]]:
    """What its state dict holds: tensors that are not persistent are passed over, and tied ones come again."""
    rest = _Rest(_compared(source, download))
    spec = await rest.take(_size(download.result.get("spec_bytes")))
    slots, layout = unpack_spec(spec)["slots"], layout_of(spec)
    kept = {slot["name"] for slot in slots if slot.get("persistent", True)}
    numbers = {name: number for number, (name, _) in enumerate(layout, 1)}
    tied = [slot for slot in slots if slot.get("same_as") is not None and slot["name"] in kept]
    if not all(slot["same_as"] in numbers for slot in tied):
        raise BadProgram("a model has a tensor that is the same as none")
    headers = dict(layout)
    wanted = [(name, header) for name, header in layout if name in kept]
    wanted += [(slot["name"], headers[slot["same_as"]]) for slot in tied]

    async def pieces() -> AsyncIterator[Buffer]:
        for name, header in layout:
            async for piece in rest.next(header.nbytes):
                if name in kept:
                    yield piece
        await rest.end()
        for slot in tied:
            async for piece in await _begin(source, _part_id(source.id, numbers[slot["same_as"]])):
                yield piece

    return wanted, pieces()


async def _save_model(target: Path, source: Source, download: Download, overwrite: bool) -> Path:
    """With its program, as another format has it: torch makes the file from memory."""
    from compute.model import ModelSpec
    from grid.files.models import built, write_model

    rest = _Rest(_compared(source, download))
    spec = ModelSpec.from_wire(unpack_spec(await rest.take(_size(download.result.get("spec_bytes")))))
    check_room(target, spec.nbytes)
    data, at = memoryview(bytearray(spec.nbytes)), 0
    async for piece in rest.next(spec.nbytes):
        data[at : at + len(piece)] = piece
        at += len(piece)
    await rest.end()
    return write_model(built(spec, data), target, overwrite)


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= limits.MAX_PROGRAM:
        raise BadProgram("the peer does not say how long a model's program is")
    return value


def _part_id(id: bytes, number: int) -> bytes:
    return id[:-PART_BYTES] + number.to_bytes(PART_BYTES, "big")


class _Rest:
    """The pieces of a download, cut where they are wanted."""

    def __init__(self, pieces: AsyncIterator[Buffer]) -> None:
        self._pieces = pieces
        self._left: Buffer = b""

    async def end(self) -> None:
        """All that is wanted came: what reads the pieces hears of it too."""
        async for _ in self._pieces:
            pass

    async def take(self, nbytes: int) -> bytes:
        return b"".join([bytes(piece) async for piece in self.next(nbytes)])

    async def next(self, nbytes: int) -> AsyncIterator[Buffer]:
        while nbytes:
            if not self._left:
                self._left = memoryview(await anext(self._pieces))
            piece = memoryview(self._left)[:nbytes]
            self._left = memoryview(self._left)[len(piece) :]
            nbytes -= len(piece)
            yield piece


async def _save_whole(target: Path, kind: str, layout: Layout, pieces: AsyncIterator[Buffer], overwrite: bool) -> Path:
    from compute.values import tensor_from
    from grid.files.values import write

    total = sum(header.nbytes for _, header in layout)
    check_room(target, total)
    data, at = memoryview(bytearray(total)), 0
    async for piece in pieces:
        data[at : at + len(piece)] = piece
        at += len(piece)
    tensors: dict[str, Any] = {}
    at = 0
    for name, header in layout:
        tensors[name] = tensor_from(header, data[at : at + header.nbytes])
        at += header.nbytes
    return write(target, tensors if kind == "model" else tensors["value"], overwrite)
