"""A client that builds programs from compute/PROGRAM.md and talks as protocol/SPEC.md says. No code of ours is in it.

Usage: program_client.py ws://HOST:PORT ID-OF-THE-PEER; prints one JSON object of what it saw. §n: a section of SPEC.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

HELLO, CHALLENGE, PROOF, WELCOME, REQUEST, REPLY, FAULT, CHUNK, _, ABORT = range(1, 11)
INLINE_PAYLOAD = 65536
Map = dict[str, Any]


class Refused(Exception):
    """The peer answered with a fault."""


# --- the wire (§2 to §5) ------------------------------------------------------------------------------------


def frame(kind: int, header: Map, payload: bytes = b"") -> bytes:
    packed: bytes = msgpack.packb(header)
    return b"PGRD" + struct.pack("<BBHIQ", 1, kind, 0, len(packed), len(payload)) + packed + payload


def frames(message: bytes) -> list[tuple[int, Map, bytes]]:
    found, at = [], 0
    while at < len(message):
        kind, head, body = struct.unpack_from("<xxxxxBxxIQ", message, at)
        start = at + 20 + head
        found.append((kind, msgpack.unpackb(message[at + 20 : start]), message[start : start + body]))
        at = start + body
    return found


def transcript(signer: bytes, dialer: Map, acceptor: Map) -> bytes:
    parts = (b"peergrid-auth-v1", signer, dialer["key"], acceptor["key"], dialer["nonce"], acceptor["nonce"])
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


class Peer:
    """One session."""

    def __init__(self, socket: ClientConnection, id: str) -> None:
        self._socket, self._next = socket, 1
        self._answers: list[tuple[int, Map, bytes]] = []
        key = Ed25519PrivateKey.generate()
        hello = {"versions": [1], "key": key.public_key().public_bytes_raw(), "nonce": os.urandom(32), "role": "client"}
        socket.send(frame(HELLO, hello | {"expect": id}))
        challenge = self._take(CHALLENGE)
        assert base64.b32encode(hashlib.sha256(challenge["key"]).digest()).decode().lower().rstrip("=") == id
        signed = transcript(b"acceptor", hello, challenge)
        Ed25519PublicKey.from_public_bytes(challenge["key"]).verify(challenge["signature"], signed)
        socket.send(frame(PROOF, {"signature": key.sign(transcript(b"dialer", hello, challenge))}))
        self._take(WELCOME)

    def _read(self) -> tuple[int, Map, bytes]:
        while not self._answers:
            message = self._socket.recv()
            assert isinstance(message, bytes)
            self._answers += frames(message)
        return self._answers.pop(0)

    def _take(self, kind: int) -> Map:
        found, header, _ = self._read()
        assert found == kind, header
        return header

    def ask(self, op: str, args: Map, payload: bytes = b"") -> tuple[Map, bytes]:
        number, self._next = self._next, self._next + 1
        asked: Map = {"id": number, "op": op, "args": args}
        if len(payload) > INLINE_PAYLOAD:  # one chunk is enough here (§6)
            stream = {"stream": 2 * number + 1}
            self._socket.send(frame(REQUEST, asked | stream | {"nbytes": len(payload)}))
            self._socket.send(frame(CHUNK, stream | {"offset": 0}, payload))
        else:
            self._socket.send(frame(REQUEST, asked, payload))
        while True:
            kind, header, body = self._read()
            if header.get("id") == number and kind == FAULT:
                raise Refused(header)
            if header.get("id") == number and kind == REPLY:
                if "stream" in header:  # what comes so is not looked at
                    self._socket.send(frame(ABORT, {"stream": header["stream"]}))
                return header["result"], body

    # --- what is asked (§10) ------------------------------------------------------------------------------

    def put(self, values: Sequence[float], shape: Sequence[int], dtype: str = "float32", **named: Any) -> bytes:
        id = os.urandom(16)
        fields = {"id": id, "kind": "tensor", "dtype": dtype, "shape": list(shape), **named}
        self.ask("put", fields, data_of(values, dtype))
        return id

    def value(self, id: bytes) -> Map:
        result, payload = self.ask("fetch", {"id": id})
        return {"shape": result["shape"], "dtype": result["dtype"], "values": numbers(payload, result["dtype"])}

    def execute(self, program: Map, *inputs: bytes, outs: int = 1, contents: Map | None = None) -> list[Map]:
        """The values of what the program gives; a peer that does not have it asks for it."""
        code = canonical(program)
        args: Map = {"program": hashlib.sha256(code).hexdigest(), "inputs": list(inputs)}
        args["outs"] = [os.urandom(16) for _ in range(outs)]
        args |= {"contents": contents} if contents else {}
        try:
            self.ask("execute", args)
        except Refused as refused:
            if refused.args[0]["code"] != "not_found" or "content" in refused.args[0].get("fields", {}):
                raise
            self.ask("execute", args, code)
        return [self.value(out) for out in args["outs"]]


CODES = {"float32": "f", "int64": "q", "float64": "d", "bool": "?"}


def data_of(values: Sequence[float], dtype: str = "float32") -> bytes:
    return struct.pack(f"<{len(values)}{CODES[dtype]}", *values)


def numbers(payload: bytes, dtype: str) -> list[Any]:
    code = CODES[dtype]
    return list(struct.unpack(f"<{len(payload) // struct.calcsize('<' + code)}{code}", payload))


# --- programs, from PROGRAM.md ------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    def ordered(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: ordered(item[key]) for key in sorted(item)}
        return [ordered(each) for each in item] if isinstance(item, list) else item

    packed: bytes = msgpack.packb(ordered(value))
    return packed


def given(name: str, dtype: str | None = None, shape: list[Any] | None = None, content: str | None = None) -> Map:
    return {"name": name, "dtype": dtype, "shape": shape, "content": content}


def body(names: Sequence[Map], nodes: Sequence[Any], outputs: list[Any]) -> Map:
    return {"inputs": list(names), "nodes": list(nodes), "outputs": outputs}


def node(operation: str, *args: Any, **kwargs: Any) -> list[Any]:
    return [operation, list(args), kwargs]


def n(number: int, item: int | None = None) -> Map:
    return {"node": number} if item is None else {"node": number, "item": item}


def program(
    inputs: Sequence[Map], nodes: Sequence[Any], outputs: Any, bodies: Sequence[Map] = (), constants: Sequence[Map] = ()
) -> Map:
    made = {"bodies": list(bodies), "constants": list(constants), "inputs": list(inputs)}
    return made | {"nodes": list(nodes), "outputs": outputs, "version": 1}


def constant(values: Sequence[float], shape: Sequence[int], dtype: str = "float32") -> Map:
    return {"data": data_of(values, dtype), "dtype": dtype, "shape": list(shape)}


ADD, MUL, SUM = "aten.add.Tensor", "aten.mul.Tensor", "aten.sum.default"
ROWS = given("x", "float32", ["rows", 2])
HALVED = body([given("i"), given("c")], [node(ADD, n(1), n(0)), node(MUL, n(2), {"constant": 0})], [n(3)])
EXAMPLE = program([given("x", "float32", ["rows", 3])], [node(ADD, n(0), 1.0), node("aten.relu.default", n(1))], n(2))


def power() -> Map:
    """As many times as x has rows: c = (c + i) / 2, from the sum of x on; and how many they were."""
    nodes = [
        node("aten.sym_size.int", n(0), 0),
        node("int.mul", n(1), 2),
        node(SUM, n(0)),
        node("flow.repeat", {"body": 0}, n(1), [n(3)], []),
    ]
    outputs = {"map": {"c": n(4, 0), "kept": {"tuple": [n(1), n(2), None, "text", {"complex": [0.0, 1.0]}]}}}
    return program([ROWS], nodes, outputs, [HALVED], [constant([0.5], [])])


def running() -> Map:
    """Sums of rows from the last on, scaled; each row is doubled by a map, within which nothing is carried."""
    step = body([given("c"), given("row"), given("w")], [node(MUL, n(1), n(2)), node(ADD, n(0), n(3))], [n(4), n(4)])
    twice = body([given("row")], [node(MUL, n(0), 2)], [n(1)])
    nodes = [
        node("flow.map", {"body": 1}, [n(0)], []),
        node("flow.scan", {"body": 0}, [{"constant": 0}], [n(2, 0)], [n(1)], reverse=True),
    ]
    return program([ROWS, given("w", "float32", [])], nodes, [n(3, 0), n(3, 1)], [step, twice], [constant([0, 0], [2])])


def nested() -> Map:
    """Doubled while below 100; inside, a branch that adds one where it is odd: a body that has a body."""
    odd = body([given("v")], [node(ADD, n(0), 1)], [n(1)])
    even = body([given("v")], [], [n(0)])
    step = body(
        [given("v")],
        [
            node(MUL, n(0), 2),
            node("aten.remainder.Scalar", n(1), 4),
            node("aten.eq.Scalar", n(2), 2),
            node("flow.cond", n(3), {"body": 0}, {"body": 1}, [n(1)]),
        ],
        [n(4, 0)],
    )
    test = body([given("v")], [node("aten.lt.Scalar", n(0), 100)], [n(1)])
    loop = node("flow.while", {"body": 3}, {"body": 2}, [n(0)], [], limit=50)
    return program([given("v", "int64", [])], [loop], n(1, 0), [odd, even, step, test])


def bound(content: str) -> Map:
    largest = [node(ADD, n(0), n(1)), node("aten.amax.default", n(2), [0])]
    return program([given("x", None, None), given("w", "float32", [None], content)], largest, n(3))


REFUSED: dict[str, Callable[[], Map]] = {
    "itself": lambda: program([ROWS], [node(ADD, n(1), 1)], n(1)),
    "later body": lambda: program(
        [ROWS], [], n(0), [body([given("v")], [node("flow.map", {"body": 0}, [n(0)], [])], [])]
    ),
    "unknown operation": lambda: program([ROWS], [node("aten.empty.memory_format", [2])], n(1)),
    "types": lambda: program([ROWS], [node("aten.matmul.default", n(0), n(0))], n(1)),
    "carried": lambda: program(
        [ROWS],
        [node("flow.repeat", {"body": 0}, 3, [n(0)], [])],
        n(1, 0),
        [body([given("i"), given("c")], [node(SUM, n(1))], [n(2)])],
    ),
    "unknown key": lambda: EXAMPLE | {"more": 1},
    "absurd": lambda: program(
        [ROWS],
        [node("flow.repeat", {"body": 1}, 1_000_000, [n(0)], [])],
        n(1, 0),
        [
            body([given("i"), given("c")], [node(ADD, n(1), 1)], [n(2)]),
            body([given("i"), given("c")], [node("flow.repeat", {"body": 0}, 1_000_000, [n(1)], [])], [n(2, 0)]),
        ],
    ),
}


def other_bytes() -> dict[str, tuple[bytes, bytes]]:
    """Bytes that say the same as EXAMPLE, and are not its; each with those whose hash goes with them."""
    code = canonical(EXAMPLE | {"outputs": n(1)})  # one that the peer has not seen
    one, key = b"\xcb" + struct.pack(">d", 1.0), b"\xa7version\x01"
    assert code.count(one) == 1 and code.endswith(key)
    changed = {
        "a longer list": code.replace(b"\x93\xb1", b"\xdc\x00\x03\xb1"),
        "a shorter float": code.replace(one, b"\xca" + struct.pack(">f", 1.0)),
        "a longer integer": code.removesuffix(b"\x01") + b"\xcc\x01",
        "another order": code[:1] + key + code[1:].removesuffix(key),
        "a key twice": b"\x87" + code[1:] + key,
        "more behind": code + b"\xc0",
    }
    found = {name: (each, each) for name, each in changed.items()}
    return found | {"another's hash": (code, canonical(EXAMPLE | {"outputs": n(2, 0)}))}


def seen(peer: Peer) -> Map:
    rows = peer.put([1, 2, 3, 4, 5, 6], [3, 2])
    three, weight = peer.put([-3, 0, 1], [1, 3]), peer.put([0.5], [])
    stored = peer.put(range(20_000), [20_000], publish=True, tags=["interop"])
    content = peer.ask("fetch", {"id": stored, "offset": 0})[0]["content"]  # of a large value it is told (§10)
    found: Map = {
        "example": peer.execute(EXAMPLE, three) + peer.execute(EXAMPLE, peer.put([1] * 6, [2, 3])),
        "example id": hashlib.sha256(canonical(EXAMPLE)).hexdigest(),
        "power": peer.execute(power(), rows, outs=3),
        "running": peer.execute(running(), rows, weight, outs=2),
        "nested": peer.execute(nested(), peer.put([3], [], "int64")),
        "bound": peer.execute(bound(content), peer.put([1.0], [1])),
    }
    code = canonical(running())
    peer.ask(
        "put",
        {
            "id": os.urandom(16),
            "kind": "plan",
            "spec_bytes": len(code),
            "publish": True,
            "tags": ["running"],
            "name": "running",
        },
        code,
    )
    found["plans"], _ = peer.ask("search", {"query": "#running kind:plan"})
    found["refused"] = {}
    for name, make in REFUSED.items():
        try:
            found["refused"][name] = peer.execute(make(), rows)
        except Refused as refused:
            found["refused"][name] = refused.args[0]["code"]
    for name, (code, hashed) in other_bytes().items():
        try:
            fields = {"program": hashlib.sha256(hashed).hexdigest(), "inputs": [three], "outs": [os.urandom(16)]}
            found["refused"][name] = peer.ask("execute", fields, code)
        except Refused as refused:
            found["refused"][name] = refused.args[0]["code"]
    return found


if __name__ == "__main__":
    with connect(sys.argv[1], subprotocols=[Subprotocol("peergrid.1")], compression=None, max_size=1 << 20) as socket:
        print(json.dumps(seen(Peer(socket, sys.argv[2]))))
