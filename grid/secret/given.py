"""Secrets as arguments of plans, and results of plans that stay secret."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grid.finishing import Finishing
from grid.given import mapped, walk
from grid.secret.sessions import secrets_of
from grid.secret.team import Secrets
from grid.secret.tensor import SecretTensor
from grid.secret.values import Kept, Public, Value
from grid.secure_standing import KeptShares
from protocol.errors import NotCollocated

if TYPE_CHECKING:
    from grid.client import Grid


def secrets_among(arguments: Any) -> Secrets | None:
    """The secrets that a plan's arguments are of, those in modules and optimisers too; None where there are none.

    Raises:
        NotCollocated: they are of two teams, or of two precisions.
    """
    found: Secrets | None = None
    for each in _tensors(arguments):
        of = each._secrets if isinstance(each, SecretTensor) else None
        if found is not None and of is not None and of is not found:
            raise NotCollocated(
                f"one secret is {found}, with {found.precision} fractional bits, another {of}, with {of.precision}: "
                "share all arguments with the same parties and provider"
            )
        found = found or of
    return found


def _tensors(arguments: Any) -> Iterator[Any]:
    for _, item in walk(arguments):
        if isinstance(item, nn.Module):
            yield from (*item.parameters(), *item.buffers())
        elif isinstance(item, torch.optim.Optimizer):
            yield from (parameter for group in item.param_groups for parameter in group["params"])
        else:
            yield item


def as_secrets(grid: Grid, arguments: Any, precision: int) -> Any:
    """The arguments with a SecretTensor for what KeptShares are among them."""

    def change(value: Any) -> Any:
        if not isinstance(value, KeptShares):
            return value
        return secret_of(secrets_of(grid, value.session.team, precision), value)

    return mapped(arguments, change)


def secret_of(of: Secrets, shares: KeptShares) -> SecretTensor:
    """What the parties keep, as a tensor."""
    return SecretTensor.new_of(of, Kept(shares), torch.empty(shares.shape, dtype=shares.dtype, device="meta"))


def is_public(tensor: torch.Tensor) -> bool:
    """Whether a tensor of secrets is none: zeros like one, say."""
    return isinstance(tensor, SecretTensor) and isinstance(tensor._value().source, Public)


def public(tensor: torch.Tensor) -> torch.Tensor:
    """The value of one that is public; every other tensor as it is."""
    source = tensor._value().source if isinstance(tensor, SecretTensor) else None
    return source.tensor if isinstance(source, Public) else tensor


async def at_parties(inputs: Sequence[torch.Tensor]) -> list[Any]:
    """Inputs of a run with KeptShares for the secrets among them: what was not yet shared, or computed, is so now."""
    secret = {at: each for at, each in enumerate(inputs) if isinstance(each, SecretTensor)}
    values = {at: each._value() for at, each in secret.items()}
    if values:
        await next(iter(secret.values()))._secrets.compute(list(values.values()))
    return [_given(values[at]) if at in values else each for at, each in enumerate(inputs)]


def _given(value: Value) -> Any:
    assert isinstance(value.source, Kept | Public)
    return value.source.shares if isinstance(value.source, Kept) else value.source.tensor


def shares_or_tensor(tensor: torch.Tensor) -> Any:
    """What an input is to a run that is only foreseen: shares that are kept; else a tensor that is to be shared."""
    if not isinstance(tensor, SecretTensor):
        return tensor
    value = tensor._value()
    if isinstance(value.source, Kept | Public):
        return _given(value)
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def is_of_secret(finish: Finishing, path: str) -> bool:
    """Whether what a function changed in its arguments was secret, or is what an optimiser keeps for a secret."""
    old = finish.captured.given.get(path)
    return isinstance(old if old is not None else finish.parameter(path), SecretTensor)
