"""Tensor headers that lie, wherever a header comes in: refused before anything is allocated or kept."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import msgpack
import pytest

from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadProgram, BadRequest, BadTensor, GridError, NotFound, TooLarge

from .conftest import attacking

MALLORY = Identity.generate()  # one worker for all of these tests

HEADERS: dict[str, tuple[Any, Any, int]] = {
    # dtype, shape, bytes that come with it
    "a product that is 0 in 64 bits": ("float32", [2**32, 2**32], 0),
    "the same, with bytes": ("float32", [2**32, 2**32], 8),
    "a size of -1": ("float32", [-1], 4),
    "a size of -4": ("float32", [-4], 8),
    "two negative sizes": ("float32", [-1, -2], 8),
    "a size that is no integer": ("float32", [4.0], 16),
    "a size that is true": ("float32", [True], 4),
    "a size that is text": ("float32", ["2"], 8),
    "a size that is nothing": ("float32", [None], 8),
    "a size that is a list": ("float32", [[2]], 8),
    "a size of 2**62": ("float32", [2**62], 8),
    "a size of 2**64 - 1": ("float32", [2**64 - 1], 8),
    "more bytes than there may be": ("float32", [2**40], 8),
    "17 dimensions": ("float32", [1] * 17, 4),
    "thousands of dimensions": ("float32", [1] * 4_000, 4),
    "huge sizes around none": ("float32", [0, 2**62, 8], 0),
    "large sizes around none": ("float32", [0, 2**39, 2**39], 0),
    "fewer bytes": ("float32", [4], 15),
    "more bytes": ("float32", [4], 17),
    "none": ("float32", [4], 0),
    "bytes for none": ("float32", [0], 4),
    "a shape that is text": ("float32", "2", 8),
    "a shape that is a number": ("float32", 2, 8),
    "a shape that is a map": ("float32", {"0": 2}, 8),
    "no shape": ("float32", None, 4),
    "dtype load": ("load", [2], 8),
    "dtype os": ("os", [2], 8),
    "a dunder for a dtype": ("__class__", [2], 8),
    "a dtype with its module": ("torch.float32", [2], 8),
    "an integer for a dtype": (7, [2], 8),
    "a list for a dtype": (["float32"], [2], 8),
    "nothing for a dtype": (None, [2], 8),
    "sparse": ("sparse_coo", [2], 8),
    "quantised": ("qint8", [8], 8),
    "objects": ("object", [1], 8),
    "text": ("str", [1], 8),
    "a bool that is 2": ("bool", [2], -2),
}


def content(nbytes: int) -> bytes:
    return b"\2" * -nbytes if nbytes < 0 else bytes(nbytes)


async def refused(connection: Connection, op: str, args: dict[str, Any], payload: bytes = b"") -> GridError:
    with pytest.raises(GridError) as caught:
        await connection.request(op, args, payload, timeout=100)
    assert isinstance(caught.value, BadTensor | TooLarge | BadRequest | BadProgram), caught.value
    assert len(caught.value.message) < 600
    return caught.value


async def works(connection: Connection) -> None:
    id = os.urandom(16)
    await connection.request("put", {"id": id, "kind": "tensor", "dtype": "float32", "shape": [2]}, bytes(8))
    assert bytes((await connection.request("fetch", {"id": id})).payload) == bytes(8)


@pytest.mark.parametrize("attack", HEADERS)
async def test_a_value_that_is_put_or_published(victim: Folders, attack: str) -> None:
    dtype, shape, nbytes = HEADERS[attack]
    async with attacking(victim, MALLORY) as mallory:
        for publish in (False, True):
            args = {"id": os.urandom(16), "kind": "tensor", "publish": publish, "dtype": dtype, "shape": shape}
            payload = content(nbytes)
            if nbytes < 0 and not publish:  # nobody looks at the bytes of a temporary before they are used
                await mallory.request("put", args, payload)
                operation = ["aten.neg.default", [args["id"]], {}, [os.urandom(16)]]
                answer = await mallory.request("run", {"operations": [operation]}, timeout=100)
                assert answer.result["results"][0]["code"] == BadTensor.code
                continue
            if nbytes < 0:
                continue  # nor at those of a file; a worker does (tests/worker/test_stored_files.py)
            await refused(mallory, "put", args, payload)
            with pytest.raises(NotFound):
                await mallory.request("describe", {"id": args["id"]})
        await works(mallory)


@pytest.mark.parametrize("attack", HEADERS)
async def test_a_constant_of_an_operation(victim: Folders, attack: str) -> None:
    dtype, shape, nbytes = HEADERS[attack]
    async with attacking(victim, MALLORY) as mallory:
        constant = {"dtype": dtype, "shape": shape, "data": content(nbytes)}
        out = os.urandom(16)
        operations = [["aten.clone.default", [{"tensor": constant}], {}, [out]]]
        answer = await mallory.request("run", {"operations": operations}, timeout=100)
        (fault,) = answer.result["results"]
        assert fault["code"] in (BadTensor.code, BadRequest.code, TooLarge.code)
        assert len(fault["message"]) < 600
        await refused(mallory, "fetch", {"id": out})
        await works(mallory)


@pytest.mark.parametrize("attack", HEADERS)
async def test_a_constant_of_a_program(victim: Folders, attack: str) -> None:
    dtype, shape, nbytes = HEADERS[attack]
    async with attacking(victim, MALLORY) as mallory:
        data = program_with({"dtype": dtype, "shape": shape, "data": content(nbytes)})
        args = {"program": hashlib.sha256(data).hexdigest(), "inputs": [], "outs": [os.urandom(16)]}
        await refused(mallory, "execute", args, data)
        await works(mallory)


async def test_a_program_with_an_honest_constant_runs(victim: Folders) -> None:
    """Else the refusals above would say nothing."""
    async with attacking(victim, MALLORY) as mallory:
        data, out = program_with({"dtype": "float32", "shape": [2], "data": bytes(8)}), os.urandom(16)
        args = {"program": hashlib.sha256(data).hexdigest(), "inputs": [], "outs": [out]}
        await mallory.request("execute", args, data)
        assert bytes((await mallory.request("fetch", {"id": out})).payload) == bytes(8)


def program_with(constant: dict[str, Any]) -> bytes:
    """The canonical bytes of a program that copies its constant; nothing of ours checks it."""
    nodes = [["aten.clone.default", [{"constant": 0}], {}]]
    constants = [dict(sorted(constant.items()))]
    fields = {"bodies": [], "constants": constants, "inputs": [], "nodes": nodes, "outputs": {"node": 0}, "version": 1}
    packed: bytes = msgpack.packb(fields)
    return packed
