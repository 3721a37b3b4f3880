"""Views and aliasing: what is written through one name is seen through the others, as in local torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from protocol.errors import BadRequest, GridError, NotFound
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


async def _spoiled(error: GridError, *names: Any) -> None:
    """Each of these is good for nothing but this error: its value, what is computed of it, and itself."""
    for name in names:
        for use in (lambda name: name.fetch(), lambda name: (name * 2).fetch(), lambda name: name._made()):
            with pytest.raises(type(error)) as caught:
                await use(name)
            assert (caught.value.message, caught.value.operation) == (error.message, error.operation)


async def _why(x: Any) -> GridError:
    with pytest.raises(GridError) as caught:
        await x.fetch()
    return caught.value


async def test_what_fails_to_be_written_through_a_view_fails_all_that_share_the_memory(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        index, mask = await alice.send(torch.tensor([7])), await alice.send(torch.tensor([True, False, True]))
        for change in (
            lambda x: x[0].__setitem__(index, 1.0),
            lambda x: x[0].index_fill_(0, index, 1.0),
            lambda x: x[1:].add_(x[:-1]),  # which overlap
            lambda x: x[0, 0].expand(3, 3).add_(x),
            lambda x: x[0].copy_(torch.linalg.inv(x)[0]),
            lambda x: x.T[0].detach().masked_scatter_(mask, x[:1, :1].view(1)),  # of which there are too few
        ):
            x = await alice.send(torch.zeros(3, 3))
            sibling, again, before = x[2], x.detach(), x.clone()
            inner = sibling.view(3, 1)[1:]
            change(x)
            made = x + 1  # in the same request
            error = await _why(made)
            await _spoiled(error, x, sibling, again, inner)
            assert torch.equal(await before.fetch(), torch.zeros(3, 3))
            assert torch.equal(await (before + 1).fetch(), torch.ones(3, 3))


@pytest.mark.filterwarnings("ignore:Use of masked_fill_ on expanded tensors")
async def test_a_gradient_that_fails_on_the_way_is_no_gradient(peers: Folders) -> None:
    """torch writes gradients through views; what cannot be written there is an error here as well."""

    def gradient(x: Any, change: Any) -> Any:
        x = x.clone().requires_grad_()
        changed = x * 1
        change(changed.expand(3, 2), (x > 0.5).detach())
        changed.sum().backward()
        return x.grad

    value, failed = torch.tensor([1.0, 0.0]), []
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(value)
        for name, change in {
            "masked_fill_": lambda wide, mask: wide.masked_fill_(mask, 3.0),
            "zero_": lambda wide, mask: wide.zero_(),
            "triu_": lambda wide, mask: wide.triu_(),
            "tril_": lambda wide, mask: wide.tril_(),
            "threshold_": lambda wide, mask: torch.nn.functional.threshold_(wide, 0.5, 0.1),
            "add_": lambda wide, mask: wide.add_(wide.clone()),
            "a row of": lambda wide, mask: wide[0].mul_(2),
        }.items():
            try:
                expected = gradient(value, change)
            except RuntimeError:
                failed.append(name)
                with pytest.raises(GridError):
                    await gradient(x, change).fetch()
            else:
                assert torch.equal(await gradient(x, change).fetch(), expected), name
        assert torch.equal(await x.fetch(), value)
    assert {"masked_fill_", "add_"} <= set(failed) and len(failed) < 7


async def test_the_same_again_is_refused_again_where_the_peer_keeps_it(peers: Folders) -> None:
    """Steps that look alike are sent by their number, and run by a plan."""
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        fits, beside = await alice.send(torch.tensor([1])), await alice.send(torch.tensor([7]))
        regular, singular = await alice.send(2 * torch.eye(2)), await alice.send(torch.zeros(2, 2))

        async def step(index: Any, matrix: Any) -> Any:
            x, m = await alice.send(torch.zeros(2, 3)), await alice.send(torch.zeros(2, 2))
            y, below = x * 2, m[1]
            y[0][index] = 1.0
            x[0].index_fill_(0, index, 5.0)
            m[0].copy_(torch.linalg.inv(matrix)[0])
            return x, y, y.sum() + x.sum(), m, below

        for index, matrix in [(fits, regular)] * 4 + 2 * [(beside, regular), (fits, singular), (fits, regular)]:
            x, y, z, m, below = await step(index, matrix)
            if index is beside:
                await _spoiled(await _why(z), z, y)
                await _spoiled(await _why(x), x)
            else:
                assert (await z.fetch()).item() == 6 and (await x.fetch())[0, 1] == 5
            if matrix is singular:
                await _spoiled(await _why(m), m, below)
            else:
                assert (await m.fetch()).tolist() == [[0.5, 0], [0, 0]] and not (await below.fetch()).any()


async def test_a_published_object_stays_good_for_all_who_have_it(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers) as other:
        x = await g["alice"].send(torch.zeros(2, 3), tags="#looked-at")
        view = x[0]
        with pytest.raises(grid.ReadOnly):
            view.add_(1)
        view._handle.fixed = ""  # as where it is not known here
        view.add_(1)
        with pytest.raises(grid.ReadOnly):
            await view
        theirs = await other.find("#looked-at")
        for each in (x, x[0], x * 2, theirs, theirs[1:] + 0):
            assert not (await each.fetch()).any()
        await x
        await x.delete()


async def test_a_write_that_the_peer_sends_to_no_worker_spoils_as_well(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        x = await alice.send(torch.zeros(2, 3))
        row, other, before = x[0], x[1], x + 1
        handle = row._handle
        alice.outbox.post(["aten.add_.Tensor", [handle.id, bytes(range(16))], {}, []], handle.write("add_"))
        made = x * 2
        error = await _why(made)
        assert isinstance(error, NotFound) and error.operation == "aten.add_.Tensor"
        await _spoiled(error, x, other)
        assert torch.equal(await before.fetch(), torch.ones(2, 3))
