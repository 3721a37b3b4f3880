"""`out=` on pointers: what local tensors give, or torch's own refusal; never memory that is not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from protocol.errors import BadRequest, NotCollocated, OperationFailed
from tests.grid.forms import is_same, value_of

Into = Callable[..., Any]
SQUARE = torch.tensor([[4.0, 1.0, 0.0], [1.0, 5.0, 2.0], [0.0, 2.0, 6.0]])
NAMES = {
    "a": SQUARE,
    "v": torch.arange(3.0),
    "t": torch.ones(2, 2, 3),
    "n": torch.tensor([0.6, 0.6, 0.6, 2.6]),
    "h": torch.full((1, 1000), 1.01).bfloat16(),
    "k": torch.tensor([2, 0, 1]),
}

# torch makes results of its own beside those that are asked for, or writes in another shape.
OF_TORCH: Mapping[str, Into] = {
    "inv": lambda a, out: torch.linalg.inv(a, out=out),
    "inverse": lambda a, out: torch.inverse(a, out=out),
    "cholesky": lambda a, out: torch.linalg.cholesky(a, out=out),
    "solve": lambda a, out: torch.linalg.solve(a, a + 1, out=out),
    "a power below zero": lambda a, out: torch.linalg.matrix_power(a, -1, out=out),
    "a power": lambda a, out: torch.matrix_power(a, 3, out=out),
    "lu_factor": lambda a, out, pivots: torch.linalg.lu_factor(a, out=(out, pivots)),
    "ldl_factor": lambda a, out, pivots: torch.linalg.ldl_factor(a, out=(out, pivots)),
    "det": lambda a, out: torch.linalg.det(a, out=out),
    "slogdet": lambda a, sign, out: torch.slogdet(a, out=(sign, out)),
    "svdvals": lambda a, out: torch.linalg.svdvals(a, out=out),
    "eigvalsh": lambda a, out: torch.linalg.eigvalsh(a, out=out),
    "matrix_rank": lambda a, out: torch.linalg.matrix_rank(a, out=out),
    "msort": lambda a, out: torch.msort(a, out=out),
    "argsort": lambda a, out: torch.ops.aten.argsort.stable_out(a, stable=True, out=out),
    "log_sigmoid": lambda a, out: torch._C._nn.log_sigmoid(a, out=out),  # type: ignore[call-arg]
    "nll_loss": lambda a, k, out: torch._C._nn.nll_loss(a, k, out=out),  # type: ignore[attr-defined]
    "a vector and a matrix": lambda v, a, out: torch.matmul(v, a, out=out),
    "matrices and one": lambda t, a, out: torch.matmul(t, a, out=out),
    "kron": lambda v, a, out: torch.kron(v, a, out=out),
    "diff": lambda v, out: torch.diff(v, out=out),
}
OF_ANOTHER_DTYPE: Mapping[str, tuple[Into, torch.dtype]] = {
    "cumsum": (lambda n, out: torch.cumsum(n, 0, out=out), torch.int64),
    "cumprod": (lambda n, out: torch.cumprod(n, 0, out=out), torch.int64),
    "prod": (lambda n, out: torch.prod(n, 0, out=out), torch.int64),
    "sum": (lambda h, out: torch.sum(h, 1, out=out), torch.float64),
    "mean": (lambda h, out: torch.mean(h, 1, out=out), torch.float64),
    "linspace": (lambda v, out: torch.linspace(v[0], v[2], 4, out=out), torch.int64),
    "add": (lambda a, out: torch.add(a, 1, out=out), torch.float64),
    "compared": (lambda a, out: torch.gt(a, 1, out=out), torch.float32),
    "stack": (lambda v, out: torch.stack([v, v], out=out), torch.float64),
    "any": (lambda a, out: torch.any(a, 1, out=out), torch.uint8),
}
REFUSED: Mapping[str, tuple[Into, str]] = {
    "no such cast": (lambda a: torch.add(a, a, out=a.long()), "Float can't be cast to the desired output type Long"),
    "amax": (lambda a: torch.amax(a, 0, out=a[0].double()), "Float.*(Double|double)"),
    "gather": (lambda v, k: torch.gather(v, 0, k, out=v.double()), "(Float|float).*(Double|double)"),
    "index_select": (lambda v, k: torch.index_select(v, 0, k, out=v.double()), "same scalar type|Float"),
    "qr": (lambda a: torch.linalg.qr(a, out=(a.double(), a.double())), "(Float|float).*(Double|double)"),
    "values and places": (lambda a: torch.sort(a, 1, out=(a.double(), a.long())), "(Float|float).*(Double|double)"),
    "multinomial": (lambda v: torch.multinomial(v, 2, out=torch.zeros_like(v[:2])), "Long"),
    "any": (lambda a: torch.any(a, 1, out=a[0] * 1), "(B|b)ool.*Float"),
    "neg": (lambda a: torch.neg(a, out=a.double()), "Double|Float"),
    "inv": (lambda a: torch.linalg.inv(a, out=a.double()), "(Float|float).*(Double|double)"),
    "histogram": (lambda v: torch.histogram(v, 3, out=(v.double(), torch.zeros_like(v.repeat(2)[:4]))), "hist|Float"),
    "beside itself": (lambda v: torch.add(v[:2], 1, out=v[1:]), "single memory location"),
    "turned": (lambda a: torch.mul(a, 2, out=a.t()), "single memory location"),
    "cat": (lambda v: torch.cat([v[:1], v[1:2]], out=v[:2]), "single memory location"),
    "running sums": (lambda v: torch.cumsum(v[:2], 0, out=v[1:]), "single memory location"),
    "a gradient": (lambda a: torch.linalg.inv(a.requires_grad_(), out=a.detach() * 1), "automatic differentiation"),
}
ACCEPTED: Mapping[str, Into] = {
    "into itself": lambda a: torch.add(a, 1, out=a),
    "into itself, inverted": lambda a: torch.linalg.inv(a, out=a),
    "of one memory, side by side": lambda v: torch.add(v[:1], 1, out=v[1:2]),
    "into every other": lambda n: torch.add(n[::2], 1, out=n[1::2]),
    "into what the list names": lambda v, a: (torch.unbind_copy(a[:2], out=[v, v_ := v.clone()]), v, v_)[1:],
    "split": lambda a: (outs := [a[:1] * 0, a[1:] * 0], torch.split_with_sizes_copy(a, [1, 2], out=outs))[0],
    "numbers, made": lambda v: torch.arange(0, 6, 2, out=v),
}


async def _both(g: grid.Grid, form: Into, **more: torch.Tensor) -> tuple[Any, Any]:
    """What the form gives, on local tensors and on pointers, or the error that it raises."""
    taken = form.__code__.co_varnames[: form.__code__.co_argcount]
    given = {name: (more[name] if name in more else NAMES[name]) for name in taken}
    there = {name: await g["alice"].send(value) for name, value in given.items()}
    made: list[Any] = []
    for arguments in ({name: value.clone() for name, value in given.items()}, there):
        try:
            result = await value_of(form(*arguments.values()))
            made.append((result, [await value_of(each) for each in arguments.values()]))
        except Exception as error:
            made.append(error)
    return made[0], made[1]


async def test_an_out_that_is_here_is_refused_and_stays_as_it_is(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        p = await g["alice"].send(SQUARE)
        for out in (torch.empty(0), torch.ones(3, 3)):
            for call in (lambda out: torch.add(p, 1, out=out), lambda out: torch.linalg.inv(p, out=out)):
                with pytest.raises(NotCollocated, match=r"is here, .* would be changed in place"):
                    call(out)
            assert out.sum() == out.numel()
        with pytest.raises(NotCollocated, match="is here"):
            torch.sort(p, out=(p, torch.empty(0, dtype=torch.int64)))
        assert torch.equal(await p.fetch(), SQUARE)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")  # torch's own, of `v @ a`
@pytest.mark.parametrize("is_empty", [False, True], ids=["filled", "empty"])
async def test_what_torch_makes_on_its_way_is_no_matter(peers: Folders, is_empty: bool) -> None:
    async with grid.connect(folders=peers) as g:
        wrong = []
        for name, form in OF_TORCH.items():
            kinds = {"matrix_rank": torch.int64, "argsort": torch.int64}
            taken = form.__code__.co_varnames[: form.__code__.co_argcount]
            more = {"out": torch.empty(0, dtype=kinds.get(name)), "sign": torch.empty(0)}
            more["pivots"] = torch.empty(0, dtype=torch.int32)
            if not is_empty:  # filled with what is not the result
                form(*({**NAMES, **more}[each] for each in taken))
                more = {each: value.zero_() for each, value in more.items()}
            here, there = await _both(g, form, **more)
            if isinstance(there, Exception) or not is_same(there, here):
                wrong.append(f"{name}: {there} instead of {here}")
        assert wrong == []


async def test_a_matrix_without_an_inverse_is_said(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        p, q = await g["alice"].send(torch.zeros(2, 2)), await g["alice"].send(torch.zeros(2, 2))
        made = torch.linalg.inv(p, out=q)
        with pytest.raises(OperationFailed, match="singular"):
            await made.get()


@pytest.mark.parametrize("is_inference", [False, True], ids=["", "inference mode"])
async def test_results_are_computed_in_the_dtype_of_out_or_cast_as_torchs_are(
    peers: Folders, is_inference: bool
) -> None:
    async with grid.connect(folders=peers) as g:
        wrong = []
        for name, (form, dtype) in OF_ANOTHER_DTYPE.items():
            out = torch.empty(0, dtype=dtype)
            form(*({**NAMES, "out": out}[each] for each in form.__code__.co_varnames[: form.__code__.co_argcount]))
            with torch.inference_mode(is_inference):
                here, there = await _both(g, form, out=torch.zeros_like(out))
            if isinstance(there, Exception) or not is_same(there, here):
                wrong.append(f"{name}: {there} instead of {here}")
        assert wrong == []


async def test_what_torch_refuses_is_refused_in_its_words(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        wrong = []
        for name, (form, text) in REFUSED.items():
            for error in await _both(g, form):
                if not isinstance(error, RuntimeError) or not re.search(text, str(error)):
                    wrong.append(f"{name}: {error!r}")
        assert wrong == []


async def test_what_torch_takes_gives_what_it_gives(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        wrong = []
        for name, form in ACCEPTED.items():
            here, there = await _both(g, form)
            if isinstance(there, Exception) or not is_same(there, here):
                wrong.append(f"{name}: {there} instead of {here}")
        assert wrong == []


async def test_a_sum_is_written_into_a_row_of_what_it_sums(peers: Folders) -> None:
    """torch itself overwrites the row while it reads it."""
    async with grid.connect(folders=peers) as g:
        p = await g["alice"].send(SQUARE)
        torch.sum(p, 0, out=p[0])
        assert torch.equal(await p.fetch(), torch.cat([SQUARE.sum(0)[None], SQUARE[1:]]))


async def test_outs_are_checked_before_anything_is_queued(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        p = await g["alice"].send(SQUARE)
        mean, spread, out = [await g["alice"].send(value) for value in (torch.zeros(3), torch.ones(3), SQUARE.double())]
        for call, text in (
            (lambda: torch.unbind_copy(p, out=[p[0], p[1]]), "out= has 2 tensors, and the operation gives 3"),
            (lambda: torch.matmul(p, p, out=p[0]), r"of shape \[3\], and the result of \[3, 3\]"),
            (lambda: torch.var(p, 1, out=p[0].double()), "leave out= away, and cast"),
            # It would move the running mean, whatever becomes of its results.
            (
                lambda: torch.native_batch_norm(p, None, None, mean, spread, True, 0.5, 1e-5, out=(out, p[0], p[1])),
                "leave out= away, and cast",
            ),
        ):
            with pytest.raises((BadRequest, OperationFailed), match=text):
                call()
        assert torch.equal(await p.fetch(), SQUARE)
        assert torch.equal(await mean.fetch(), torch.zeros(3))


@pytest.mark.parametrize("size", [0, 3])
async def test_of_chains_the_out_is_the_chain_that_was_given(peers: Folders, size: int) -> None:
    async with grid.connect(folders=peers) as g:
        x, out = await g["alice"].send(torch.arange(3.0)), await g["alice"].send(torch.zeros(size))
        chain, into = await x.send(g["bob"]), await out.send(g["bob"])
        made = torch.add(chain, 1, out=into)
        assert made is into and made.shape == (3,)
        assert torch.equal(await (await made.get()).get(), torch.tensor([1.0, 2.0, 3.0]))
