"""Secret tensors share memory as torch's do: views, and changes in place, and what they cost the parties."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from protocol import limits
from protocol.errors import BadRequest, NotCollocated
from tests.grid.secret_stand_in import secret, secrets
from tests.waiting import until

Change = Callable[[torch.Tensor, torch.Tensor], object]


def _through_views(x: torch.Tensor, y: torch.Tensor) -> None:
    row, column, flat = x[1], x[:, 2], x.view(-1)
    row += 1
    column *= 2
    flat[3:7] = y.view(-1)[3:7]
    row.copy_(column.sum())


def _statistics(x: torch.Tensor, y: torch.Tensor) -> None:
    norm = torch.nn.BatchNorm1d(6)
    norm.running_mean, norm.running_var = x[0].clone(), x[1].clone()
    norm.weight = torch.nn.Parameter(y[0])
    with torch.no_grad():
        x += norm(y)
    x[2].copy_(norm.running_mean)
    x[3].copy_(norm.running_var)


_CHANGES: dict[str, Change] = {
    "add": lambda x, y: x.add_(y, alpha=2),
    "operators": lambda x, y: (x.__iadd__(1), x.__imul__(y), x.__isub__(y), x.__itruediv__(2)),
    "relu": lambda x, y: torch.relu_(x),
    "copy": lambda x, y: x.copy_(y),
    "copy of a row": lambda x, y: x.copy_(y[0]),
    "copy of public": lambda x, y: x.copy_(torch.arange(24.0).view(4, 6)),
    "zero": lambda x, y: x[1:].zero_(),
    "fill": lambda x, y: x[:, 0].fill_(3),
    "fill with a secret": lambda x, y: x.fill_(y[0, 0]),
    "set a row": lambda x, y: x.__setitem__(0, y[1]),
    "set an element": lambda x, y: x.__setitem__((1, 2), 5.0),
    "set a step": lambda x, y: x.__setitem__((slice(None), slice(1, 6, 2)), y[:, :3]),
    "set by numbers": lambda x, y: x.__setitem__(torch.tensor([2, 0]), y[:2]),
    "set where public": lambda x, y: x.__setitem__(torch.eye(4, 6) > 0, 7.0),
    "set where secret": lambda x, y: x.__setitem__(y > 0, -1.0),
    "set rows where secret": lambda x, y: x.__setitem__(y[:, 0] > 0, -1.0),
    "masked fill": lambda x, y: x.masked_fill_(y > 0, 2.0),
    "index_add": lambda x, y: x.index_add_(0, torch.tensor([1, 1]), y[:2]),
    "clamp": lambda x, y: x.clamp_(-1, 1),
    "lerp": lambda x, y: x.lerp_(y, 0.25),
    "addcmul": lambda x, y: x.addcmul_(y, y, value=0.5),
    "views": _through_views,
    "the transpose": lambda x, y: x.t().mul_(3).sub_(y.t()),
    "permuted": lambda x, y: x.view(2, 2, 6).permute(2, 0, 1)[0].add_(5),
    "diagonal": lambda x, y: x.diagonal().copy_(y.diagonal()),
    "as strided": lambda x, y: x.as_strided((3, 2), (7, 2), 1).mul_(2),
    "windows": lambda x, y: x[0].unfold(0, 2, 3)[1].add_(1),
    "a part that was split off": lambda x, y: (x.split(2, 1)[1].add_(1), x.unbind(0)[3].mul_(2), x.chunk(4)[0].neg_()),
    "of one row that was expanded": lambda x, y: x[:1].expand(3, 6)[1].add_(2),
    "a result into it": lambda x, y: torch.add(x, y, out=x),
    "largest into it": lambda x, y: torch.maximum(x, y, out=x),
    "squeezed": lambda x, y: x.unsqueeze(0).squeeze_(0).add_(1),
    "turned": lambda x, y: x.view(6, 4).t_().add_(1),
    "statistics of a norm": _statistics,
    "statistics themselves": lambda x, y: torch.native_batch_norm(y, None, None, x[0], x[1], True, 0.1, 1e-5),
}


@pytest.mark.parametrize("name", list(_CHANGES))
async def test_a_change_in_place_is_seen_as_torch_has_it(name: str) -> None:
    torch.manual_seed(1)
    x, y, of = torch.randn(4, 6), torch.randn(4, 6), secrets()
    s, t = secret(of, x), secret(of, y)
    views = [(each[1], each.t(), each.reshape(-1)[::3]) for each in (x, s)]
    _CHANGES[name](x, y)
    _CHANGES[name](s, t)
    torch.testing.assert_close(await s.get(), x, atol=1e-3, rtol=1e-3)
    for plain, seen in zip(*views, strict=True):
        assert (seen.shape, seen.stride()) == (plain.shape, plain.stride())
        torch.testing.assert_close(await seen.get(), plain, atol=1e-3, rtol=1e-3)


def _computed(of: Any) -> list[str]:
    """The operations that the parties computed."""
    return [node.operation for made in of._engine.programs for node in made.program.nodes]


async def test_what_was_computed_before_a_change_is_of_what_was_there_before() -> None:
    of, x = secrets(), torch.randn(3)
    s, public = secret(of, x), torch.ones(3)
    before, with_public = s * 2, s + public
    s.add_(1)
    public.zero_()
    torch.testing.assert_close(await before.get(), x * 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(await with_public.get(), x + 1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(await s.get(), x + 1, atol=1e-4, rtol=1e-4)


async def test_changes_that_cannot_be_are_refused_and_change_nothing() -> None:
    of, x = secrets(), torch.randn(1, 3)
    s, here = secret(of, x), torch.zeros(1, 3)
    with pytest.raises(BadRequest, match="clone"):
        s.expand(4, 3).add_(1)
    with pytest.raises(NotCollocated, match="Share it first"):
        here += s
    with pytest.raises(RuntimeError):
        s.add_(torch.ones(4, 3))  # a shape that it does not have
    with pytest.raises(BadRequest, match="does not have"):
        s.resize_(7)
    torch.testing.assert_close(await s.get(), x, atol=1e-4, rtol=1e-4)
    assert not here.any()


async def _is_kept(engine: Any, count: int) -> None:
    """The thread that took a program apart lets go of it a moment after it gave it."""
    await until(lambda: engine.kept == count, lambda: engine.kept)


async def test_parties_keep_what_is_held_and_nothing_else() -> None:
    of = secrets()
    engine = of._engine
    s, t = secret(of, torch.randn(2, 2)), secret(of, torch.randn(2, 2))
    z = (s * t + 1).relu()  # two values between that nobody has
    view = z[0]
    await z.get()
    await _is_kept(engine, 3)  # s, t and z: a view keeps nothing of its own
    assert len(engine.programs[0].program.outputs) == 4  # these, and z to be revealed: nothing between goes out
    await view.get()
    await _is_kept(engine, 3)
    del s, t
    await _is_kept(engine, 1)
    z.add_(1)  # what it was is let go of when what it is now has been computed
    await _is_kept(engine, 1)
    await z
    await _is_kept(engine, 1)
    del z
    await _is_kept(engine, 1)  # the view holds the whole
    del view
    await _is_kept(engine, 0)


async def test_what_nobody_wants_is_not_computed() -> None:
    of = secrets()
    s = secret(of, torch.randn(2, 2))
    s.exp()
    unused = s.sin()
    del unused
    await (s + 1).get()
    assert _computed(of) == ["aten.add.Tensor"]


async def test_operations_in_a_row_are_one_run_and_the_same_again_is_the_same_program() -> None:
    of = secrets()
    engine = of._engine
    s: Any
    s, w = secret(of, torch.randn(2, 3)), secret(of, torch.randn(3, 3))
    for _ in range(4):
        s = (s @ w).relu()
        await s
    assert len(engine.programs) == 4 and engine.revealed == 0
    assert engine.programs[2].program.id == engine.programs[3].program.id
    assert engine.programs[2] is engine.programs[3]  # lowered once


async def test_many_operations_are_computed_in_programs_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECRET_PENDING", 20)
    of = secrets()
    engine = of._engine
    s: Any = secret(of, torch.zeros(2))
    for _ in range(90):
        s = s + 1
    torch.testing.assert_close(await s.get(), torch.full((2,), 90.0))
    assert max(len(made.program.nodes) for made in engine.programs) == 20 and len(engine.programs) >= 5
    del s
    await _is_kept(engine, 0)


async def test_tasks_that_ask_at_the_same_time_share_what_is_computed() -> None:
    of, x = secrets(), torch.randn(3)
    s = secret(of, x)
    t = s * 2
    one, two, three = await asyncio.gather(t.get(), (t + 1).get(), s.get())
    torch.testing.assert_close(one, x * 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two, x * 2 + 1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(three, x, atol=1e-4, rtol=1e-4)
    assert _computed(of).count("aten.mul.Tensor") == 1


async def test_who_gives_up_waiting_stops_nothing() -> None:
    of, x = secrets(), torch.randn(3)
    s = secret(of, x) + 1
    task = asyncio.create_task(s.get())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: _computed(of) == ["aten.add.Tensor"])
    torch.testing.assert_close(await s.get(), x + 1, atol=1e-4, rtol=1e-4)
    assert _computed(of) == ["aten.add.Tensor"]  # not once more
