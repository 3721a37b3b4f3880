"""Reciprocals, roots and logarithms of secrets, and what is made of them.

x = z * 16^k with z in [1/16, 1), for a secret k that is found from the first digit (magnitude.py). Then the function of
z is a series (waves.py), and that of 16^k a number that belongs to the digit: two factors, or two terms.

The domain is 2^-16 <= |x| < 2^28, positive where the function has it so, and 2^20 for reciprocals; the errors hold for
results, and the fixed-point precision of the argument is another matter: 1 / x of x = 0.01 moves by 0.15 when x does by
one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch

from mpc.arithmetic import multiply, multiply_and_fix, multiply_fixed
from mpc.bilinear import Multiply
from mpc.inverse import inverse
from mpc.magnitude import NARROW, WIDE, Leading, digits_of, leading_digit, leading_digit_and_sign
from mpc.operations.comparisons import flat
from mpc.operations.functions import exponential
from mpc.operations.linear import add, as_number, as_secrets, result_type
from mpc.operations.products import product
from mpc.party import Party
from mpc.ring import MAGNITUDE, PRECISION, encode
from mpc.rounds import Protocol, together
from mpc.secret import Digits, Secret, known, real, settled
from mpc.table import Arguments, secure
from mpc.waves import Series, series

_PERIOD: Final = 4 / 3  # longer than z's 15/16: a series that need not repeat is a better fit
VALUE_BITS: Final = 24
_LEAST_BITS: Final = 17  # fractional bits of 1 / z, which is 1 to 16: relative error 2^-17
_MOST_BITS: Final = 24
_TOP_BITS: Final = 22  # of x / y * z: what is below comes 16 times as large out of the quotient
_LOG_OF_2: Final = 0.6931471805599453  # written out: what all parties have to have the same is not for a library to say


def _fit(constant: float, cosines: tuple[float, ...], sines: tuple[float, ...]) -> Series:
    return Series(_PERIOD, tuple(range(1, len(sines) + 1)), sines, cosines, constant)


# Least-squares fits on [1/16, 1), reweighted towards the smallest largest error; relative errors but for the logarithm.
_LOG: Final = _fit(  # 8.3e-6
    -2.099967326,
    (
        *(-2.807220845, -1.556416707, -0.338130606, 0.477514664, 0.738836009, 0.589997723, 0.301226593),
        *(0.076206234, -0.023786347, -0.036586898, -0.019898179, -0.006031514, -0.000818755, 3.4201e-05),
    ),
    (
        *(0.511873185, 1.542590881, 1.66321846, 1.170109733, 0.498434049, 0.000510704, -0.203774217),
        *(-0.192221398, -0.104437386, -0.033601031, -0.002733164, 0.003079829, 0.001542609, 0.00027211),
    ),
)
_RSQRT: Final = _fit(  # 1.6e-5
    5.023374655,
    (
        *(6.365110035, 3.497236411, 0.491939583, -1.535803332, -2.155752871, -1.716853142, -0.909211744),
        *(-0.267562581, 0.035945026, 0.092748323, 0.056344129, 0.019315589, 0.003516602, 0.000167042),
    ),
    (
        *(-2.64316575, -4.637264629, -4.664364283, -3.232762871, -1.389901213, -0.022651683, 0.557602268),
        *(0.547673389, 0.314617214, 0.114016746, 0.018614968, -0.004882146, -0.003685873, -0.000767957),
    ),
)
_SQRT: Final = _fit(  # 8.9e-7
    0.601791769,
    (
        *(-0.356780954, -0.213147635, -0.082843836, 0.008921067, 0.047253793, 0.044171847, 0.024228354),
        *(0.006788721, -0.001375326, -0.002605909, -0.001414007, -0.000401496, -4.0109e-05, 6.806e-06),
    ),
    (
        *(-0.139992966, 0.07130062, 0.128106231, 0.104681365, 0.052172233, 0.00839696, -0.01193305),
        *(-0.013449438, -0.007571527, -0.002386292, -0.00012469, 0.000258, 0.000116527, 1.8292e-05),
    ),
)


def _with_odd(wanted: Series) -> tuple[Series, Series]:
    """The series, and the one times the root of 2: for words of an even and of an odd number of fractional bits."""
    root = math.sqrt(2.0)  # exactly rounded everywhere, as IEEE 754 has it
    cosines, sines = (tuple(each * root for each in some) for some in (wanted.cosines, wanted.sines))
    return wanted, replace(wanted, cosines=cosines, sines=sines, constant=wanted.constant * root)


_ROOTS: Final = _with_odd(_SQRT)
_OVER_ROOTS: Final = _with_odd(_RSQRT)


def sqrt_of(bits: int) -> tuple[Series, Callable[[int], int]]:
    """Of the root of a word with so many fractional bits: the series of z, and for each digit the exponent of 2."""
    return _ROOTS[bits % 2], lambda digit: 2 * digit + 2 - (bits + 1) // 2


def rsqrt_of(bits: int) -> tuple[Series, Callable[[int], int]]:
    """Of 1 / root of a word with so many fractional bits: the series of z, and for each digit the exponent of 2."""
    return _OVER_ROOTS[bits % 2], lambda digit: bits // 2 - 2 - 2 * digit


def _words(party: Party, x: Secret) -> Protocol[torch.Tensor]:
    """[n] of exactly the run's fractional bits, n a multiple of bits.GROUP. One round, or none."""
    x = yield from settled(party, x)
    return flat(x.share << (party.precision - x.bits))


