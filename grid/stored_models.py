"""Stored models, found by tag: a program and its weights (SPEC.md, Programs and models).

Whoever finds one can call it without its class. Its weights are read-only; train a module that was sent without tags.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compute.dtypes import DTYPE_OF
from compute.model import ModelSpec, ProgramModule
from compute.spec import Layout, pack_spec, unpack_spec
from compute.values import tensor_bytes, tensor_from
from grid.handle import Handle
from grid.ids import PART_BYTES, fresh_model_id
from grid.pointer import Pointer
from grid.stored import Stored
from grid.underway import Underway
from peer.elsewhere import check_name, name_of
from peer.resuming import Download, Progress
from protocol.codec import Buffer
from protocol.errors import NeedsAwait, NotCollocated

if TYPE_CHECKING:
    from grid.remote import RemotePeer
    from grid.secret.team import Secrets


class RemoteModel(Stored, nn.Module):
    """A stored model that a search found. Call it on pointers at its peer, or on secrets, or give it to a plan.

    Its program is loaded with it by search; else `await model.load()`.
    Awaited: load, fetch (a module here, with the weights), move, copy, tag, untag, describe, delete.
    """

    def __init__(self, home: RemotePeer, record: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self._handle = Handle(home, record["id"], owns=False, record=record)
        self._inner: ProgramModule | None = None
        self._spec: ModelSpec | None = None

    def __repr__(self) -> str:
        tensors = f", {len(layout_of(self._spec))} tensors" if self._spec is not None else ""
        return f"RemoteModel({self.location.name}:{self.id_at_location[:12]}{tensors}, {' '.join(self.tags)})"

    async def load(self) -> RemoteModel:
        """Get its program (not its weights), so that it can be called."""
        if self._inner is None:
            self._spec = ModelSpec.from_wire(unpack_spec(await self.location.read_spec(self._handle.id)))
            self._inner = ProgramModule(self._spec, self.weights)
        return self

    @property
    def spec(self) -> ModelSpec:
        if self._spec is None:
            raise NeedsAwait("the model's program is not here yet: await model.load()")
        return self._spec

    @property
    def module(self) -> ProgramModule:
        """The model as a module whose parameters and buffers are pointers."""
        if self._inner is None:
            raise NeedsAwait("the model's program is not here yet: await model.load()")
        return self._inner

    @property
    def weights(self) -> dict[str, Pointer]:
        """Its tensors by name, as pointers."""
        return parts_of(self.location, self.record, layout_of(self.spec))

    def forward(self, *inputs: Any) -> Any:
        secrets = next((each._secrets for each in inputs if hasattr(each, "_secrets")), None)
        if secrets is not None:
            return self._among(secrets)(*inputs)
        try:
            return self.module(*inputs)
        except NotCollocated as error:
            error.message += (
                ". Await the call, as in await model(x), or g.run(model, x): what is smaller is brought along"
            )
            error.args = (error.message,)
            if torch.is_grad_enabled() and any(getattr(each, "requires_grad", False) for each in inputs):
                raise  # what is run as a program has no history
            return Underway(lambda: self.location.grid.run(self, *inputs), error)

    def _among(self, secrets: Secrets) -> nn.Module:
        """The model, its weights shared by their peer among those who have the shares of what it is called on. (The
        session remembers what was shared of a stored object.)"""
        from grid.secret.modules import share_module
        from grid.secret.sharing import shared

        return share_module(self.module, lambda tensor: shared(secrets, tensor, requires_grad=None))

    async def fetch(self, progress: Progress | None = None) -> nn.Module:
        """The model as a module here, with its weights. Denied where they are private to others."""
        await self.load()
        others = self.location.elsewhere.of_record(self.record)
        download = await self.location.download(self._handle.id, progress, others)
        return ProgramModule(self.spec, await _read_weights(download, layout_of(self.spec)))

    async def save(
        self, path: str | os.PathLike[str], overwrite: bool = False, progress: Progress | None = None
    ) -> Path:
        """Write its state dict to a file (.safetensors, .npz, .pt), or all of it, to be run without this package (.pt2,
        .onnx). As Pointer.save."""
        self._handle.check()
        return await self.location.save(self._handle, "model", path, overwrite, progress)

    def _elsewhere(self, peer: RemotePeer, record: dict[str, Any]) -> RemoteModel:
        return RemoteModel(peer, record)

    def _copy_id(self) -> bytes:
        return fresh_model_id()


def layout_of(spec: ModelSpec) -> Layout:
    """Its tensors as they are stored, shared ones once."""
    return tuple((slot.name, slot.header) for slot in spec.slots if slot.same_as is None)


def parts_of(home: RemotePeer, record: Mapping[str, Any], layout: Layout) -> dict[str, Pointer]:
    """Pointers to a stored model's tensors: their ids count on from the model's (SPEC.md, Objects)."""
    base = record["id"][:-PART_BYTES]
    found = {}
    for number, (name, header) in enumerate(layout, 1):
        id = base + number.to_bytes(PART_BYTES, "big")
        part = {**record, "id": id, "kind": "tensor", "name": name, "nbytes": header.nbytes}
        handle = Handle(home, id, owns=False, record=part)
        found[name] = Pointer.of(handle, DTYPE_OF[header.dtype], header.shape)
    return found


async def put_model(
    home: RemotePeer, module: nn.Module, spec: ModelSpec, fields: dict[str, Any], progress: Progress | None
) -> dict[str, Any]:
    """Publish a captured module with its weights; the record of what is stored then."""
    head, tensors = pack_spec(spec.to_wire()), spec.tensors(module)
    pieces: list[Buffer] = [head, *(tensor_bytes(tensors[name]) for name, _ in layout_of(spec))]
    return await home.put(fresh_model_id(), {**fields, "spec_bytes": len(head)}, pieces, progress)


async def _read_weights(download: Download, layout: Layout) -> dict[str, torch.Tensor]:
    """The tensors of a model from what `fetch` brings: its spec comes first, then they, in order."""
    data = memoryview(bytearray(download.nbytes))
    if download.stream is None:
        data[:] = download.payload
    else:
        await download.into(data)
    if download.is_mixed and download.content is not None:
        whole = name_of(download.result)
        await asyncio.to_thread(whole.update, data)
        check_name(whole, download.content)
    tensors, at = {}, int(download.result["spec_bytes"])
    for name, header in layout:
        tensors[name] = tensor_from(header, data[at : at + header.nbytes])
        at += header.nbytes
    return tensors
