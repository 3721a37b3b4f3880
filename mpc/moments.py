"""Division by roots of what is tiny: x / (k sqrt(v) + e), as optimisers that keep squares of gradients have it.

Squares of gradients lie far below a secret's last digit, and so does e. So v is computed again, 2^20 times as large,
out of factors that are 2^10 times as large (an exact shift: words have room above), and so is x; what is divided has
then the digits that count. What of it a program is given, and gives, it is given and gives with these digits below the
others (`Lowered.more`), so that steps of one optimiser may be taken in one program each.

For Adam and RMSprop: gradients below 32 with a root of their mean square below 16. What is added up to a gradient is
rounded to 2^-16 each, so that the step of an element whose gradient is g is right to within about 2^-16 / g of the
learning rate; more `precision=` makes it better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import torch

Arguments = Mapping[str, Any]
_aten = torch.ops.aten

_SHIFT: Final = 10  # of x and of factors; twice that of v
SQUARES: Final = 2 * _SHIFT
"""More fractional bits of squares of gradients than of other reals."""
_NOTHING: Final = 2.0**-16
"""What is added to the larger root and is below this is left out: the root is 2^-8 at least, or x is 0 as well."""


class Lowering(Protocol):
    """What is asked of the lowering."""

    def is_secret(self, value: Any) -> bool:
        """Whether there is a secret in it."""

    def made_by(self, tensor: torch.Tensor) -> tuple[str, Arguments] | None:
        """The operation that gave it, with its arguments."""

    def apply(self, overload: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operation gives: here and now, or written down."""

    def remembered(self, tensor: torch.Tensor, purpose: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, once for each value and purpose."""

    def values_of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Of what is public: its value in each iteration; one, where it is the same in all."""

    def differing(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """One public tensor that has these values in the iterations."""

    def carried_as(self, tensor: torch.Tensor, purpose: Any, make: Callable[[Any, Any], Any]) -> torch.Tensor | None:
        """What a loop carries, in the form that `make` gives it; None where it carries no such thing."""

    def finer(self, tensor: torch.Tensor, bits: int) -> None:
        """Has a secret that is given be given with so many more fractional bits; nothing of one that is made."""


def over_root(lowering: Lowering, x: Any, y: torch.Tensor) -> Any:
    """x / y where y is a root of a secret, times something public, and something public more; None where it is not."""
    made, added, whole = lowering.made_by(y), [0.0], y
    if made is not None and made[0] in _SUMS:
        terms = _numbers(lowering, made[1]["other"])
        if terms is None or made[1].get("alpha", 1) != 1:
            return None
        added, y = [-each if "sub" in made[0] else each for each in terms], made[1]["self"]
    factor = [1.0]
    made = lowering.made_by(y)
    while made is not None and made[0] in _PRODUCTS:
        numbers = _numbers(lowering, made[1]["other"])
        if numbers is None or not all(numbers):
            return None
        factor = [f / n if "div" in made[0] else f * n for f, n in _pairs(factor, numbers)]
        made = lowering.made_by(made[1]["self"])
    # Where what is added counts, nothing is too small.
    if made is None or made[0] != "aten.sqrt.default":
        return None
    is_tiny = all(0 < abs(a) < 2.0**-8 * max(abs(f), 1.0) for a, f in _pairs(added, factor))
    if not is_tiny and (any(added) or not _are_tiny_roots(lowering, x, made)):
        return None
    if lowering.remembered(made[1]["self"], _LARGER, lambda: False):  # it is what this has made
        return None
    if not _has_parts(lowering, made[1]["self"]):  # of a variance, say: only its room would be less
        return None
    if lowering.made_by(made[1]["self"]) is None:  # given as it is, and so perhaps large: nobody's moment
        return None
    rest = [a / f * 2.0**_SHIFT for a, f in _pairs(added, factor)]
    square = _scaled(lowering, made[1]["self"], SQUARES)
    lowering.remembered(square, _LARGER, lambda: True)
    root = lowering.apply(_aten.sqrt.default, square)
    if any(abs(each) >= _NOTHING for each in rest):
        root = lowering.apply(_aten.add.Tensor, root, _told(lowering, rest, root.dtype))
    larger = _scaled(lowering, x, _SHIFT) if lowering.is_secret(x) else x * 2.0**_SHIFT
    quotient = lowering.apply(_aten.div.Tensor, larger, root)
    made_so = lowering.apply(_aten.mul.Tensor, quotient, _told(lowering, [1 / each for each in factor], root.dtype))
    return _as_quotient(lowering, made_so, x, whole)


def _are_tiny_roots(lowering: Lowering, x: Any, root: tuple[str, Arguments]) -> bool:
    """Whether this is sqrt(u + e) / sqrt(v + e), as Adadelta has it, for an e that a secret has no digits for. In the
    first step the dividend is public."""
    inside = lowering.made_by(root[1]["self"])
    if inside is None or inside[0] not in _SUMS:
        return False
    terms = _numbers(lowering, inside[1]["other"])
    if terms is None or not all(0 < each < _NOTHING for each in terms):
        return False
    return not lowering.is_secret(x) or _is_root(lowering, x)


def _is_root(lowering: Lowering, x: Any) -> bool:
    made = lowering.made_by(x) if lowering.is_secret(x) else None
    return made is not None and made[0] == "aten.sqrt.default"


def _as_quotient(lowering: Lowering, made: torch.Tensor, x: Any, y: torch.Tensor) -> torch.Tensor:
    """Of the shape and dtype of x / y: numbers that were left out may have had dimensions, others are doubles above."""
    dtype = torch.result_type(x, y)
    shape = torch.broadcast_shapes(x.shape, y.shape)  # type: ignore[no-untyped-call]
    if made.dtype != dtype:
        made = lowering.apply(_aten.to.dtype, made, dtype)
    return made if made.shape == shape else lowering.apply(_aten.reshape.default, made, list(shape))


_LARGER: Final = "larger"


def _pairs(one: Sequence[float], other: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Of each iteration of a loop; one number alone is that of all."""
    count = max(len(one), len(other))
    return zip(list(one) * (count // len(one)), list(other) * (count // len(other)), strict=True)


def _told(lowering: Lowering, numbers: Sequence[float], dtype: torch.dtype) -> Any:
    """A public number, which may be another one in each iteration."""
    if len(set(numbers)) == 1:
        return torch.tensor(numbers[0], dtype=torch.float64)
    return lowering.differing([torch.tensor(each, dtype=torch.float64) for each in numbers])


_SUMS: Final = ("aten.add.Tensor", "aten.add.Scalar", "aten.sub.Tensor", "aten.sub.Scalar")
_LARGEST: Final = {"aten.maximum.default": "other", "aten.clamp_min.Tensor": "min"}
_PRODUCTS: Final = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar")


def _numbers(lowering: Lowering, value: Any) -> list[float] | None:
    """A public number, or a public tensor of one element, in each iteration of a loop; one where it is the same."""
    if lowering.is_secret(value):
        return None
    if isinstance(value, torch.Tensor):
        return [float(each) for each in lowering.values_of(value)] if value.numel() == 1 else None
    return [float(value)] if isinstance(value, int | float) and math.isfinite(value) else None


def _number(lowering: Lowering, value: Any) -> float | None:
    """The same where it is one."""
    numbers = _numbers(lowering, value)
    return numbers[0] if numbers is not None and len(numbers) == 1 else None


def _scaled(lowering: Lowering, x: Any, shift: int) -> Any:
    """x times 2^shift, from parts that were made larger before they were rounded."""
    if not lowering.is_secret(x):
        return x * 2.0**shift
    return lowering.remembered(x, shift, lambda: _larger(lowering, x, shift))


def _larger(lowering: Lowering, x: torch.Tensor, shift: int) -> Any:
    """Its parts made larger, as far down as they are sums, multiples and products."""
    name, given = lowering.made_by(x) or ("", {})

    def parts(by: int, *keys: str) -> list[Any]:
        return [_scaled(lowering, given[key], by) for key in keys]

    if name in _SUMS:
        overload = _aten.sub.Tensor if "sub" in name else _aten.add.Tensor
        return lowering.apply(overload, *parts(shift, "self", "other"), alpha=given.get("alpha", 1))
    if name in _PRODUCTS and not lowering.is_secret(given["other"]):
        overload = _aten.div.Tensor if "div" in name else _aten.mul.Tensor
        return lowering.apply(overload, *parts(shift, "self"), given["other"])
    if name == "aten.mul.Tensor" and not shift % 2:
        return _product(lowering, given, shift)
    if name == "aten.sqrt.default" and _has_parts(lowering, given["self"]):
        return lowering.apply(_aten.sqrt.default, *parts(2 * shift, "self"))
    if name == "aten.div.Tensor" and _is_root(lowering, given["self"]):
        return lowering.apply(_aten.div.Tensor, *parts(shift, "self"), given["other"])
    if name == "aten.expand.default" and given["self"].shape == x.shape:
        return _scaled(lowering, given["self"], shift)
    if name == "aten.neg.default":
        return lowering.apply(_aten.neg.default, *parts(shift, "self"))
    if name in _LARGEST:
        return lowering.apply(_aten.maximum.default, *parts(shift, "self", _LARGEST[name]))
    carried = lowering.carried_as(x, shift, lambda other, each: _scaled(other, each, shift))
    if carried is not None:
        return carried
    lowering.finer(x, shift)
    return lowering.apply(_aten.mul.Scalar, x, 1 << shift)


def _has_parts(lowering: Lowering, x: Any) -> bool:
    """Whether `_larger` comes to a product of secrets in it, or to what is given: that is what has more digits then."""
    made = lowering.made_by(x) if lowering.is_secret(x) else None
    if made is None:
        return lowering.is_secret(x)
    name, given = made
    if name == "aten.mul.Tensor" and lowering.is_secret(given["other"]):
        return True
    keys = ["self", *(["other"] if name in _SUMS else []), *([_LARGEST[name]] if name in _LARGEST else [])]
    goes_on = name in (*_SUMS, *_PRODUCTS, *_LARGEST, "aten.expand.default", "aten.neg.default")
    return goes_on and any(_has_parts(lowering, given[key]) for key in keys)


def _product(lowering: Lowering, given: Arguments, shift: int) -> Any:
    """Of two factors; what they are multiplied by that is public comes last, so that it takes no digits from them."""
    factors, numbers = [], []
    for factor in (given["self"], given["other"]):
        made = lowering.made_by(factor) if lowering.is_secret(factor) else None
        if made is not None and made[0] in _PRODUCTS and not lowering.is_secret(made[1]["other"]):
            number = _number(lowering, made[1]["other"])
            if number and factor.shape == made[1]["self"].shape:
                factor = made[1]["self"]
                numbers.append(1 / number if "div" in made[0] else number)
        factors.append(factor)
    if not lowering.is_secret(factors[0]):
        factors.reverse()
    if not lowering.is_secret(factors[1]):
        made = lowering.apply(_aten.mul.Tensor, _scaled(lowering, factors[0], shift), factors[1])
    else:
        made = lowering.apply(_aten.mul.Tensor, *(_scaled(lowering, each, shift // 2) for each in factors))
    return lowering.apply(_aten.mul.Scalar, made, math.prod(numbers)) if numbers else made
