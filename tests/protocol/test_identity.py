"""Ids, and the bytes that ends sign."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from peer.keys import Identity, verify
from protocol import identity
from protocol.errors import BadRequest

# The public key of RFC 8032, section 7.1, test 1.
RFC_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def test_an_id_is_the_hash_of_the_key_in_base32() -> None:
    assert identity.peer_id(RFC_KEY) == "eh7ddx5bksrgcytl7bkai36se4nxx3klnk7elksyq57pi74xeg4q"
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    bits = "".join(f"{byte:08b}" for byte in hashlib.sha256(RFC_KEY).digest()) + "0000"
    assert identity.peer_id(RFC_KEY) == "".join(alphabet[int(bits[at : at + 5], 2)] for at in range(0, 260, 5))


def test_an_id_has_52_characters() -> None:
    assert len(identity.peer_id(RFC_KEY)) == identity.PEER_ID_LENGTH == 52
    assert identity.is_peer_id(identity.peer_id(RFC_KEY))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_of_another_length_has_no_id(length: int) -> None:
    with pytest.raises(BadRequest):
        identity.peer_id(bytes(length))


@pytest.mark.parametrize(
    "text", ["", "a" * 51, "a" * 53, "A" * 52, "a" * 51 + "1", "a" * 51 + "=", "a" * 52 + "\n", b"a" * 52, None, 7]
)
def test_other_things_are_no_ids(text: object) -> None:
    assert not identity.is_peer_id(text)


def test_the_transcript_is_six_parts_each_behind_its_length() -> None:
    made = identity.transcript("dialer", b"D" * 32, b"A" * 32, b"d" * 32, b"a" * 32)
    size = bytes([32, 0, 0, 0])
    assert made == (
        b"\x10\0\0\0peergrid-auth-v1"
        + b"\x06\0\0\0dialer"
        + size + b"D" * 32 + size + b"A" * 32 + size + b"d" * 32 + size + b"a" * 32
    )  # fmt: skip


def test_any_part_that_differs_gives_another_transcript() -> None:
    parts: tuple[Any, ...] = ("dialer", b"D" * 32, b"A" * 32, b"d" * 32, b"a" * 32)
    others = [(*parts[:at], b"x" * 32 if at else "acceptor", *parts[at + 1 :]) for at in range(5)]
    swapped = (parts[0], parts[2], parts[1], parts[4], parts[3])
    made = {identity.transcript(*each) for each in [parts, swapped, *others]}
    assert len(made) == 7


def test_a_signature_holds_for_its_own_transcript_only() -> None:
    signer = Identity.generate()
    parts = (signer.public_key, b"A" * 32, b"d" * 32, b"a" * 32)
    signature = signer.sign(identity.transcript("dialer", *parts))
    assert verify(signer.public_key, signature, identity.transcript("dialer", *parts))
    assert not verify(signer.public_key, signature, identity.transcript("acceptor", *parts))
