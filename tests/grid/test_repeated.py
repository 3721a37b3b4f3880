"""A call that looks like one before goes a shorter way, and no check is left out on it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

import grid
from grid.pointer import _dispatch
from grid.remote import RemotePeer
from peer.folders import Folders
from protocol import limits
from protocol.errors import BadRequest, GridError, NotCollocated


@contextlib.asynccontextmanager
async def _connected(peers: Folders) -> AsyncIterator[grid.Grid]:
    _dispatch._repeated._plans.clear()
    async with grid.connect(folders=peers) as g:
        yield g


async def _sent(alice: RemotePeer, value: torch.Tensor) -> Any:
    return await alice.send(value)


async def test_numbers_that_are_equal_and_of_another_type_are_another_call(peers: Folders) -> None:
    async with _connected(peers) as g:
        for value in (torch.arange(6).view(2, 3), torch.tensor([True, False])):
            x = await _sent(g["alice"], value)
            for _ in range(2):
                for factor in (1, 1.0, True):
                    assert (x * factor).dtype == (value * factor).dtype
                    assert torch.equal(await (x * factor).get(), value * factor)


async def test_another_integer_is_another_call(peers: Folders) -> None:
    async with _connected(peers) as g:
        value = torch.randn(2, 3)
        x = await _sent(g["alice"], value)
        for dim in (0, 1, 0, -1, 1):
            assert x.sum(dim).shape == value.sum(dim).shape
            assert torch.equal(await x.sum(dim).get(), value.sum(dim))
        for shape in ([3, 2], [6], [3, 2], [1, 6]):
            assert list(x.view(shape).shape) == shape
        for _ in range(2):
            with pytest.raises(GridError):
                x.sum(7)


async def test_another_dtype_shape_or_stride_is_another_call(peers: Folders) -> None:
    async with _connected(peers) as g:
        alice = g["alice"]
        values = [torch.randn(3, 3), torch.randn(3, 3).double(), torch.randn(3, 4), torch.arange(9).view(3, 3)]
        for _ in range(2):
            for value in values:
                x = await _sent(alice, value)
                for there, here in ((x.t() + 1, value.t() + 1), (x + 1, value + 1)):
                    assert (there.dtype, there.shape, there.stride()) == (here.dtype, here.shape, here.stride())
                    assert torch.equal(await there.get(), here)


async def test_floats_that_vary_are_one_call_each_with_its_own_value(peers: Folders) -> None:
    async with _connected(peers) as g:
        value = torch.randn(4)
        x = await _sent(g["alice"], value)
        x * 0.5
        known = len(_dispatch._repeated._plans)
        assert known
        for number in range(20):
            assert torch.equal(await (x * (number / 7)).get(), value * (number / 7))
        assert len(_dispatch._repeated._plans) == known
        for number in range(3):  # what shapes depend on, or is filled in, is not left out
            assert torch.equal(await torch.full_like(x, number / 2).get(), torch.full_like(value, number / 2))


async def test_a_view_of_a_view_begins_where_it_does_here(peers: Folders) -> None:
    async with _connected(peers) as g:
        value = torch.randn(6, 4)
        x = await _sent(g["alice"], value)
        for start in (0, 2, 1):
            there, here = x[start:][1], value[start:][1]
            assert there.storage_offset() == here.storage_offset()
            assert torch.equal(await there.get(), here)


async def test_what_hangs_on_one_object_is_looked_at_each_time(peers: Folders) -> None:
    async with _connected(peers) as g:
        alice, bob = g["alice"], g["bob"]
        x, y, taken = [await _sent(alice, torch.ones(3)) for _ in range(3)]
        away = await _sent(bob, torch.ones(3))
        for _ in range(2):
            x + y
        with pytest.raises(NotCollocated):
            x + away
        await taken.get()
        with pytest.raises(BadRequest, match="get\\(\\) took it"):
            x + taken
        chain = await (await _sent(alice, torch.ones(3))).send(bob)
        assert (chain + chain)._handle.target is not None


async def test_a_pointer_whose_operation_failed_says_so_again(peers: Folders) -> None:
    async with _connected(peers) as g:
        alice = g["alice"]
        scores, right = await _sent(alice, torch.randn(2, 3)), await _sent(alice, torch.tensor([1, 1]))
        wrong = await _sent(alice, torch.tensor([-1, -1]))
        (torch.nn.functional.nll_loss(scores, right) + 1).sum()
        lost = torch.nn.functional.nll_loss(scores, wrong)
        with pytest.raises(GridError, match=r"(?i)target"):
            await lost.fetch()
        with pytest.raises(GridError, match=r"(?i)target"):
            lost + 1


async def test_all_is_forgotten_when_it_is_too_much(peers: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _connected(peers) as g:
        monkeypatch.setattr(limits, "MAX_PLANS", 8)
        value = torch.randn(40)
        x = await _sent(g["alice"], value)
        for stop in range(1, 40):
            assert x[:stop].shape == (stop,)
            assert len(_dispatch._repeated._plans) <= 8
        assert torch.equal(await x[:7].get(), value[:7])


async def test_a_float_on_which_a_check_hangs_is_looked_at_each_time(peers: Folders) -> None:
    """Here already, and not only at the peer: the line of the mistake is the one that raises."""
    resize = torch.ops.aten._upsample_bilinear2d_aa.default
    async with _connected(peers) as g:
        image = await _sent(g["alice"], torch.rand(1, 1, 4, 4))
        for scale in (2.0, 2.0, 2.0):
            await resize(image, [8, 8], False, scale, scale).get()
        with pytest.raises(BadRequest, match="scale"):
            resize(image, [8, 8], False, 1e-9, 1e-9)
