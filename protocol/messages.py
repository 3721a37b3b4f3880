"""The messages, as dataclasses that check themselves (SPEC.md, Messages). Invalid ones cannot be built, and nobody
changes one. All are frozen but the two that come with every operation: to fill a frozen one takes twice as long.

Unknown fields of a header are ignored, so that a later version may add some.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Final

from protocol import limits
from protocol.codec import Frame, FrameType
from protocol.errors import GridError, ProtocolError
from protocol.identity import KEY_BYTES, NONCE_BYTES, SIGNATURE_BYTES

EMPTY: Final = memoryview(b"")
LEASE_BYTES: Final = 16
DIGEST_BYTES: Final = 16


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ProtocolError(what)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 < value <= limits.MAX_ID


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= limits.MAX_TENSOR


def _is_bytes(value: object, length: int) -> bool:
    return isinstance(value, bytes) and len(value) == length


def _is_name(value: object) -> bool:
    # Names reach logs and terminals: no line breaks, no escape sequences.
    return isinstance(value, str) and len(value) <= limits.MAX_NAME and value.isprintable()


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialer's first words: versions it speaks, its key, a nonce; the id it expects to meet, if it knows one."""

    type: ClassVar[FrameType] = FrameType.HELLO
    versions: list[int]
    key: bytes
    nonce: bytes
    role: str
    name: str = ""
    expect: str | None = None
    lease: bytes | None = None

    def __post_init__(self) -> None:
        _check(isinstance(self.versions, list) and all(type(v) is int for v in self.versions), "Hello: versions")
        _check(_is_bytes(self.key, KEY_BYTES), "Hello: key is 32 bytes")
        _check(_is_bytes(self.nonce, NONCE_BYTES), "Hello: nonce is 32 bytes")
        _check(self.role in ("client", "peer", "party", "rounds"), "Hello: role is client, peer, party or rounds")
        _check(_is_name(self.name), "Hello: name")
        _check(self.expect is None or isinstance(self.expect, str), "Hello: expect")
        _check(self.lease is None or _is_bytes(self.lease, LEASE_BYTES), "Hello: lease is 16 bytes")


@dataclass(frozen=True, slots=True)
class Challenge:
    """The acceptor's answer: the version chosen, its key, name and nonce, and its proof."""

    type: ClassVar[FrameType] = FrameType.CHALLENGE
    version: int
    key: bytes
    nonce: bytes
    name: str
    signature: bytes

    def __post_init__(self) -> None:
        _check(type(self.version) is int, "Challenge: version")
        _check(_is_bytes(self.key, KEY_BYTES), "Challenge: key is 32 bytes")
        _check(_is_bytes(self.nonce, NONCE_BYTES), "Challenge: nonce is 32 bytes")
        _check(_is_name(self.name), "Challenge: name")
        _check(_is_bytes(self.signature, SIGNATURE_BYTES), "Challenge: signature is 64 bytes")


@dataclass(frozen=True, slots=True)
class Proof:
    """The dialer's proof of its key."""

    type: ClassVar[FrameType] = FrameType.PROOF
    signature: bytes

    def __post_init__(self) -> None:
        _check(_is_bytes(self.signature, SIGNATURE_BYTES), "Proof: signature is 64 bytes")


@dataclass(frozen=True, slots=True)
class Welcome:
    """The session is open. `window` is how many bytes of a stream may be under way without a credit; `memory` names
    what the acceptor knows of the dialer's lease (its temporaries, and which requests of it were served): while the
    number is the same, nothing of that was forgotten."""

    type: ClassVar[FrameType] = FrameType.WELCOME
    window: int = limits.WINDOW
    memory: int | None = None

    def __post_init__(self) -> None:
        # It rules what the dialer takes in, too: an acceptor may not make it buffer without bound.
        _check(type(self.window) is int and limits.CHUNK <= self.window <= limits.WINDOW, "Welcome: window")
        _check(self.memory is None or _is_id(self.memory), "Welcome: memory is a positive integer")


