"""Numbers as the parties compute on them: fixed point in the ring of integers modulo 2^64, on int64 tensors.

A real x with `bits` fractional bits is round(x * 2^bits), and wraps. Arithmetic of torch on int64 wraps in the same
way, so that sums and products of shares are torch's own.
"""

from __future__ import annotations

from typing import Final

import torch

from protocol.errors import BadRequest

WORD: Final = torch.int64
WIDTH: Final = 64
PRECISION: Final = 16
"""Fractional bits of a secret, unless the user says otherwise."""

LEAST_PRECISION: Final = 10
MOST_PRECISION: Final = 24
"""`precision=` may be from the one to the other: with more, products of 2^14 would not fit before truncation."""

MAGNITUDE: Final = 62
"""A value may use so many bits besides its sign and one to spare: truncation (comparison.py) is exact below 2^62."""

_SIGN_OFF: Final = (1 << 63) - 1


def largest(bits: int) -> float:
    """Reals of at least this magnitude cannot be encoded with so many fractional bits."""
    return float(1 << (MAGNITUDE - bits))


def check_precision(precision: int) -> None:
    """BadRequest: these are not fractional bits that a secret may have."""
    if type(precision) is not int or not LEAST_PRECISION <= precision <= MOST_PRECISION:
        raise BadRequest(
            f"precision={precision!r} is not possible: it is the number of fractional bits of a secret, "
            f"from {LEAST_PRECISION} to {MOST_PRECISION}; {PRECISION} where none is given"
        )


def encode(values: torch.Tensor, bits: int = PRECISION) -> torch.Tensor:
    """Reals, integers or truth values of any shape, as words.

    Raises:
        BadRequest: a value is not finite, or at least `largest(bits)`.
    """
    if values.dtype == WORD or not (values.is_floating_point() or values.is_complex()):
        words = values.to(WORD)
        is_small = values.dtype.itemsize < WORD.itemsize and not bits
        if not is_small and words.numel() and not words.is_meta and int(words.abs().max()) >> (MAGNITUDE - bits):
            raise BadRequest(
                f"an integer of 2^{MAGNITUDE - bits} or more cannot be a secret with {bits} fractional bits"
            )
        return words << bits if bits else words
    if values.is_complex():
        raise BadRequest("complex numbers cannot be secrets: share their real and imaginary parts")
    reals = values.detach().to(torch.float64)
    # abs().max() is NaN where a value is.
    if reals.numel() and not reals.is_meta and not float(reals.abs().max()) < largest(bits):
        raise BadRequest(
            f"a value is not finite, or at least {largest(bits):g}: it does not fit {bits} fractional bits"
        )
    return torch.round(reals * float(1 << bits)).to(WORD)


def decode(words: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """The values of words with so many fractional bits: exact up to the precision of `dtype`, negative ones too."""
    if dtype == torch.bool:
        return words != 0
    if not dtype.is_floating_point:
        return (words >> bits if bits else words).to(dtype)
    return (words.to(torch.float64) / float(1 << bits)).to(dtype)


def words_in(data: memoryview | bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The words of a message, row-major and little-endian: in place where that may be written to and lies at a word's
    boundary, else a copy."""
    view = memoryview(data)
    if not view.nbytes:
        return torch.empty(shape, dtype=dtype)
    if not view.readonly:
        words = torch.frombuffer(view, dtype=dtype)
        if not words.data_ptr() % dtype.itemsize:
            return words.reshape(shape)
    return torch.frombuffer(bytearray(view), dtype=dtype).reshape(shape)


def shift_logical(words: torch.Tensor, by: int) -> torch.Tensor:
    """Words shifted right as unsigned ones."""
    return (words >> by) & (_SIGN_OFF >> (by - 1)) if by else words


def signed(word: int) -> int:
    """An unsigned word as int64 has it."""
    return word - (1 << WIDTH) if word >> (WIDTH - 1) else word
