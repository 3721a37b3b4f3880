"""What is coming in: described and checked before a byte of it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compute.program import Program
from compute.spec import layout_of, program_of
from peer import permissions
from peer.objects import Target, check_id
from peer.store.contents import Contents
from protocol import limits
from protocol.errors import BadRequest
from protocol.identity import is_peer_id
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader
from search.records import check_description
from search.tags import parse_tags


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is known of a value before its bytes are read: checked, so nothing is allocated for a lie."""

    id: bytes
    kind: str
    owner: str
    labels: frozenset[str]
    header: TensorHeader | None
    spec_bytes: int
    publish: bool
    tags: tuple[str, ...]
    description: str
    name: str | None
    target: Target | None = None
    reveal: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: Mapping[str, Any], owner: str, labels: frozenset[str]) -> Arrival:
        """From the arguments of put, link, or the answer to collect; BadRequest, BadTensor, BadTag."""
        kind = args.get("kind")
        if kind not in ("tensor", "model", "plan", "pointer"):
            raise BadRequest("kind is tensor, model, plan or pointer")
        is_tensor = kind == "tensor" or (kind == "pointer" and args.get("dtype") is not None)
        header = TensorHeader.from_wire(args) if is_tensor else None
        tags = parse_tags(args.get("tags") or [])
        name = args.get("name")
        if name is not None:
            check_description("name", name)
        made = cls(
            check_id(args.get("id")),
            kind,
            owner,
            labels,
            header,
            _spec_size(args.get("spec_bytes", 0)),
            bool(args.get("publish")) or bool(tags),
            tags,
            check_description("description", args.get("description") or ""),
            name,
            _target(args.get("target")) if kind == "pointer" else None,
            permissions.checked_reveal(args.get("reveal") or []),
        )
        if kind in ("model", "plan") and not made.publish:
            raise BadRequest(f"a {kind} is kept published: give it tags")
        return made

    def record(self, created: float, nbytes: int) -> dict[str, Any]:
        header = self.header
        return {
            **({"reveal": list(self.reveal)} if self.reveal else {}),
            "id": self.id,
            "kind": self.kind,
            "owner": self.owner,
            "tags": list(self.tags),
            "description": self.description,
            "name": self.name,
            "dtype": header.dtype if header else None,
            "shape": list(header.shape) if header else None,
            "nbytes": nbytes,
            "private": bool(self.labels),
            "labels": sorted(self.labels),
            "created": created,
            "published": True,
        }

    def describes(self, record: Mapping[str, Any]) -> bool:
        """Whether an object that is here is, by all that is said of it, the one that this announces."""
        header = self.header
        return (
            (record["id"], record["kind"], record["owner"]) == (self.id, self.kind, self.owner)
            and (record["description"], record["name"]) == (self.description, self.name)
            and set(record["tags"]) == set(self.tags)
            and frozenset(record["labels"]) == self.labels
            and tuple(record.get("reveal", ())) == self.reveal
            and (header is None or (record["dtype"], tuple(record["shape"])) == (header.dtype, header.shape))
        )

    def contents(self, spec: bytes) -> Contents:
        """How it is to be stored, now that its spec (a model's or plan's first bytes) is there."""
        if self.kind == "model":
            Program.from_bytes(program_of(spec))
            return Contents(layout_of(spec), {}, spec)
        if self.kind == "plan":
            Program.from_bytes(spec)
            return Contents((), {}, spec)
        if self.target is not None:
            metadata = {"peer": self.target.peer, "peer_name": self.target.name, "object": self.target.object.hex()}
            return Contents((), metadata, b"")
        assert self.header is not None
        return Contents.one(self.header)


def _spec_size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise BadRequest("spec_bytes is a count of bytes")
    check_limit("MAX_PROGRAM", value, "a program of {size} bytes; at most {allowed}")
    return value


def _target(value: object) -> Target:
    if not isinstance(value, Mapping) or not is_peer_id(value.get("peer")):
        raise BadRequest("a pointer has a target: {peer, name, object}")
    return Target(str(value["peer"]), str(value.get("name", ""))[: limits.MAX_NAME], check_id(value.get("object")))
