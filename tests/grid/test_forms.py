"""Every form in which a user writes an operation, on pointers and on local tensors: the same values and dtypes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import grid
from peer.folders import Folders
from tests.grid.forms import Lines, differences, is_same, value_of

OPERATORS: dict[str, Lines] = {
    "x + y": lambda x, y: x + y,
    "1 - x": lambda x: 1 - x,
    "2 / y": lambda y: 2 / y,
    "2 ** x": lambda x: 2**x,
    "y ** 2": lambda y: y**2,
    "y ** -0.5": lambda y: y**-0.5,
    "x // 2": lambda x: x // 2,
    "7 // y": lambda y: 7 // y,
    "x % 2": lambda x: x % 2,
    "7 % y": lambda y: 7 % y,
    "x @ w": lambda x, w: x @ w,
    "x @ v": lambda x, v: x @ v,
    "t @ w": lambda t, w: t @ w,
    "-x": lambda x: -x,
    "+x": lambda x: +x,
    "abs(x)": lambda x: abs(x),
    "~m": lambda m: ~m,
    "m & (x > 0)": lambda m, x: m & (x > 0),
    "m | (x < 0)": lambda m, x: m | (x < 0),
    "m ^ m.T.T": lambda m: m ^ m.T.T,
    "k << 1": lambda k: k << 1,
    "k >> 1": lambda k: k >> 1,
    "k & 3": lambda k: k & 3,
    "3 | k": lambda k: 3 | k,
    "1 << k": lambda k: 1 << k,
    "64 >> k": lambda k: 64 >> k,
    "and, or, exclusive or with a number first": lambda k: (
        *(torch.bitwise_and(6, k), torch.bitwise_or(6, k), torch.bitwise_xor(6, k)),
        *(torch.bitwise_left_shift(3, k), torch.bitwise_right_shift(640, k)),
    ),
    "x == y": lambda x, y: x == y,
    "x != 0": lambda x: x != 0,
    "0 < x": lambda x: 0 < x,
    "x >= y": lambda x, y: x >= y,
    "x == None": lambda x: x == None,  # noqa: E711
    "x in [x]": lambda x: x in [x],
    "x is not y": lambda x, y: x is not y,
    "broadcast": lambda x, v, s: x + v * s,
    "a local number on the left": lambda x: torch.tensor(2.0) * x,
    "a local number on the right": lambda x: x - torch.tensor(2),
    "int and float": lambda k, x: k + x,
    "bool sum": lambda m: m.sum() + m.float().mean(),
    "complex": lambda c: (c * 1j).abs() + c.real - c.imag,
    "out=": lambda x, y: (z := torch.zeros_like(x), torch.add(x, y, alpha=2, out=z), torch.mul(z, y, out=z))[1:],
    "conj": lambda c: c.conj() * c,
    "c.mH": lambda c: c @ c.mH,
}

INDEXING: dict[str, Lines] = {
    "x[0]": lambda x: x[0],
    "x[-1]": lambda x: x[-1],
    "x[1, 2]": lambda x: x[1, 2],
    "x[1:]": lambda x: x[1:],
    "x[:, ::2]": lambda x: x[:, ::2],
    "x[..., 0]": lambda x: x[..., 0],
    "x[None]": lambda x: x[None],
    "x[:, None, 1:3]": lambda x: x[:, None, 1:3],
    "x[True]": lambda x: x[True],
    "x[False]": lambda x: x[False],
    "x[5:]": lambda x: x[5:],
    "x[[0, 2]]": lambda x: x[[0, 2]],
    "x[[0, 2], [1, 3]]": lambda x: x[[0, 2], [1, 3]],
    "x[:, [0, 0, 1]]": lambda x: x[:, [0, 0, 1]],
    "x[[True, False, True]]": lambda x: x[[True, False, True]],
    "x[i]": lambda x, i: x[i],
    "x[i, i]": lambda x, i: x[i, i],
    "x[i][:, i]": lambda x, i: x[i][:, i],
    "x[i[:, None], i]": lambda x, i: x[i[:, None], i],
    "t[:, i]": lambda t, i: t[:, i],
    "t[0, ..., 1:]": lambda t: t[0, ..., 1:],
    "a local index": lambda x: x[torch.tensor([0, 2])],
    "a local index among slices": lambda t: t[:, torch.tensor([0, 2]), 1:],
    "a local mask": lambda x: x[torch.tensor([True, False, True])],
    "a local mask of all": lambda x: x[torch.arange(12).reshape(3, 4) % 2 == 0],
    "masked_select by a local mask": lambda x: x.masked_select(torch.tensor([True, False, True, True])),
    "a large local index": lambda x: x[torch.arange(2_000) % 3].sum(0),
    "a larger local index": lambda x: x[torch.zeros(50_000, dtype=torch.int64)].sum(0),
    "gather": lambda x, k: x.gather(0, k % 3),
    "gather local": lambda x: x.gather(1, torch.tensor([[0], [1], [2]])),
    "take": lambda x, i: torch.take(x, i),
    "index_select": lambda x, i: torch.index_select(x, 0, i),
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort(1), 1),
    "where": lambda x, m: torch.where(m, x, 0.0),
    "where of a local number": lambda x, m: torch.where(m, x, torch.tensor(0.0)),
    "where of two": lambda x, y, m: x.where(m, y),
    "where of numbers": lambda m: torch.where(m, 1, 0),
    "rows": lambda x: [row.sum() for row in x],
    "unpacked rows": lambda x: [a - b + c for a, b, c in [x]],
    "enumerate, zip, reversed": lambda x, y: [
        (number, a + b) for number, (a, b) in enumerate(zip(x, reversed(y), strict=True))
    ],
    "len, shape, size, dim, numel": lambda x: (len(x), x.shape, x.size(1), x.dim(), x.numel(), x.ndim, x.nelement()),
    "list": lambda v: list(v),
}


def _assigned(change: Any) -> Any:
    def lines(x: Any, y: Any, m: Any, i: Any) -> Any:
        z = x.clone()
        change(z, y, m, i)
        return z

    return lines


def _set(z: Any, key: Any, value: Any) -> None:
    z[key] = value


def _add(z: Any, key: Any, value: Any) -> None:
    z[key] += value


ASSIGNMENT: dict[str, Lines] = {
    name: _assigned(change)
    for name, change in {
        "z[0] = 1": lambda z, y, m, i: _set(z, 0, 1),
        "z[0, 1] = 2.5": lambda z, y, m, i: _set(z, (0, 1), 2.5),
        "z[:] = y": lambda z, y, m, i: _set(z, slice(None), y),
        "z[:, 1] = y[:, 2]": lambda z, y, m, i: _set(z, (slice(None), 1), y[:, 2]),
        "z[1:] = y[0]": lambda z, y, m, i: _set(z, slice(1, None), y[0]),
        "z[..., ::2] = 0": lambda z, y, m, i: _set(z, (..., slice(None, None, 2)), 0),
        "z[m] = 0": lambda z, y, m, i: _set(z, m, 0),
        "z[m] = a local number": lambda z, y, m, i: _set(z, m, torch.tensor(3.0)),
        "z[z < 0] = 0": lambda z, y, m, i: _set(z, z < 0, 0),
        "z[i] = y[i]": lambda z, y, m, i: _set(z, i, y[i]),
        "z[i, i] = 7": lambda z, y, m, i: _set(z, (i, i), 7),
        "z[[0, 2]] = 7": lambda z, y, m, i: _set(z, [0, 2], 7),
        "z[a local index] = 7": lambda z, y, m, i: _set(z, torch.tensor([0, 2]), 7),
        "z[a local mask] = 7": lambda z, y, m, i: _set(z, torch.tensor([True, False, True]), 7),
        "z[torch.where(m)] = 0": lambda z, y, m, i: _set(z, torch.where(m), 0),
        "z[0] += 1": lambda z, y, m, i: _add(z, 0, 1),
        "z[:, 1] -= y": lambda z, y, m, i: _add(z, (slice(None), 1), -y[:, 1]),
        "z[i] += 1": lambda z, y, m, i: _add(z, i, 1),
        "z[m] += 0 times": lambda z, y, m, i: z.masked_fill_(m, 4),
        "z[1][2] = 5": lambda z, y, m, i: _set(z[1], 2, 5),
        "z[1][2:][0] = 5": lambda z, y, m, i: _set(z[1][2:], 0, 5),
        "z.T[0] = 1": lambda z, y, m, i: _set(z.T, 0, 1),
        "z.data[0] = 1": lambda z, y, m, i: _set(z.data, 0, 1),
        "index_put_": lambda z, y, m, i: z.index_put_((i, i), y[0, 0], accumulate=True),
        "index_add_": lambda z, y, m, i: z.index_add_(0, i, y[i]),
        "scatter_": lambda z, y, m, i: z.scatter_(1, torch.tensor([[0], [1], [3]]), y),
        "fill_diagonal_": lambda z, y, m, i: z.fill_diagonal_(0),
    }.items()
}

SEVERAL: dict[str, Lines] = {
    "split": lambda x: x.split(2),
    "split unpacked": lambda x: [a.sum() + b.sum() for a, b in [x.split(2)]],
    "split sizes": lambda x: torch.split(x, [1, 3], dim=1),
    "chunk": lambda x: x.chunk(2, 1),
    "tensor_split": lambda v: v.tensor_split(3),
    "unbind": lambda x: x.unbind(1),
    "max(dim)": lambda x: x.max(1),
    "max(dim).values": lambda x: x.max(dim=0).values,
    "min indices": lambda x: torch.min(x, 1, keepdim=True).indices,
    "sort": lambda x: x.sort(dim=1, descending=True),
    "topk": lambda x: x.topk(2),
    "median": lambda x: x.median(0),
    "mode": lambda k: k.mode(1),
    "kthvalue": lambda x: x.kthvalue(2),
    "cummax": lambda x: x.cummax(0),
    "aminmax": lambda x: torch.aminmax(x),
    "std_mean": lambda x: torch.std_mean(x, 1),
    "var_mean": lambda x: torch.var_mean(x),
    "meshgrid": lambda v, i: torch.meshgrid(v, i.to(v), indexing="ij"),
    "broadcast_tensors": lambda x, v: torch.broadcast_tensors(x, v),
    "frexp": lambda y: torch.frexp(y),
    "svd": lambda x: torch.linalg.svd(x).S,
    "qr": lambda x: [q.abs() for q in torch.linalg.qr(x)],
    "slogdet": lambda x: torch.linalg.slogdet(x[:, :3] + 9 * x.new_ones(3).diag()),
    "einsum": lambda x, w: torch.einsum("ij,jk->ik", x, w),
    "cat": lambda x, y: torch.cat([x, y], 1),
    "stack": lambda x, y: torch.stack([x, y]),
    "stack of numbers": lambda x: torch.stack([row.mean() for row in x]),
    "vstack": lambda x, v: torch.vstack((x, v)),
    "atleast_2d": lambda v, s: torch.atleast_2d(v, s),
    "max of two": lambda x, y: torch.max(x, y),
    "sum of a list": lambda x: sum([row.mean() for row in x]),
    "block_diag": lambda x, w: torch.block_diag(x, w),
    "cartesian_prod": lambda v, i: torch.cartesian_prod(v, i.to(v.dtype)),
    "combinations": lambda v: torch.combinations(v),
    "histc": lambda x: x.histc(4, -2, 2),
}

DTYPES: dict[str, Lines] = {
    "to(dtype)": lambda x: x.to(torch.float64),
    "to(meta)": lambda x: (x.to("meta").shape, x.to("meta").device.type),
    "to(other)": lambda x, k: x.to(k),
    "to(device)": lambda x: x.to("cpu") + x.to(torch.device("cpu"), torch.float64),
    "cpu()": lambda x: x.cpu(),
    "double, half, int, long, bool": lambda y: (y.double(), y.half(), y.int(), y.long(), y.bool()),
    "type(dtype)": lambda x: x.type(torch.float16),
    "type(text)": lambda x: x.type("torch.DoubleTensor"),
    "type_as": lambda x, k: x.type_as(k),
    "what it is": lambda x, k, c: (x.dtype, x.is_floating_point(), k.dtype, c.is_complex(), x.is_cuda, str(x.device)),
    "new_zeros": lambda x: x.new_zeros(2, 3),
    "new_full": lambda k: k.new_full((2,), 7),
    "new_ones dtype": lambda x: x.new_ones(3, dtype=torch.int64),
    "new_tensor": lambda x, k: (x.new_tensor([[1, 2], [3, 4]]) * x[0, 0], k.new_tensor(5)),
    "new_tensor dtype": lambda x: x[x.new_tensor([0, 2], dtype=torch.int64)],
    "new": lambda x: (x.new(2, 3).fill_(1), x.new(x.size()).zero_(), x.new([1.0, 2.0]), x.new().numel()),
    "zeros_like": lambda x: torch.zeros_like(x),
    "full_like": lambda x: torch.full_like(x, 3, dtype=torch.int64),
    "torch.tensor": lambda s: torch.as_tensor(s) + s.clone().detach(),
    "arange": lambda v: torch.arange(4) * v,
    "zeros": lambda v: torch.zeros(4) + v,
    "result_type": lambda x, k: torch.result_type(x, k),
    "contiguous": lambda x: x.T.contiguous().view(-1),
    "is_contiguous": lambda x: (x.T.is_contiguous(), x.stride(), x.T.stride(), x[1].storage_offset() * 0),
    "round": lambda x: (x.round(), x.round(decimals=1)),
    "one_hot": lambda i: F.one_hot(i, 4),
    "isin": lambda k: torch.isin(k, torch.tensor([1, 2, 3])),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
    "softmax": lambda x: F.softmax(x, dim=1).log(),
    "cross_entropy": lambda x, i: F.cross_entropy(x[:2], i),
    "attention": lambda t: F.scaled_dot_product_attention(t, t, t, is_causal=True),
    "copy.copy": lambda x: copy.copy(x),
    "copy.deepcopy": lambda x: copy.deepcopy([x, x]),
}


async def _check(peers: Folders, forms: dict[str, Lines]) -> None:
    async with grid.connect(folders=peers) as g:
        assert await differences(g, forms) == []


async def test_operators(peers: Folders) -> None:
    await _check(peers, OPERATORS)


async def test_indexing(peers: Folders) -> None:
    await _check(peers, INDEXING)


async def test_assignment(peers: Folders) -> None:
    await _check(peers, ASSIGNMENT)


async def test_several_results_and_several_arguments(peers: Folders) -> None:
    await _check(peers, SEVERAL)


async def test_dtypes_and_factories(peers: Folders) -> None:
    await _check(peers, DTYPES)


WHOLE: dict[str, Lines] = {
    "a share": lambda m: (m.sum() / 12, m.sum() / m.sum(), 1 / (m.sum() + 1)),
    "functions": lambda i: (i.sqrt(), torch.sigmoid(i), i.exp(), torch.atan2(i, i), i**0.5, i * 0.5, (i / 3).pow(2)),
    "no share": lambda i, m: (i * 2, i // 2, m & ~m, i.float(), i.sum(), i.to(torch.int32), i.view(torch.int32)),
    "floats": lambda x, i: (x + i[0], x.mean(), x.new_tensor([1.5]), torch.where(x > 0, 1.0, 0.0)),
}


async def test_whole_numbers_become_numbers_of_the_default_dtype(peers: Folders) -> None:
    """A peer's own is float32."""
    async with grid.connect(folders=peers) as g:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            try:
                assert await differences(g, WHOLE) == []
            finally:
                torch.set_default_dtype(torch.float32)


