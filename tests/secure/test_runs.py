"""Plans on secret shares at real peers give what they give in the clear, and reveal nothing but their result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import grid
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, Denied, OperationNotAllowed
from tests.secure.teams import CLOSE, joined, labels, scores


@grid.plan
def plus_one(w: Any) -> Any:
    return w + 1


@grid.plan
def two_products(x: Any, w: Any, v: Any) -> Any:
    return x @ w + x @ v


def _digits() -> tuple[torch.Tensor, nn.Module]:
    return torch.rand(100, 64), nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def _agree(got: torch.Tensor, plain: torch.Tensor) -> bool:
    """Labels are those of plain torch, ties apart."""
    chosen = plain.gather(1, got[:, None])[:, 0]
    return bool((plain.max(1).values - chosen < CLOSE).all())


@pytest.mark.parametrize("parties", [["alice", "bob"], ["alice", "bob", "dave"]])
async def test_a_private_model_labels_private_images(team: Folders, parties: list[str]) -> None:
    async with joined(team, Identity.generate()) as owner, joined(team, Identity.generate()) as g:
        images, model = _digits()
        await owner["bob"].send(images, tags=["#s", "#images"], private=True, reveal=[g.id])
        await owner["alice"].send(model, tags=["#s", "#model"], private=True, reveal=[g.id])
        told: dict[str, Any] = {"images": "#s #images", "model": "#s #model", "parties": parties, "provider": "carol"}
        for _ in range(2):  # the second time the masked weights are open
            foreseen = await g.explain(labels, **told)
            result = await g.run(labels, **told)
            assert _agree(await result.get(), model(images))
            assert (foreseen.rounds, foreseen.nbytes) == (result.cost.online.rounds, result.cost.online.nbytes)
            assert foreseen.dealt == result.cost.offline.nbytes
        with pytest.raises(Denied):
            await (await g.search("#s #images")).one().fetch()


async def test_owners_decide_who_learns_a_result(team: Folders) -> None:
    async with joined(team, Identity.generate()) as owner, joined(team, Identity.generate()) as g:
        images, model = _digits()
        sent = await owner["bob"].send(images, tags=["#o", "#images"], private=True)
        told: dict[str, Any] = {
            "images": "#o #images",
            "model": model,
            "parties": ["alice", "bob"],
            "provider": "carol",
        }
        with pytest.raises(Denied, match="reveals what it computes") as refused:
            await g.run(scores, **told)
        assert refused.value.fields["owners"] == [owner.id]
        result = await owner.run(scores, **told)
        assert torch.allclose(result.value, model(images), atol=CLOSE)
        await sent.delete()
        await owner["bob"].send(images, tags=["#o", "#images"], private=True, reveal="*")
        assert torch.allclose((await g.run(scores, **told)).value, model(images), atol=CLOSE)


async def test_a_holder_need_not_be_a_party(team: Folders) -> None:
    async with joined(team) as g:
        images, model = _digits()
        await g["dave"].send(images, tags=["#h", "#images"])
        await g["carol"].send(model, tags=["#h", "#model"])  # who deals may have data of its own
        result = await g.run(scores, images="#h #images", model="#h #model", parties=["alice", "bob"], provider="carol")
        assert torch.allclose(result.value, model(images), atol=CLOSE)


async def test_what_is_here_is_shared_from_here_and_structures_come_back(team: Folders) -> None:
    async with joined(team) as g:
        x, y = torch.randn(5, 3), torch.randn(3, 4)
        held = await g["bob"].send(y)
        result = await g.run(
            lambda x, y: {"product": x @ y, "positive": [y > 0, x.shape[0]]},
            x=x,
            y=held,
            parties=["bob", "alice"],
            provider="dave",
        )
        assert torch.allclose(result.value["product"], x @ y, atol=CLOSE)
        assert torch.equal(result.value["positive"][0], y > 0) and result.value["positive"][1] == 5


async def test_what_has_no_secure_form_is_said_before_anything_is_shared(team: Folders) -> None:
    async with joined(team) as g:
        with pytest.raises(OperationNotAllowed, match="fft"):
            await g.run(lambda x: torch.fft.fft(x).real, x=torch.ones(4), parties=["alice", "bob"], provider="carol")


@pytest.mark.parametrize(
    "parties, provider",
    [(["alice"], "bob"), (["alice", "alice"], "bob"), (["alice", "bob"], "bob"), (["alice", "bob"], None)],
)
async def test_a_team_is_different_peers(team: Folders, parties: list[str], provider: str | None) -> None:
    async with joined(team) as g:
        with pytest.raises(BadRequest):
            await g.run(lambda x: x + 1, x=torch.ones(2), parties=parties, provider=provider)


@pytest.mark.parametrize("told", [{"provider": "carol"}, {"parties": ["alice", "bob", "carol"]}])
async def test_one_object_that_parties_keep_may_be_several_factors(team: Folders, told: dict[str, Any]) -> None:
    """It has one mask, wherever it stands; in the run that opens it and in those after it."""
    told = {"parties": ["alice", "bob"], **told}
    async with joined(team, Identity.generate()) as g:
        x, w = torch.randn(2, 4), torch.randn(4, 3)
        await g["alice"].send(w, tags=["#twice"])
        await g.run(plus_one, "#twice", **told)
        for _ in range(2):
            result = await g.run(two_products, x, "#twice", "#twice", **told)
            assert torch.allclose(result.value, 2 * (x @ w), atol=1e-2)
