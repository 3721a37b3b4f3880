"""Views and aliasing: what is written through one name is seen through the others, as in local torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from protocol.errors import BadRequest
from tests.grid.forms import Lines, differences, is_same, value_of


def _steps(steps: Any) -> Any:
    """The tensors that `steps` gives, when all of it was done."""

    def lines(x: Any, y: Any) -> Any:
        return steps(x.clone(), y)

    return lines


def _in_place_on_a_view(x: Any, y: Any) -> Any:
    row, column = x[1], x[:, 1]
    row.add_(5)
    column.mul_(2)
    return x, row, column


def _in_place_on_the_base(x: Any, y: Any) -> Any:
    flat, part, turned = x.view(-1), x[1:, 2:], x.T
    x.zero_()
    x += y
    return flat, part, turned


def _views_of_views(x: Any, y: Any) -> Any:
    inner = x.view(2, 6).T[1:4].unsqueeze(0)[0, :, 1]
    inner.fill_(7)
    return x, inner


def _an_assignment_through_views(x: Any, y: Any) -> Any:
    x.view(-1)[::5] = 0
    x.T[2][1:] = y[0, :2]
    x.unsqueeze(0)[0][2] = 1
    x.diagonal().copy_(y.diagonal())
    return x


def _parts(x: Any, y: Any) -> Any:
    for number, part in enumerate(x.split(2)):
        part += number
    for row in x:
        row[0] = 9
    first, *_ = x.unbind(1)
    first.neg_()
    x.chunk(2, 1)[1].exp_()
    return x


def _detached(x: Any, y: Any) -> Any:
    z = x.detach()
    z[0] = 0
    x.data.mul_(2)
    alias = copy.copy(x)
    alias += 1
    return x, z, alias


def _expanded(x: Any, y: Any) -> Any:
    wide = x[0].expand(3, 4)
    x[0, 0] = 5
    return wide, x.broadcast_to(2, 3, 4).sum(0)


def _squeezed(x: Any, y: Any) -> Any:
    z = x.unsqueeze_(1)
    assert z is x and x.shape == (3, 1, 4)
    x.add_(1)
    x.squeeze_(1).mul_(2)
    x.squeeze_()
    return x, x.shape, x.stride()


def _turned(x: Any, y: Any) -> Any:
    first, base = x[0], x.detach()
    x.t_()
    x[0] = 3  # the first column of what it was
    x.transpose_(0, 1).swapaxes_(0, 1).swapdims_(1, 0)
    return x, first, base, x.shape, x.stride()


def _turned_view(x: Any, y: Any) -> Any:
    part = x[:2]
    part.t_()
    part += 1
    return x, part


def _not_views(x: Any, y: Any) -> Any:
    copies = [x.clone(), x[[0, 1]], x[x.new_zeros(1).long()], x + 0, x.T.contiguous(), x.flatten()[1:].clone()]
    x.zero_()
    return copies


def _as_strided(x: Any, y: Any) -> Any:
    window = x.as_strided((2, 2), (1, 4), 1)
    window.zero_()
    return x, x.unfold(1, 2, 2), window.is_contiguous()


def _complex(x: Any, y: Any) -> Any:
    z = torch.complex(x, y)
    z.real.zero_()
    torch.view_as_real(z)[..., 1] += 1
    z.conj()[0].mul_(1j)
    return z, z.imag


ALIASING: dict[str, Lines] = {
    name: _steps(steps)
    for name, steps in {
        "in place on a view": _in_place_on_a_view,
        "in place on the base": _in_place_on_the_base,
        "views of views": _views_of_views,
        "assignment through views": _an_assignment_through_views,
        "parts": _parts,
        "detached": _detached,
        "expanded": _expanded,
        "squeezed": _squeezed,
        "turned": _turned,
        "a turned view": _turned_view,
        "no views": _not_views,
        "as_strided": _as_strided,
        "complex": _complex,
    }.items()
}


async def test_aliasing_is_that_of_torch(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        assert await differences(g, ALIASING) == []


async def test_shape_in_place_is_part_of_the_graph(peers: Folders) -> None:
    def lines(x: Any, y: Any) -> Any:
        x = x.clone().requires_grad_()
        turned = x * 1
        turned.t_().unsqueeze_(0)
        (turned[0] @ y).square().sum().backward()
        return x.grad, turned.detach()

    async with grid.connect(folders=peers) as g:
        assert await differences(g, {"t_, unsqueeze_": lines}) == []


async def test_a_chain_is_turned_and_what_it_points_to_is_not(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(6.0).reshape(2, 3))
        chain = await x.send(g["bob"])
        chain.t_()
        chain[0] += 1
        assert chain.shape == (3, 2) and x.shape == (2, 3) and chain.location is g["bob"]
        assert torch.equal(await (await chain.get()).get(), torch.tensor([[1.0, 4.0], [1.0, 4.0], [2.0, 5.0]]))


async def test_a_view_outlives_the_pointer_to_its_base(peers: Folders) -> None:
    value = torch.randn(3, 4)
    async with grid.connect(folders=peers) as g:
        row = (await g["alice"].send(value))[1]
        await row.fetch()
        row += 1
        assert is_same(await value_of(row), value[1] + 1)


async def test_resizing_shows_what_is_there_and_no_more(peers: Folders) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    async with grid.connect(folders=peers) as g:
        x, local = await g["alice"].send(value), value.clone()
        for change in (
            lambda t: t.resize_(2, 6),
            lambda t: t.resize_as_(torch.zeros(4, 3)),
            lambda t: t.add_(1).resize_((1, 12)),
            lambda t: t.resize_(2, 2).mul_(3),
        ):
            local = change(local)
            assert change(x) is x and is_same(await value_of(x), local)
        assert is_same(await value_of(x.new_empty(0).resize_(2, 3)), torch.zeros(2, 3))
        with pytest.raises(RuntimeError, match="require grad"):
            x.requires_grad_().resize_(4)


async def test_what_a_view_in_place_cannot_do_says_so(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2, 3))
        for change in (
            lambda: x.resize_(7),
            lambda: torch.ops.aten.resize_(x, [7]),
            lambda: x.t().resize_(3),
            lambda: x.set_(),
            lambda: x[0].resize_as_(x),
        ):
            with pytest.raises(BadRequest, match="memory"):
                change()
        with pytest.raises(grid.OperationFailed):
            x.unsqueeze_(9)
        with pytest.raises(grid.OperationFailed, match=r"broadcast|match|expand"):
            x += torch.zeros(5, 2, 3)
        assert x.shape == (2, 3) and (await x.fetch()).shape == (2, 3)
