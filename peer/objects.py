"""The objects that a peer holds: temporaries in memory, published ones in the store, found under one rule.

A temporary's value is in one or both of two places: a buffer (as it came, never changed) and a worker (where it
was computed, or where it may have been changed in place). The worker, where there is one, knows best; it answers
"unchanged" when the buffer is still right.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from peer import permissions
from peer.buffers import Buffer
from peer.leases import LeaseKey, Leases
from peer.store.contents import StoredTensor
from peer.store.rows import StoredObject
from peer.store.store import Store
from peer.worker.remote import Worker
from protocol import limits
from protocol.errors import AlreadyExists, Ambiguous, BadRequest, Corrupt, GridError, NotFound
from protocol.ids import ID_BYTES
from protocol.sizes import beyond
from protocol.tensors import TensorHeader

_PART_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class Target:
    """Where a pointer points: a peer (id, and the name it had), and the object there."""

    peer: str
    name: str
    object: bytes

    def to_wire(self) -> dict[str, Any]:
        return {"peer": self.peer, "name": self.name, "object": self.object}


@dataclass(slots=True, eq=False)
class Temporary:
    """An object without tags: `owner` is the principal that made it. See the module's docstring for the value."""

    id: bytes
    owner: str
    lease: LeaseKey
    labels: frozenset[str]
    created: float
    header: TensorHeader | None = None  # unknown until the operation that makes it is done
    buffer: Buffer | None = None
    worker: Worker | None = None
    target: Target | None = None
    failure: GridError | None = None
    is_published: bool = field(default=False, init=False)
    reveal: tuple[str, ...] = field(default=(), init=False)  # whom a secure run has revealed it to, besides its owner
    is_being_published: bool = field(default=False, init=False)  # see publications.py

    @property
    def kind(self) -> str:
        return "tensor" if self.target is None else "pointer"

    def record(self) -> dict[str, Any]:
        header = self.header
        return {
            "id": self.id,
            "kind": self.kind,
            "owner": self.owner,
            "tags": [],
            "description": "",
            "name": None,
            "dtype": header.dtype if header else None,
            "shape": list(header.shape) if header else None,
            "nbytes": header.nbytes if header else 0,
            "private": bool(self.labels),
            "labels": sorted(self.labels),
            "created": self.created,
            "published": False,
            "target": self.target.to_wire() if self.target else None,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """An object of the store, or one tensor of a stored model (`part` is then its name)."""

    id: bytes
    stored: StoredObject
    part: str | None = None
    is_published: bool = field(default=True, init=False)

    @property
    def owner(self) -> str:
        return str(self.stored.record["owner"])

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(self.stored.record["labels"])

    @property
    def reveal(self) -> tuple[str, ...]:
        """Who may learn what secure runs compute from it (permissions.py)."""
        return tuple(self.stored.record.get("reveal", ()))

    @property
    def kind(self) -> str:
        return "tensor" if self.part is not None else str(self.stored.record["kind"])

    @property
    def target(self) -> Target | None:
        return target_of(self.stored) if self.kind == "pointer" else None

    def record(self) -> dict[str, Any]:
        record = dict(self.stored.record)
        if self.part is None:
            target = self.target
            record["target"] = target.to_wire() if target else None
            return record
        header = self.tensor.header
        record.update(id=self.id, kind="tensor", name=self.part, nbytes=header.nbytes, **header.to_wire())
        return record

    @property
    def tensor(self) -> StoredTensor:
        """The one tensor that this is. BadRequest for a model or plan as a whole."""
        tensors = self.stored.tensors
        if self.part is not None:
            return tensors[self.part]
        if self.kind != "tensor":
            raise BadRequest(f"{show_id(self.id)} is a {self.kind}, not a tensor: call it, or use its tensors")
        return next(iter(tensors.values()))


@dataclass(frozen=True, slots=True)
class Damaged:
    """A published object of which no more can be read than whose it is: it can be deleted."""

    id: bytes
    owner: str
    labels: frozenset[str] = frozenset()
    reveal: tuple[str, ...] = ()
    is_published: bool = field(default=True, init=False)


Held = Temporary | Published


def show_id(id: bytes) -> str:
    """An object id for people: the first 12 of its hex digits."""
    return id.hex()[:12]


def check_id(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != ID_BYTES:
        raise BadRequest(f"an object id is {ID_BYTES} bytes")
    return value


def model_of(part: bytes) -> tuple[bytes, int]:
    """The model that a part's id belongs to, and the part's index (SPEC.md, Objects)."""
    return part[:-_PART_BYTES] + bytes(_PART_BYTES), int.from_bytes(part[-_PART_BYTES:], "big") - 1


def part_ids(model: Published) -> list[bytes]:
    """The ids of a stored model's tensors; none for anything else."""
    count = len(model.stored.tensors) if model.kind == "model" else 0
    return [model.id[:-_PART_BYTES] + number.to_bytes(_PART_BYTES, "big") for number in range(1, count + 1)]


class Objects:
    """All objects of one peer. `find` is the only way to one, so what may not be seen is never found."""

    def __init__(self, store: Store, leases: Leases, peer_name: str) -> None:
        self._store = store
        self._leases = leases
        self._peer_name = peer_name
        self._temporaries: dict[bytes, Temporary] = {}
        self.temporary: Callable[[bytes], Temporary | None] = self._temporaries.get
        """The temporary with this id, whoever asks."""
        self._counts: dict[str, int] = {}
        self._published: OrderedDict[bytes, Published] = OrderedDict()  # read lately; what changes is taken out
        self._contents: dict[tuple[str, str], bytes] = {}  # for whom which contents were found in which tensor
        self._changes = 0  # of published objects

    @property
    def count(self) -> int:
        """How many temporaries there are."""
        return len(self._temporaries)

    # --- finding ------------------------------------------------------------------------------------------

    def at_hand(self, asker: str, id: bytes) -> Held | None:
        """The object if it can be had without waiting."""
        temporary = self._temporaries.get(id)
        if temporary is not None and permissions.can_find(asker, temporary):
            return temporary
        # A stranger's temporary under the id of a published object hides it from nobody else.
        return self._published.get(id)

    def all_at_hand(self, asker: str, ids: Iterable[bytes]) -> list[Held] | None:
        """All of these objects, if each can be had without waiting."""
        found: list[Held] = []
        for id in ids:
            temporary = self._temporaries.get(id)
            if temporary is not None and temporary.owner == asker:  # as most are
                found.append(temporary)
            else:
                held = self.at_hand(asker, id)
                if held is None:
                    return None
                found.append(held)
        return found

    async def find(self, asker: str, id: bytes) -> Held:
        """The object; NotFound if there is none, or none for this asker."""
        held = self.at_hand(asker, id) or await self._read(id)
        if held is not None:
            return held
        raise NotFound(
            f"no object {show_id(id)} here: it was deleted, moved, or its lease is over", peer=self._peer_name
        )

    async def to_delete(self, asker: str, id: bytes) -> Held | Damaged:
        """As `find`, but for what is too damaged to be found."""
        try:
            return await self.find(asker, id)
        except Corrupt:
            owner = await self._store.owner(id)
            if owner is None:
                raise
            return Damaged(id, owner)

    async def by_prefix(self, asker: str, prefix: str) -> Held:
        """The one object whose hex id begins so."""
        found = [t.id for t in self._temporaries.values() if t.owner == asker and t.id.hex().startswith(prefix)]
        found += [record["id"] for record in await self._store.by_prefix(prefix)]
        if not found:
            raise NotFound(f"no object whose id begins with {prefix!r}", peer=self._peer_name)
        if len(found) > 1:
            raise Ambiguous(f"{len(found)} objects have ids that begin with {prefix!r}: give more digits")
        return await self.find(asker, found[0])

    async def by_content(self, asker: str, content: str, kind: str | None = None) -> Published:
        """A published object (of that kind) whose contents have this name, and of which the asker may take them: who
        merely knows the name of others' contents does not learn that they are here."""
        changes = self._changes
        for record in await self._store.holders(content):
            if kind in (None, record["kind"]) and not set(record["labels"]) - {asker}:
                with contextlib.suppress(Corrupt):
                    held = await self.published(record["id"])
                    if held is not None:
                        if kind == "tensor" and changes == self._changes:
                            if len(self._contents) >= limits.OBJECTS_AT_HAND:
                                self._contents.clear()
                            self._contents[asker, content] = held.id
                        return held
        raise NotFound("no object here has these contents", peer=self._peer_name)

    def content_at_hand(self, asker: str, content: str) -> bytes | None:
        """The id of the tensor that `by_content` found last, as long as nothing that is published changes."""
        return self._contents.get((asker, content))

    async def published(self, id: bytes) -> Published | None:
        """The published object of that id, whatever temporary has it too."""
        return self._published.get(id) or await self._read(id)

    async def _read(self, id: bytes) -> Published | None:
        changes = self._changes
        try:
            published = Published(id, await self._store.get(id))
        except NotFound:
            part = await self._read_part(id)
            if part is None:
                return None
            published = part
        if changes != self._changes:
            return published  # it may have changed while it was read: not to be remembered
        self._published[id] = published
        if len(self._published) > limits.OBJECTS_AT_HAND:
            self._published.popitem(last=False)
        return published

    async def _read_part(self, id: bytes) -> Published | None:
        model_id, index = model_of(id)
        if index < 0:
            return None
        try:
            model = await self._store.get(model_id)
        except NotFound:
            return None
        names = list(model.tensors)
        return Published(id, model, names[index]) if index < len(names) else None

    async def check_publishable(self, id: bytes, kind: str) -> None:
        """AlreadyExists where the id is in the range of a model's tensors (or of a model to be, of others' objects):
        who reads a part of a model must never get something else."""
        model_id, _ = model_of(id)
        if kind != "model":
            taken = id != model_id and await self._is_model(model_id)
        else:
            others = await self._store.by_prefix(id.hex()[: -2 * _PART_BYTES])
            taken = id != model_id or any(record["id"] != id for record in others)
        if taken:
            raise AlreadyExists(f"the id {show_id(id)} is kept for a model's tensors: choose another at random")

    async def _is_model(self, id: bytes) -> bool:
        try:
            return bool((await self._store.get(id)).record["kind"] == "model")
        except NotFound:
            return False

    # --- changing -----------------------------------------------------------------------------------------

    def check_new(self, asker: str, ids: Iterable[bytes]) -> None:
        """AlreadyExists or TooLarge unless temporaries with these ids can be made."""
        count = self._counts.get(asker, 0)
        for id in ids:
            if id in self._temporaries or id in self._published:
                raise AlreadyExists(f"an object {show_id(id)} is here already: ids are random and used once")
            count += 1
        if count > limits.MAX_TEMPORARIES:
            sentence = "more than {allowed} temporaries: let go of pointers, or publish what is to stay"
            raise beyond("MAX_TEMPORARIES", count, sentence)

    def add(self, temporary: Temporary) -> None:
        self._temporaries[temporary.id] = temporary
        self._counts[temporary.owner] = self._counts.get(temporary.owner, 0) + 1
        self._leases.add(temporary.lease, temporary.id)

    def remove(self, id: bytes) -> Temporary | None:
        """Let a temporary go, with its memory."""
        temporary = self._temporaries.pop(id, None)
        if temporary is None:
            return None
        self._counts[temporary.owner] -= 1
        self._leases.remove(temporary.lease, id)
        if temporary.buffer is not None:
            temporary.buffer.release()
            temporary.buffer = None
        return temporary

    def owned_by(self, owner: str) -> list[bytes]:
        return [id for id, temporary in self._temporaries.items() if temporary.owner == owner]

    def temporaries_of(self, owner: str, limit: int) -> list[Temporary]:
        """The newest temporaries of one principal, the newest first."""
        newest = (each for each in reversed(self._temporaries.values()) if each.owner == owner)
        return list(itertools.islice(newest, min(limit, self.count_of(owner))))

    def count_of(self, owner: str) -> int:
        """How many temporaries one principal has."""
        return self._counts.get(owner, 0)

    def in_worker(self, worker: Worker) -> list[Temporary]:
        return [temporary for temporary in self._temporaries.values() if temporary.worker is worker]

    def store_changed(self, id: bytes) -> None:
        """A published object was edited, deleted or made: what was read of it before is stale."""
        self._changes += 1
        self._contents.clear()
        self._published.pop(id, None)
        model_id = id[:-_PART_BYTES] + bytes(_PART_BYTES)
        if id == model_id:
            parts = [known for known in self._published if known[:-_PART_BYTES] == id[:-_PART_BYTES]]
            for part in parts:
                del self._published[part]

    def store_cleared(self) -> None:
        """Many published objects went at once."""
        self._changes += 1
        self._contents.clear()
        self._published.clear()


def target_of(stored: StoredObject) -> Target:
    """What a published pointer points to: kept in the metadata of its contents."""
    meta = stored.metadata
    return Target(meta["peer"], meta["peer_name"], bytes.fromhex(meta["object"]))
