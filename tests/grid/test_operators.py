"""Python's operators on what has no value yet: each says what to do instead."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch

import grid
from grid.underway import Underway
from peer.folders import Folders
from protocol.errors import NotCollocated


def _with(name: str, of: str = "{0}") -> Callable[[Any], Any]:
    function = getattr(operator, name)
    sides = {"{0}": lambda v: function(v), "{0} 2": lambda v: function(v, 2), "2 {0}": lambda v: function(2, v)}
    return sides[of]


_BINARY = "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift".split()
USES: dict[str, Callable[[Any], Any]] = {
    **{name: _with(name, "{0} 2") for name in _BINARY},
    **{f"{name}, from the right": _with(name, "2 {0}") for name in _BINARY},
    **{f"{name}, in place": _with(f"i{name.strip('_')}", "{0} 2") for name in _BINARY},
    **{name: _with(name, "{0} 2") for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: _with(name) for name in ("neg", "pos", "abs", "invert", "index", "not_")},
    **{kind.__name__: kind for kind in (bool, int, float, complex, list, len, round)},
    "divmod": lambda v: divmod(v, 2),
    "a root": math.sqrt,
    "an item": lambda v: v[0],
    "an assignment": lambda v: v.__setitem__(0, 1),
    "in": lambda v: 1 in v,
    "a function": lambda v: torch.relu(v),
    "a method": lambda v: v.sum(),
}


@pytest.mark.parametrize("name", USES)
def test_what_is_to_be_awaited_refuses_all_else(name: str) -> None:
    async def run() -> Any:
        raise AssertionError("nobody awaits it")

    underway = Underway(run, NotCollocated("await the call"))
    with pytest.raises(NotCollocated, match="await the call"):
        USES[name](underway)
    assert len({underway, underway}) == 1


async def test_what_has_no_shape_yet_refuses_all_but_to_be_awaited(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(6.0))
        for name, use in USES.items():
            unsized = x[x > 2]
            with pytest.raises(grid.NeedsAwait, match=r"\(await x\[mask\]\) \+ 1" if "in place" in name else "await"):
                print(name, use(unsized))
            assert len({unsized, unsized}) == 1 and torch.equal(await unsized.get(), torch.arange(3.0, 6.0))


async def test_what_has_no_shape_at_any_of_several_peers_refuses_all_but_to_be_awaited(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = grid.combine(*[await g[name].send(torch.arange(6.0)) for name in ("alice", "bob")])
        assert repr(x[x > 2]) == "Pending(alice, bob: to be awaited)"
        more: dict[str, Callable[[Any], Any]] = {
            "its shape": lambda v: v.shape,
            "one of many": lambda v: torch.cat([v, v]),
        }
        for name, use in (USES | more).items():
            with pytest.raises(grid.NeedsAwait, match=r"at alice and bob: its shape .* await x\[mask\]"):
                print(name, use(x[x > 2]))
        with pytest.raises(AttributeError, match="has no 'nope'"):
            print(x[x > 2].nope)
        assert [each.tolist() for each in await (await x[x > 2]).get()] == [[3, 4, 5]] * 2


async def test_the_function_that_needs_a_shape_is_named(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(6.0))
        uses: dict[str, Callable[[Any], Any]] = {"mean": torch.mean, "cat": lambda v: torch.cat([v, x])}
        for name, use in uses.items():
            with pytest.raises(grid.NeedsAwait, match=f"^aten.{name} of what aten.index.Tensor gives"):
                use(x[x > 2])
