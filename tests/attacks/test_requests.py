"""Hostile requests of an authenticated stranger to a real peer: refused by name, the session and the peer go on."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.requests import _TABLE
from protocol.errors import (
    BadRequest,
    Denied,
    GridError,
    InternalError,
    NotFound,
    OperationNotAllowed,
)

from .conftest import attacking

FLOAT = {"dtype": "float32", "shape": [2]}


async def _alive(connection: Connection) -> None:
    """The very session that attacked still works."""
    id = os.urandom(16)
    await connection.request("put", {"id": id, "kind": "tensor", **FLOAT}, bytes(8))
    assert bytes((await connection.request("fetch", {"id": id})).payload) == bytes(8)


async def _refused(connection: Connection, op: str, args: dict[str, Any], payload: bytes = b"") -> GridError:
    with pytest.raises(GridError) as caught:
        await connection.request(op, args, payload, timeout=100)
    assert not isinstance(caught.value, InternalError), (op, args)
    return caught.value


async def test_an_unknown_request_is_refused_by_name(victim: Folders) -> None:
    async with attacking(victim) as connection:
        error = await _refused(connection, "__class__", {})
        assert isinstance(error, BadRequest) and "__class__" in error.message
        await _alive(connection)


async def test_random_arguments_never_meet_a_defect(victim: Folders) -> None:
    """Every request, with fields of its own names and values of every kind."""
    source = random.Random(0)
    values: list[Any] = [
        None, True, -1, 0, 2**62, 0.5, float("nan"), "", "x" * 300, "\x00", "../x", b"", os.urandom(16),
        os.urandom(3), [], [[]], [os.urandom(16)] * 3, [None], {}, {"a": 1}, {"tensor": {}}, "tensor", "model",
        "pointer", "spec", "#a",
    ]  # fmt: skip
    names = [
        "id", "ids", "prefix", "kind", "dtype", "shape", "spec_bytes", "publish", "tags", "description", "private",
        "name", "query", "limit", "add", "remove", "part", "operations", "release", "fetch", "program", "inputs",
        "outs", "peer", "object", "target", "move", "ticket",
    ]  # fmt: skip
    async with attacking(victim) as connection:
        for op in _TABLE:
            for _ in range(40):
                chosen = source.sample(names, source.randint(0, 6))
                args = {name: source.choice(values) for name in chosen}
                payload = bytes(source.choice((0, 0, 3, 100)))
                try:
                    await connection.request(op, args, payload, timeout=100)
                except InternalError:
                    pytest.fail(f"{op} {args} {len(payload)}")
                except GridError:
                    pass
        await _alive(connection)


async def test_killing_arguments_cost_at_most_the_worker(victim: Folders) -> None:
    """Integer division that traps, and a stranger's session beside it that notices nothing."""
    async with attacking(victim) as mallory, attacking(victim) as honest:
        x, y, out = (os.urandom(16) for _ in range(3))
        header = {"kind": "tensor", "dtype": "int64", "shape": [1]}
        for id, value in ((x, -(2**63)), (y, -1)):
            await mallory.request("put", {"id": id, **header}, value.to_bytes(8, "little", signed=True))
        operation = ["aten.div.Tensor_mode", [x, y], {"rounding_mode": "trunc"}, [out]]
        answer = await mallory.request("run", {"operations": [operation]}, timeout=100)
        assert answer.result["results"][0]["code"]
        await _alive(honest)
        await _alive(mallory)


async def test_another_principals_temporary_cannot_be_used_taken_released_or_offered(victim: Folders) -> None:
    async with attacking(victim) as owner, attacking(victim) as mallory:
        x, out = os.urandom(16), os.urandom(16)
        await owner.request("put", {"id": x, "kind": "tensor", **FLOAT}, bytes(8))
        for op, args in (
            ("fetch", {"id": x}),
            ("describe", {"id": x}),
            ("delete", {"ids": [x]}),
            ("edit", {"id": x, "add": ["mine"]}),
            ("offer", {"id": x, "target": mallory.remote.id, "move": False}),
        ):
            assert isinstance(await _refused(mallory, op, args), NotFound)
        await mallory.request("release", {"ids": [x]})
        answer = await mallory.request("run", {"operations": [["aten.neg.default", [x], {}, [out]]], "release": [x]})
        assert answer.result["results"][0]["code"] == NotFound.code
        assert bytes((await owner.request("fetch", {"id": x})).payload) == bytes(8)


