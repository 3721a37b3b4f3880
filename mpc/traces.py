"""What is known of tensors while a program is lowered: which stand for secrets, what made these, and of what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mpc.sheet import Reference, Sheet


class Traces:
    """Of tensors by their identity: all that is known of is kept alive."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._references: dict[int, Reference] = {}  # of what stands for a secret
        self._origins: dict[int, tuple[str, Mapping[str, Any]]] = {}
        self._users: dict[int, list[int]] = {}  # of a tensor, what came from it
        self._remembered: dict[Any, Any] = {}
        self._alive: list[torch.Tensor] = []
        self._views: dict[int, dict[int, torch.Tensor]] = {}  # of a tensor, secret or not
        self._stale: dict[int, torch.Tensor] = {}  # views of what was written to since they were looked at

    def mark(self) -> Any:
        return dict(self._remembered)

    def back_to(self, mark: Any) -> None:
        """Nothing was remembered since."""
        self._remembered = dict(mark)

    # --- what stands for secrets ------------------------------------------------------------------------------

    def note(self, tensor: torch.Tensor, reference: Reference) -> None:
        """From now on this stands for that."""
        self._references[id(tensor)] = reference
        self._alive.append(tensor)
        self.seen(tensor)

    def seen(self, tensor: torch.Tensor) -> None:
        """It may be a view: also one of what all know, which may become a secret under it."""
        if tensor._base is not None:
            self._views.setdefault(id(tensor._base), {})[id(tensor)] = tensor

    def is_secret(self, value: Any) -> bool:
        """Whether there is a secret in it."""
        leaves = pytree.tree_leaves(value)
        return any(isinstance(leaf, torch.Tensor) and id(leaf) in self._references for leaf in leaves)

    def reference(self, tensor: torch.Tensor) -> Reference:
        """Of a secret or of what all know, which is written down then."""
        found = self._references.get(id(tensor))
        return self._sheet.public_reference(tensor) if found is None else found

    def views_of(self, base: torch.Tensor) -> list[torch.Tensor]:
        """All that are known of."""
        return list(self._views.get(id(base), {}).values())

    def outdated(self, view: torch.Tensor, before: torch.Tensor) -> None:
        """What it shows was written to: it is to be taken anew before anybody looks at it. Who was made of what it was,
        was made of `before`, a copy."""
        self._stale[id(view)] = view
        self._made_of(view, before)

    def is_outdated(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._stale

    def take_outdated(self, value: Any) -> list[torch.Tensor]:
        """The views in it that have to be taken anew; they count as taken."""
        if not self._stale:
            return []
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        return [self._stale.pop(id(leaf)) for leaf in leaves if id(leaf) in self._stale]

    # --- where they come from ---------------------------------------------------------------------------------

    def came_from(self, made: torch.Tensor, operation: str, given: Mapping[str, Any]) -> None:
        """The operation that gave a secret, with its arguments."""
        self._origins[id(made)] = operation, given
        for value in given.values():
            if isinstance(value, torch.Tensor):
                self._users.setdefault(id(value), []).append(id(made))

    def made_by(self, tensor: torch.Tensor) -> tuple[str, Mapping[str, Any]] | None:
        return self._origins.get(id(tensor))

    def same(self, copy: torch.Tensor, tensor: torch.Tensor) -> None:
        """One is the other under a name of its own."""
        if id(tensor) in self._references:
            self.note(copy, self._references[id(tensor)])
            if id(tensor) in self._origins:
                self.came_from(copy, *self._origins[id(tensor)])

    def renamed(self, changed: torch.Tensor, made: torch.Tensor, before: torch.Tensor) -> None:
        """From now on `changed` means what `made` does; who was made of what it was, was made of `before`, a copy."""
        self.note(changed, self.reference(made))
        self._made_of(changed, before)
        self._origins.pop(id(changed), None)
        if id(made) in self._origins:
            self.came_from(changed, *self._origins[id(made)])

    def _made_of(self, changed: torch.Tensor, before: torch.Tensor) -> None:
        """What came from the one came from the other."""
        of_before = self._users.pop(id(changed), [])
        for each in of_before:
            name, given = self._origins[each]
            self._origins[each] = name, {key: before if value is changed else value for key, value in given.items()}
        self._users[id(before)] = of_before

    # --- what is remembered of them ---------------------------------------------------------------------------

    def remembered(self, tensor: torch.Tensor, purpose: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, once for each value and purpose."""
        key = self._key(tensor), purpose
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]

    def remember(self, tensor: torch.Tensor, purpose: Any, made: torch.Tensor) -> None:
        """What `remembered` is to give."""
        self._remembered[self._key(tensor), purpose] = made

    def all_remembered(self, tensor: torch.Tensor) -> dict[Any, Any]:
        """By their purposes."""
        key = self._key(tensor)
        return {purpose: made for (of, purpose), made in self._remembered.items() if of == key}

    def _key(self, tensor: torch.Tensor) -> Any:
        return tuple(sorted(self.reference(tensor).items()))