def _places(digits: int) -> list[int]:
    """For each digit 16 to the number of digits above it."""
    return [1 << (4 * (digits - 1 - digit)) for digit in range(digits)]


def _digits(party: Party, x: Secret) -> Protocol[Digits]:
    """A positive x. Eight rounds, and one before where it is a product."""
    words = yield from _words(party, x)
    return (yield from digits_of_words(party, words, digits_of(party.precision, WIDE)))


def digits_of_words(party: Party, words: torch.Tensor, digits: int) -> Protocol[Digits]:
    """Of words in [0, 16^digits). Eight rounds."""
    words = flat(words)
    first = yield from leading_digit(party, words, digits)
    return (yield from _normal(party, words, first))


def _normal(party: Party, size: torch.Tensor, first: Leading) -> Protocol[Digits]:
    """z, of the words and their leading digit. One round."""
    (z,), place = yield from multiply_and_fix(party, Multiply(), first.chosen(_places(first.digits)), size)
    return Digits(first, place, z)


def series_of_z(party: Party, digits: Digits, wanted: Series, bits: int) -> Protocol[torch.Tensor]:
    """The series of z, with so many fractional bits. Two rounds."""
    z = Secret(digits.z, 4 * digits.first.digits, torch.float64)
    (value,) = yield from series(party, z, wanted)
    return (yield from settled(party, value, bits)).share


def _scaled(party: Party, x: Secret, digits: Digits, wanted: Series, power: Callable[[int], int]) -> Protocol[Secret]:
    """The series of z times 2^power of its digit, in the shape of x. Four rounds."""
    share, bits = yield from _series_and_power(party, digits, wanted, power)
    made = yield from settled(party, Secret(share, bits, x.dtype))
    return _shaped(made, x)


def _series_and_power(
    party: Party, digits: Digits, wanted: Series, power: Callable[[int], int]
) -> Protocol[tuple[torch.Tensor, int]]:
    """The series of z times 2^power of its digit, and its fractional bits. Three rounds."""
    numbers, bits = powers(digits.first.digits, power)
    value = yield from series_of_z(party, digits, wanted, VALUE_BITS)
    share = yield from multiply(party, Multiply(), value, digits.first.chosen(numbers))
    return share, VALUE_BITS + bits


def _shaped(made: Secret, x: Secret) -> Secret:
    """A real of the shape of x."""
    return Secret(made.share[: x.share.numel()].view(x.shape), made.bits, x.dtype if x.is_real else torch.float32)


def powers(digits: int, power: Callable[[int], int]) -> tuple[list[int], int]:
    """2^power of each digit, and how many fractional bits they have. Exponents are at most 28 apart: times a value of z
    with its 24 bits, that fits a word."""
    exponents = [power(digit) for digit in range(digits)]
    bits = max(0, -min(exponents))
    return [1 << (each + bits) for each in exponents], bits


# --- reciprocals and quotients ------------------------------------------------------------------------------


def positive_reciprocal(party: Party, x: Secret) -> Protocol[Secret]:
    """1 / x for 2^-16 <= x < 2^28: relative error below 1.2e-4, or 2^-15. 0 for 0. Fourteen rounds."""
    digits = yield from _digits(party, x)
    return (yield from _reciprocal(party, x, digits))