async def test_an_existing_id_is_not_taken_over(victim: Folders) -> None:
    async with attacking(victim) as owner, attacking(victim) as mallory:
        kept, mine = os.urandom(16), os.urandom(16)
        await owner.request("put", {"id": kept, "kind": "tensor", "tags": ["kept"], **FLOAT}, bytes(8))
        await mallory.request("put", {"id": mine, "kind": "tensor", **FLOAT}, bytes(8))
        await mallory.request("run", {"operations": [["aten.neg.default", [mine], {}, [kept]]]})
        async with attacking(victim) as another:
            assert (await another.request("describe", {"id": kept})).result["record"]["tags"] == ["kept"]
        error = await _refused(mallory, "put", {"id": kept, "kind": "tensor", "tags": ["x"], **FLOAT}, b"\1" * 8)
        assert error.code == "already_exists"
        assert (await owner.request("describe", {"id": kept})).result["record"]["tags"] == ["kept"]
        await owner.request("delete", {"ids": [kept]})


async def test_a_ticket_is_good_for_its_target_alone(victim: Folders) -> None:
    async with attacking(victim) as owner, attacking(victim) as mallory:
        x = os.urandom(16)
        await owner.request("put", {"id": x, "kind": "tensor", **FLOAT}, bytes(8))
        target = Identity.generate()
        offer = await owner.request("offer", {"id": x, "target": target.id, "move": True})
        ticket = offer.result["ticket"]
        assert isinstance(await _refused(mallory, "collect", {"ticket": ticket}), Denied)
        assert isinstance(await _refused(mallory, "collected", {"ticket": ticket}), Denied)
        assert isinstance(await _refused(mallory, "collect", {"ticket": bytes(32)}), NotFound)
        async with attacking(victim, target) as rightful:
            version = (await rightful.request("collect", {"ticket": ticket})).result["version"]
            await rightful.request("collected", {"ticket": ticket, "version": version})
            assert isinstance(await _refused(rightful, "collect", {"ticket": ticket}), NotFound)
        assert isinstance(await _refused(owner, "fetch", {"id": x}), NotFound)


async def test_a_peer_dials_only_members_it_knows_and_only_on_this_machine(victim: Folders) -> None:
    async with attacking(victim) as mallory:
        error = await _refused(
            mallory, "pull", {"peer": Identity.generate().id, "ticket": bytes(32), "id": os.urandom(16)}
        )
        assert isinstance(error, NotFound)
        for url in ("ws://169.254.169.254:80", "ws://10.0.0.1:7700", "http://127.0.0.1", "ws://example.org"):
            error = await _refused(
                mallory, "introduce", {"peer": {"id": mallory.remote.id, "name": "m", "urls": [url]}, "peers": []}
            )
            assert isinstance(error, BadRequest)


async def test_a_program_that_is_not_what_its_id_says_is_refused(victim: Folders) -> None:
    async with attacking(victim) as mallory:
        args = {"program": "0" * 64, "inputs": [], "outs": []}
        assert (await _refused(mallory, "execute", args, b"anything")).code == "bad_program"
        assert isinstance(await _refused(mallory, "execute", args), NotFound)


async def test_two_hundred_failures_at_once_are_all_told(victim: Folders) -> None:
    async with attacking(victim) as mallory:
        operations = [["aten." + "x" * 200, [], {"y" * 50: "z" * 100}, [os.urandom(16)]] for _ in range(120)]
        answer = await mallory.request("run", {"operations": operations})
        assert [fault["code"] for fault in answer.result["results"]] == [OperationNotAllowed.code] * 120
