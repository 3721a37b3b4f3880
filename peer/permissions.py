"""Who may do what with an object: one set of rules, and every refusal says why.

    find, compute   a published object: everyone. A temporary: only the principal that made it, and whom a secure run
                    has revealed it to (who asked for the run owns it, and may not take it)
    take            the value, anywhere (fetch, get, copy, move): needs the leave of every owner in its labels
    reveal          what a secure run computes from it, to whom its owner has named (`reveal`), and to its owner
    edit            tags, description, deletion, moving away: only its owner

Labels are the owners of private inputs. They follow the data: the labels of a result are all those of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from protocol import limits
from protocol.errors import BadRequest, Denied
from protocol.identity import is_peer_id

EVERYBODY: Final = "*"


class Subject(Protocol):
    """What the rules look at."""

    @property
    def owner(self) -> str: ...
    @property
    def labels(self) -> frozenset[str]: ...
    @property
    def is_published(self) -> bool: ...
    @property
    def reveal(self) -> tuple[str, ...]: ...


def can_find(asker: str, subject: Subject) -> bool:
    """Whether the object exists at all, for this asker. Computing on it asks for no more."""
    return subject.is_published or subject.owner == asker or asker in subject.reveal


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


def check_reveal(to: str, subject: Subject, what: str) -> None:
    """Denied unless `to` may learn the result of a secure run that has this among its inputs.

    What its owner said holds for the owner's own label: an object that is derived from others' private data as well
    needs their leave, which it cannot carry.
    """
    missing = subject.labels - {to}
    if subject.owner in missing and ({to, EVERYBODY} & frozenset(subject.reveal)):
        missing -= {subject.owner}
    if missing:
        owners = ", ".join(sorted(owner[:12] for owner in missing))
        raise Denied(
            f"{what} is private: a secure run reveals what it computes from it only to whom {owners} has named. The "
            f"owner allows it with reveal=[{to!r}] (or '*') when it is sent, or 'grid put --reveal {to}'",
            owners=sorted(missing),
        )


def checked_reveal(value: object) -> tuple[str, ...]:
    """Principals' ids, each once, or "*" alone. BadRequest for anything else."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    if len(given) > limits.MAX_REVEAL or not all(each == EVERYBODY or is_peer_id(each) for each in given):
        raise BadRequest(f'reveal is a list of at most {limits.MAX_REVEAL} ids of principals, or of "*" for everybody')
    return tuple(dict.fromkeys(str(each) for each in given))


def check_edit(asker: str, subject: Subject, what: str) -> None:
    """Denied unless the asker owns the object."""
    if subject.owner != asker:
        raise Denied(
            f"{what} belongs to {subject.owner[:12]}, and you are {asker[:12]}: only its owner may change or remove it",
            owners=[subject.owner],
        )


def derived(inputs: Iterable[Subject]) -> frozenset[str]:
    """The labels of what is computed from `inputs`."""
    labels: frozenset[str] = frozenset()
    for subject in inputs:
        if subject.labels:
            labels |= subject.labels
    return labels
