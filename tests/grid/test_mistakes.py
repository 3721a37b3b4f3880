"""Wrong use by honest people: the class of the error, and a sentence that says what to do."""

from __future__ import annotations

import asyncio
import copy
import io
import math
import multiprocessing.reduction
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import grid
from peer.folders import Folders
from protocol.errors import BadRequest
from tests import loops

WAIT = r"(?s)alice.*await pointer\.get\(\).*await asyncio\.to_thread"


async def test_values_in_the_loop_need_an_await(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(6.0).reshape(2, 3))
        s = x.sum()
        asks: list[Any] = [
            lambda: 1 if x > 0 else 2,
            lambda: 0 < s < 3,
            lambda: s > 0 and s < 3,
            lambda: not s,
            lambda: s.item(),
            lambda: x.tolist(),
            lambda: x.numpy(),
            lambda: x.detach().cpu().numpy(),
            lambda: np.array(x),
            lambda: np.asarray(x),
            lambda: np.add(x, 1),
            lambda: x + np.ones((2, 3)),
            lambda: np.from_dlpack(x),  # type: ignore[arg-type]
            lambda: float(s),
            lambda: int(s),
            lambda: complex(s),
            lambda: math.sqrt(s),
            lambda: "%.3f" % s,  # noqa: UP031
            lambda: range(s.long()),  # type: ignore[arg-type]
            lambda: [1, 2][s.long()],  # type: ignore[call-overload]
            lambda: x[: s.long()],
            lambda: max([s, s + 1]),
            lambda: sorted([s + 1, s]),
            lambda: 3 in x,
            lambda: [s * 2, s].index(s),
            lambda: torch.equal(x, x + 1),
            lambda: torch.allclose(x, x + 1),
            lambda: torch.isnan(x).any() or s,
            lambda: torch.tensor([s, s]),
            lambda: nn.functional.one_hot(x.long()),
            lambda: nn.utils.clip_grad_norm_([_with_grad(x)], 1.0, error_if_nonfinite=True),
        ]
        for number, ask in enumerate(asks):
            with pytest.raises(grid.NeedsAwait, match=WAIT):
                pytest.fail(f"{number} gave {ask()!r}")
        assert torch.equal(await x.get(), torch.arange(6.0).reshape(2, 3))


