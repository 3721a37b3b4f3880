"""Secret tensors at real peers: shared, computed with, revealed, let go of; what they refuse, and what nobody sees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import grid
from grid.secret.tensor import SecretTensor
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import (
    BadRequest,
    Denied,
    GridError,
    NotCollocated,
    OperationNotAllowed,
    PartyFailed,
    PrivateValue,
)
from tests.grid.secret_stand_in import secret, secrets
from tests.secure.teams import CLOSE, sharing
from tests.waiting import until


def _near(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=CLOSE, rtol=CLOSE)


# --- what it gives ------------------------------------------------------------------------------------------


async def test_a_tensor_is_shared_computed_with_and_revealed(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        x, w = torch.randn(4, 3), torch.randn(3, 2)
        s = await share(x)
        assert isinstance(s, SecretTensor) and isinstance(s, torch.Tensor)
        assert (s.parties, s.provider, s.precision) == ((g["alice"], g["bob"]), g["carol"], 16)
        _near(await s.get(), x)
        _near(await ((s @ share(w)).relu() + 1).get(), (x @ w).relu() + 1)
        _near(await (s * torch.arange(3) - x).get(), x * torch.arange(3) - x)  # public tensors and numbers mix
        assert torch.equal(await (s > 0).sum(1).get(), (x > 0).sum(1))
        assert torch.equal(await s.argmax(dim=1).get(), x.argmax(dim=1))
        _near(await functional.softmax(s, 1).get(), x.softmax(1))
        s[0] = 7
        x[0] = 7
        _near(await s.get(), x)
        count = share(torch.tensor([1, 2, 3])) + torch.tensor([3, 2, 1])
        assert torch.equal(await count.get(), torch.full((3,), 4))
        task = asyncio.create_task(count.get())  # get() is a coroutine, and can be gone on with
        assert (await task).tolist() == [4, 4, 4] and await count.get().tolist() == [4, 4, 4]


async def test_what_a_pointer_names_is_shared_by_its_peer_and_the_client_receives_nothing_of_it(peers: Folders) -> None:
    async with sharing(peers) as (g, _):
        x = torch.randn(200, 300)
        for home in ("alice", "carol"):  # a party, and one who is none
            pointer = await g[home].send(x)
            before = {peer.name: peer.statistics().received_bytes for peer in g}
            s = await pointer.share(g["alice"], g["bob"], provider=g["carol"])
            total = (s.sum(1) / 300).mean()
            await total
            received = sum(peer.statistics().received_bytes - before[peer.name] for peer in g)
            assert received < 20_000  # a share of it is 480,000 bytes
            _near(await total.get(), x.mean())
            assert isinstance(pointer, grid.Pointer)
            _near(await pointer.fetch(), x)


async def test_a_pointer_that_was_changed_before_it_was_shared_is_refused(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        pointer = await g["alice"].send(torch.ones(2))
        s, shared = share(pointer), await share(pointer)
        pointer += 1
        with pytest.raises(BadRequest, match=r"await share\(\)"):
            await s.get()
        _near(await shared.get(), torch.ones(2))


async def test_owners_decide_who_learns_what_derives_from_their_data(peers: Folders) -> None:
    async with sharing(peers, Identity.generate()) as (owner, _), sharing(peers, Identity.generate()) as (g, share):
        x = torch.randn(5)
        await owner["bob"].send(x, tags=["#eager", "#hidden"], private=True)
        await owner["bob"].send(x, tags=["#eager", "#shown"], private=True, reveal=[g.id])
        hidden = await share((await g.search("#eager #hidden")).one())
        shown = await share((await g.search("#eager #shown")).one())
        _near(await (shown * 2).get(), x * 2)
        with pytest.raises((Denied, PartyFailed), match="is private"):  # whoever hears of it first
            await (hidden * 2).get()


async def test_a_value_is_revealed_to_one_peer_alone(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        s = share(torch.tensor([1.0, 2.0])) * 3
        pointer = await s.reveal(to=g["bob"])
        assert isinstance(pointer, grid.Pointer) and pointer.location is g["bob"] and pointer.shape == (2,)
        with pytest.raises(Denied):
            await pointer.fetch()
        _near(await s.reveal(), torch.tensor([3.0, 6.0]))


async def test_a_module_is_shared_called_and_revealed(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 6)
        net = await share(model)
        assert isinstance(net, nn.Sequential) and isinstance(net, grid.SecretModule)
        with torch.no_grad():
            _near(await net(share(x)).get(), model(x))
        sent = await g["alice"].send(model)  # at its owner
        theirs = await share(sent)
        with torch.no_grad():
            _near(await theirs(share(x)).get(), model(x))
        back = await net.get()
        assert type(back) is nn.Sequential
        _near(back[0].weight, model[0].weight)
        there = await net.reveal(to=g["bob"])
        assert isinstance(there, grid.RemoteModule) and there.location is g["bob"]


async def test_a_stored_model_is_shared_by_its_holder(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        model, x = nn.Linear(4, 2), torch.randn(3, 4)
        await g["bob"].send(model, tags=["#eager-model"])
        net = await share((await g.search("#eager-model")).one())
        with torch.no_grad():
            _near(await net(share(x)).get(), model(x))


async def test_training_at_peers_is_as_in_the_clear(peers: Folders) -> None:
    async with sharing(peers) as (_, share):
        torch.manual_seed(0)
        model, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.randint(0, 2, (8,))
        net = await share(model)
        losses: list[Any] = [0.0, 0.0]
        for which, (module, given, labels) in enumerate([(net, await share(x), await share(y)), (model, x, y)]):
            optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                loss = functional.cross_entropy(module(given), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses[which] = await loss.get() if isinstance(loss, SecretTensor) else loss
        _near(losses[0], losses[1].detach())
        _near((await net.get()).weight, model.weight)


async def test_precision_is_chosen_when_something_is_shared(peers: Folders) -> None:
    async with sharing(peers) as (_, share):
        x = torch.tensor([1 / 3], dtype=torch.float64)
        coarse, fine = share(x, precision=10), share(x, precision=24)
        assert abs(float(await coarse.get()) - 1 / 3) > 2**-12 and abs(float(await (fine + 0).get()) - 1 / 3) < 2**-24
        with pytest.raises(NotCollocated, match="10 fractional bits, the other 24"):
            coarse + fine
        with pytest.raises(BadRequest, match="precision=40"):
            share(x, precision=40)


async def test_parties_let_go_of_shares_that_nobody_holds(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        s, t = await share(torch.randn(3)), await share(torch.randn(3))
        product = s * t
        await product
        (session,) = g.sessions.of(s._secrets.team)
        assert session.alive == 3
        del s, t
        assert session.alive == 1
        _near((await product.get()).shape, (3,))
        del product
        await until(lambda: session.alive == 0 and not session._drops)


async def test_a_session_stands_for_as_long_as_somebody_holds_secrets(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        s = await share(torch.ones(2))
        engine: Any = s._secrets._engine
        (session,) = g.sessions.of(s._secrets.team)
        told: list[bool] = []
        session.stay, really = lambda: told.append(True), session.stay  # type: ignore[method-assign]
        for _ in range(2):
            assert engine._reminder is not None
            engine._reminder.cancel()
            engine._remind()
        assert told == [True, True]
        really()
        _near(await s.get(), torch.ones(2))
        del s
        engine._reminder.cancel()
        engine._remind()
        assert engine._reminder is None and len(told) == 2


async def test_secrets_of_a_session_that_is_over_say_so_and_new_ones_can_be_shared(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        x = torch.randn(3)
        s = await share(x)
        (session,) = g.sessions.of(s._secrets.team)
        session.end(PartyFailed("bob is gone", peer="bob"))
        with pytest.raises(PartyFailed, match="the shares are gone"):
            await (s + 1).get()
        _near(await share(x).get(), x)


# --- what it refuses ----------------------------------------------------------------------------------------


async def test_it_shows_itself_without_a_value() -> None:
    of = secrets(3)
    s = secret(of, torch.tensor([1.5, 2.5]))
    told = "SecretTensor(float32 [2], shared by alice, bob, dave, dealt by carol)"
    assert repr(s) == str(s) == f"{s}" == f"{s:.2f}" == told
    assert "requires_grad=True" in repr(s.requires_grad_())
    await s
    assert "1.5" not in repr(s) and "1.5" not in repr(vars(s))


_PLAIN: dict[str, Callable[[Any], object]] = {
    "bool()": bool,
    "if": lambda s: s if s > 0 else 1,
    "not": lambda s: not s,
    ".item()": lambda s: s.item(),
    ".tolist()": lambda s: s.tolist(),
    "float()": float,
    "int()": int,
    "an index": lambda s: [1, 2][s],
    ".numpy()": lambda s: s.numpy(),
    "numpy": lambda s: __import__("numpy").asarray(s),
    "in": lambda s: 3 in s.reshape(1),
    "equal": lambda s: torch.equal(s, s + 1),
    "allclose": lambda s: torch.allclose(s, s + 1),
    "nonzero": lambda s: s.nonzero(),
    "a mask": lambda s: s.reshape(1)[s.reshape(1) > 0],
    "masked_select": lambda s: torch.masked_select(s, s > 0),
    "unique": lambda s: s.reshape(1).unique(),
    "one_hot": lambda s: functional.one_hot((s > 0).long()),
    "a range": lambda s: range(s),
}


@pytest.mark.parametrize("what", list(_PLAIN))
async def test_a_plain_value_is_refused_with_what_to_write_instead(what: str) -> None:
    of = secrets()
    with pytest.raises(PrivateValue) as refused:
        _PLAIN[what](secret(of, torch.tensor(1.5)))
    assert len(refused.value.message) > 40
    assert of._engine.programs == []  # type: ignore[attr-defined]


_NO_FORM: dict[str, tuple[Callable[[Any], object], type[GridError], str]] = {
    "a transform": (lambda s: torch.fft.fft(s), OperationNotAllowed, "fft"),
    "singular values": (lambda s: torch.linalg.svd(s), OperationNotAllowed, "svd"),
    "a special function": (lambda s: torch.special.i0(s), OperationNotAllowed, "i0"),
    "a whole number of a real": (lambda s: s.long(), BadRequest, "does not become an integer"),
    "another device": (lambda s: s.to("cuda"), BadRequest, "parties"),
    "its memory": (lambda s: s.data_ptr(), BadRequest, "data_ptr"),
    "to be sent": (lambda s: s.send("alice"), BadRequest, "reveal"),
    "to be saved": (lambda s: torch.save(s, __import__("io").BytesIO()), BadRequest, "torch.save"),
    "a change of what is here": (lambda s: torch.zeros(2, 2).add_(s), NotCollocated, "changed in place"),
}


@pytest.mark.parametrize("what", list(_NO_FORM))
async def test_what_has_no_secure_form_is_said_at_its_line_before_anything_is_shared(what: str) -> None:
    of = secrets()
    call, kind, words = _NO_FORM[what]
    with pytest.raises(kind, match=words):
        call(secret(of, torch.ones(2, 2)))
    assert of._engine.programs == []  # type: ignore[attr-defined]


async def test_two_teams_and_pointers_do_not_mix(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        s = share(torch.ones(2))
        other = grid.share(torch.ones(2), g["bob"], g["alice"], provider=g["carol"])
        with pytest.raises(NotCollocated, match="shared by alice, bob, dealt by carol, the other shared by bob, alice"):
            s + other
        pointer = await g["alice"].send(torch.ones(2))
        for both in (lambda: s + pointer, lambda: pointer * s, lambda: torch.stack([pointer, s])):
            with pytest.raises(NotCollocated, match=r"pointer\.share"):
                both()


async def test_what_cannot_be_shared_is_said(peers: Folders) -> None:
    async with sharing(peers) as (g, share):
        alice, bob, carol = g["alice"], g["bob"], g["carol"]
        wrong: list[tuple[Callable[[], object], str]] = [
            (lambda: share([1.0]), "not list"),
            (lambda: share(torch.ones(2, dtype=torch.complex64)), "complex"),
            (lambda: share(torch.tensor([float("nan")])), "not finite"),
            (lambda: share(torch.tensor([1e30])), "does not fit"),
            (lambda: share(share(torch.ones(2))), "secret already"),
            (lambda: share(share(nn.Linear(1, 1))), "secret already"),
            (lambda: grid.share(torch.ones(2), alice, provider=carol), "2 to 8 peers"),
            (lambda: grid.share(torch.ones(2), alice, bob), "provider"),
            (lambda: grid.share(torch.ones(2), alice, bob, provider=bob), "none of them"),
            (lambda: grid.share(torch.ones(2), "alice", "bob"), "takes peers"),
            (lambda: share(torch.ones(2), parties=3), "no argument 'parties'"),
        ]
        for call, words in wrong:
            with pytest.raises(BadRequest, match=words):
                call()
        assert isinstance(grid.share(torch.ones(2), "alice", bob, provider="carol"), SecretTensor)
