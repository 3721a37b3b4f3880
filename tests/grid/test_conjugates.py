"""Conjugated and negated views: what is written through one, and what is a copy, as in local torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from protocol.errors import OperationFailed
from tests.grid.forms import Lines, differences, is_same, value_of

VALUE = torch.tensor([[1 + 2j, 3j], [4 + 0j, 5 - 1j]])


def _of_complex(steps: Any) -> Lines:
    """What `steps` gives of a complex tensor, and that tensor afterwards."""

    def lines(x: Any, y: Any) -> Any:
        z = torch.complex(x[:2, :2], y[:2, :2])
        return steps(z), z

    return lines


def _filled(x: Any) -> Any:
    y = x.conj()
    y.real.zero_()
    return y, y.real, y.imag


def _facts(x: Any) -> Any:
    y = x.conj()
    views = (y, y[0], y.t(), y.detach(), y.data, x.mH, y.split(1)[1], y.expand(2, 2, 2), y.imag)
    facts = [(view.is_conj(), view.is_neg()) for view in views]
    plain = (y.conj(), y.clone(), y.resolve_conj(), y.imag.resolve_neg(), y * 1, y.real, y.contiguous())
    return torch.tensor(facts + [(value.is_conj(), value.is_neg()) for value in plain])


def _turned_in_place(x: Any) -> Any:
    y = x.conj()
    y.t_().unsqueeze_(0)
    y.real.zero_()
    return y


def _gradients(x: Any, y: Any) -> Any:
    given = torch.complex(x, y).detach().requires_grad_()
    product = given * 1
    turned = product.conj()
    turned.real.mul_(3.0)
    ((turned.mT @ product) * turned.imag.sum()).abs().sum().backward()
    return given.grad, product.detach()


WRITTEN: dict[str, Lines] = {
    name: _of_complex(steps)
    for name, steps in {
        "real": _filled,
        "imag": lambda x: x.conj().imag.fill_(3),
        "H": lambda x: x.H.real.mul_(5),
        "mH": lambda x: x.mH.imag.mul_(5),
        "adjoint": lambda x: x.adjoint().imag.add_(1),
        "diagonal": lambda x: x.conj().diagonal().real.fill_(3.0),
        "parts": lambda x: x.conj().split(1)[1].imag.zero_(),
        "reshape": lambda x: x.conj().reshape(-1).real.zero_(),
        "detach": lambda x: x.conj().detach().imag.neg_(),
        "data": lambda x: x.conj().data.imag.neg_(),
        "in place": lambda x: x.conj()[0].add_(1j).mul_(x[1]),
        "copy_": lambda x: x.conj().copy_(x.clone()),
        "index": lambda x: x.conj().index_put_((torch.tensor([1]),), torch.tensor(5j)),
        "out": lambda x: torch.mul(x, 2, out=x.conj()),
        "resolve_conj": lambda x: x.conj().resolve_conj().fill_(9),
        "resolve_neg": lambda x: x.conj().imag.resolve_neg().fill_(9),
        "contiguous": lambda x: x.conj().contiguous().fill_(9),
        "resolved twice": lambda x: x.conj().conj().resolve_conj().fill_(9),
        "turned in place": _turned_in_place,
        "facts": _facts,
        "values": lambda x: (x.conj() @ x, x @ x.mH, x.conj() * x, torch.cat([x.conj(), x]), x.conj().imag.sum()),
    }.items()
} | {"gradients": _gradients}


async def test_views_of_conjugates_and_gradients_through_them_are_those_of_torch(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        assert await differences(g, WRITTEN) == []


async def test_the_memory_of_a_conjugate_is_refused_as_by_torch(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(VALUE)
        for _ in range(2):  # of calls that look alike but for the bit, the second time too
            assert torch.view_as_real(x).shape == (2, 2, 2) and x.conj()[0].is_conj() and not x[0].is_conj()
            with pytest.raises(OperationFailed, match="unresolved conjugated"):
                torch.view_as_real(x.conj())
        with pytest.raises(OperationFailed, match="conjugate view"):
            x.conj().view(torch.float32)
        assert is_same(await value_of(torch.view_as_real(x.conj().clone())), torch.view_as_real(VALUE.conj().clone()))


async def test_a_conjugate_elsewhere_is_a_tensor_of_its_own(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(VALUE)
        there = await x.conj().copy(g["bob"])
        published = x.conj()
        await published.tag("#conjugate")
        assert not there.is_conj() and not published.is_conj()
        there.real.zero_()
        assert is_same(await value_of(there), VALUE.conj() * 0 + 1j * VALUE.conj().imag)
        assert is_same(await value_of(published.imag), VALUE.conj().imag.clone())
        chain = await x.conj().send(g["bob"])
        chain.imag.mul_(2)
        assert chain.is_conj() and is_same(await value_of(x), torch.complex(VALUE.real, VALUE.imag * 2))


async def test_a_plan_takes_and_gives_conjugates(peers: Folders) -> None:
    @grid.plan
    def parts(z: Any) -> Any:
        return z.real * 2, torch.view_as_real(z), z.conj()

    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(VALUE)
        for given in (x, x.conj(), x):
            value = await value_of(given)
            real, pairs, conjugate = await g.run(parts, z=given)
            assert not conjugate.is_conj() and is_same(await value_of(conjugate), value.conj().resolve_conj())
            assert is_same(await value_of(real), value.real * 2)
            assert is_same(await value_of(pairs), torch.view_as_real(value))
            conjugate.real.zero_()
            assert is_same(await value_of(conjugate.real), torch.zeros(2, 2))
