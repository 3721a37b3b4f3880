"""Ed25519 keys (RFC 8032) of peers and of the people who use them: made on first use, kept with mode 0600."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol import identity
from protocol.errors import SetupError


class Identity:
    """A private key and the id that follows from it. It is a `protocol.identity.Signer`."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key: bytes = private.public_key().public_bytes_raw()
        self.id: str = identity.peer_id(self.public_key)

    def __repr__(self) -> str:
        return f"Identity({self.id[:12]})"

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    @classmethod
    def generate(cls) -> Identity:
        """A fresh key that is written nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The key kept in `path`, made there if there is none.

        Raises:
            SetupError: the file is not such a key, others can read it, or it cannot be read or written.
        """
        try:
            return cls._load(path)
        except OSError as error:
            raise SetupError(f"the key {path} cannot be kept there: {error.strerror}") from error

    @classmethod
    def _load(cls, path: Path) -> Identity:
        try:
            return cls(_read(path))
        except FileNotFoundError:
            pass
        made = cls.generate()
        try:
            _write(path, made._private)
        except FileExistsError:  # another process made it in the meantime
            return cls(_read(path))
        return made


def is_operator(asker: str, client_key: Path) -> bool:
    """Whether this is the operator of the machine: whoever holds the client key of the folders that a peer runs in."""
    return client_key.exists() and Identity.load(client_key).id == asker


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is that key's over `message` (a `protocol.identity.Verify`)."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _read(path: Path) -> Ed25519PrivateKey:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise SetupError(f"others can read the key {path}: chmod 600 it, or move it away to have a new one made")
        data = file.read()
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"{path} holds no Ed25519 key: move it away to have a new one made (with a new id)")
    return key


def _write(path: Path, private: Ed25519PrivateKey) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Written whole beside it and linked into place: no reader sees half a key, and no existing key is replaced.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        os.unlink(temporary)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the id that others know hangs on this key
    finally:
        os.close(folder)
