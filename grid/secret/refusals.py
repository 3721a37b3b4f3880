"""What a secret does not do, in sentences that say what to do instead; and facts about shapes, which all know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from grid.local_forms import zeros_like_feature
from protocol.errors import BadRequest, OperationNotAllowed, PrivateValue

if TYPE_CHECKING:
    from grid.secret.team import Secrets

OPEN_IT: Final = "if all who ask may learn it, value = await s.get()"
CHOOSE: Final = "to go on with one of two values, torch.where(condition, a, b); "
_SIZE_TELLS: Final = "how many elements it gives would tell of the secret: "
_INSTEAD: Final[Mapping[str, str]] = {
    "aten._local_scalar_dense.default": f"torch's own code needs a plain value here: {OPEN_IT}",
    "aten.item.default": f".item() needs the value: {OPEN_IT}",
    "aten.is_nonzero.default": f"bool() needs the value: {CHOOSE}{OPEN_IT}",
    "aten.equal.default": f"torch.equal() gives a plain truth value: (a == b).all() is a secret one; {OPEN_IT}",
    "aten.allclose.default": f"torch.allclose() gives a plain truth value: (a - b).abs().max() is secret; {OPEN_IT}",
    **dict.fromkeys(
        ("aten.nonzero.default", "aten.argwhere.default", "aten.nonzero_numpy.default"),
        f"{_SIZE_TELLS}compute with the truth values themselves, (s > 0).sum() say",
    ),
    "aten.masked_select.default": f"{_SIZE_TELLS}s * mask and torch.where(mask, s, 0) keep the shape",
    **dict.fromkeys(
        ("aten._unique2.default", "aten.unique_dim.default", "aten.unique_consecutive.default"),
        f"{_SIZE_TELLS}s.sort() keeps the shape",
    ),
    "aten.bincount.default": f"{_SIZE_TELLS}F.one_hot(s, classes).sum(0) counts",
    "aten.repeat_interleave.Tensor": f"{_SIZE_TELLS}give the number of repeats as an integer",
    "aten.one_hot.default": f"{_SIZE_TELLS}give the number of classes, F.one_hot(s, 10)",
}


def check_asks_no_value(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kind: type[torch.Tensor]) -> None:
    """PrivateValue where the operation gives something plain that hangs on a secret."""
    if name == "aten.index.Tensor" and any(_is_truth(each, kind) for each in args[1]):
        raise PrivateValue(f"s[mask]: {_INSTEAD['aten.masked_select.default']}", operation=name)
    if name == "aten.one_hot.default" and (len(args) > 1 or "num_classes" in kwargs):
        return
    if name in _INSTEAD:
        raise PrivateValue(_INSTEAD[name], operation=name)


def _is_truth(index: Any, kind: type[torch.Tensor]) -> bool:
    return isinstance(index, kind) and index.dtype in (torch.bool, torch.uint8)


def no_secure_form(name: str) -> OperationNotAllowed:
    """Of an operation."""
    return OperationNotAllowed(f"{name} has no secure form: it cannot run on shares", operation=name)


def written_here(changed: torch.Tensor) -> str:
    """Of a tensor that is here, which a secret would change in place."""
    return (
        f"a tensor that is here, {list(changed.shape)}, would be changed in place by a secret: everybody could see "
        "what becomes of it. Share it first, or write y = x + s instead of x += s"
    )


def check_device(place: Any) -> None:
    """BadRequest where a secret is asked to lie elsewhere."""
    if place is not None and torch.device(place).type != "cpu":
        raise BadRequest(f"a secret is at its parties, which decide where it lies: leave out device={str(place)!r}")


def two_teams(one: Secrets, other: Secrets) -> str:
    """Of secrets that cannot be computed with together."""
    if one.team == other.team:
        return (
            f"one secret has {one.precision} fractional bits, the other {other.precision}: share both with the same "
            "precision"
        )
    return (
        f"one tensor is {one}, the other {other}: shares of different parties do not fit each other. Share both with "
        "the same peers, named in the same order"
    )


def with_pointer(pointer: Any) -> str:
    """Of a secret and a pointer in one operation."""
    return (
        f"{pointer!r} is at {pointer.location.name} in the clear, the other tensor is secret: share it too (y = await "
        "pointer.share(alice, bob, provider=carol)), or take its value (y = await pointer.get()) if it may be public"
    )


# --- facts that are known -----------------------------------------------------------------------------------


def _resize(value: Any, size: Any, memory_format: Any = None) -> Any:
    if list(value.shape) != list(size):
        raise BadRequest("resize_() works on a tensor's memory, which a secret does not have here: make a new one")
    return value


FACTS: Final[Mapping[str, Callable[..., Any]]] = {
    "aten._new_zeros_with_same_feature_meta.default": zeros_like_feature,
    "aten._has_same_storage_numel.default": lambda one, other: one.numel() == other.numel(),
    "aten.resize_.default": _resize,
    "aten.is_same_size.default": lambda one, other: one.shape == other.shape,
    "aten.is_pinned.default": lambda *_: False,
    "aten._has_compatible_shallow_copy_type.default": lambda *_: True,
}
"""Plain facts about shapes, by the operation that asks for them."""
