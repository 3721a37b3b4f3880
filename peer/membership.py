"""Who is in the grid, as far as one end knows: decides, and waits for nothing.

Ids decide who a peer is; names and addresses are what it last said of itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from protocol import limits
from protocol.errors import AmbiguousPeer, BadRequest, UnknownPeer
from protocol.identity import is_peer_id

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")


def check_name(name: str) -> str:
    """A peer's name: letters, digits, '.', '_' and '-', the first a letter or digit; BadRequest otherwise."""
    if not isinstance(name, str) or len(name) > limits.MAX_NAME or not _NAME.fullmatch(name):
        raise BadRequest(
            f"{name!r} is no name for a peer: up to {limits.MAX_NAME} letters, digits, '.', '_', '-', "
            "starting with a letter or digit"
        )
    return name


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine. Until there are admission rules, peers talk to no other."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Member:
    """One peer: id, name, addresses, and whether it answered when last tried ("alive" or "unreachable")."""

    id: str
    name: str
    urls: tuple[str, ...]
    state: str = "alive"

    def __post_init__(self) -> None:
        if not is_peer_id(self.id):
            raise BadRequest("a peer id is 52 characters of base32")
        check_name(self.name)
        if not 0 < len(self.urls) <= limits.MAX_URLS:
            raise BadRequest(f"peer {self.name} gives no address, or more than {limits.MAX_URLS}")
        if not all(isinstance(url, str) and len(url) <= limits.MAX_URL for url in self.urls):
            raise BadRequest(f"an address of peer {self.name} is no text of up to {limits.MAX_URL} characters")
        if not all(is_loopback(url) for url in self.urls):
            raise BadRequest(f"peer {self.name} is at {self.urls[0]}, outside this machine; peers are loopback only")

    def to_wire(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "urls": list(self.urls), "state": self.state}

    @classmethod
    def from_wire(cls, value: object) -> Member:
        if not isinstance(value, Mapping) or not isinstance(value.get("urls"), list):
            raise BadRequest("a peer record is a map of id, name and urls")
        id, name, urls = value.get("id"), value.get("name"), value["urls"]
        state = "unreachable" if value.get("state") == "unreachable" else "alive"
        return cls(id, name, tuple(urls), state)  # type: ignore[arg-type]  # it checks itself


def read_members(rows: Iterable[Mapping[str, Any]]) -> list[Member]:
    """The members that another end told of; rows that describe none that we may talk to are left out."""
    members = []
    for row in rows:
        with contextlib.suppress(BadRequest):
            members.append(Member.from_wire(row))
    return members


class Membership:
    """The table of members. `ours` is this end's own record, None for a client."""

    def __init__(self, ours: Member | None = None) -> None:
        self._members: dict[str, Member] = {}
        self._given: dict[str, str] = {}
        self._ours: str | None = None
        if ours is not None:
            self.set_ours(ours)

    def set_ours(self, ours: Member) -> None:
        """This end's own record, once it is known. What others say of us does not change it."""
        self._ours = ours.id
        self._members[ours.id] = ours

    def keep_url(self, id: str, url: str) -> None:
        """The address at which somebody here found this peer: it stays the first to be tried, whatever the peer says of
        itself. A tunnel or a forwarded port is known to nobody else."""
        self._given[id] = url
        if id in self._members and id != self._ours:
            self._members[id] = self._with_given(self._members[id])

    def _with_given(self, member: Member) -> Member:
        url = self._given.get(member.id)
        if url is None or member.urls[0] == url:
            return member
        others = tuple(other for other in member.urls if other != url)
        return replace(member, urls=(url, *others)[: limits.MAX_URLS])

    def learn(self, members: Iterable[Member]) -> list[Member]:
        """Take in what was heard; returns those that are new. A table that is full takes no more."""
        new = []
        for member in members:
            if member.id == self._ours:
                continue
            if self._given:
                member = self._with_given(member)
            known = self._members.get(member.id)
            if known is None:
                if len(self._members) >= limits.MAX_PEERS:
                    continue
                new.append(member)
            self._members[member.id] = member
        return new

    def reached(self, id: str) -> None:
        self._set_state(id, "alive")

    def failed(self, id: str) -> None:
        self._set_state(id, "unreachable")

    def forget(self, id: str) -> None:
        self._members.pop(id, None)

    def _set_state(self, id: str, state: str) -> None:
        if id in self._members:
            self._members[id] = replace(self._members[id], state=state)

    def all(self) -> list[Member]:
        return sorted(self._members.values(), key=lambda member: (member.name, member.id))

    def get(self, id: str) -> Member | None:
        return self._members.get(id)

    def find(self, name_or_id: str) -> Member:
        """The peer of that name, id, or beginning of an id (8 characters or more). Of several of one name the only one
        that is alive is meant: the others have gone.

        Raises:
            UnknownPeer: none; the error lists who is there.
            AmbiguousPeer: several of that name; the error gives their ids.
        """
        if name_or_id in self._members:
            return self._members[name_or_id]  # ids decide, whatever others call themselves
        found = [member for member in self._members.values() if member.name == name_or_id]
        if not found and len(name_or_id) >= 8:
            found = [member for member in self._members.values() if member.id.startswith(name_or_id)]
        if not found:
            names = ", ".join(member.name for member in self.all()) or "none"
            raise UnknownPeer(f"no peer named {name_or_id!r}; known peers: {names}")
        alive = [member for member in found if member.state == "alive"]
        if len(alive) == 1:
            return alive[0]
        if len(found) > 1:
            ids = ", ".join(sorted(member.id[:12] for member in found))
            raise AmbiguousPeer(f"{len(found)} peers are named {name_or_id!r}; use an id instead: {ids}")
        return found[0]
