"""grid.hook(): the calls of old tutorials on tensors and modules that are here, added and taken away again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import grid
from peer.folders import Folders
from protocol.errors import BadRequest, BadTag


@pytest.fixture
def hooked() -> Iterator[None]:
    grid.hook()
    yield
    grid.unhook()


_FIXED = ["fix_prec", "fix_precision", "float_prec", "float_precision"]


def names() -> list[set[str]]:
    kinds = (torch.Tensor, nn.Module, grid.Pointer, grid.RemotePeer, torch.optim.Optimizer)
    return [set(vars(kind)) for kind in kinds]


def test_it_can_be_called_again_and_undone_and_leaves_no_trace() -> None:
    before = names()
    grid.hook()
    once = names()
    grid.hook()
    assert names() == once != before
    assert [sorted(more - less) for more, less in zip(once, before, strict=True)] == [
        ["describe", *_FIXED, "send", "send_", "share", "tag"],
        ["copy", "describe", *_FIXED, "send", "share", "tag"],
        ["get_", "move_"],
        ["clear_objects"],
        ["fix_prec", "fix_precision"],
    ]
    grid.unhook()
    grid.unhook()
    assert names() == before


def test_it_replaces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = lambda self: "theirs"  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "share", theirs, raising=False)
    before = names()
    with pytest.raises(BadRequest, match="Tensor has a 'share' already"):
        grid.hook()
    grid.unhook()
    assert names() == before and torch.Tensor.share is theirs


def test_a_modules_own_names_go_first(hooked: None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.share, self.copy = nn.Linear(2, 3), 7
            self.tag = nn.Parameter(torch.ones(1))
            self.register_buffer("kept", torch.ones(1))

        def send(self) -> str:
            return "own"

    net = Net()
    assert isinstance(net.share, nn.Linear) and net.copy == 7 and net.send() == "own"
    assert isinstance(net.tag, nn.Parameter) and set(net.state_dict()) == {"tag", "kept", "share.weight", "share.bias"}
    assert isinstance(nn.Sequential(OrderedDict(describe=nn.Linear(1, 1))).describe, nn.Linear)


async def test_a_tensor_is_sent_to_one_peer_or_several(hooked: None, peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        alice, bob = g["alice"], g["bob"]
        x = torch.tensor([1.0, 2.0])
        there = await x.send(alice)
        assert isinstance(there, grid.Pointer) and type(x) is torch.Tensor
        assert torch.equal(await (there + there).get(), 2 * x)
        both = await x.send(alice, bob)
        assert isinstance(both, grid.MultiPointer)
        assert torch.equal(await both.get(sum_results=True), 2 * x)
        chain = await x.send(bob).send(alice)
        assert chain.location is alice and torch.equal(await (await chain.get()).get(), x)
        assert torch.equal(await x.send(bob).move(alice).get(), x)
        with pytest.raises(BadRequest, match=r"send\(\) takes a peer: for example"):
            await x.send()


async def test_tags_and_descriptions_are_remembered_until_it_is_sent(hooked: None, peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await torch.ones(2).tag("#hook-test", "#first").tag("#first").describe("of the hook").send(g["alice"])
        hit = (await g.search("#hook-test hook")).one()
        assert hit.tags == x.tags == ("#first", "#hook-test") or set(hit.tags) == {"#first", "#hook-test"}
        await hit.delete()
        net = await nn.Linear(2, 1).tag("#hook-test").send(g["alice"])
        assert isinstance(net, grid.RemoteModule) and (await g.search("#hook-test kind:model")).one().tags == (
            "#hook-test",
        )
        await (await g.search("#hook-test")).one().delete()
        with pytest.raises(BadTag):
            torch.ones(1).tag("no tag")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("garbage_collect_data", "gets a tag"),
        ("inplace", "send_(bob)"),
        ("requires_grad", "autograd works"),
        ("z", "'z'"),
    ],
)
def test_what_old_programs_give_send_is_refused_with_what_to_write(hooked: None, given: str, hint: str) -> None:
    for what in (torch.ones(2), nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"no argument '{given}'") as caught:
            what.send(object(), **{given: False})  # type: ignore[operator]
        assert hint in str(caught.value)


async def test_in_place_forms_keep_the_python_object(hooked: None, peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        alice, bob = g["alice"], g["bob"]
        x = same = torch.tensor([1.0, 2.0])
        assert await x.send_(alice) is same and isinstance(x, grid.Pointer)
        where = x.id_at_location
        x += 1
        assert x is same and x.id_at_location == where
        assert await x.move_(bob) is same and x.location is bob and await x.move_(bob) is same
        assert await x.get_() is same and type(x) is torch.Tensor and torch.equal(x, torch.tensor([2.0, 3.0]))
        assert [object["id"].hex() for object in await bob.objects() if object["id"].hex() == where] == []
        inner = await x.send(alice)
        chain = await inner.send(bob)
        assert await chain.get_() is chain and chain.location is alice and torch.equal(await chain.get(), x)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=["plain", "momentum"])
async def test_a_module_is_sent_trained_and_fetched_in_place_with_one_optimiser(
    hooked: None, peers: Folders, options: Any
) -> None:
    data, target = torch.randn(6, 3), torch.randn(6, 1)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    here, parameters = net.copy(), list(net.parameters())
    optimizer, alone = [torch.optim.SGD(module.parameters(), lr=0.05, **options) for module in (net, here)]
    async with grid.connect(folders=peers) as g:
        for name in ("alice", "bob", "alice"):
            x, y = await data.send(g[name]), await target.send(g[name])
            assert await net.send(x.location) is net
            assert (
                isinstance(net, nn.Sequential) and isinstance(net[0].weight, grid.Pointer) and net.location.name == name
            )
            optimizer.zero_grad()
            loss = ((net(x) - y) ** 2).mean()
            loss.backward()
            optimizer.step()
            assert await net.get() is net
            alone.zero_grad()
            expected = ((here(data) - target) ** 2).mean()
            expected.backward()
            alone.step()
            torch.testing.assert_close(await loss.get(), expected.detach(), rtol=1e-3, atol=1e-4)
        assert type(net) is nn.Sequential and all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
        torch.testing.assert_close(net[3].weight.grad, here[3].weight.grad, rtol=1e-3, atol=1e-4)
        for name, value in here.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-3, atol=1e-4)


async def test_a_module_moves_in_place_and_its_copies_are_its_own(hooked: None, peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        net = nn.Linear(2, 1)
        value = net.weight.detach().clone()
        copied = await net.copy().send(g["alice"])
        assert type(net) is nn.Linear and copied is not net
        assert await copied.move(g["carol"]) is copied and copied.location.name == "carol"
        further = await copied.copy(g["bob"])
        assert further.location is g["bob"] and copied.weight.location is g["carol"]
        with torch.no_grad():
            net.weight.set_(await (copied.weight.data * 2).get())
        torch.testing.assert_close(net.weight.data, 2 * value)
        with pytest.raises(BadRequest, match="already"):
            await copied.send(g["alice"])
        both = await net.copy().send(g["alice"], g["bob"])
        assert isinstance(both, grid.MultiModule) and isinstance(both.weight, grid.MultiPointer)
        torch.testing.assert_close((await both.get(sum_results=True)).weight.data, 4 * value)


async def test_a_module_whose_sending_fails_is_as_it_was(hooked: None, peers: Folders) -> None:
    net = nn.Linear(2, 1)
    net.register_buffer("sparse", torch.eye(2).to_sparse())
    weight = net.weight
    async with grid.connect(folders=peers) as g:
        with pytest.raises(grid.GridError, match="to_dense"):
            await net.send(g["alice"])
    assert type(net) is nn.Linear and net.weight is weight and type(weight) is nn.Parameter


async def test_what_a_computation_holds_still_cannot_become_a_pointer(hooked: None, peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = torch.ones(2, requires_grad=True)
        held = (x**2).sum()
        with pytest.raises(BadRequest, match="let go of"):
            await x.send_(g["alice"])
        held.backward()
        assert x.grad is not None and torch.equal(x.grad, torch.full((2,), 2.0))


def test_fixed_precision_rounds_and_is_not_in_place(hooked: None) -> None:
    x = torch.tensor([1 / 3, -2.0])
    assert torch.equal(x.fix_prec(precision=10).float_prec(), torch.tensor([341 / 1024, -2.0]))
    assert torch.equal(x.fix_precision(precision_fractional=5), torch.tensor([round(2**17 / 3) / 2**17, -2.0]))
    assert x[0] == 1 / 3 and torch.equal(torch.tensor([3]).fix_prec(), torch.tensor([3]))
    assert torch.ones(1, requires_grad=True).fix_prec().requires_grad
    net = nn.Linear(1, 1)
    assert net.fix_precision() is net and net.float_precision() is net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert optimizer.fix_precision() is optimizer
    for options in ({"precision_fractional": 9}, {"internal_type": torch.int32}, {"digits": 3}):
        with pytest.raises(BadRequest):
            x.fix_prec(**options)


async def test_tensors_are_shared_with_the_old_words(hooked: None, peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        alice, bob, carol = g["alice"], g["bob"], g["carol"]
        x = torch.tensor([1.5, -2.0])
        s = x.fix_prec(precision_fractional=5).share(alice, bob, crypto_provider=carol, protocol="fss")
        assert isinstance(s, grid.SecretTensor) and s.precision == 17
        both = await (s + s).copy().get().float_precision()
        torch.testing.assert_close(both, 2 * x, atol=1e-3, rtol=1e-3)
        pointer = await x.send(alice)
        there = await pointer.fix_prec().share(bob, alice, crypto_provider=carol, requires_grad=True)
        assert there.requires_grad and there.parties == (bob, alice)
        torch.testing.assert_close((await there.get()).detach(), x, atol=1e-3, rtol=1e-3)
        counted = torch.tensor([1, 2]).fix_precision().share(alice, bob, crypto_provider=carol)
        value = await counted.sum().get().float_precision().long().item()
        assert value == 3
        with pytest.raises(BadRequest, match="field_of"):
            x.share(alice, bob, crypto_provider=carol, field_of=3)


async def test_a_module_is_shared_trained_and_fetched_in_place_with_one_optimiser(hooked: None, peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        team = (g["alice"], g["bob"])
        net, x, y = nn.Linear(3, 1), torch.randn(4, 3), torch.randn(4, 1)
        alone, parameters = net.copy(), list(net.parameters())
        both = [(each, torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9)) for each in (net, alone)]

        def step(which: int, given: torch.Tensor, wanted: torch.Tensor) -> None:
            module, optimizer = both[which]
            optimizer.zero_grad()
            ((module(given) - wanted) ** 2).mean().backward()
            optimizer.step()

        step(0, x, y)
        assert await net.fix_precision().share(*team, crypto_provider=g["carol"]) is net
        assert isinstance(net, nn.Linear) and isinstance(net.weight, grid.SecretTensor)
        given, wanted = (each.fix_prec().share(*team, crypto_provider=g["carol"]) for each in (x, y))
        step(0, given, wanted)
        assert await net.get() is net and type(net) is nn.Linear and not isinstance(net.weight, grid.SecretTensor)
        for _ in range(2):
            step(1, x, y)
        assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
        torch.testing.assert_close(net.weight, alone.weight, atol=2e-3, rtol=2e-3)
        with pytest.raises(BadRequest, match="secret already"):
            net.fix_precision().share(*team, crypto_provider=g["carol"]).share(*team, crypto_provider=g["carol"])


async def test_clear_objects_takes_everything_of_ones_own(hooked: None, peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        kept = await torch.ones(2).send(g["carol"])
        assert await g["carol"].clear_objects() is g["carol"]
        assert await g["carol"].objects() == []
        with pytest.raises(grid.NotFound):
            await kept.get()
