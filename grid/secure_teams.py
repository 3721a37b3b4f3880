"""How a plan is to run on shares: by which peers, and what becomes of its result."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from grid.secure_standing import Team
from mpc.ring import check_precision
from peer.agreement import check_patience
from protocol import limits
from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.remote import RemotePeer


_NOBODY: Final = (None, None, None, None)


@dataclass(frozen=True, slots=True)
class OnShares:
    """How a plan is to run on shares: as Grid.run has it. Parties, provider and precision may be left out where secrets
    are among the arguments: theirs are meant."""

    parties: Sequence[str | RemotePeer] | None = None
    provider: str | RemotePeer | None = None
    reveal_to: str | RemotePeer | None = None
    precision: int | None = None
    checked: bool = False
    keep: bool = False
    patience: float | None = None

    @property
    def is_asked(self) -> bool:
        """Whether anything of it says that the run is to be on shares. (How long one waits does not.)"""
        return self.checked or self.keep or (self.parties, self.provider, self.reveal_to, self.precision) != _NOBODY

    def check(self) -> None:
        """What cannot be, contradicts itself, or has no form with MACs. BadRequest."""
        if self.precision is not None:
            check_precision(self.precision)
        if self.patience is not None:
            check_patience(self.patience)
        if self.keep and self.reveal_to is not None:
            raise BadRequest("a result is kept or revealed, not both: leave out keep or reveal_to")
        if not self.checked:
            return
        if self.provider is None:
            raise BadRequest('a checked run has a provider: provider="carol"')
        if self.keep:
            raise BadRequest("the result of a checked run is revealed: leave out keep, or checked")


def team(grid: Grid, parties: Sequence[str | RemotePeer], provider: str | RemotePeer | None) -> Team:
    """BadRequest, UnknownPeer for what is none."""
    if (
        not isinstance(parties, Collection)
        or isinstance(parties, str)
        or not 2 <= len(parties) <= limits.SECURE_PARTIES
    ):
        raise BadRequest(f'parties are 2 to {limits.SECURE_PARTIES} peers, such as parties=["alice", "bob"]')
    if provider is None and len(parties) != _ALONE:
        raise BadRequest(
            'a run on shares needs a provider of randomness, a peer that is no party: provider="carol". Only three '
            "parties can do without one"
        )
    made = Team(tuple(named(grid, each) for each in parties), None if provider is None else named(grid, provider))
    ids = [each.id for each in made.parties]
    if len(set(ids)) < len(ids) or (made.provider is not None and made.provider.id in ids):
        raise BadRequest(
            "each party is another peer, and the provider is none of them: it knows every mask that hides a secret"
        )
    return made


_ALONE = 3


def named(grid: Grid, given: str | RemotePeer) -> RemotePeer:
    """The peer of a name. UnknownPeer; BadRequest: it is no name, and no peer."""
    if isinstance(given, str):
        return grid[given]
    if not hasattr(given, "outbox"):
        raise BadRequest(f'a peer is named, such as "alice", or g["alice"], not {given!r}')
    return given
