"""The weights and constants in an archive of torch.export.save: raw bytes, and how they are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compute.dtypes import DTYPE_OF
from compute.importing import pt2_schema as schema
from compute.importing.archive import Archive
from compute.importing.imported import check_total
from protocol import limits
from protocol.errors import BadFile
from protocol.tensors import ITEMSIZE, TensorHeader

Place = tuple[str, Mapping[str, Any]]  # the path of its bytes, and its description


class Tensors:
    """Those of the model of that name in an archive.

    Raises:
        BadFile: their bytes are in another order; one is pickled, or is no tensor.
    """

    def __init__(self, archive: Archive, model: str) -> None:
        if "byteorder" in archive and bytes(archive.read("byteorder", 64)).strip() != b"little":
            raise BadFile("it was saved on a machine of another byte order")
        self._archive = archive
        self._weights = self._config(f"data/weights/{model}_weights_config.json", "data/weights/")
        self._constants = self._config(f"data/constants/{model}_constants_config.json", "data/constants/")
        self._total = 0

    def _config(self, path: str, folder: str) -> dict[str, Place]:
        """Where each tensor's bytes are, and its description; refused where a pickle would have to be read."""
        if path not in self._archive:
            return {}
        found = {}
        for name, entry in schema.mapping(schema.mapping(self._archive.json(path), path).get("config"), path).items():
            entry = schema.mapping(entry, name)
            if entry.get("use_pickle") is not False:
                raise BadFile(
                    f"its tensor {name[:80]!r} is pickled, and reading that could run code: make the model of plain "
                    "tensors, and save it again"
                )
            where, meta = entry.get("path_name"), entry.get("tensor_meta")
            if not isinstance(where, str) or meta is None:
                raise BadFile(f"its constant {name[:80]!r} is no tensor, and only tensors are read")
            found[name] = folder + where, schema.mapping(meta, name)
        return found

    def place(self, name: str, *, is_constant: bool) -> Place:
        """Where that tensor is; buffers that are not kept with the weights are with the constants."""
        found = None if is_constant else self._weights.get(name)
        found = found or self._constants.get(name)
        if found is None:
            raise BadFile(f"its tensor {name[:80]!r} is not in the archive")
        return found

    def read(self, place: Place, name: str) -> torch.Tensor:
        """A view of its bytes where it is in one piece; all sizes are checked before anything is made of them."""
        path, meta = place
        what = f"its tensor {name[:80]!r}"
        dtype = schema.dtype(meta.get("dtype"))
        shape = [schema.whole(size, what) for size in schema.items(meta.get("sizes"), what)]
        strides = [schema.whole(stride, what) for stride in schema.items(meta.get("strides"), what)]
        offset = schema.whole(meta.get("storage_offset"), what)
        if meta.get("layout") != schema.STRIDED or len(strides) != len(shape):
            raise BadFile(f"{what} is no dense tensor")
        header = TensorHeader(dtype, tuple(shape))
        self._total += header.nbytes
        check_total(self._total, "what is in it")
        data = self._archive.read(path, limits.MAX_MEMORY_TENSOR)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if header.numel and (last + 1) * ITEMSIZE[dtype] > len(data):
            raise BadFile(f"{what} has {len(data)} bytes, and goes beyond them")
        if not header.numel:
            return torch.empty(shape, dtype=DTYPE_OF[dtype])
        flat = torch.frombuffer(data, dtype=DTYPE_OF[dtype], count=last + 1)
        return flat.as_strided(shape, strides, offset)
