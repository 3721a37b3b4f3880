"""`grid.share`: a tensor, a module or what a pointer names, on secret shares from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from grid.multi import MultiPointer
from grid.pointer import Pointer
from grid.remote import RemotePeer
from grid.secret.modules import SecretModule, share_module
from grid.secret.sessions import secrets_of
from grid.secret.team import Secrets
from grid.secret.tensor import SecretTensor
from grid.secret.values import Held, Local
from grid.secure import team
from grid.stored_models import RemoteModel
from mpc.ring import PRECISION, check_precision, encode
from protocol.errors import BadRequest

_OLD: Final = frozenset({"crypto_provider", "protocol", "field", "dtype", "no_wrap"})
"""Names of old calls: the first is `provider`, the others choose among ways that are one here."""


def share(
    value: Any,
    *parties: RemotePeer | str,
    provider: RemotePeer | str | None = None,
    precision: int | None = None,
    requires_grad: bool | None = None,
    **old: Any,
) -> Any:
    """A tensor or module as shares at `parties` (2 to 8 peers); `provider`, another peer, deals them randomness.

    A SecretTensor, or a module of them. A tensor of yours is split here, and each party sent a share that says nothing
    alone; what a pointer names is split by its peer, and you see none of it. `await` it to have it shared at once; else
    it is shared when it is first used.

    Secret from parties that keep to the protocol, even if all but one put together what they see, as long as the
    provider is not among them (docs/secure.md).

    Args:
        precision: fractional bits of reals, 10 to 24 (16 where none is given); all secrets of one operation have the
            same.
        requires_grad: as torch has it; that of `value` where none is given.

    Raises:
        BadRequest: something that cannot be secret (complex, not finite, too large), or is no team.
        UnknownPeer: no peer of such a name.
    """
    of = check_team(value, parties, provider, precision, old)
    if isinstance(value, RemoteModel):
        value = value.module
    if isinstance(value, nn.Module):
        return share_module(value, lambda tensor: shared(of, tensor, requires_grad))
    if not isinstance(value, torch.Tensor):
        raise BadRequest(f"share takes a tensor, a pointer or a module, not {type(value).__name__}: torch.tensor(...)")
    return shared(of, value, requires_grad)


def check_team(
    value: Any,
    parties: Sequence[RemotePeer | str],
    provider: RemotePeer | str | None,
    precision: int | None,
    old: Mapping[str, Any],
) -> Secrets:
    """The secrets among whom something is to be one; BadRequest where it is one already, or that is no team."""
    if isinstance(value, SecretTensor | SecretModule):
        names = ", ".join(each.name for each in value.parties)
        raise BadRequest(f"this is secret already, shared by {names}: to share its value with others, get() it first")
    unknown = [name for name in old if name not in _OLD]
    if unknown:
        raise BadRequest(f"share takes no argument {unknown[0]!r}: share(alice, bob, provider=carol, precision=16)")
    return _team(parties, old.get("crypto_provider") if provider is None else provider, precision)


def shared(of: Secrets, tensor: torch.Tensor, requires_grad: bool | None) -> SecretTensor:
    """A tensor or what a pointer names as a secret of these."""
    if isinstance(tensor, MultiPointer):
        raise BadRequest("a multi-pointer stands for a tensor at each of several peers: share its children one by one")
    if tensor.is_complex():
        raise BadRequest("complex numbers cannot be secrets: share their real and imaginary parts")
    if isinstance(tensor, Pointer):
        end = _end(tensor)
        source: Local | Held = Held(end, end._handle.shared_memory().writes)
    else:
        here = tensor.detach().clone(memory_format=torch.contiguous_format)
        encode(here, of.precision if here.is_floating_point() else 0)  # may it be one?
        source = Local(here)
    made = SecretTensor.new_of(of, source, tensor)
    wanted = tensor.requires_grad and tensor.is_leaf if requires_grad is None else requires_grad
    return made.requires_grad_(wanted and tensor.is_floating_point())  # type: ignore[return-value]


def _end(pointer: Pointer) -> Pointer:
    """Of a chain the pointer to the data themselves."""
    pointer._handle.check()
    while (target := pointer._handle.target) is not None:
        pointer = target
        pointer._handle.check()
    return pointer


def _team(parties: Sequence[RemotePeer | str], provider: RemotePeer | str | None, precision: int | None) -> Secrets:
    """The secrets of these peers."""
    peers = [each for each in (*parties, provider) if isinstance(each, RemotePeer)]
    if not peers:
        raise BadRequest("share takes peers: grid.share(x, g['alice'], g['bob'], provider=g['carol'])")
    for each in (*parties, provider):
        if not isinstance(each, RemotePeer | str | None):
            raise BadRequest(f"a party is a peer, such as g['alice'], not {type(each).__name__}")
    grid = peers[0].grid
    if any(each.grid is not grid for each in peers):
        raise BadRequest("these peers are of different connections: take all from the same g")
    chosen = PRECISION if precision is None else precision
    check_precision(chosen)
    return secrets_of(grid, team(grid, parties, provider), chosen)
