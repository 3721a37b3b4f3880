"""Operations whose result's shape depends on values, not on shapes alone. Torch-free, for the peer's own process.

Of private data a shape of that kind tells values, so a peer does not run these on them. A test holds the list against
compute/bounds.py.
"""

from __future__ import annotations

from typing import Final

DATA_DEPENDENT: Final[frozenset[str]] = frozenset(
    {
        "aten.nonzero.default",
        "aten.argwhere.default",
        "aten.where.default",
        "aten.masked_select.default",
        "aten._unique2.default",
        "aten.unique_consecutive.default",
        "aten.unique_dim.default",
        "aten.bincount.default",
        "aten.repeat_interleave.Tensor",
        "aten.repeat_interleave.self_Tensor",
        "aten.one_hot.default",
        "aten._ctc_loss.Tensor",
    }
)
"""One more depends on values only for boolean or byte indices: aten.index.Tensor; see `may_tell_values`."""

_BY_INDEX: Final = frozenset({"aten.index.Tensor", "aten._unsafe_index.Tensor"})


def may_tell_values(name: str) -> bool:
    """Whether the shape of the operation's result can depend on values. Indexing counts: its indices may be a mask."""
    return name in DATA_DEPENDENT or name in _BY_INDEX
