"""Files whose formats can do more than hold numbers: .pt, .pt2, .onnx. They are opened by a process that can do nothing
else (peer/worker/reader.py); what it found is checked here as any stranger's word is. No torch here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import msgpack

from compute.program import Program
from compute.spec import MAX_TENSORS, layout_of, program_of
from grid.files.entries import Entries, Entry, ModelHeader
from grid.files.sources import FileRange, truth
from peer.payloads import JoinedPayload, Payload
from peer.worker import reader
from protocol.errors import BadFile, BadTensor, GridError
from protocol.tensors import TensorHeader

_IN_FILE: Final = "file"


def confined_entries(kind: str, path: Path) -> Entries:
    """What a confined reader of that kind finds in the file."""
    try:
        for found in reader.read(kind, path):
            if found is None:
                yield None
            elif found.what == "model":
                yield _model(found)
            else:
                yield from (_tensor(path, found, row) for row in _rows(found))
    except GridError as error:
        error.message = f"{path}: {error.message}"
        raise


pt_entries: Final = partial(confined_entries, "pt")
pt2_entries: Final = partial(confined_entries, "pt2")
onnx_entries: Final = partial(confined_entries, "onnx")


def _model(found: reader.Found) -> Entry:
    spec = bytes(found.head)
    Program.from_bytes(program_of(spec))
    nbytes = sum(header.nbytes for _, header in layout_of(spec))
    if nbytes != found.rest.nbytes:
        raise BadFile(f"a reader gave {found.rest.nbytes} bytes of tensors where its spec says {nbytes}")
    header = ModelHeader(len(spec), len(spec) + nbytes)
    return Entry("", header, lambda: JoinedPayload([spec, found.rest]))


def _rows(found: reader.Found) -> list[Any]:
    rows = msgpack.unpackb(found.head, max_array_len=MAX_TENSORS, max_ext_len=0)
    if not isinstance(rows, list):
        raise BadFile("a reader gave no list of tensors")
    return rows


def _tensor(path: Path, found: reader.Found, row: Any) -> Entry:
    try:
        name, dtype, shape, place, start = row
        header = TensorHeader.from_wire({"dtype": dtype, "shape": shape})
        is_sound = isinstance(name, str) and type(start) is int and start >= 0
    except (TypeError, ValueError):
        is_sound = False
    except BadTensor as error:
        raise BadFile(f"a tensor in it cannot travel: {error.message}") from None
    if not is_sound:
        raise BadFile("a reader described a tensor in another form than they have")
    if place == _IN_FILE:
        return Entry(name, header, partial(FileRange, path, start, header.nbytes, truth if dtype == "bool" else None))
    piece = found.rest[start : start + header.nbytes]
    if piece.nbytes != header.nbytes:
        raise BadFile("a reader gave fewer bytes than its tensors have")
    return Entry(name, header, partial(_joined, piece))


def _joined(piece: memoryview) -> Payload:
    return JoinedPayload([piece])