async def test_inference_mode_gives_the_same(peers: Folders) -> None:
    forms = {**INDEXING, **SEVERAL, **DTYPES}
    forms = {name: form for name, form in forms.items() if name not in ("what it is", "copy.deepcopy")}
    async with grid.connect(folders=peers) as g:
        with torch.inference_mode():
            assert await differences(g, forms) == []


async def test_in_inference_mode_tensors_from_outside_have_views_and_are_changed(peers: Folders) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    async with grid.connect(folders=peers) as g:
        x, chain = await g["alice"].send(value), await (await g["alice"].send(value)).send(g["bob"])
        with torch.inference_mode():
            views = [x[0], x.T, x.view(-1)[3:], x.detach(), x.data, *x.split(2), copy.copy(x), chain[1:]]
            assert not any(view.is_inference() for view in views) and (x + 1).is_inference()
            x += 1
            x[1] = 0
        x.mul_(2)
        wanted = torch.tensor([[2.0, 4.0, 6.0, 8.0], [0.0] * 4, [18.0, 20.0, 22.0, 24.0]])
        assert is_same(await value_of(x), wanted) and is_same(await value_of(views[1]), wanted.T)


@pytest.mark.parametrize("name", ["inv", "solve", "cholesky"])
async def test_of_a_singular_matrix_there_is_no_result_but_torchs_error(peers: Folders, name: str) -> None:
    async with grid.connect(folders=peers) as g:
        x: Any = await g["alice"].send(torch.zeros(2, 2))
        function = getattr(torch.linalg, name)
        result = function(x, x) if name == "solve" else function(x)
        derived = result + 1
        for pointer in (derived, result):
            with pytest.raises(grid.OperationFailed, match=f"linalg.{name}"):
                await pointer.get()
        assert torch.equal(await (x + 1).get(), torch.ones(2, 2))


async def test_new_tensors_are_of_their_dtype_and_place_and_their_own(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x, k = await g["alice"].send(torch.ones(3)), await g["alice"].send(torch.tensor([1, 2]))
        made = x.new_tensor([1, 2]), k.new_tensor([1.5]), x.new_tensor([1, 2], dtype=torch.int8), k.new_tensor(x * 2.5)
        assert [each.dtype for each in made] == [torch.float32, torch.int64, torch.int8, torch.int64]
        assert [(await each.get()).tolist() for each in made] == [[1, 2], [1], [1, 2], [2, 2, 2]]  # type: ignore[attr-defined]
        x.new_tensor(x).zero_()
        assert torch.equal(await x.fetch(), torch.ones(3))
        assert x.new_tensor([1.0], requires_grad=True).requires_grad and not x.new_tensor([1.0]).requires_grad
        with pytest.raises(grid.GridError, match="cuda"):
            x.new_tensor([1.0], device="cuda")