def _with_grad(x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    leaf.grad = x
    return leaf


async def test_pointers_can_be_shown_anywhere(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(3.0))
        for shown in (repr(x), str(x), f"{x}", f"{x.sum():.3f}", "{:>9}".format(x), str([x]), repr({"a": x})):  # noqa: UP032
            assert "Pointer(alice:" in shown
        gone = x.clone()
        await gone.get()
        assert "Pointer(alice:" in repr(gone)
        assert x is not None and (x == None) is False and x in [x] and {x: 1}[x] == 1  # noqa: E711


async def test_local_and_remote_tensors_do_not_mix(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x, local = await g["alice"].send(torch.ones(2, 3)), torch.ones(2, 3)
        mixes: list[Any] = [
            lambda: x + local,
            lambda: local + x,
            lambda: local @ x.T,
            lambda: torch.stack([x, local]),
            lambda: torch.cat([local, x]),
            lambda: torch.where(x > 0, x, local),
            lambda: nn.functional.mse_loss(x, local),
            lambda: nn.Linear(3, 2)(x),
            lambda: x.clone().copy_(local),
            lambda: x.__setitem__(0, local[0]),
            lambda: setattr(x, "data", local),
            lambda: local.add_(x),
            lambda: local.__setitem__(0, x[0]),
            lambda: torch.zeros(2, 3).copy_(x),
            lambda: torch.zeros(2, 3).add_(x),
            lambda: x[torch.arange(60_000) % 2],
        ]
        for number, mix in enumerate(mixes):
            with pytest.raises(grid.NotCollocated, match=r"(?s)alice.*send") as caught:
                pytest.fail(f"{number} gave {mix()!r}")
            assert "here" in str(caught.value) or "send the tensor" in str(caught.value)
        with pytest.raises(grid.NotCollocated, match=r"with its module \(net = await g\['alice'\]\.send\(net\)\)"):
            nn.Linear(3, 2, bias=False)(x)
        assert torch.equal(local, torch.ones(2, 3))
        y = await g["bob"].send(local)
        with pytest.raises(grid.NotCollocated, match=r"(?s)alice.*bob.*await y\.move\(g\['alice'\]\)"):
            x + y


async def test_pointers_do_not_leave_the_session(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2))
        leaves: list[Any] = [
            lambda: pickle.dumps(x),
            lambda: torch.save(x, io.BytesIO()),
            lambda: torch.save({"weights": [x]}, io.BytesIO()),
            lambda: multiprocessing.reduction.ForkingPickler.dumps(x),
        ]
        for leave in leaves:
            with pytest.raises(BadRequest, match=r"(?s)pickled or saved.*fetch\(\).*tag\("):
                leave()
        same = copy.copy(x)
        same += 1
        assert torch.equal(await x.fetch(), torch.full((2,), 2.0))


async def test_modules_do_not_leave_the_session_either(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(nn.Sequential(nn.Linear(2, 2)))
        for leave in (lambda: pickle.dumps(net), lambda: torch.save(net, io.BytesIO())):
            with pytest.raises(BadRequest, match=r"module at a peer cannot be pickled.*await net\.fetch\(\)"):
                leave()
        with pytest.raises(BadRequest, match=r"await net\.move\(peer\)"):
            net.to(g["bob"])
        same, other = copy.copy(net), copy.deepcopy(net)
        with torch.no_grad():
            other[0].weight.zero_()
        assert type(same) is type(other) is type(net) and same[0] is net[0]
        assert not torch.equal(await net[0].weight.fetch(), await other[0].weight.fetch())


async def test_a_process_that_was_forked_is_told_so(peers: Folders) -> None:
    """What a DataLoader's workers get back is an error, and not a wait for ever."""
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(6.0).reshape(3, 2))
        for rows in (x, _Looking(x)):
            loader: Any = DataLoader(rows, batch_size=2, num_workers=1, multiprocessing_context="fork")  # type: ignore[arg-type]
            with pytest.raises(BadRequest, match=r"another process.*num_workers=0"):
                await asyncio.to_thread(list, loader)
        with pytest.raises(BadRequest, match="pickled"):
            next(iter(DataLoader(x, num_workers=1, multiprocessing_context="spawn")))  # type: ignore[arg-type]
        assert torch.equal(await (x + 1).get(), torch.arange(6.0).reshape(3, 2) + 1)
        assert [batch.shape for batch in DataLoader(x, batch_size=2)] == [(2, 2), (1, 2)]  # type: ignore[arg-type]


class _Looking:
    """Rows whose values somebody looks at."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> float:
        return float(self.x.item())


async def test_what_is_gone_says_where_it_went(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2))
        moved, taken, deleted = x.clone(), x.clone(), x.clone()
        await moved.move(g["bob"])
        await taken.get()
        await deleted.delete()
        for gone, why in ((moved, "moved to bob; use the pointer"), (taken, "get\\(\\) took it"), (deleted, "deleted")):
            with pytest.raises(BadRequest, match=why):
                gone + 1
            assert repr(gone).endswith(", gone)")
            for ask in (gone.get, gone.fetch, lambda gone=gone: gone.move(g["bob"])):
                with pytest.raises(BadRequest, match=why):
                    await ask()


async def test_a_name_is_no_peer(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x: Any = await g["alice"].send(torch.ones(2))
        for call in (x.move, x.copy, x.send, x.remote_send):
            with pytest.raises(BadRequest, match=r"\(\) takes a peer, not 'bob': for example \w+\(g\['alice'\]\)"):
                await call("bob")


async def test_the_memory_of_a_pointer_is_elsewhere(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2))
        for name in ("share_memory_", "pin_memory", "data_ptr", "storage", "apply_", "map_", "set_"):
            with pytest.raises(BadRequest, match=rf"{name}\(\) works on a tensor's memory, and that is at alice"):
                getattr(x, name)(2)
        for ask in (lambda: x.cuda(), lambda: x.to("cuda"), lambda: x.to(device="cuda:1"), lambda: x.double().to(0)):
            with pytest.raises(BadRequest, match=r"at alice, which decides on what device .*await x\.move"):
                ask()
        with pytest.raises(BadRequest, match=r"await x\.move\(peer\)"):
            x.to(g["bob"])
        assert (x.is_cuda, x.is_shared(), x.is_pinned(), x.device.type) == (False, False, False, "cpu")


async def test_pythons_own_mistakes_stay_pythons(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(6.0).reshape(2, 3))
        forgotten = x.get()
        with pytest.raises(TypeError, match="coroutine"):
            forgotten + 1  # type: ignore[operator]
        forgotten.close()
        for ask, kind, text in (
            (lambda: len(x.sum()), TypeError, "0-d"),
            (lambda: list(x.sum()), TypeError, "0-d"),
            (lambda: x[5], IndexError, "out of bounds"),
            (lambda: x[::-1], ValueError, "greater than zero"),
            (lambda: x[0.5], IndexError, "indices"),
            (lambda: x.nothing, AttributeError, "nothing"),  # type: ignore[attr-defined]
            (lambda: x.view(4), grid.OperationFailed, "invalid for input of size 6"),
            (lambda: torch.add(x, x, out=torch.zeros_like(x[0])), BadRequest, "leave out= away"),
            (lambda: x @ x, grid.OperationFailed, "dim"),
        ):
            with pytest.raises(kind, match=text):
                ask()
        with pytest.raises(RuntimeError, match="running event loop"):
            running = x.get()
            try:
                asyncio.run(running)
            finally:
                running.close()
        assert await x is x


async def test_awaiting_a_pointer_raises_what_it_failed_with(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.tensor([1, 2]))
        with pytest.raises(grid.OperationFailed, match="out of bounds"):
            await x.gather(0, x + 5)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        ([torch.ones(2), torch.ones(3)], "each of its tensors"),
        (TensorDataset(torch.ones(2), torch.ones(2)), "TensorDataset: send each of its tensors"),
        (torch.optim.SGD([nn.Parameter(torch.ones(2))]), "when the module is there"),
        ([1.0, 2.0], "as_tensor"),
        (3, "as_tensor"),
    ],
    ids=["tensors", "a data set", "an optimiser", "numbers", "a number"],
)
async def test_what_cannot_be_sent_is_told_what_to_send(peers: Folders, value: Any, instead: str) -> None:
    async with grid.connect(folders=peers) as g:
        with pytest.raises(BadRequest, match=instead):
            await g["alice"].send(value)


def test_a_pointer_belongs_to_the_loop_of_its_connection(peers: Folders) -> None:
    async def first() -> tuple[grid.Grid, Any]:
        g = await grid.connect(folders=peers)
        x = await g["alice"].send(torch.ones(2))
        await g.close()
        with pytest.raises(grid.PeerLost, match="connect again"):
            await (x + 1).get()
        with pytest.raises(grid.PeerLost, match="connect again"):
            await g["alice"].send(torch.ones(2))
        return g, x

    async def second(g: grid.Grid, x: Any) -> None:
        asks: list[Any] = [x.get, x.fetch, lambda: x.move(g["bob"]), lambda: x.tag("#a"), lambda: x.send(g["bob"])]
        asks += [lambda: g["alice"].send(torch.ones(2)), g["alice"].status, g["alice"].clear]
        for number, ask in enumerate(asks):
            with pytest.raises(BadRequest, match="event loop"):
                pytest.fail(f"{number} gave {await ask()}")
        with pytest.raises(BadRequest, match="event loop"):
            x + 1

        for ask in (lambda: g.search("#a"), g.refresh, g.close):
            with pytest.raises(BadRequest, match="event loop"):
                await ask()

    g, x = loops.run(first())
    loops.run(second(g, x))
    for ask in (lambda: x + 1, lambda: float(x.sum()), lambda: x.tolist()):
        with pytest.raises(BadRequest, match="event loop"):
            ask()


async def test_another_loop_at_the_same_time_is_told_so(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2))

        def elsewhere() -> str:
            with pytest.raises(BadRequest) as caught:
                asyncio.run(x.fetch())
            return str(caught.value)

        text = await asyncio.to_thread(elsewhere)
        assert "another event loop" in text and "grid.connect()" in text
        assert torch.equal(await x.get(), torch.ones(2))


async def test_a_notebook_connects_with_an_await_and_closes_later(peers: Folders) -> None:
    """Cells are awaited in a loop that runs all the time; there is no `async with` around them."""
    cells = [
        "g = await grid.connect(folders=peers)",
        "x = await g['alice'].send(torch.ones(3))",
        "x",
        "positive = await x[x > 0]",
        "value = await (x + positive).get()",
        "await g.close()",
    ]
    names: dict[str, Any] = {"grid": grid, "torch": torch, "peers": peers}
    for cell in cells:
        import ast
        import inspect

        code = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        made = eval(code, names)
        if inspect.iscoroutine(made):
            await made
    assert torch.equal(names["value"], torch.full((3,), 2.0))


async def test_where_torch_itself_looks_at_a_value_the_sentence_says_what_needs_no_look(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.export switches these checks off for the whole process.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        x, p = await alice.send(torch.tensor([0, 2, 1])), await alice.send(torch.tensor([0.2, 0.3, 0.5]))
        sound, window = await alice.send(torch.randn(800)), await alice.send(torch.hann_window(80))
        spectrum = torch.stft(sound, 80, window=window, return_complex=True)
        for ask, hint in [
            (lambda: F.one_hot(x), "torch's own code .*num_classes"),
            (lambda: F.gaussian_nll_loss(p, p, p), r"asked by torch.nn.functional.gaussian_nll_loss, needs"),
            (lambda: torch.equal(p, p), r"\(x == y\)\.all\(\) stays there"),
            (lambda: torch.istft(spectrum, 80, window=window), "torch.istft"),
            (lambda: torch.distributions.Categorical(p), "validate_args=False"),
            (lambda: torch.distributions.Normal(p, p), "validate_args=False"),
            (lambda: nn.init.trunc_normal_(p.clone()), "initialise before the tensor goes there"),
            (lambda: p.sum().item(), r"^.item\(\) needs the value, which is at alice: use"),
        ]:
            with pytest.raises(grid.NeedsAwait, match=hint) as caught:
                ask()
            assert "asyncio.to_thread" in caught.value.message
        with pytest.raises(grid.NotCollocated, match=r"torch.istft makes such a window itself"):
            torch.istft(spectrum, 80)

        def all_of_it() -> list[torch.Tensor]:
            """The same in a thread, where it waits."""
            drawn = torch.distributions.Categorical(p).sample((9,))  # type: ignore[no-untyped-call]
            grown = nn.init.trunc_normal_(p.clone(), a=-0.5, b=0.5)
            return [F.one_hot(x), torch.istft(spectrum, 80, window=window), drawn, grown]

        one_hot, back, drawn, grown = [await each.get() for each in await asyncio.to_thread(all_of_it)]  # type: ignore[attr-defined]
        assert torch.equal(one_hot, torch.eye(3, dtype=torch.int64)[[0, 2, 1]])
        assert torch.allclose(back, await sound.get(), atol=1e-5)
        assert set(drawn.tolist()) <= {0, 1, 2}
        assert float(grown.abs().max()) <= 0.5
        assert (await F.one_hot(x, 4).get()).shape == (3, 4)
        unchecked = torch.distributions.Categorical(p, validate_args=False)  # type: ignore[no-untyped-call]
        assert (await unchecked.sample((5,)).get()).shape == (5,)


async def test_pruning_whole_rows_of_what_is_at_a_peer_works_as_it_does_here(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        layer = nn.Linear(6, 5)
        local = copy.deepcopy(layer)
        prune.ln_structured(local, "weight", 0.4, n=2, dim=0)  # type: ignore[no-untyped-call]
        layer.weight = nn.Parameter(await g["alice"].send(layer.weight.detach()))
        prune.ln_structured(layer, "weight", 0.4, n=2, dim=0)  # type: ignore[no-untyped-call]
        assert torch.equal(await layer.weight_mask.fetch(), local.weight_mask)  # type: ignore[operator, arg-type]
