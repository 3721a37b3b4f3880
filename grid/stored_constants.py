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


async def holders(given: Input, world: World) -> tuple[Pointer, ...]:
    """The objects that have the contents which this input names, one at each peer that has one.

    Raises:
        NotFound: no peer that answers has them in an object that you may take.
    """
    content = str(given.content)
    found = tuple(await world.having(content))
    if not found:
        raise NotFound(
            f"{given.name!r} is to have the contents {content[:12]}, which no peer that can be reached has for you: "
            "publish a tensor that has them (a plan's are published anew when it is sent again)",
            content=content,
        )
    return found
