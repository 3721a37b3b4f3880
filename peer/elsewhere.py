"""Other holders of what a transfer brings, for when its source turns out to have it damaged.

Contents have a name, the BLAKE3 of their file (SPEC.md, 10, `collect`), which is the same at every holder. Who else has
them is asked of all peers that are there, and each answers for objects only that this end may take. Anybody may say so:
what comes from another holder is to be compared with the name as a whole.

Nobody is asked for private contents: who can guess them would learn from the name that this is what was guessed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from blake3 import blake3

from peer.links import Links
from peer.membership import Member
from peer.objects import check_id
from peer.resuming import Origin
from peer.store.contents import Contents, is_content_name
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, BadTensor, Corrupt, GridError
from protocol.tensors import TensorHeader

_log = logging.getLogger("peergrid.elsewhere")


class Elsewhere:
    """The other holders that one end can reach. `members` gives everyone known; `own` is this end's id."""

    def __init__(self, links: Links, own: str, members: Callable[[], Sequence[Member]]) -> None:
        self._links = links
        self._own = own
        self._members = members

    def of(self, header: TensorHeader, labels: Collection[str]) -> Holders | None:
        """Those of a published tensor; None where it is private."""
        return None if labels else Holders(self, header)

    def of_record(self, record: Mapping[str, Any] | None) -> Holders | None:
        """The same of what a peer describes; None where that is no public tensor, or nothing is known of it."""
        if not record or record.get("kind") != "tensor" or not record.get("published") or record.get("labels") != []:
            return None
        return self.of(TensorHeader.from_wire(record), ())

    async def having(self, content: str, struck: str) -> list[Origin]:
        """Where else the contents of that name are. The peer of the id `struck` has sent them damaged, which is
        remembered (Statistics.corrupt)."""
        self._links.traffic.strike(struck)
        known = self._members()
        asked = [each for each in known if each.id not in (struck, self._own) and each.state == "alive"]
        answers = await asyncio.gather(*(self._ask(member, content) for member in asked))
        found = [origin for origin in answers if origin is not None]
        source = next((each.name for each in known if each.id == struck), struck[:12])
        where = ", ".join(origin.name for origin in found) or "nobody else here"
        _log.warning("what %s has of contents %s is damaged; %s has them too", source, content[:12], where)
        return found

    async def _ask(self, member: Member, content: str) -> Origin | None:
        try:
            async with asyncio.timeout(limits.SEARCH_TIMEOUT):
                answer = await (await self._links.to(member)).request("describe", {"content": content})
            record = answer.result.get("record")
            id = check_id(record.get("id") if isinstance(record, dict) else None)
        except (GridError, TimeoutError):
            return None
        return Origin(member.id, member.name, lambda: self._links.to(member, bulk=True), {"id": id})


class Holders:
    """The other holders of one tensor, for a Download."""

    def __init__(self, elsewhere: Elsewhere, header: TensorHeader) -> None:
        self._elsewhere = elsewhere
        self._header = header

    async def having(self, content: str, struck: str) -> list[Origin]:
        return await self._elsewhere.having(content, struck)

    def check(self, told: Mapping[str, Any], nbytes: int) -> None:
        """BadTensor, unless what one of them describes and sends is of this dtype and shape. Nothing is allocated for
        it before."""
        if (header := TensorHeader.from_wire(told)) != self._header:
            raise BadTensor(f"a {header.dtype} tensor of {list(header.shape)} is not what was asked for")
        header.check_payload(nbytes)


class TensorName:
    """The name of a published tensor's contents, from its bytes as they come."""

    def __init__(self, header: TensorHeader) -> None:
        self._hash = blake3(Contents.one(header).file_header())

    def update(self, data: Buffer) -> None:
        self._hash.update(data)

    @property
    def value(self) -> str:
        """Of what came so far."""
        return self._hash.hexdigest()

    def check(self, content: str) -> None:
        """Corrupt, unless that is the name."""
        if self._hash.hexdigest() != content:
            raise Corrupt("what the peers that have it sent is not what the first of them says that it has: ask again")


def check_content(value: object) -> str:
    """The name of contents, as it comes over the wire. BadRequest."""
    if not is_content_name(value):
        raise BadRequest("content is the name of contents: 64 lowercase hex digits")
    return value
