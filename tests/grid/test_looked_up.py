"""x[i], where i is a number at the peer: read and written there, and never a copy that passes for a view."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from protocol.errors import BadRequest
from tests.grid.forms import Lines, differences

FORMS: dict[str, Lines] = {
    "a row": lambda x, i: x[i[0]].clone(),
    "an element": lambda x, i: x[i[1], i[0]] + 0,
    "from the end": lambda x, i: x[i[0] - 1] * 2,
    "beside slices": lambda x, i: (x[i[1], 1:] + 1, x[:, i[1]] + 1, x[..., i[1]] + 1, x[None, i[0], None, ::2] + 1),
    "beside numbers": lambda t, i: (t[0, i[1]] + 0, t[i[0], 2, i[1]] + 0, t[i[0], :, i[1]] + 0),
    "of the largest": lambda x, y: x[y.argmax() // 4] + 0,
    "assigned": lambda x, i: _assigned(x, i),
    "added to": lambda x, i: _added(x, i),
    "counted": lambda k, i: _counted(k, i),
    "of itself": lambda x, i: _from_itself(x, i),
    "gradients": lambda x, i: _gradients(x, i),
    "after a change": lambda x, i: _looked_up_again(x, i),
    "of another object": lambda x, y, i: _renamed(x, y, i),
    "of a vector": lambda x, y, i: _from_a_vector(x, y, i),
}


def _assigned(x: Any, i: Any) -> Any:
    x[i[1]] = 5.0
    x[i[0], i[1]] = x[1, 1]
    x[:, i[0]] = x[:, 3]
    x[i[0], 1:] = True
    return x


def _added(x: Any, i: Any) -> Any:
    x[i[1]] += 1
    x[i[0], i[1]] *= x[0, 0]
    x[..., i[1]] -= x[..., 0]
    return x


def _counted(k: Any, i: Any) -> Any:
    k[i[0], i[1]] += 1
    k[i[0], i[1]] += 1
    k[i[1], i[1]] //= 2
    return k


def _from_itself(x: Any, i: Any) -> Any:
    x[i[0]] = x[1]
    x[i[1]] = x[i[0]]
    return x


def _gradients(x: Any, i: Any) -> Any:
    leaf = x.clone().requires_grad_()
    changed = leaf * 3
    changed[i[0]] = 0
    changed[i[1], i[1]] += leaf[i[1], 0]
    (leaf[i[1]].sum() + changed.pow(2).sum()).backward()
    return leaf.grad


def _looked_up_again(x: Any, i: Any) -> Any:
    before = x[i[1]].clone()
    x += 1
    return before, x[i[1]] + 0


def _renamed(x: Any, y: Any, i: Any) -> Any:
    """What was looked up is of the memory that x named then."""
    before, other = x[i[1]], y.clone().reshape(3, 4)
    x = x.detach()
    x.set_(other)
    x.mul_(2)
    return before + 0, x[i[1]] + 0, other[i[1]] + 0


def _from_a_vector(x: Any, y: Any, i: Any) -> Any:
    layer = torch.nn.Parameter(x.clone())
    before = layer.detach()[i[1]]
    torch.nn.utils.vector_to_parameters(y.clone().flatten(), [layer])
    return before + 0, layer.detach()[i[1]] + 0


async def test_it_reads_and_writes_as_torch_does(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        assert await differences(g, FORMS) == []


async def test_what_would_need_a_view_says_what_to_write(peers: Folders) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    async with grid.connect(folders=peers) as g:
        x, i = await g["alice"].send(value), await g["alice"].send(torch.tensor(1))
        for change in (lambda: x[i].add_(1), lambda: x[i][1:].zero_(), lambda: x[i].__setitem__(0, 5.0)):
            with pytest.raises(grid.ReadOnly, match=r"copy and no view.*x\[i\] = value"):
                change()
        row = x[i]
        row += 1
        for use in (lambda: row * 2, row.get):
            with pytest.raises(BadRequest, match=r"never assigned.*x\[i\] \+= value"):
                made: Any = use()
                await made
        seen, part, kept = x[i], x[i][1:], x[i].clone()
        x[0] = 1
        for use in (lambda: seen + 1, lambda: part + 1, seen.get):
            with pytest.raises(BadRequest, match=r"changed after x\[i\] was looked up.*clone"):
                made = use()
                await made
        assert torch.equal(await kept.fetch(), value[1])
        seen = x.view(-1)[:4][i]  # of views that nobody has any more
        x[0] = 2
        with pytest.raises(BadRequest, match="changed after"):
            await (seen + 1).get()
        with pytest.raises(grid.OperationFailed, match="out of bounds"):
            await x[i + 7].get()


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "itself": lambda x, _: x.add_(1),
    "data": lambda x, _: x.data.mul_(2),
    "detach": lambda x, _: x.detach().zero_(),
    "a view made before": lambda _, view: view.add_(1),
    "a view of a view": lambda x, _: x.view(-1)[:4].unsqueeze(0)[0].fill_(9),
    "reshaped": lambda x, _: x.reshape(4, 3).add_(1),
    "from the beginning": lambda x, _: x.as_strided((2,), (1,), 4).zero_(),
    "in place another view": lambda x, _: x.detach().t_()[0].zero_(),
    "one of several": lambda x, _: x.split(1)[1].zero_(),
    "a row": lambda x, _: x.__setitem__(1, 5.0),
    "by a number there": lambda x, _: x.__setitem__(x[0, 0].long(), 5.0),
    "by a mask that is awaited": lambda x, _: x.index_put_((torch.where(x[:, 0] > 2)[0],), x[0, 0]),
    "out": lambda x, _: torch.add(x[0], 1, out=x[1]),
}


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
async def test_whatever_writes_to_what_it_was_copied_from_is_noticed(peers: Folders, mode: Any) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    async with grid.connect(folders=peers) as g:
        sent, i = await g["alice"].send(value), await g["alice"].send(torch.tensor(1))
        chain = await (await g["alice"].send(value)).send(g["bob"])
        with mode():
            for name, change in CHANGES.items():
                x, other = sent + 0, sent + 0
                view, seen, unchanged = x[1:].T, x[i], other[i][1:]
                change(x, view)
                with pytest.raises(BadRequest, match=r"changed after x\[i\] was looked up"):
                    print(name, await (seen + 1).get())
                assert torch.equal(await (unchanged + 1).get(), value[1, 1:] + 1)  # of another memory
            seen = chain[await i.send(g["bob"])]
            with pytest.raises(grid.ReadOnly, match="copy and no view"):
                seen.add_(1)
            assert torch.equal(await (await (seen + 1).get()).get(), value[1] + 1)
            chain[0].add_(1)
            with pytest.raises(BadRequest, match="changed after"):
                seen + 1


async def test_what_was_looked_up_is_not_assigned_to_by_a_mask(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x, i = await g["alice"].send(torch.arange(12.0).reshape(3, 4)), await g["alice"].send(torch.tensor(1))
        with pytest.raises(grid.ReadOnly, match="copy and no view"):
            x[i].index_put_(torch.where(x[0] > 1), x[0, 0])
        assert torch.equal(await x[1].fetch(), torch.arange(4.0, 8.0))


async def test_in_a_thread_that_waits_it_is_a_view(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x, i = await g["alice"].send(torch.zeros(3, 4)), await g["alice"].send(torch.tensor(1))

        def change() -> None:
            row = x[i]
            row += 1
            x[i][2:].add_(1)
            x[i, i] += 5

        await asyncio.to_thread(change)
        assert torch.equal(await x.fetch(), torch.tensor([[0.0] * 4, [1.0, 6.0, 2.0, 2.0], [0.0] * 4]))
