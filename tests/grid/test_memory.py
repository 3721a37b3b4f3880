"""Pointers say where in memory their tensors lie as torch does, and the tensors at the peer lie there."""

from __future__ import annotations

from collections.abc import Callable

import torch

import grid
from grid.pointer import Pointer
from peer.folders import Folders

VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows": lambda x: x[1:],
    "a view of a view": lambda x: x[1:, 1:][1, 2:],
    "columns": lambda x: x.t()[1:],
    "of a list": lambda x: x.split(2, 1)[1].unbind(0)[2],
    "a shared one": lambda x: x[2:].detach(),
    "at an offset": lambda x: x[1:].as_strided((2, 2), (4, 1), 5),
    "at its own offset": lambda x: x[1:, 1:].as_strided((2, 2), (4, 1)),
    "at an offset of a view at an offset": lambda x: x.as_strided((7,), (1,), 4).as_strided((2,), (2,), 6),
    "an imaginary part": lambda x: torch.view_as_complex(x.view(-1, 2))[2:].imag[1:],
    "bytes": lambda x: x[1:].view(torch.int16)[:, 1:],
    "no view": lambda x: x[1:] + 1,
}


async def test_a_view_begins_where_it_does_here(folders: Folders) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    async with grid.local("alice", folders=folders) as g:
        x = await g["alice"].send(value)
        for name, view in VIEWS.items():
            found, wanted = view(x), view(value)
            assert (found.storage_offset(), found.stride()) == (wanted.storage_offset(), wanted.stride()), name
            assert isinstance(found, Pointer)
            assert torch.equal(await found.fetch(), wanted), name


def _strided(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (x[1:].as_strided((2, 2), (4, 1), 5) * weights[:2, :2]).sum()


def _written(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    y = x * 2
    view = y.t()[1:]
    view.as_strided((2, 2), (4, 1), 5).mul_(2)
    view[1].add_(view[0])
    return (y * weights).sum()


async def test_gradients_go_where_the_memory_was(folders: Folders) -> None:
    value, weights = torch.arange(12.0).reshape(3, 4), torch.arange(1.0, 13).reshape(3, 4)
    async with grid.local("alice", folders=folders) as g:
        for function in (_strided, _written):
            here = value.clone().requires_grad_()
            function(here, weights).backward()  # type: ignore[no-untyped-call]
            there = (await g["alice"].send(value)).requires_grad_()
            function(there, await g["alice"].send(weights)).backward()  # type: ignore[no-untyped-call]
            assert isinstance(there.grad, Pointer) and here.grad is not None
            assert torch.equal(await there.grad.fetch(), here.grad), function


MADE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "singular vectors": lambda x: torch.linalg.svd(x)[2],
    "least squares": lambda x: torch.linalg.lstsq(x, x, driver="gels").solution,
    "unpooled": lambda x: torch.nn.functional.max_unpool2d(x, torch.zeros_like(x, dtype=torch.int64), (2, 2)),
}


async def test_results_lie_at_the_peer_as_their_pointers_say(folders: Folders) -> None:
    """Kernels lay them out in other ways than meta tensors say."""
    async with grid.local("alice", folders=folders) as g:
        x = await g["alice"].send(torch.randn(2, 4, 3))
        for name, make in MADE.items():
            found = make(x)
            flat = found.as_strided((found.numel(),), (1,))
            assert isinstance(found, Pointer) and isinstance(flat, Pointer)
            laid = torch.empty_strided(found.shape, found.stride()).copy_(await found.fetch())
            assert torch.equal(await flat.fetch(), laid.as_strided((found.numel(),), (1,))), name


async def test_what_is_published_computed_by_a_plan_or_linked_lies_as_its_pointer_says(folders: Folders) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    async with grid.local("alice", "bob", folders=folders) as g:
        x = await g["alice"].send(value)
        tagged = await x.t()[1:].tag("#columns")
        assert tagged.is_contiguous() and tagged.storage_offset() == 0
        assert torch.equal(await tagged.as_strided((4,), (1,)).fetch(), value.t()[1:].flatten()[:4])
        planned = await g.run(lambda x: x.t(), x)
        assert torch.equal(await planned.view(-1).fetch(), value.t().flatten())
        chain = await x.t()[1:].send(g["bob"])
        assert (chain.stride(), chain.storage_offset()) == ((1, 4), 1)
        assert torch.equal(await (await chain.as_strided((2,), (4,), 1).get()).get(), torch.tensor([1.0, 5.0]))
