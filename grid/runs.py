"""What runs at peers now: listed, and ended. Without torch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from protocol import limits
from protocol.errors import Ambiguous, BadRequest, GridError, LinkError, NotFound
from protocol.rows import unpack_rows

if TYPE_CHECKING:
    from grid.mesh import Mesh

_SHOWN = 12  # hex digits of an id, for people
_TIMEOUT = limits.SEARCH_TIMEOUT


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        node, nodes: operations that are done, and all of them; a loop is one.
        done, of: iterations of the loop that it is in; `of` is 0 where it is in none, or nobody knows how many there
            will be.
    """

    node: int
    nodes: int
    done: int
    of: int

    @property
    def fraction(self) -> float:
        """From 0 to 1: operations, with what is done of the loop that it is in."""
        inner = self.done / self.of if self.of else 0.0
        return min(1.0, (self.node + inner) / max(self.nodes, 1))

    def __str__(self) -> str:
        if self.of:
            return f"iteration {self.done} of {self.of}"
        if self.done:
            return f"iteration {self.done}"
        return f"operation {self.node} of {self.nodes}"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Something that runs at a peer.

    Attributes:
        peer, peer_id: where.
        id: of the run; the beginning of its hex digits is enough for `grid kill`.
        principal: who asked for it.
        kind: "program", "jail" or "secure".
        what: of a program its id.
        name: of the plan or the function, where its asker said so.
        seconds: since it began.
        process: the pid of the worker.
        progress: None where the peer does not know it, or does not tell: the data are private to others.
    """

    peer: str
    peer_id: str
    id: bytes
    principal: str
    kind: str
    what: str
    name: str | None
    seconds: float
    process: int | None
    progress: Progress | None

    @classmethod
    def of(cls, peer: str, peer_id: str, row: Mapping[str, Any]) -> RunInfo:
        """What the peer says of it (SPEC.md, `running`). BadRequest for what is no such thing."""
        try:
            progress, process, name = row.get("progress"), row.get("process"), row.get("name")
            return cls(
                peer,
                peer_id,
                bytes(row["id"]),
                str(row["principal"]),
                str(row["kind"]),
                str(row["what"]),
                None if name is None else str(name),
                float(row["seconds"]),
                None if process is None else int(process),
                None if progress is None else Progress(*map(int, progress)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"{peer} describes a run in another way than this end knows: {error}") from None


@dataclass(frozen=True)
class RunInfos(Sequence[RunInfo]):
    """All that was found, the oldest first at each peer. `unreachable`: peers that did not answer, and why."""

    runs: tuple[RunInfo, ...]
    unreachable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, at: Any) -> Any:
        return self.runs[at]

    def __iter__(self) -> Iterator[RunInfo]:
        return iter(self.runs)

    def one(self, prefix: str) -> RunInfo:
        """The one whose id begins with these hex digits. NotFound, Ambiguous."""
        found = [run for run in self.runs if prefix and run.id.hex().startswith(prefix.lower())]
        if not found:
            silent = f" ({', '.join(self.unreachable)} did not answer)" if self.unreachable else ""
            raise NotFound(f"nothing of the id {prefix!r} runs{silent}: 'grid ps' shows what does")
        if len(found) > 1:
            shown = ", ".join(f"{run.id.hex()[:_SHOWN]} at {run.peer}" for run in found)
            raise Ambiguous(f"{len(found)} runs have ids that begin with {prefix!r}: {shown}. Give more digits")
        return found[0]


async def running(mesh: Mesh, peers: Sequence[str] | None = None, id: bytes | None = None) -> RunInfos:
    """What runs at these peers (names or ids; None: at all that are there), as far as this user may see it.

    With `id` only the run of that one.
    """
    members = [mesh.find_member(peer) for peer in peers] if peers is not None else mesh.members()
    asked = [mesh.read_rows(member, "running", {} if id is None else {"id": id}, _TIMEOUT) for member in members]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    runs: list[RunInfo] = []
    unreachable: dict[str, str] = {}
    for member, answer in zip(members, answers, strict=True):
        if isinstance(answer, LinkError):
            unreachable[member.name] = answer.message
        elif isinstance(answer, BaseException):
            raise answer
        else:
            runs += [RunInfo.of(member.name, member.id, row) for row in unpack_rows(answer, limits.MAX_HITS)]
    return RunInfos(tuple(runs), unreachable)


async def cancel(mesh: Mesh, run: RunInfo | str) -> RunInfo:
    """End a run, given as it was listed or by the beginning of its id; waits until it has ended.

    Raises:
        NotFound: it is over already, or somebody else's. Ambiguous. LinkError.
    """
    if isinstance(run, str):
        run = (await running(mesh)).one(run)
    try:
        await mesh.request(mesh.find_member(run.peer_id), "cancel", {"id": run.id})
    except GridError as error:
        error.peer = error.peer or run.peer
        raise
    return run