@secure("reciprocal")
def reciprocal(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """1 / x for 2^-15 <= |x| < 2^20: relative error below 1.2e-4, or 2^-15. 0 for 0. Fourteen rounds."""
    x: Secret = arguments["self"]
    first, sign, size = yield from _first_and_sign(party, x)
    digits = yield from _normal(party, size, first)
    return (yield from _reciprocal(party, x, digits, sign))


def _first_and_sign(party: Party, x: Secret) -> Protocol[tuple[Leading, torch.Tensor, torch.Tensor]]:
    """The leading digit of x, its sign and its size. Seven rounds, and one before where it is a product."""
    words = yield from _words(party, x)
    return (yield from leading_digit_and_sign(party, words, digits_of(party.precision, NARROW)))


def _reciprocal(party: Party, x: Secret, digits: Digits, sign: torch.Tensor | None = None) -> Protocol[Secret]:
    """Six rounds."""
    places, bits = 4 * digits.first.digits, _inverse_bits(digits.first.digits)
    value = yield from inverse(party, digits.z, places, bits, sign)
    share = yield from multiply_fixed(party, Multiply(), value, digits.place)
    made = yield from settled(party, Secret(share, places + bits - party.precision, x.dtype))
    return _shaped(made, x)


def _inverse_bits(digits: int) -> int:
    """Fractional bits of 1 / z: with the largest place it fits a word, as far as it has to be so exact."""
    return max(_LEAST_BITS, min(_MOST_BITS, MAGNITUDE - 1 - 4 * digits))


@secure("div.Tensor", "div.Scalar")
def div(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """x / y. By what all parties know: one truncation later. By a secret: for 2^-15 <= |y| < 2^20 and quotients below
    2^18, to within 1.2e-4 of the larger of 1 and the quotient, and fourteen rounds; by a square root of one, to within
    1.2e-4 of the same, below 2^14."""
    x, y = arguments["self"], arguments["other"]
    if isinstance(y, Secret) and y.root is not None:
        return (yield from _over_root(party, x, y.root, result_type(x, y), y.shape))
    if isinstance(y, Secret):
        if isinstance(x, int | float) and x == 1:
            return (yield from reciprocal(party, name, {"self": y}))
        return (yield from _over(party, x, y))
    # A division, which rounds exactly everywhere: a function named reciprocal need not.
    known = 1.0 / y if isinstance(y, int | float) else torch.div(torch.ones((), dtype=torch.float64), y)
    return (yield from product(party, Multiply(), x, known, x.dtype if x.is_real else torch.float32))


def _over(party: Party, x: Any, y: Secret) -> Protocol[Secret]:
    """x / y, however large or small both are: x is brought to the size of the quotient first, so that no digit of it
    hangs on one of 1 / y that a word does not have. Fourteen rounds."""
    dtype = result_type(x, y)
    first, sign, size = yield from _first_and_sign(party, y)
    place, places, count = first.chosen(_places(first.digits)), 4 * first.digits, y.share.numel()
    top, value = yield from together(
        _numerator(party, x, place[:count].view(y.shape), places - party.precision),
        _inverse_of(party, size, place, places, sign),
    )
    share = yield from multiply(party, Multiply(), top.share, value[:count].view(y.shape))
    bits = top.bits + _LEAST_BITS
    return (yield from settled(party, Secret(share, bits, dtype if dtype.is_floating_point else torch.float32)))


def _numerator(party: Party, x: Any, place: torch.Tensor, bits: int) -> Protocol[Secret]:
    """x times the place of what it is divided by, of so many fractional bits. Two rounds."""
    if isinstance(x, Secret):
        x = yield from settled(party, x)
        share = yield from multiply(party, Multiply(), x.share, place)
        made = Secret(share, x.bits + bits, torch.float64)
    else:
        words = encode(torch.as_tensor(x, dtype=torch.float64), party.precision).to(place.device)
        made = Secret(place * words, party.precision + bits, torch.float64)
    return (yield from settled(party, made, max(_TOP_BITS, party.precision + 2)))


def _inverse_of(
    party: Party, size: torch.Tensor, place: torch.Tensor, places: int, sign: torch.Tensor
) -> Protocol[torch.Tensor]:
    """1 / z for z = size * place, with a sign. Five rounds."""
    z = yield from multiply(party, Multiply(), size, place)
    return (yield from inverse(party, z, places, _LEAST_BITS, sign))


def _over_root(party: Party, x: Any, root: Digits, dtype: torch.dtype, shape: torch.Size) -> Protocol[Secret]:
    """x / root of y, for |x| < 2^22, however large or small both are: first x is brought to the size of the quotient,
    then multiplied by the series. Three rounds."""
    wanted, power = rsqrt_of(party.precision)
    numbers, moved = powers(root.first.digits, power)
    count, bits = shape.numel(), max(PRECISION, party.precision)
    scale = Secret(root.first.chosen(numbers)[:count].view(shape), 0, torch.int64)
    if not isinstance(x, Secret):
        x = known(party, torch.as_tensor(x, dtype=torch.float64), party.precision, scale)
    size, value = yield from together(
        of_size(party, x, scale.share, moved, party.precision), series_of_z(party, root, wanted, bits)
    )
    share = yield from multiply(party, Multiply(), size.share, value[:count].view(shape))
    return Secret(share, size.bits + bits, dtype)


def of_size(party: Party, x: Secret, scale: torch.Tensor, bits: int, most: int) -> Protocol[Secret]:
    """x, with at most so many fractional bits, times a power of its digit, which has `bits`. Two rounds, and one before
    where x has more. It keeps sixteen, though the run has fewer: what is below comes up to six times as large."""
    x = yield from settled(party, x, most)
    share = yield from multiply(party, Multiply(), x.share, scale)
    made = Secret(share, x.bits + bits, x.dtype)
    return (yield from settled(party, made, max(PRECISION, party.precision)))


@secure("sqrt")
def sqrt(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Root of x, 0 <= x < 2^28: error below 4e-5, or 3e-6 of the value. Twelve rounds."""
    x: Secret = arguments["self"]
    digits = yield from _digits(party, x)
    made = yield from _scaled(party, x, digits, *sqrt_of(party.precision))
    return replace(made, root=digits)


@secure("rsqrt")
def rsqrt(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """1 / root of x, 2^-16 <= x < 2^28: relative error below 2e-5, or 4e-5. Twelve rounds."""
    x: Secret = arguments["self"]
    digits = yield from _digits(party, x)
    return (yield from _scaled(party, x, digits, *rsqrt_of(party.precision)))


@secure("log")
def log(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Natural logarithm of x, 2^-16 <= x < 2^28: error below 5e-5. Eleven rounds."""
    x: Secret = arguments["self"]
    digits = yield from _digits(party, x)
    bits, above = max(VALUE_BITS, party.precision), 4 - party.precision
    value = yield from series_of_z(party, digits, _LOG, bits)
    logs = [round((4 * digit + above) * _LOG_OF_2 * (1 << bits)) for digit in range(digits.first.digits)]
    made = yield from settled(party, Secret(value + digits.first.chosen(logs), bits, x.dtype))
    return Secret(made.share[: x.share.numel()].view(x.shape), made.bits, x.dtype)


_PER_BASE: Final = (0.4342944819032518, 1.4426950408889634)  # 1 / log 10, 1 / log 2


@secure("log2", "log10")
def other_log(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Logarithms to base 2 and 10, as log. Twelve rounds."""
    made = yield from log(party, name, arguments)
    return (yield from product(party, Multiply(), made, _PER_BASE["log2" in name], made.dtype))


@secure("log1p")
def log_of_one_more(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """log(1 + x), as log."""
    more = add(party, "aten.add.Scalar", {"self": arguments["self"], "other": 1})
    return (yield from log(party, name, {"self": more}))


# --- powers -------------------------------------------------------------------------------------------------


@secure("pow.Tensor_Scalar")
def power(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """x to a public power: by multiplication for whole ones, by roots for halves, else by logarithm and exp (x > 0)."""
    x: Secret = arguments["self"]
    exponent = arguments["exponent"]
    if isinstance(exponent, float) or exponent < 0:
        x = real(party, x)
    if exponent == 0.5:
        return (yield from sqrt(party, name, {"self": x}))
    if exponent == -0.5:
        return (yield from rsqrt(party, name, {"self": x}))
    if float(exponent).is_integer() and abs(exponent) <= 64:
        base = x if exponent >= 0 else (yield from reciprocal(party, name, {"self": x}))
        return (yield from _whole_power(party, base, abs(int(exponent))))
    logs = yield from log(party, name, {"self": x})
    raised = yield from product(party, Multiply(), logs, float(exponent), x.dtype)
    return (yield from exponential(party, name, {"self": raised}))


@secure("pow.Tensor_Tensor")
def power_of_secret(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """x ** y = exp(y log x) for x > 0. About twenty rounds."""
    base, exponent = arguments["self"], arguments["exponent"]
    logs = (yield from log(party, name, {"self": base})) if isinstance(base, Secret) else base.double().log()
    raised = yield from product(party, Multiply(), logs, exponent, arguments["self"].dtype)
    return (yield from exponential(party, name, {"self": raised}))


def _whole_power(party: Party, base: Secret, exponent: int) -> Protocol[Secret]:
    """By squaring: each square is truncated before the next."""
    if exponent == 0:
        return as_secrets(party, [torch.ones(base.shape, dtype=as_number(base)), base])[0]
    made: Any = None
    base = replace(base, dtype=as_number(base))
    while True:
        if exponent & 1:
            made = base if made is None else (yield from product(party, Multiply(), made, base, base.dtype))
        exponent >>= 1
        if not exponent:
            return made  # type: ignore[no-any-return]  # the highest bit of an exponent is 1
        base = yield from product(party, Multiply(), base, base, base.dtype)
