"""What stands for a value of which nothing is known before a program runs. Torch-free."""

from __future__ import annotations

from typing import Any, Final

from protocol import limits


class Unknown:
    """A tensor or number that may be anything."""

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Final = Unknown()


class UnknownList(list[Any]):
    """What an operation gives that gives a list of tensors, nobody knows how many."""

    def __len__(self) -> int:
        return limits.MAX_PARTS

    def __getitem__(self, item: Any) -> Any:
        return UNKNOWN
