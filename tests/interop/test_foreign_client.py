"""A client in JavaScript that knows nothing but protocol/SPEC.md talks to a real peer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.neighbours import Neighbour
from protocol import limits
from protocol.identity import is_peer_id

NODE = shutil.which("node")
CLIENT = Path(__file__).with_name("client.mjs")


@pytest.fixture
def seen(alice: Neighbour) -> Iterator[dict[str, Any]]:
    """What the client saw: one JSON object."""
    if NODE is None:
        pytest.skip("NODE IS NOT INSTALLED: the specification is not checked by a second implementation")
    done = subprocess.run(
        [NODE, str(CLIENT), alice.url, alice.id], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)


def test_a_client_written_from_the_specification_alone(alice: Neighbour, seen: dict[str, Any]) -> None:
    """One run, and all that it saw: starting a peer and the client takes longer than every check."""
    _check_handshake(alice, seen)
    _check_objects(seen)
    _check_computing(seen)
    _check_faults(seen)
    _check_streams(seen)
    assert seen["closed"] == 1000


def _check_handshake(alice: Neighbour, seen: dict[str, Any]) -> None:
    shaken = seen["handshake"]
    assert is_peer_id(shaken["id"]) and shaken["peer"] == "alice"
    assert shaken["verified"] and shaken["refuses_flipped_signature"] and shaken["refuses_own_role"]
    assert seen["window"] == limits.WINDOW
    assert seen["wrong_peer"]["code"] == "handshake_failed" and "wrong peer" in seen["wrong_peer"]["message"]
    assert [(peer["name"], peer["id"], peer["urls"], peer["state"]) for peer in seen["peers"]] == [
        ("alice", alice.id, [alice.url], "alive")
    ]
    assert (seen["status"]["name"], seen["status"]["id"]) == ("alice", alice.id)
    assert seen["status"]["sessions"] == 1


def _check_objects(seen: dict[str, Any]) -> None:
    small, large = seen["put_small"], seen["put_large"]
    assert (small["dtype"], small["shape"], small["nbytes"], small["kind"]) == ("float32", [2, 3], 24, "tensor")
    assert sorted(small["tags"]) == ["interop", "small"] and small["published"] is True
    assert small["description"] == "from node, with ünïcode" and small["owner"] == seen["handshake"]["id"]
    assert (large["dtype"], large["nbytes"]) == ("int32", 24 * limits.CHUNK + 4_000)
    assert seen["search"]["truncated"] is False
    assert [record["id"] for record in seen["search"]["records"]] == [large["id"], small["id"]]  # newest first
    assert [record["id"] for record in seen["search_small"]] == [small["id"]]
    assert seen["describe"]["id"] == small["id"] and seen["describe_prefix"]["id"] == large["id"]
    assert seen["fetch_small"] == {"dtype": "float32", "shape": [2, 3], "same": True}
    assert (seen["deleted"], seen["left"]) == (2, 0)


def _check_computing(seen: dict[str, Any]) -> None:
    values = [1.5, -2.0, 3.0, 0.25, 0.0, 1e10]
    assert seen["run"]["results"] == []  # none failed
    assert (seen["run"]["sum"]["dtype"], seen["run"]["sum"]["shape"]) == ("float32", [2, 3])
    assert seen["run"]["sum"]["values"] == [2 * value for value in values]
    assert seen["run"]["product"] == values
    assert seen["neighbour"] == [-value for value in values]


def _check_faults(seen: dict[str, Any]) -> None:
    codes = {name: fault and fault["code"] for name, fault in seen["faults"].items()}
    assert codes == {
        "unknown object": "not_found",
        "unknown op": "bad_request",
        "bad id": "bad_request",
        "lying header": "bad_tensor",
        "bad query": "query",
        "same object again": None,
        "same id, other value": "already_exists",
        "forbidden operation": "operation_not_allowed",
        "its neighbour": None,
        "out of a failed operation": "operation_not_allowed",
    }
    fault = seen["faults"]["unknown object"]
    assert (fault["operation"], fault["peer"]) == ("fetch", "alice") and fault["message"]
    assert type(seen["faults"]["bad query"]["fields"]["column"]) is int


def _check_streams(seen: dict[str, Any]) -> None:
    assert re.fullmatch("[0-9a-f]{64}", seen["fetch_large"].pop("content"))
    assert seen["fetch_large"] == {
        "dtype": "int32",
        "shape": [6 * limits.CHUNK + 1_000],
        "same": True,
        "nbytes": 24 * limits.CHUNK + 4_000,
    }
    assert seen["credits_given"] > 0 and seen["credits_taken"] > 0
    assert seen["largest_unread"] <= limits.WINDOW
    assert seen["many"] == {"answers": 201, "all": True, "first": True}
    assert 2 * limits.CHUNK <= seen["aborted_after"] < 4 * limits.CHUNK
    assert seen["given_up"] == "given up"
