"""Other holders of what a transfer brings, for when its source turns out to have it damaged; holders of contents.

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

from compute.spec import layout_of
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

    def of(self, header: TensorHeader | None, nbytes: int, labels: Collection[str]) -> Holders | None:
        """Those of a published tensor, or of a model with so many bytes of tensors; None where it is private."""
        return None if labels else Holders(self, header, nbytes)

    def of_record(self, record: Mapping[str, Any] | None) -> Holders | None:
        """The same of what a peer describes; None where that is no public tensor or model, or nothing is known."""
        if not record or not record.get("published") or record.get("labels") != []:
            return None
        if record.get("kind") == "model":
            return self.of(None, int(record.get("nbytes") or 0), ())
        return self.of(TensorHeader.from_wire(record), 0, ()) if record.get("kind") == "tensor" else None

    async def having(self, content: str, struck: str) -> list[Origin]:
        """Where else the contents of that name are. The peer of the id `struck` has sent them damaged, which is
        remembered (Statistics.corrupt)."""
        self._links.traffic.strike(struck)
        found = await self.holders(content, struck)
        source = next((each.name for each in self._members() if each.id == struck), struck[:12])
        where = ", ".join(member.name for member, _ in found) or "nobody else here"
        _log.warning("what %s has of contents %s is damaged; %s has them too", source, content[:12], where)
        return [self._origin(member, record["id"]) for member, record in found]

    async def holders(self, content: str, *but: str) -> list[tuple[Member, Mapping[str, Any]]]:
        """Who says to have contents of that name, which the asker may take: the object's record, at each peer; but for
        the peers of these ids."""
        asked = [each for each in self._members() if each.id not in (*but, self._own) and each.state == "alive"]
        answers = await asyncio.gather(*(self._ask(member, content) for member in asked))
        return [(member, record) for member, record in zip(asked, answers, strict=True) if record is not None]

    async def _ask(self, member: Member, content: str) -> Mapping[str, Any] | None:
        try:
            async with asyncio.timeout(limits.SEARCH_TIMEOUT):
                answer = await (await self._links.to(member)).request("describe", {"content": content})
            record = answer.result.get("record")
            check_id(record.get("id") if isinstance(record, dict) else None)
        except (GridError, TimeoutError):
            return None
        return record

    def _origin(self, member: Member, id: bytes) -> Origin:
        return Origin(member.id, member.name, lambda: self._links.to(member, bulk=True), {"id": id})


class Holders:
    """The other holders of one tensor, or (without a header) of a model with so many bytes of tensors, for a
    Download."""

    def __init__(self, elsewhere: Elsewhere, header: TensorHeader | None, nbytes: int) -> None:
        self._elsewhere = elsewhere
        self._header = header
        self._nbytes = nbytes

    async def having(self, content: str, struck: str) -> list[Origin]:
        return await self._elsewhere.having(content, struck)

    def check(self, told: Mapping[str, Any], nbytes: int) -> None:
        """BadTensor, unless what one of them describes and sends is of this dtype and shape, or a model of this size.
        Nothing is allocated for it before."""
        if self._header is None:
            if nbytes != self._nbytes + _spec_bytes(told):
                raise BadTensor(f"{nbytes} bytes are not the model that was asked for")
            return
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


class ModelName:
    """The same of a stored model: of its program, which comes first, and its tensors."""

    def __init__(self, spec_bytes: int) -> None:
        self._missing = spec_bytes
        self._spec = bytearray()
        self._hash: blake3 | None = None

    def update(self, data: Buffer) -> None:
        data = memoryview(data)
        if self._hash is None:
            head = data[: self._missing]
            self._spec += head
            self._missing -= len(head)
            data = data[len(head) :]
            if self._missing:
                return
            spec = bytes(self._spec)
            self._hash = blake3(Contents(layout_of(spec), {}, spec).file_header())
        self._hash.update(data)

    @property
    def value(self) -> str:
        """Of what came so far."""
        return self._hash.hexdigest() if self._hash is not None else ""


ContentName = TensorName | ModelName


def name_of(told: Mapping[str, Any]) -> ContentName:
    """For what an answer to `fetch` describes. BadTensor where that is neither a tensor nor a model."""
    return TensorName(TensorHeader.from_wire(told)) if "dtype" in told else ModelName(_spec_bytes(told))


def check_name(name: ContentName, content: str) -> None:
    """Corrupt, unless that is the name."""
    if name.value != content:
        raise Corrupt("what the peers that have it sent is not what the first of them says that it has: ask again")


def _spec_bytes(told: Mapping[str, Any]) -> int:
    size = told.get("spec_bytes")
    if type(size) is not int or not 0 <= size <= limits.MAX_PROGRAM:
        raise BadTensor("the peer does not say how long a model's program is")
    return size


def check_content(value: object) -> str:
    """The name of contents, as it comes over the wire. BadRequest."""
    if not is_content_name(value):
        raise BadRequest("content is the name of contents: 64 lowercase hex digits")
    return value
