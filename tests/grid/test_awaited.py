"""Results whose shape depends on the data: awaited; or at hand in a thread that may wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import grid
from peer.folders import Folders
from protocol.errors import BadRequest, Denied
from tests.grid.forms import Lines, differences, is_same

AWAITED: dict[str, Lines] = {
    "x[m]": lambda x, m: x[m],
    "x[x > 0]": lambda x: x[x > 0],
    "x[rows]": lambda x, m: x[m[:, 0]],
    "x[:, columns]": lambda x, m: x[:, m[0]],
    "t[m of its first two]": lambda t, m: t[m[:2, :3]],
    "x.T[m.T]": lambda x, m: x.T[m.T],
    "x.T[rows]": lambda x, m: x.T[m[0]],
    "masked_select": lambda x, m: x.masked_select(m),
    "masked_select, broadcast": lambda t, m: torch.masked_select(t, m),
    "nonzero": lambda m: m.nonzero(),
    "torch.nonzero": lambda x: torch.nonzero(x),
    "nonzero(as_tuple=True)": lambda m: m.nonzero(as_tuple=True),
    "torch.nonzero(as_tuple=True)": lambda m: torch.nonzero(m, as_tuple=True),
    "torch.where": lambda m: torch.where(m),
    "x[torch.where(m)]": lambda x, m: x[torch.where(m)],
    "argwhere": lambda m: torch.argwhere(m),
    "argwhere of one": lambda s: torch.argwhere(s),
    "unique": lambda k: (k % 4).unique(),
    "torch.unique": lambda k: torch.unique(k % 4),
    "unique, counts": lambda k: (k % 4).unique(return_counts=True),
    "torch.unique, all": lambda k: torch.unique(k % 4, return_inverse=True, return_counts=True),
    "unique of rows": lambda k: torch.unique(k[:, :1] % 4, dim=0, return_inverse=True),
    "unique of columns": lambda k: torch.unique(k % 2, dim=1),
    "unique_consecutive": lambda k: torch.unique_consecutive(k // 5, return_counts=True),
    "bincount": lambda k: k.flatten().bincount(),
    "bincount, weights": lambda k, x: torch.bincount(k.flatten(), x.flatten()),
    "repeat_interleave": lambda x, i: x[:2].repeat_interleave(i, 0),
    "torch.repeat_interleave": lambda i: torch.repeat_interleave(i),
    "repeat_interleave, local": lambda v: v.repeat_interleave(torch.tensor([1, 2, 0, 3])),
    "what is known already": lambda x: x + 1,
}


async def test_awaited_forms_give_what_torch_gives(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        assert await differences(g, AWAITED) == []
        with torch.inference_mode():
            assert await differences(g, AWAITED) == []


async def test_what_comes_of_them_is_computed_on_like_anything_else(peers: Folders) -> None:
    value = torch.randn(4, 5)
    value[0] = torch.tensor([1.0, -1.0, 2.0, 3.0, -1.0])
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(value)
        rows = await x.T[x[0] > 0]
        expected = value.T[value[0] > 0]
        assert isinstance(rows, grid.Pointer) and rows.shape == expected.shape
        assert torch.allclose(await (rows.reshape(-1) * 2).get(), expected.reshape(-1) * 2)
        assert torch.equal(await x[x > 0].get(), value[value > 0])
        assert torch.equal(await x[x > 0].fetch(), value[value > 0])
        top, count = await asyncio.gather(*torch.unique(x > 0, return_counts=True))
        assert torch.equal(await count.get(), torch.unique(value > 0, return_counts=True)[1]) and len(top) == 2


async def test_what_decides_is_here_then_nothing_is_awaited(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.randn(3, 4))
        mask = torch.tensor([True, False, True])
        for made, shape in (
            (x[mask], (2, 4)),
            (x[[True, False, False]], (1, 4)),
            (x.masked_select(mask[:, None]), (8,)),
            (x[0].repeat_interleave(torch.tensor([1, 2, 0, 3])), (6,)),
            (torch.combinations(x[0]), (6, 2)),
        ):
            assert isinstance(made, grid.Pointer) and made.shape == shape


async def test_it_is_the_result_of_when_it_was_asked_for(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([1.0, -1.0, 2.0]))
        positive = x[x > 0]
        x.zero_()
        assert torch.equal(await positive.get(), torch.tensor([1.0, 2.0]))


async def test_gradients_go_through_what_was_awaited(peers: Folders) -> None:
    async def gradient(x: Any, await_it: Any, form: Any) -> torch.Tensor:
        x = x.clone().requires_grad_()
        made = await await_it(form(x * 1))
        (made * made).sum().backward()
        return x.grad  # type: ignore[no-any-return]

    async def as_it_is(value: Any) -> Any:
        return value

    async def awaited(value: Any) -> Any:
        return await value

    here, repeats = torch.randn(3, 4), torch.tensor([2, 0, 1])
    async with grid.connect(folders=peers) as g:
        there, many = await g["alice"].send(here), await g["alice"].send(repeats)
        forms: list[tuple[Any, Any]] = [
            (lambda x: x[x > 0], lambda x: x[x > 0]),
            (lambda x: x.masked_select(x > 0), lambda x: x.masked_select(x > 0)),
            (lambda x: x[torch.where(x > 0)], lambda x: x[torch.where(x > 0)]),
            (lambda x: x.T[x[0] > 0], lambda x: x.T[x[0] > 0]),
            (lambda x: x.repeat_interleave(many, 0), lambda x: x.repeat_interleave(repeats, 0)),
        ]
        for remote, local in forms:
            made = await gradient(there, awaited, remote)
            assert torch.allclose(await made.get(), await gradient(here, as_it_is, local))  # type: ignore[attr-defined]


async def test_history_needs_the_input_as_it_was(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = (await g["alice"].send(torch.tensor([1.0, -1.0]))).requires_grad_()
        changed = x * 1
        positive = changed[changed > 0]
        changed.add_(1)
        with pytest.raises(BadRequest, match="changed in place before its result was awaited"):
            await positive


async def test_any_other_use_says_what_to_write(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([[1.0, -1.0]]))
        uses: list[Any] = [
            lambda: x[x > 0].shape,
            lambda: x[x > 0] + 1,
            lambda: 1 - x[x > 0],
            lambda: x @ x[x > 0],
            lambda: len(x.nonzero()),
            lambda: x.nonzero().size(0),
            lambda: torch.nonzero(x).sum(),
            lambda: list(x[x > 0]),
            lambda: x[x > 0][0],
            lambda: x[x > 0].item(),
            lambda: x.unique().view(-1),
            lambda: torch.cat([x[0], x[x > 0]]),
            lambda: x[x > 0] == 1,
        ]
        for use in uses:
            with pytest.raises(grid.NeedsAwait, match=r"(?s)alice.*await x.*to_thread"):
                use()
        with pytest.raises(grid.NeedsAwait, match=r"x\[mask\] = \(await x\[mask\]\) \+ 1"):
            x[x > 0] += 1
        with pytest.raises(grid.NeedsAwait, match=r"await x\.unique\(return_counts=True\)"):
            x.unique().sum()
        assert repr(x[x > 0]).startswith("Unsized(alice:") and "to be awaited" in f"{x.nonzero()}"


async def test_a_failure_and_a_refusal_come_when_it_is_awaited(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([1, 2, 3]))
        far = x.gather(0, x + 5)
        with pytest.raises(grid.OperationFailed, match="out of bounds"):
            await far[far > 0]
        with pytest.raises(grid.OperationFailed):
            await (x - 2).bincount()
        with pytest.raises(grid.OperationFailed, match="out of bounds"):
            await far


async def test_the_shape_of_private_data_stays_private(peers: Folders) -> None:
    from peer.keys import Identity

    async with grid.connect(folders=peers, identity=Identity.generate()) as other:
        await other["alice"].send(torch.tensor([1.0, -1.0]), tags=["#awaited-private"], private=True)
        async with grid.connect(folders=peers, identity=Identity.generate()) as g:
            (x,) = await g.search("#awaited-private")
            with pytest.raises(Denied):
                await x[x > 0]
            with pytest.raises(Denied):
                await x.nonzero()
        await other["alice"].clear()


async def test_in_a_thread_nothing_needs_an_await(peers: Folders) -> None:
    value = torch.randn(4, 5)
    counts = torch.tensor([1, 0, 3, 1])

    def lines(x: Any, repeats: Any) -> list[Any]:
        found: list[Any] = [x[x > 0] * 2, x.nonzero().size(0), len(x[x[:, 0] > 0]), *torch.where(x > 0)]
        found += [float(x.sum()), int(x[0, 0] * 10), x.sum().item(), x.tolist(), x.numpy().sum(), f"{x.mean():.3f}"]
        found += [bool((x > -9).all()), torch.equal(x, x), torch.allclose(x, x + 1), 3.0 in x, sorted(x[0].unbind())]
        found += [F.one_hot(repeats), x.repeat_interleave(repeats, 0), *torch.unique(repeats, return_counts=True)]
        found += [x[x[0].argmax()], "positive" if x.sum() > 0 else "negative", max(x[:, 0])]
        y = x.clone().requires_grad_()
        y[y > 0].square().sum().backward()
        return [*found, y.grad, x[0] in x, x[:1] + 1 in x]

    async with grid.connect(folders=peers) as g:
        x, repeats = await g["alice"].send(value), await g["alice"].send(counts)
        made = await asyncio.to_thread(lines, x, repeats)
        expected = lines(value, counts)
        for number, (one, other) in enumerate(zip(made, expected, strict=True)):
            one = [await each.fetch() for each in one] if isinstance(one, list) and number == 12 else one
            one = await one.fetch() if isinstance(one, grid.Pointer) else one
            if isinstance(other, torch.Tensor):
                assert is_same(one, other), number
            elif not isinstance(other, list):
                assert one == pytest.approx(other), number


async def test_a_training_loop_that_looks_at_its_loss_runs_in_a_thread(peers: Folders) -> None:
    def fit(x: Any, y: Any) -> tuple[list[float], torch.Tensor]:
        weight = torch.zeros_like(x[0]).requires_grad_()
        optimizer = torch.optim.LBFGS([weight], max_iter=4)
        losses: list[float] = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(x @ weight, y)
            loss.backward()
            return loss

        for _ in range(5):
            losses.append(optimizer.step(closure).item())
            torch.nn.utils.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)
            if losses[-1] < 1e-6:
                break
        return losses, weight.detach()

    data, target = torch.randn(20, 3), torch.randn(20)
    async with grid.connect(folders=peers) as g:
        losses, weight = await asyncio.to_thread(fit, await g["bob"].send(data), await g["bob"].send(target))
        expected = fit(data, target)
        assert losses == pytest.approx(expected[0], rel=1e-3)
        assert torch.allclose(await weight.get(), expected[1], atol=1e-3)  # type: ignore[attr-defined]


async def test_threads_and_the_loop_compute_at_the_same_time(peers: Folders) -> None:
    def count(x: Any) -> float:
        total = 0.0
        for _ in range(20):
            x = x + 1
            total += float(x.sum())
        return total

    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.zeros(3))
        threads = [asyncio.to_thread(count, x) for _ in range(3)]
        y: Any = x
        tasks = asyncio.gather(*threads)
        for _ in range(50):
            y = y + 1
            await asyncio.sleep(0)
        assert await tasks == [630.0] * 3 and torch.equal(await y.get(), torch.full((3,), 50.0))


async def test_a_chain_gives_awaited_forms_too(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([1.0, -1.0, 2.0]))
        chain = await x.send(g["bob"])
        positive = await chain[chain > 0]
        assert positive.location is g["bob"]
        assert torch.equal(await (await positive.get()).get(), torch.tensor([1.0, 2.0]))
