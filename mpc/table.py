"""Which operations have a secure form, and what it is: one protocol for each.

An operation's protocol gets the party and the arguments by the names of the ATen schema: Secrets where they are
secret, plain tensors and numbers where all parties know them. It gives what the operation gives. At least one argument
is a Secret: what is public altogether is computed in the clear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from mpc.party import Party
from mpc.rounds import Protocol

Arguments = Mapping[str, Any]
Secure = Callable[[Party, str, Arguments], Protocol[Any]]
Local = Callable[[Party, str, Arguments], Any]

SECURE: Final[dict[str, Secure]] = {}

OF_REALS: Final = frozenset(
    f"aten.{name if '.' in name else f'{name}.default'}"
    for name in (
        *("sin", "cos", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sigmoid", "tanh", "erf", "erfc"),
        *("silu", "gelu", "softmax.int", "_softmax", "_safe_softmax", "log_softmax.int", "_log_softmax", "logsumexp"),
        "pow.Tensor_Tensor",
    )
)
"""Functions of reals: what is whole, or a truth value, comes to them as a real."""


S = TypeVar("S", bound=Secure)
F = TypeVar("F", bound=Local)


def secure(*names: str) -> Callable[[S], S]:
    """Decorator: this protocol is the secure form of these operations (their names without `aten.`)."""

    def note(protocol: S) -> S:
        SECURE.update({_full(name): protocol for name in names})
        return protocol

    return note


def local(*names: str) -> Callable[[F], F]:
    """Decorator: the secure form of these operations needs no round."""

    def note(function: F) -> F:
        def protocol(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
            return function(party, name, arguments)
            yield  # a generator, as all protocols are

        SECURE.update({_full(name): protocol for name in names})
        return function

    return note


def _full(name: str) -> str:
    return f"aten.{name}" if "." in name else f"aten.{name}.default"
