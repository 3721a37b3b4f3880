"""Large constants of stored plans: named in the program by their contents, and published, under that name, with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from compute.program import Input, Program
from compute.values import header_of, tensor_bytes
from grid.ids import fresh_id
from grid.pointer import Pointer
from peer.elsewhere import TensorName
from protocol.errors import CannotCapture, NotFound

if TYPE_CHECKING:
    from grid.plans import RemotePlan
    from grid.remote import RemotePeer
    from grid.world import World


async def with_stored_constants(
    program: Program, constants: Mapping[str, torch.Tensor], peer: RemotePeer, plan: str
) -> Program:
    """The program with the contents of these inputs named, which are published at the peer now.

    Raises:
        CannotCapture: one of them is a pointer.
    """
    contents = {}
    for name, tensor in constants.items():
        if isinstance(tensor, Pointer):
            raise CannotCapture(
                f"plan {plan} uses {tensor!r} from outside it: make it an argument, or tag it and use grid.load"
            )
        contents[name] = await _published(tensor, peer, f"a constant of the plan {plan}")
    inputs = tuple(replace(given, content=contents.get(given.name)) for given in program.inputs)
    return Program(inputs, program.nodes, program.outputs, program.constants, program.bodies)


async def _published(tensor: torch.Tensor, peer: RemotePeer, description: str) -> str:
    """The name of its contents, when they are there."""
    header, data = header_of(tensor), tensor_bytes(tensor)
    name = TensorName(header)
    name.update(data)
    about = {"kind": "tensor", "tags": [], "publish": True, "description": description, "name": name.value}
    await peer.put(fresh_id(), {**about, **header.to_wire()}, [data])
    return name.value


async def find_constant(given: Input, plan: RemotePlan, world: World) -> Pointer:
    """The object that an input of a stored plan names by its contents: of the plan's owner, best at the plan's peer.

    Raises:
        NotFound: it is nowhere.
    """
    query = f"name:{given.content}"
    await world.look({query: f"the constant {given.name!r}"}, for_all=True)
    hits = [hit for hit in world.hits[query] if isinstance(hit, Pointer) and hit.owner == plan.owner]
    hits.sort(key=lambda hit: hit.location.id != plan.location.id)
    if not hits:
        raise NotFound(
            f"{given.name!r} of the plan are the contents {str(given.content)[:12]}, which its owner has published "
            "nowhere that can be reached now: the plan is to be sent again"
        )
    return hits[0]