@dataclass(slots=True)
class Request:
    """`op` asked with `args`. A payload rides beside it, or comes as stream `stream` of `nbytes` bytes.

    `once` numbers the requests of a lease that must not take effect twice: one that comes again, over whichever
    session, gets the answer that it got before. All answers to numbers below `seen` have arrived.
    """

    type: ClassVar[FrameType] = FrameType.REQUEST
    id: int
    op: str
    args: dict[str, Any]
    stream: int | None = None
    nbytes: int = 0
    once: int | None = None
    seen: int | None = None
    payload: memoryview = field(default=EMPTY, compare=False)

    def __post_init__(self) -> None:
        id, once, seen = self.id, self.once, self.seen
        # Numbers as _is_id has them, without a call: nearly all messages are of these two kinds.
        if type(id) is not int or not 0 < id <= limits.MAX_ID:
            raise ProtocolError("Request: id is a positive integer")
        if once is not None:
            if type(once) is not int or not 0 < once <= limits.MAX_ID:
                raise ProtocolError("Request: once and seen are positive integers")
            if seen is not None and (type(seen) is not int or seen <= 0):
                raise ProtocolError("Request: once and seen are positive integers")
            if seen is not None and seen > once:
                raise ProtocolError("Request: seen is at most once, whose answer cannot have arrived")
        if not isinstance(self.op, str) or not 0 < len(self.op) <= limits.MAX_NAME:
            raise ProtocolError("Request: op is a name")
        if not isinstance(self.args, dict):
            raise ProtocolError("Request: args is a map")
        if self.stream is not None or self.nbytes != 0 or len(self.payload) > limits.INLINE_PAYLOAD:
            _check_stream(self.stream, self.nbytes, self.payload, "Request")


@dataclass(slots=True)
class Reply:
    """The answer to request `id`: a map, and perhaps a payload beside it or as a stream."""

    type: ClassVar[FrameType] = FrameType.REPLY
    id: int
    result: dict[str, Any]
    stream: int | None = None
    nbytes: int = 0
    payload: memoryview = field(default=EMPTY, compare=False)

    def __post_init__(self) -> None:
        if type(self.id) is not int or not 0 < self.id <= limits.MAX_ID:
            raise ProtocolError("Reply: id is a positive integer")
        if not isinstance(self.result, dict):
            raise ProtocolError("Reply: result is a map")
        if self.stream is not None or self.nbytes != 0 or len(self.payload) > limits.INLINE_PAYLOAD:
            _check_stream(self.stream, self.nbytes, self.payload, "Reply")


