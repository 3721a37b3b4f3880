"""The value of a pointer for numpy, in a thread where it can be waited for: nothing written to it is lost unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import grid
from peer.folders import Folders

VALUE = torch.arange(3.0)


@pytest.mark.parametrize("take", [torch.Tensor.numpy, np.asarray, np.from_dlpack], ids=lambda take: take.__name__)
async def test_an_array_of_a_pointer_is_not_written_to(peers: Folders, take: Callable[[Any], Any]) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(VALUE)

        def write() -> None:
            array = take(x) if take is not torch.Tensor.numpy else x.numpy()
            assert array.tolist() == VALUE.tolist()
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 7

        await asyncio.to_thread(write)
        assert torch.equal(await x.fetch(), VALUE)


async def test_a_copy_of_it_is(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(VALUE)

        def write() -> list[Any]:
            arrays = [np.array(x), x.numpy().copy(), np.asarray(x, dtype=np.float64)]
            for array in arrays:
                array[0] = 7
            return [array.tolist() for array in arrays]

        assert await asyncio.to_thread(write) == [[7, 1, 2]] * 3


async def test_what_requires_a_gradient_is_no_array_unless_that_is_said(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        w = (await g["alice"].send(VALUE)).requires_grad_()

        def ask() -> Any:
            for take in (lambda: w.numpy(), lambda: np.asarray(w)):
                with pytest.raises(RuntimeError, match=r"Use tensor.detach\(\).numpy\(\)"):
                    take()
            return w.numpy(force=True), w.detach().numpy()

        assert [array.tolist() for array in await asyncio.to_thread(ask)] == [VALUE.tolist()] * 2


async def test_a_gradient_that_is_here_goes_along_to_where_backward_begins(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        weights = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        w = (await g["alice"].send(weights.detach())).requires_grad_()
        for each in (w, weights):
            (each * each).backward(torch.tensor([0.1, 1.0, 0.5]))
        assert isinstance(w.grad, grid.Pointer) and weights.grad is not None
        assert torch.equal(await w.grad.get(), weights.grad)
        with pytest.raises(grid.NotCollocated, match=r"g\['alice'\]\.send"):
            (w[0] * await g["alice"].send(torch.ones(20_000))).backward(torch.ones(20_000))
