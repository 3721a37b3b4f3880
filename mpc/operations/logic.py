"""Secret truth values put together, and what is rounded to whole numbers."""

from __future__ import annotations

from typing import Any

import torch

from mpc.bilinear import Multiply
from mpc.comparison import truncate
from mpc.operations.comparisons import negative, opposite
from mpc.operations.linear import as_secrets
from mpc.operations.products import product
from mpc.party import Party
from mpc.rounds import Protocol
from mpc.secret import Secret
from mpc.table import Arguments, local, secure
from protocol.errors import BadRequest


@local("bitwise_not", "logical_not")
def inverse(party: Party, name: str, arguments: Arguments) -> Secret:
    """Of a truth value. No round, exact."""
    return opposite(party, _truth(name, arguments["self"]))


@secure(
    *("bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_xor.Tensor", "logical_and", "logical_or", "logical_xor"),
    *("bitwise_and.Scalar", "bitwise_or.Scalar", "bitwise_xor.Scalar"),
)
def combined(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Of two truth values. One round (none where one of them is public), exact."""
    one, other = _truth(name, arguments["self"]), _truth(name, arguments["other"])
    both = yield from product(party, Multiply(), one, other, torch.bool)
    if "_and" in name:
        return both
    x, y = as_secrets(party, [one, other])
    return Secret(x.share + y.share - (2 if "xor" in name else 1) * both.share, 0, torch.bool)


def _truth(name: str, value: Any) -> Any:
    dtype = torch.bool if isinstance(value, bool) else value.dtype
    if dtype != torch.bool:
        raise BadRequest(f"{name}: of secrets this takes truth values: write x != 0", operation=name)
    return value


@secure("floor", "ceil")
def whole(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """The next whole number below, or above. Five rounds, exact for |x| < 2^45."""
    x: Secret = arguments["self"]
    if not x.bits:
        return x
    side = -1 if "ceil" in name else 1
    # Truncation gives this number or the next.
    near = yield from truncate(party, side * x.share, x.bits)
    over = yield from negative(party, x.of(side * x.share - (near << x.bits)))
    return Secret(side * (near - over.share), 0, x.dtype)
