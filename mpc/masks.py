"""Masks: AES-128 in counter mode (NIST SP 800-38A). Who has the seed has the masks; to others they are random.

Never torch's generator: it is no cryptographic one, and keeps 32 bits of its seed.
"""

from __future__ import annotations

import os
from typing import Any, Final

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SEED: Final = 16  # bytes

_CLEAR: Final = memoryview(bytes(1 << 20))


class Masks:
    """The masks of one number under one seed, in order. One pair of seed and number is used for one purpose, once."""

    __slots__ = ("_stream",)

    def __init__(self, seed: bytes, number: int) -> None:
        # The number, and a counter of 64 bits behind it: no two numbers meet.
        block = number.to_bytes(8, "big") + bytes(8)
        self._stream = Cipher(algorithms.AES(seed), modes.CTR(block)).encryptor()

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Uniform words of this shape and integer dtype."""
        words = torch.empty(shape, dtype=dtype)
        self._fill(words)
        return words

    def _fill(self, words: torch.Tensor) -> None:
        nbytes = words.numel() * words.element_size()
        if not nbytes:
            return
        room: Any = words.reshape(-1).view(torch.uint8).numpy()
        for start in range(0, nbytes, len(_CLEAR)):
            stop = min(start + len(_CLEAR), nbytes)
            self._stream.update_into(_CLEAR[: stop - start], room[start:stop])


def fresh_seed() -> bytes:
    """A seed that nobody else has."""
    return os.urandom(SEED)
