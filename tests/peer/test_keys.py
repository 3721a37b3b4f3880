"""Keys: made on first use, kept for their owner alone, never replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from peer import keys
from peer.keys import Identity, verify
from protocol.errors import SetupError
from protocol.identity import is_peer_id

# RFC 8032, section 7.1, test 2.
RFC_PRIVATE = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
RFC_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
RFC_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_signatures_are_those_of_the_standard() -> None:
    made = Identity(ed25519.Ed25519PrivateKey.from_private_bytes(RFC_PRIVATE))
    assert (made.public_key, made.sign(b"\x72")) == (RFC_PUBLIC, RFC_SIGNATURE)
    assert verify(RFC_PUBLIC, RFC_SIGNATURE, b"\x72")


@pytest.mark.parametrize(
    ("key", "signature", "message"),
    [
        (RFC_PUBLIC, RFC_SIGNATURE, b"\x73"),
        (RFC_PUBLIC, RFC_SIGNATURE[:-1] + b"\x01", b"\x72"),
        (RFC_PUBLIC, bytes(64), b"\x72"),
        (RFC_PUBLIC, b"", b"\x72"),
        (RFC_PUBLIC, RFC_SIGNATURE + b"\0", b"\x72"),
        (bytes(31), RFC_SIGNATURE, b"\x72"),
        (b"", RFC_SIGNATURE, b"\x72"),
        (b"\xff" * 32, RFC_SIGNATURE, b"\x72"),
        (RFC_PUBLIC[::-1], RFC_SIGNATURE, b"\x72"),
    ],
)
def test_anything_else_does_not_verify(key: bytes, signature: bytes, message: bytes) -> None:
    assert verify(key, signature, message) is False


def test_a_fresh_key_is_one_of_its_own() -> None:
    one, other = Identity.generate(), Identity.generate()
    assert one.id != other.id and is_peer_id(one.id)
    assert repr(one) == f"Identity({one.id[:12]})"


def test_a_key_is_made_once_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "alice.key"
    assert Identity.load(path).id == Identity.load(path).id
    assert os.listdir(path.parent) == ["alice.key"]


def test_a_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "alice.key"
    Identity.load(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o611])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "alice.key"
    Identity.load(path)
    path.chmod(mode)
    with pytest.raises(SetupError, match="chmod 600"):
        Identity.load(path)


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        b"\xff" * 100,
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        pem(ec.generate_private_key(ec.SECP256R1())),
        pem(ed25519.Ed25519PrivateKey.generate(), b"password"),
    ],
    ids=["empty", "text", "binary", "broken", "another kind", "with a password"],
)
def test_a_file_that_holds_no_such_key_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "alice.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SetupError, match="no Ed25519 key"):
        Identity.load(path)
    assert path.read_bytes() == content


def test_a_key_that_cannot_be_kept_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be kept"):
        Identity.load(tmp_path / "file" / "alice.key")
    (tmp_path / "folder.key").mkdir()
    with pytest.raises(SetupError):
        Identity.load(tmp_path / "folder.key")


def test_the_rubbish_of_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".alice.key.{os.getpid()}").write_bytes(b"half a k")
    Identity.load(tmp_path / "alice.key")


def test_all_who_make_a_key_at_once_have_the_same(tmp_path: Path) -> None:
    path, found = tmp_path / "alice.key", []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        found.append(Identity.load(path).id)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert os.listdir(tmp_path) == ["alice.key"]


def test_a_key_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys.os, "fsync", full)
    with pytest.raises(SetupError, match="No space left"):
        Identity.load(tmp_path / "alice.key")
    assert os.listdir(tmp_path) == []
