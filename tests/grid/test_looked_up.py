"""x[i], where i is a number at the peer: read and written there, and never a copy that passes for a view."""

from __future__ import annotations

import asyncio
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
