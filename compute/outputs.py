"""What comes out of a program: the places in its outputs that refer to values, in the order of PROGRAM.md, Outputs.

Who asks for a run, who computes it and who keeps what it gives count results alike. In canonical bytes, which is what a
peer has, the entries of a map are sorted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def references(template: Any) -> Iterator[Mapping[str, Any]]:
    """These places themselves."""
    if isinstance(template, list):
        for item in template:
            yield from references(item)
    elif isinstance(template, Mapping):
        if "node" in template or "constant" in template:
            yield template
        elif "tuple" in template:
            yield from references(list(template["tuple"]))
        elif "map" in template:
            for _, item in sorted(template["map"].items()):
                yield from references(item)


def leaves(template: Any, made: Any) -> Iterator[Any]:
    """The values there, of what a run of the program has made."""
    if isinstance(template, list):
        for item, value in zip(template, made, strict=True):
            yield from leaves(item, value)
    elif isinstance(template, Mapping):
        if "node" in template or "constant" in template:
            yield made
        elif "tuple" in template:
            yield from leaves(list(template["tuple"]), made)
        elif "map" in template:
            for name, item in sorted(template["map"].items()):
                yield from leaves(item, made[name])
