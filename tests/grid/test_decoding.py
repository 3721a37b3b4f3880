"""A small GPT that decodes with a cache, in a loop that is one node: sent by one, found by tag and run by others."""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import grid
from peer.folders import Folders
from peer.keys import Identity


class Layer(nn.Module):
    """Attention to what is in the cache so far; keys and values of a step are written at its place."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, cache: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        batch, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, 3, self.heads, width // self.heads).unbind(1)
        places = torch.arange(cache.shape[3])
        here = (places == at)[None, None, :, None]
        cache = torch.where(here, torch.stack((k, v)).unsqueeze(3), cache)
        scores = (cache[0] @ q.unsqueeze(-1)).squeeze(-1) / math.sqrt(width // self.heads)
        scores = scores.masked_fill(places > at, -torch.inf)
        x = x + self.out((scores.softmax(-1).unsqueeze(2) @ cache[1]).reshape(batch, width))
        return x + self.mlp(self.after(x)), cache


class Decoder(nn.Module):
    """Takes the beginning of texts, and gives them `more` tokens longer, with the scores of each token."""

    def __init__(self, vocabulary: int = 30, longest: int = 24, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(2))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.words.weight
        self.longest, self.more = longest, 6

    def step(self, token: Tensor, cache: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        x, caches = self.words(token) + self.places(at), []
        for layer, own in zip(self.layers, cache.unbind(0), strict=True):
            x, new = layer(x, own, at)
            caches.append(new)
        return self.head(self.last(x)), torch.stack(caches)

    def forward(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        first = self.layers[0]
        assert isinstance(first, Layer)
        heads, width = first.heads, self.words.embedding_dim
        batch, given = prompt.shape
        cache = torch.zeros(2, 2, batch, heads, self.longest, width // heads)
        padded = F.pad(prompt, (0, self.more))

        def decoded(i: Tensor, token: Tensor, cache: Tensor, told: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
            scores, cache = self.step(token, cache, i)
            after = (i + 1).clamp(max=told.shape[1] - 1)
            places = torch.arange(told.shape[1])
            token = torch.where(after < given, told.index_select(1, after.reshape(1)).squeeze(1), scores.argmax(-1))
            told = torch.where((places == after) & (i + 1 < told.shape[1]), token[:, None], told)
            kept = torch.where((torch.arange(kept.shape[1]) == i)[:, None], scores[:, None], kept)
            return token, cache, told, kept

        kept = torch.zeros(batch, given + self.more, self.head.out_features)
        _, _, told, kept = grid.repeat(given + self.more, decoded, prompt[:, 0], cache, padded, kept)
        return told, kept


def whole(model: Decoder, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The same without a cache and without a loop node: each token from all before it, position by position."""
    told = prompt
    for _ in range(model.more):
        told = torch.cat([told, _all_scores(model, told)[:, -1:].argmax(-1)], 1)
    return told, _all_scores(model, told)


def _all_scores(model: Decoder, told: Tensor) -> Tensor:
    batch, length = told.shape
    x = model.words(told) + model.places(torch.arange(length))
    later = torch.ones(length, length).triu(1).bool()
    for layer in model.layers:
        assert isinstance(layer, Layer)
        q, k, v = layer.qkv(layer.before(x)).view(batch, length, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(later, -torch.inf)
        x = x + layer.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))
        x = x + layer.mlp(layer.after(x))
    return model.head(model.last(x))  # type: ignore[no-any-return]


async def test_a_gpt_decodes_with_its_cache_where_nobody_has_its_class(peers: Folders) -> None:
    torch.manual_seed(0)
    tag, model = f"t{os.urandom(4).hex()}", Decoder().eval()
    prompt = torch.randint(0, 30, (3, 5))
    with torch.no_grad():
        want, scores = whole(model, prompt)
        told, kept = model(prompt)
    assert torch.equal(told, want) and torch.allclose(kept, scores, atol=1e-5)
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as other:
        await g["alice"].send(model, tags=f"{tag} model", example=prompt)
        await g["bob"].send(prompt, tags=f"{tag} prompt")
        stored = (await other.search(f"#{tag} #model")).one()
        operations = [node.operation for node in stored.spec.program.nodes]
        assert operations.count("flow.repeat") == 1 and len(operations) < 40
        found = await other.run(f"#{tag} #model", prompt=f"#{tag} #prompt")
        for result, expected in zip(found, (want, scores), strict=True):
            assert torch.allclose(await result.get(), expected, atol=1e-5)

        @grid.plan
        def asked(prompt: Tensor, model: nn.Module) -> Tensor:
            return model(prompt)[0][:, -1]

        last = await other.run(asked, f"#{tag} #prompt", f"#{tag} #model")
        assert torch.equal(await last.get(), want[:, -1])
        longer = await other["carol"].send(torch.randint(0, 30, (2, 7)))  # another batch, and another length
        with torch.no_grad():
            want, _ = whole(model, await longer.fetch())
        assert torch.equal(await (await other.run(f"#{tag} #model", longer))[0].get(), want)