@dataclass(frozen=True, slots=True)
class Fault:
    """Request `id` failed; the session goes on. Without an id: the session itself failed, and closes."""

    type: ClassVar[FrameType] = FrameType.FAULT
    code: str
    message: str
    id: int | None = None
    operation: str | None = None
    peer: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.id is None or _is_id(self.id), "Fault: id is a positive integer or nil")
        _check(isinstance(self.code, str) and isinstance(self.message, str), "Fault: code and message are text")
        _check(_is_text_or_none(self.operation) and _is_text_or_none(self.peer), "Fault: operation and peer are text")
        _check(isinstance(self.fields, dict), "Fault: fields is a map")

    @classmethod
    def of(cls, id: int | None, error: GridError) -> Fault:
        """What the error is on the wire."""
        fault = error.to_fault()
        return cls(fault["code"], fault["message"], id, fault["operation"], fault["peer"], fault["fields"])

    def error(self) -> GridError:
        return GridError.from_fault(
            {
                "code": self.code,
                "message": self.message,
                "operation": self.operation,
                "peer": self.peer,
                "fields": self.fields,
            }
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """The bytes of `stream` from `offset` on: limits.CHUNK of them, fewer only in the last chunk.

    `hash` is their XXH3-64; `digest`, in the last chunk, the XXH3-128 over the hashes of all blocks of the value.
    """

    type: ClassVar[FrameType] = FrameType.CHUNK
    stream: int
    offset: int
    payload: memoryview = field(compare=False)
    hash: int | None = None
    digest: bytes | None = None

    def __post_init__(self) -> None:
        _check(_is_id(self.stream), "Chunk: stream is a positive integer")
        _check(_is_size(self.offset), "Chunk: offset")
        _check(0 < len(self.payload) <= limits.CHUNK, "Chunk: 1 byte to limits.CHUNK bytes")
        _check(self.hash is None or (type(self.hash) is int and 0 <= self.hash < 1 << 64), "Chunk: hash is 64 bits")
        _check(self.digest is None or _is_bytes(self.digest, DIGEST_BYTES), "Chunk: digest is 16 bytes")


@dataclass(frozen=True, slots=True)
class Credit:
    """The receiver of `stream` has room for `nbytes` more."""

    type: ClassVar[FrameType] = FrameType.CREDIT
    stream: int
    nbytes: int

    def __post_init__(self) -> None:
        _check(_is_id(self.stream), "Credit: stream is a positive integer")
        _check(_is_size(self.nbytes) and self.nbytes > 0, "Credit: nbytes")


@dataclass(frozen=True, slots=True)
class Abort:
    """Either end gives up `stream`, or the asker gives up `request`; both sides forget it. `code` is that of the error
    for which the sender of a stream gives it up."""

    type: ClassVar[FrameType] = FrameType.ABORT
    stream: int | None = None
    request: int | None = None
    message: str = ""
    code: str | None = None

    def __post_init__(self) -> None:
        _check((self.stream is None) != (self.request is None), "Abort: a stream or a request")
        _check(self.stream is None or _is_id(self.stream), "Abort: stream is a positive integer")
        _check(self.request is None or _is_id(self.request), "Abort: request is a positive integer")
        _check(isinstance(self.message, str), "Abort: message is text")
        _check(_is_text_or_none(self.code), "Abort: code is text")


Message = Hello | Challenge | Proof | Welcome | Request | Reply | Fault | Chunk | Credit | Abort

_KINDS: Final[dict[int, type[Message]]] = {
    kind.type: kind for kind in (Hello, Challenge, Proof, Welcome, Request, Reply, Fault, Chunk, Credit, Abort)
}
_REQUEST: Final = int(FrameType.REQUEST)  # what comes is a plain number
_REPLY: Final = int(FrameType.REPLY)
_CARRIES_PAYLOAD: Final = frozenset({FrameType.REQUEST, FrameType.REPLY, FrameType.CHUNK})
_FIELDS: Final[dict[int, frozenset[str]]] = {
    number: frozenset(entry.name for entry in fields(kind)) - {"payload"} for number, kind in _KINDS.items()
}
_REQUIRED: Final[dict[int, frozenset[str]]] = {
    number: frozenset(
        entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING
    )
    for number, kind in _KINDS.items()
}


def parse(frame: Frame) -> Message | None:
    """The message in a frame; None for a type of a later version, which is to be ignored (SPEC.md, Versions)."""
    given = frame.header
    # A request or reply without a stream, as most messages are.
    if given.get("stream") is None and given.get("nbytes") is None and "id" in given:
        if frame.type == _REQUEST and "op" in given and "args" in given:
            once, seen = given.get("once"), given.get("seen")
            return Request(given["id"], given["op"], given["args"], None, 0, once, seen, frame.payload)
        if frame.type == _REPLY and "result" in given:
            return Reply(given["id"], given["result"], None, 0, frame.payload)
    kind = _KINDS.get(frame.type)
    if kind is None:
        return None
    known, required = _FIELDS[frame.type], _REQUIRED[frame.type]
    # A field that may be absent may be nil as well.
    values = {
        name: value for name, value in frame.header.items() if name in known and (value is not None or name in required)
    }
    if frame.type in _CARRIES_PAYLOAD:
        values["payload"] = frame.payload
    elif len(frame.payload):
        raise ProtocolError(f"{kind.__name__} carries no payload, but {len(frame.payload)} bytes came")
    try:
        return kind(**values)
    except TypeError:
        missing = sorted(required - values.keys())
        raise ProtocolError(f"{kind.__name__} without {', '.join(missing)}") from None


def header(message: Message) -> dict[str, Any]:
    """The message's header map; fields that are None are left out."""
    if type(message) is Request and message.stream is None:
        header = {"id": message.id, "op": message.op, "args": message.args}
        if message.once is not None:
            header["once"] = message.once
            header["seen"] = message.seen
        return header
    if type(message) is Reply and message.stream is None:
        return {"id": message.id, "result": message.result}
    values = ((name, getattr(message, name)) for name in _FIELDS[message.type])
    return {name: value for name, value in values if value is not None}


def _check_stream(stream: int | None, nbytes: int, payload: memoryview, kind: str) -> None:
    if stream is None:
        _check(nbytes == 0, f"{kind}: nbytes without a stream")
        _check(len(payload) <= limits.INLINE_PAYLOAD, f"{kind}: more than limits.INLINE_PAYLOAD beside it")
        return
    _check(_is_id(stream), f"{kind}: stream is a positive integer")
    _check(_is_size(nbytes) and nbytes > 0, f"{kind}: a stream has at least one byte")
    _check(len(payload) == 0, f"{kind}: a payload and a stream")
