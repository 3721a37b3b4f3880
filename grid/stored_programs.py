"""The programs of stored plans and models, to be read. Without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compute import spec
from compute.program import Program
from peer.resuming import Download
from protocol import limits

if TYPE_CHECKING:
    from grid.mesh import Mesh


async def program_of(mesh: Mesh, record: dict[str, Any]) -> Program:
    """The program of the plan or model of that record.

    Raises:
        BadProgram: what is stored there is none. Denied, NotFound, LinkError.
    """
    member = mesh.find_member(record["peer_id"])
    args = {"id": record["id"], "part": "spec"}
    coming = await Download.begin(lambda: mesh.to(member), "fetch", args, member.name)
    data = bytes(await coming.read(limits.MAX_PROGRAM))
    return Program.from_bytes(data if record["kind"] == "plan" else spec.program_of(data))
