"""Frames: a fixed prelude, a msgpack header, a raw payload (SPEC.md, Frames).

One WebSocket message holds one or more whole frames. Decoding checks every length against the limits before
it touches the bytes behind it; a header of a hostile end costs at most what limits.MAX_HEADER allows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple

import msgpack

from protocol import limits
from protocol.errors import BadRequest, ProtocolError, TooLarge
from protocol.sizes import beyond

MAGIC: Final = b"PGRD"
VERSION: Final = 1
_PRELUDE: Final = struct.Struct("<4sBBHIQ")
PRELUDE_BYTES: Final = _PRELUDE.size
_EMPTY: Final = memoryview(b"")
# The bytes that begin a list or map in msgpack. Others may hold them too, so their number is an upper bound.
_CONTAINER_MARKS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
# A map of more than MAX_MAP keys, and a list of more than MAX_ARRAY items, take more bytes than this.
_SMALL_HEADER: Final = 2 * limits.MAX_MAP

_SMALL_BUFFER: Final = 4 * limits.KIB  # grows where a header is larger

Buffer = bytes | bytearray | memoryview


class FrameType(IntEnum):
    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    REQUEST = 5
    REPLY = 6
    FAULT = 7
    CHUNK = 8
    CREDIT = 9
    ABORT = 10


class Frame(NamedTuple):
    """One frame as it came: its type (unknown ones too: SPEC.md says to ignore them), header and payload."""

    type: int
    header: dict[str, Any]
    payload: memoryview


_frame: Final = partial(tuple.__new__, Frame)  # a NamedTuple's own way is a function of Python's


Pack = Callable[[Any], bytes]


def packer() -> Pack:
    """Packs as msgpack.packb does, for one thread: to make a packer takes longer than to pack a small header."""
    made: Pack = msgpack.Packer(use_bin_type=True, buf_size=_SMALL_BUFFER).pack
    return made


def pack_header(header: Mapping[str, Any]) -> bytes:
    """BadRequest for what msgpack cannot hold."""
    try:
        packed: bytes = msgpack.packb(header, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise _cannot_travel(error) from None
    return packed


def _cannot_travel(error: Exception) -> BadRequest:
    return BadRequest(f"these arguments cannot travel: {error}")


def encode(kind: FrameType, header: Mapping[str, Any], payload_bytes: int = 0, pack: Pack | None = None) -> bytes:
    """The prelude and header of a frame whose payload of `payload_bytes` follows them.

    Raises:
        BadRequest, TooLarge: the other end would refuse such a header, and close; so it never leaves.
    """
    try:
        packed: bytes = msgpack.packb(header, use_bin_type=True) if pack is None else pack(header)
    except (TypeError, ValueError, OverflowError) as error:
        raise _cannot_travel(error) from None
    if len(packed) > limits.MAX_HEADER:
        raise _too_large("MAX_HEADER", len(packed), f"a {kind.name.lower()} header of {len(packed)} bytes")
    if len(packed) > _SMALL_HEADER:
        _check_counts(packed)
    return _PRELUDE.pack(MAGIC, VERSION, kind, 0, len(packed), payload_bytes) + packed


def _check_counts(packed: bytes) -> None:
    """The limits on lists and maps, at the sender. In C where it can be: batches of operations come through here."""
    if _containers_at_most(packed) > limits.MAX_CONTAINERS:
        try:
            unpack_header(packed)
        except ProtocolError as error:
            raise _too_large("MAX_CONTAINERS", len(packed), error.message) from None
        return
    try:
        msgpack.unpackb(packed, max_array_len=limits.MAX_ARRAY, max_map_len=limits.MAX_MAP)
    except ValueError as error:
        raise _too_large("MAX_ARRAY", len(packed), f"a list or map with too many items: {error}") from None


def _too_large(limit: str, size: int, what: str) -> TooLarge:
    return beyond(limit, size, "{what}; at most {allowed}: ask for less at once", what=what)


def prelude(data: Buffer) -> tuple[int, int, int] | None:
    """The type, header bytes and payload bytes of the frame that `data` begins with; None if its prelude is unsound."""
    magic, version, kind, flags, header_bytes, payload_bytes = _PRELUDE.unpack_from(data)
    if magic != MAGIC or version != VERSION or flags or header_bytes > limits.MAX_HEADER:
        return None
    return None if payload_bytes > limits.CHUNK else (kind, header_bytes, payload_bytes)


def single(message: Buffer) -> Frame | None:
    """The frame of a message that is one sound frame, as most are; None of any other, which is for `decode`."""
    sound = None if len(message) < PRELUDE_BYTES else prelude(message)
    if sound is None:
        return None
    kind, header_bytes, payload_bytes = sound
    end = PRELUDE_BYTES + header_bytes
    if end + payload_bytes != len(message):
        return None
    view = memoryview(message)
    return _frame((kind, unpack_header(view[PRELUDE_BYTES:end]), view[end:] if payload_bytes else _EMPTY))


def decode(message: Buffer, max_header: int = limits.MAX_HEADER) -> Iterator[Frame]:
    """The frames of one WebSocket message. Payloads are views of it: copy what is small and is to outlive it.

    Raises:
        ProtocolError: anything that SPEC.md forbids. The connection is beyond use after that.
    """
    view = memoryview(message)
    at = 0
    if not view:
        raise ProtocolError("an empty message; every message holds at least one frame")
    for _ in range(limits.MAX_FRAMES):
        header_at, payload_at, end, kind = _bounds(view, at, max_header)
        payload = view[payload_at:end] if payload_at < end else _EMPTY
        yield Frame(kind, unpack_header(view[header_at:payload_at]), payload)
        at = end
        if at == len(view):
            return
    raise ProtocolError(f"more than {limits.MAX_FRAMES} frames in one message")


def _bounds(view: memoryview, at: int, max_header: int) -> tuple[int, int, int, int]:
    if len(view) - at < PRELUDE_BYTES:
        raise ProtocolError(f"a frame cut off after {len(view) - at} bytes of its prelude")
    magic, version, kind, flags, header_bytes, payload_bytes = _PRELUDE.unpack_from(view, at)
    if magic != MAGIC:
        raise ProtocolError("not a peergrid frame: wrong magic number")
    if version != VERSION:
        raise ProtocolError(f"frame version {version}; this end speaks {VERSION}")
    if flags != 0:
        raise ProtocolError(f"frame flags {flags:#06x}; all are reserved")
    if header_bytes > max_header:
        raise ProtocolError(f"a header of {header_bytes} bytes; at most {max_header}")
    if payload_bytes > limits.CHUNK:
        raise ProtocolError(f"a payload of {payload_bytes} bytes in one frame; at most {limits.CHUNK}")
    header_at = at + PRELUDE_BYTES
    payload_at = header_at + header_bytes
    end = payload_at + payload_bytes
    if end > len(view):
        raise ProtocolError(f"a frame of {end - at} bytes, cut off after {len(view) - at}")
    return header_at, payload_at, end, kind


def unpack_header(data: Buffer) -> dict[str, Any]:
    """A msgpack map with string keys, within the limits on depth, counts and sizes; ProtocolError otherwise.

    Where there may be too many containers they are counted while they are built, so that a header of thousands
    of empty lists is refused early. Duplicate keys are refused, so that no two readers can see different messages.
    """
    size = len(data)
    containers = size if size <= limits.MAX_DEPTH else _containers_at_most(data)
    # Without the hook lists cost half; it is needed only where their number is in doubt.
    budget = _Budget(limits.MAX_CONTAINERS) if containers > limits.MAX_CONTAINERS else None
    try:
        header = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map if budget is None else budget.of_map,
            list_hook=None if budget is None else budget.of_list,
            ext_hook=_refuse_ext,
            max_str_len=limits.MAX_HEADER,
            max_bin_len=limits.MAX_HEADER,
            max_array_len=limits.MAX_ARRAY,
            max_map_len=limits.MAX_MAP,
            max_ext_len=0,
        )
    except ProtocolError:
        raise
    except Exception as error:  # msgpack raises ValueError, TypeError, OverflowError, StackError, UnicodeDecodeError...
        raise ProtocolError(f"a header that is not msgpack within the limits: {type(error).__name__}") from None
    if not isinstance(header, dict):
        raise ProtocolError(f"a header that is not a map but {type(header).__name__}")
    if containers > limits.MAX_DEPTH:
        _check_depth(header)
    return header


def unpack_bounded(data: Buffer, containers: int) -> Any:
    """A msgpack value with no more lists and maps than that; ProtocolError for more, before they are all made. Raises
    what msgpack does for what is none."""
    if _containers_at_most(data) <= containers:
        return msgpack.unpackb(data, raw=False)
    budget = _Budget(containers)
    return msgpack.unpackb(data, raw=False, object_hook=budget.of_any, list_hook=budget.of_any)


def _containers_at_most(data: Buffer) -> int:
    if len(data) <= limits.MAX_DEPTH:
        return len(data)  # too few to be more than any limit
    return len(data) - len(bytes(data).translate(None, _CONTAINER_MARKS))


def _check_depth(header: dict[str, Any]) -> None:
    level: list[Any] = [header]
    for _ in range(limits.MAX_DEPTH):
        items = chain.from_iterable([node.values() if type(node) is dict else node for node in level])
        level = [item for item in items if type(item) is list or type(item) is dict]
        if not level:
            return
    raise ProtocolError(f"a header nested more than {limits.MAX_DEPTH} deep")


def _map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Refuses keys that are not text or stand twice."""
    made: dict[str, Any] = dict(pairs)
    if len(made) != len(pairs):
        raise ProtocolError("a map with the same key twice")
    for key in made:
        if type(key) is not str:
            raise ProtocolError("a map with a key that is not text")
    return made


class _Budget:
    """Counts the containers of one header."""

    def __init__(self, containers: int) -> None:
        self._most = self._left = containers

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ProtocolError(f"a header or message with more than {self._most} lists and maps")

    def of_any(self, items: Any) -> Any:
        self._spend()
        return items

    def of_list(self, items: list[Any]) -> list[Any]:
        self._spend()
        return items

    def of_map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        self._spend()
        return _map(pairs)


def _refuse_ext(code: int, data: bytes) -> Any:
    raise ProtocolError(f"msgpack extension type {code}; none is allowed")
