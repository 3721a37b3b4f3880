"""Who may do what with an object: one set of rules, and every refusal says why.

    find, compute   a published object: everyone. A temporary: only the principal that made it.
    take            the value, anywhere (fetch, get, copy, move): needs the leave of every owner in its labels
    edit            tags, description, deletion, moving away: only its owner

Labels are the owners of private inputs. They follow the data: the labels of a result are all those of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from protocol.errors import Denied


class Subject(Protocol):
    """What the rules look at."""

    @property
    def owner(self) -> str: ...
    @property
    def labels(self) -> frozenset[str]: ...
    @property
    def is_published(self) -> bool: ...


def can_find(asker: str, subject: Subject) -> bool:
    """Whether the object exists at all, for this asker. Computing on it asks for no more."""
    return subject.is_published or subject.owner == asker


def check_take(asker: str, subject: Subject, what: str) -> None:
    """Denied unless the asker may have the value. `what` names the object in the refusal."""
    missing = subject.labels - {asker}
    if missing:
        owners = ", ".join(sorted(owner[:12] for owner in missing))
        raise Denied(
            f"{what} is private, or derived from private data: its value leaves only with the leave of {owners}. "
            "You may find it and compute on it; ask the owner for the result",
            owners=sorted(missing),
        )


def check_edit(asker: str, subject: Subject, what: str) -> None:
    """Denied unless the asker owns the object."""
    if subject.owner != asker:
        raise Denied(
            f"{what} belongs to {subject.owner[:12]}; only its owner may change or remove it", owners=[subject.owner]
        )


def derived(inputs: Iterable[Subject]) -> frozenset[str]:
    """The labels of what is computed from `inputs`."""
    labels: frozenset[str] = frozenset()
    for subject in inputs:
        if subject.labels:
            labels |= subject.labels
    return labels
