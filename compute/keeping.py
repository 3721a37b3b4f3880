"""Modules that are run for something else than themselves: afterwards all of them is as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn

_TABLES: Final = ("_parameters", "_buffers", "_modules")


@contextmanager
def kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Whatever is done to these modules and their parts is undone: tensors and parts that are others, attributes that
    their forward left behind. What was written into a tensor stays written."""
    parts = {id(part): part for module in modules for part in module.modules()}.values()
    saved = [(part, dict(part.__dict__), {table: dict(part.__dict__[table]) for table in _TABLES}) for part in parts]
    try:
        yield
    finally:
        for part, attributes, contents in saved:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for table, content in contents.items():
                part.__dict__[table].clear()
                part.__dict__[table].update(content)
