"""Peer ids and proof of keys (SPEC.md, Handshake). The signing itself is done by whoever holds the key."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from typing import Final, Protocol

from protocol.errors import BadRequest

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
PEER_ID_LENGTH: Final = 52
_PEER_ID = re.compile(rf"[a-z2-7]{{{PEER_ID_LENGTH}}}")
_DOMAIN: Final = b"peergrid-auth-v1"

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, message) -> whether the signature is that key's over that message."""


class Signer(Protocol):
    """One end's Ed25519 identity (RFC 8032): 32 bytes of public key, and signatures of 64 bytes."""

    @property
    def public_key(self) -> bytes: ...

    def sign(self, message: bytes) -> bytes: ...


def peer_id(public_key: bytes) -> str:
    """The id of a key: lowercase base32 of its SHA-256, 52 characters without padding."""
    if len(public_key) != KEY_BYTES:
        raise BadRequest(f"a public key is {KEY_BYTES} bytes, not {len(public_key)}")
    return base64.b32encode(hashlib.sha256(public_key).digest()).decode().rstrip("=").lower()


def is_peer_id(text: object) -> bool:
    return isinstance(text, str) and _PEER_ID.fullmatch(text) is not None


def transcript(role: str, dialer_key: bytes, acceptor_key: bytes, dialer_nonce: bytes, acceptor_nonce: bytes) -> bytes:
    """What the end playing `role` ("dialer" or "acceptor") signs. Each part is preceded by its length as u32.

    Both keys are in it, so a signature made for one pair of ends is worth nothing to another; both nonces are,
    so it cannot be replayed; the role is, so it cannot be reflected.
    """
    parts = (_DOMAIN, role.encode(), dialer_key, acceptor_key, dialer_nonce, acceptor_nonce)
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
