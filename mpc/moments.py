"""Division by roots of what is tiny: x / (k sqrt(v) + e), as optimisers that keep squares of gradients have it.

Squares of gradients lie far below a secret's last digit, and so does e. So v is computed again, 2^20 times as large,
out of factors that are 2^10 times as large (an exact shift: words have room above), and so is x; what is divided has
then the digits that count. For Adam and RMSprop: gradients below 32 with a root of their mean square below 16. What is
added up to a gradient is rounded to 2^-16 each, so that the step of an element whose gradient is g is right to within
about 2^-16 / g of the learning rate; more `precision=` makes it better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import torch

from protocol.errors import BadRequest

Arguments = Mapping[str, Any]
_aten = torch.ops.aten

_SHIFT: Final = 10  # of x and of factors; twice that of v
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

    def is_input(self, tensor: torch.Tensor) -> bool:
        """Whether it is a secret as it was given."""


def over_root(lowering: Lowering, x: Any, y: torch.Tensor) -> Any:
    """x / y where y is a root of a secret, times something public, and something public more; None where it is not."""
    made, added = lowering.made_by(y), 0.0
    if made is not None and made[0] in _SUMS:
        term = _number(lowering, made[1]["other"])
        if term is None or made[1].get("alpha", 1) != 1:
            return None
        added, y = -term if "sub" in made[0] else term, made[1]["self"]
    factor = 1.0
    made = lowering.made_by(y)
    while made is not None and made[0] in _PRODUCTS:
        number = _number(lowering, made[1]["other"])
        if not number:
            return None
        factor *= 1 / number if "div" in made[0] else number
        made = lowering.made_by(made[1]["self"])
    # Where what is added counts, nothing is too small.
    if made is None or made[0] != "aten.sqrt.default" or not 0 < abs(added) < 2.0**-8 * max(abs(factor), 1.0):
        return None
    rest = added / factor * 2.0**_SHIFT
    root = lowering.apply(_aten.sqrt.default, _scaled(lowering, made[1]["self"], 2 * _SHIFT))
    if abs(rest) >= _NOTHING:
        root = lowering.apply(_aten.add.Scalar, root, rest)
    larger = _scaled(lowering, x, _SHIFT) if lowering.is_secret(x) else x * 2.0**_SHIFT
    return lowering.apply(_aten.mul.Scalar, lowering.apply(_aten.div.Tensor, larger, root), 1 / factor)


_SUMS: Final = ("aten.add.Tensor", "aten.add.Scalar", "aten.sub.Tensor", "aten.sub.Scalar")
_PRODUCTS: Final = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar")


def _number(lowering: Lowering, value: Any) -> float | None:
    """A public number, or a public tensor of one element."""
    if lowering.is_secret(value):
        return None
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


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
        if shift == 2 * _SHIFT:
            _check_made_here(lowering, given)
        overload = _aten.sub.Tensor if "sub" in name else _aten.add.Tensor
        return lowering.apply(overload, *parts(shift, "self", "other"), alpha=given.get("alpha", 1))
    if name in _PRODUCTS and not lowering.is_secret(given["other"]):
        overload = _aten.div.Tensor if "div" in name else _aten.mul.Tensor
        return lowering.apply(overload, *parts(shift, "self"), given["other"])
    if name == "aten.mul.Tensor" and not shift % 2:
        return _product(lowering, given, shift)
    if name == "aten.expand.default" and given["self"].shape == x.shape:
        return _scaled(lowering, given["self"], shift)
    if name == "aten.neg.default":
        return lowering.apply(_aten.neg.default, *parts(shift, "self"))
    if name == "aten.maximum.default":
        return lowering.apply(_aten.maximum.default, *parts(shift, "self", "other"))
    return lowering.apply(_aten.mul.Scalar, x, 1 << shift)


def _product(lowering: Lowering, given: Arguments, shift: int) -> Any:
    """Of two factors; what they are multiplied by that is public comes last, so that it takes no digits from them."""
    factors, numbers = [], []
    for factor in (given["self"], given["other"]):
        made = lowering.made_by(factor) if lowering.is_secret(factor) else None
        if made is not None and made[0] in _PRODUCTS and not lowering.is_secret(made[1]["other"]):
            number = _number(lowering, made[1]["other"])
            if number:
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


def _check_made_here(lowering: Lowering, given: Arguments) -> None:
    if any(isinstance(given[key], torch.Tensor) and _is_state(lowering, given[key]) for key in ("self", "other")):
        raise BadRequest(
            "the squares of gradients that an optimiser keeps (Adam, RMSprop) are too small to be given to a program "
            "as a secret: make the optimiser in the program, and take all its steps there"
        )


def _is_state(lowering: Lowering, term: torch.Tensor) -> bool:
    """Whether it is an input, or that times something public."""
    made = lowering.made_by(term)
    while made is not None and made[0] in _PRODUCTS and not lowering.is_secret(made[1]["other"]):
        term = made[1]["self"]
        made = lowering.made_by(term)
    return lowering.is_secret(term) and lowering.is_input(term)
