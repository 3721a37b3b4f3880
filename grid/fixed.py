"""Fixed precision and shares as old tutorials have them: `x.fix_prec().share(alice, bob, crypto_provider=carol)`."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn

from grid.optimizers import kept_for
from grid.pointer import Pointer
from grid.remote import RemotePeer
from grid.secret.modules import share_in_place
from grid.secret.sharing import check_team, share, shared
from mpc.ring import LEAST_PRECISION, MOST_PRECISION, PRECISION
from protocol.errors import BadRequest

_WORDS: Final = (None, "long", torch.int64, "int100")


def fix_tensor(
    self: torch.Tensor,
    *,
    precision_fractional: int | None = None,
    base: int = 10,
    precision: int | None = None,
    **old: Any,
) -> torch.Tensor:
    """The tensor's values as fixed precision has them, for `share`; not in place. Whole numbers stay as they are.

    Args:
        precision_fractional: digits after the point, in base `base`. Without it 16 binary digits, which are nearly 5.
        precision: binary digits after the point, 10 to 24.

    Raises:
        BadRequest: a precision that secrets cannot have.
    """
    bits = _bits(precision_fractional, base, precision, old)
    if isinstance(self, Pointer) or not self.is_floating_point():
        made = self.detach()
    else:
        made = torch.round(self.detach().double() * 2.0**bits).div(2.0**bits).to(self.dtype)
    made.requires_grad_(self.requires_grad)
    made._noted_precision = bits  # type: ignore[attr-defined]
    return made


def fix_module(
    self: nn.Module,
    *,
    precision_fractional: int | None = None,
    base: int = 10,
    precision: int | None = None,
    **old: Any,
) -> nn.Module:
    """Notes the precision for `share`; gives back the module itself."""
    self._noted_precision = _bits(precision_fractional, base, precision, old)  # type: ignore[assignment]
    return self


def fix_optimizer(self: torch.optim.Optimizer, *_: Any, **__: Any) -> torch.optim.Optimizer:
    """Itself: it works on secrets as it is."""
    return self


def float_tensor(self: torch.Tensor) -> torch.Tensor:
    """The values as reals: what `get()` of a secret gave is decoded already."""
    return self if self.is_floating_point() else self.float()


def float_module(self: nn.Module) -> nn.Module:
    """Itself."""
    return self


def share_tensor(
    self: torch.Tensor,
    *parties: RemotePeer,
    provider: RemotePeer | None = None,
    precision: int | None = None,
    requires_grad: bool | None = None,
    **old: Any,
) -> Any:
    """See grid.share."""
    chosen = getattr(self, "_noted_precision", None) if precision is None else precision
    return share(self, *parties, provider=provider, precision=chosen, requires_grad=requires_grad, **old)


def share_whole_module(
    self: nn.Module,
    *parties: RemotePeer,
    provider: RemotePeer | None = None,
    precision: int | None = None,
    requires_grad: bool | None = None,
    **old: Any,
) -> nn.Module:
    """Its parameters and buffers are secrets from now on; gives back the module itself. See grid.share."""
    chosen = getattr(self, "_noted_precision", None) if precision is None else precision
    of = check_team(self, parties, provider, chosen, old)
    kept = [tensor for tensor in kept_for({id(each) for each in self.parameters()}) if tensor.dim()]
    return share_in_place(self, lambda tensor: shared(of, tensor, requires_grad), kept)


def _bits(digits: int | None, base: int, precision: int | None, old: dict[str, Any]) -> int:
    """Fractional bits."""
    for name, value in old.items():
        if name not in ("internal_type", "dtype", "field", "storage", "verbose") or (
            name in ("internal_type", "dtype") and value not in _WORDS
        ):
            raise BadRequest(
                f"fix_prec takes no {name}={value!r}: secrets are words of 64 bits; precision=16 says more"
            )
    if digits is None:
        return PRECISION if precision is None else precision
    bits = math.ceil(digits * math.log2(base))
    if digits < 0 or bits > MOST_PRECISION:
        raise BadRequest(
            f"precision_fractional={digits} in base {base} takes {bits} binary digits: secrets have {LEAST_PRECISION} "
            f"to {MOST_PRECISION}"
        )
    return max(bits, LEAST_PRECISION)
