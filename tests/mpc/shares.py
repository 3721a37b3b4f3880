"""Functions captured, lowered and run on shares, all parties in one process, for comparison with plain torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compute.capture import capture
from mpc.interpreter import run
from mpc.lowering import Lowered, lower
from mpc.masks import fresh_seed
from mpc.party import Party
from mpc.replicated import prepare
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import Protocol
from mpc.script import Script, script_of
from mpc.secret import Secret
from mpc.staying import as_given
from mpc.together import run_together, shares_of


@dataclass(frozen=True)
class OnShares:
    """A function as it runs on shares.

    Attributes:
        values: of the secret inputs by name, in the order of the program's.
    """

    lowered: Lowered
    named: Mapping[str, torch.Tensor]

    @property
    def values(self) -> list[torch.Tensor]:
        return list(self.named.values())

    def of(self, values: Mapping[str, torch.Tensor]) -> OnShares:
        """The same function of other values."""
        return OnShares(self.lowered, {name: values[name] for name in self.named})

    def script(self, count: int = 2) -> Script:
        shapes = [
            as_given(torch.empty(v.shape, dtype=torch.int64, device="meta"), bits, v.dtype, self.lowered.precision)
            for v, bits in zip(self.values, self._bits, strict=True)
        ]
        return script_of(
            lambda party: run(party, self.lowered.program, [*shapes, *self.lowered.public]),
            count,
            self.lowered.precision,
        )

    @property
    def _bits(self) -> list[int]:
        return [self.lowered.bits(number, value.dtype) for number, value in enumerate(self.values)]

    def result(self, count: int = 2, *, has_dealer: bool = True) -> Any:
        """What the program gives, decoded; nested as it is."""
        parties: list[list[Any]] = [[] for _ in range(count)]
        for value, bits in zip(self.values, self._bits, strict=True):
            for party, share in zip(parties, shares_of(encode(value, bits), count), strict=True):
                party.append(as_given(share, bits, value.dtype, self.lowered.precision))

        def protocol(party: Party, *given: Any) -> Protocol[Any]:
            return (yield from run(party, self.lowered.program, [*given, *self.lowered.public]))

        whole = protocol if has_dealer else alone(protocol, self.script(count))
        results, _ = run_together(whole, parties, precision=self.lowered.precision)
        leaves = zip(*(pytree.tree_leaves(each, is_leaf=_is_secret) for each in results), strict=True)
        _, form = pytree.tree_flatten(results[0], is_leaf=_is_secret)
        return pytree.tree_unflatten([_opened(each) for each in leaves], form)


def alone(protocol: Callable[..., Protocol[Any]], script: Script) -> Callable[..., Protocol[Any]]:
    """The protocol as three parties run it without a dealer: what the dealer of the test deals is not taken."""
    common = [fresh_seed() for _ in range(3)]

    def whole(party: Party, *shares: Any) -> Protocol[Any]:
        seeds = common[party.rank], common[(party.rank + 1) % 3]
        supply = yield from prepare(party.rank, seeds, script)
        return (yield from protocol(Party(party.rank, 3, supply, party.precision), *shares))

    return whole


def lowered(
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    public: Collection[str] = (),
    precision: int = PRECISION,
) -> OnShares:
    """The function, all of whose inputs (of modules: parameters and buffers) are secret but those named `public`."""
    captured = capture(function, inputs)
    flat: dict[str, torch.Tensor] = dict(captured.constants)
    for name, value in inputs.items():
        if isinstance(value, nn.Module):
            flat |= {f"{name}.{inner}": each.detach() for inner, each in value.state_dict(keep_vars=True).items()}
        else:
            flat[name] = value
    secret = [name not in captured.constants and name not in public for name in captured.inputs]
    made = lower(captured.program, [flat[name] for name in captured.inputs], secret, precision)
    names = [name for name, is_secret in zip(captured.inputs, secret, strict=True) if is_secret]
    return OnShares(made, {name: flat[name] for name in names})


def on_shares(
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    count: int = 2,
    public: Collection[str] = (),
    precision: int = PRECISION,
) -> Any:
    """What the function gives on shares."""
    return lowered(function, inputs, public, precision).result(count)


def _is_secret(value: Any) -> bool:
    return isinstance(value, Secret)


def _opened(parts: tuple[Any, ...]) -> Any:
    if not _is_secret(parts[0]):
        return parts[0]
    words = torch.stack([each.share for each in parts]).sum(0)
    return decode(words, parts[0].bits, parts[0].dtype)
