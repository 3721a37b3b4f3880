"""Layers at a peer, in train and eval: the same outputs, gradients and buffers as here."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grid
from peer.folders import Folders

Case = tuple[Callable[[], nn.Module], Callable[[], Any]]


def ids(count: int, *shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(0, count, shape)


def floats(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(shape)


IMAGE = floats(2, 4, 8, 8)
CASES: dict[str, Sequence[Case]] = {
    "convolutions": [
        (lambda: nn.Conv1d(3, 4, 3, padding="same"), floats(2, 3, 9)),
        (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), IMAGE),
        (lambda: nn.Conv2d(4, 4, 3, dilation=2, padding_mode="reflect", padding=2), IMAGE),
        (lambda: nn.Conv3d(1, 2, 2), floats(1, 1, 3, 4, 4)),
        (lambda: nn.ConvTranspose1d(3, 2, 3, stride=2), floats(2, 3, 5)),
        (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, padding=1), IMAGE),
        (lambda: nn.Sequential(nn.Unfold(2), nn.Fold((8, 8), 2)), IMAGE),
    ],
    "norms": [
        (lambda: nn.BatchNorm1d(5), floats(6, 5)),
        (lambda: nn.BatchNorm2d(4, momentum=None), IMAGE),
        (lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False), IMAGE),
        (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
        (lambda: nn.GroupNorm(2, 4), IMAGE),
        (lambda: nn.LayerNorm([8, 8]), IMAGE),
        (lambda: nn.RMSNorm(8), IMAGE),
        (lambda: nn.LocalResponseNorm(2), IMAGE),
    ],
    "pooling": [
        (lambda: nn.MaxPool1d(2), floats(2, 3, 8)),
        (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
        (lambda: nn.AvgPool2d(2, count_include_pad=False, padding=1), IMAGE),
        (lambda: nn.AdaptiveAvgPool2d((3, None)), IMAGE),
        (lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
        (lambda: nn.LPPool2d(2, 2), IMAGE),
    ],
    "activations": [
        (
            lambda: nn.Sequential(
                nn.Linear(8, 8), nn.ReLU6(), nn.LeakyReLU(0.1), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(),
                nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(), nn.Softsign(), nn.Tanhshrink(), nn.PReLU(),
            ),
            floats(3, 8),
        ),
        (
            lambda: nn.Sequential(
                nn.Linear(8, 8), nn.Hardtanh(-3, 3), nn.Hardswish(), nn.Hardsigmoid(), nn.LogSigmoid(),
                nn.Threshold(-9, 0),
                nn.Softshrink(0.1), nn.Hardshrink(0.1), nn.GLU(), nn.Softmax(-1), nn.Softmin(-1), nn.LogSoftmax(-1),
            ),
            floats(3, 8),
        ),
        (lambda: nn.Softmax2d(), IMAGE),
    ],
    "shapes": [
        (lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 64))), IMAGE),
        (lambda: nn.PixelShuffle(2), IMAGE),
        (lambda: nn.PixelUnshuffle(2), IMAGE),
        (lambda: nn.Sequential(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1)), IMAGE),
        (lambda: nn.ConstantPad2d((1, 0, 2, 0), 3.5), IMAGE),
        (lambda: nn.Upsample(scale_factor=2), IMAGE),
        (lambda: nn.Upsample(size=(5, 7), mode="bilinear"), IMAGE),
        (lambda: nn.Upsample(scale_factor=1.5, mode="bicubic", align_corners=True), IMAGE),
        (lambda: nn.ChannelShuffle(2), IMAGE),
    ],
    "embeddings": [
        (lambda: nn.Embedding(9, 4, padding_idx=2), ids(9, 3, 5)),
        (lambda: nn.Embedding(9, 4, scale_grad_by_freq=True), ids(9, 3, 5)),
        (lambda: nn.EmbeddingBag(9, 4, mode="sum", padding_idx=1), ids(9, 3, 5)),
        (lambda: nn.EmbeddingBag(9, 4, mode="mean", sparse=False), ids(9, 3, 5)),
        (lambda: nn.EmbeddingBag(9, 4, mode="max"), ids(9, 3, 5)),
        (lambda: nn.Bilinear(5, 5, 3), lambda: (torch.randn(2, 5), torch.randn(2, 5))),
        (lambda: nn.CosineSimilarity(), lambda: (torch.randn(2, 5), torch.randn(2, 5))),
        (lambda: nn.PairwiseDistance(), lambda: (torch.randn(2, 5), torch.randn(2, 5))),
    ],
    "recurrent": [
        (lambda: nn.RNN(4, 5, 2, bidirectional=True), floats(6, 3, 4)),
        (lambda: nn.LSTM(4, 5), floats(6, 3, 4)),
        (lambda: nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True), floats(3, 6, 4)),
        (lambda: nn.LSTM(4, 5, bias=False), floats(6, 3, 4)),
        (lambda: nn.LSTM(4, 5, proj_size=2), floats(6, 3, 4)),
        (lambda: nn.LSTM(4, 5), floats(6, 4)),
        (lambda: nn.GRU(4, 5, 2, batch_first=True, bidirectional=True), floats(3, 6, 4)),
        (lambda: nn.LSTMCell(4, 5), floats(3, 4)),
        (lambda: nn.GRUCell(4, 5), floats(3, 4)),
        (lambda: nn.RNNCell(4, 5, nonlinearity="relu"), floats(3, 4)),
        (
            lambda: nn.LSTM(4, 5, 2),
            lambda: (torch.randn(6, 3, 4), (torch.randn(2, 3, 5), torch.randn(2, 3, 5))),
        ),
    ],
    "attention": [
        (lambda: nn.MultiheadAttention(8, 2), lambda: (torch.randn(5, 2, 8),) * 3),
        (
            lambda: nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=4),
            lambda: (torch.randn(2, 5, 8), torch.randn(2, 3, 6), torch.randn(2, 3, 4)),
        ),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), floats(2, 5, 8)),
        (
            lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation="gelu", batch_first=True, norm_first=True),
            floats(2, 5, 8),
        ),
        (
            lambda: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, nn.LayerNorm(8)
            ),
            floats(2, 5, 8),
        ),
        (
            lambda: nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0),
            lambda: (torch.randn(3, 2, 8), torch.randn(5, 2, 8)),
        ),
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of projections and of masks
@pytest.mark.parametrize("kind", sorted(CASES))
async def test_layers_give_at_a_peer_what_they_give_here(peers: Folders, kind: str) -> None:
    async with grid.connect(folders=peers) as g:
        for make, inputs in CASES[kind]:
            here, given = make(), inputs()
            there = await g["alice"].send(copy.deepcopy(here))
            sent = await _sent(g, given)
            for mode in ("train", "eval"):
                getattr(here, mode)()
                getattr(there, mode)()
                wanted, got = _run(here, given), await asyncio.to_thread(_run, there, sent)  # some read a value
                await _check(wanted, got, f"{here} in {mode}")
            with torch.no_grad():  # torch has other kernels for this, for some layers
                await _check(_flat(_called(here, given)), _flat(_called(there, sent)), f"{here} without gradients")


async def test_dropout_in_train_drops_and_in_eval_does_not(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(50, 20))
        for layer in (nn.Dropout(0.5), nn.Dropout1d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)):
            g["alice"].manual_seed(3)
            torch.manual_seed(3)
            assert torch.allclose(await layer(x).fetch(), layer(torch.ones(50, 20)), atol=1e-6)
            layer.eval()
            assert torch.equal(await layer(x).fetch(), torch.ones(50, 20))


@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_the_quick_paths_of_attention_mask_as_here(peers: Folders) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x, causal = torch.randn(3, 4, 8), nn.Transformer.generate_square_subsequent_mask(4)
    padding = torch.tensor([[False] * 4, [False, False, True, True], [False, True, False, True]])
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        far, look = await alice.send(copy.deepcopy(layer)), await alice.send(copy.deepcopy(attention))
        xs, mask, pad = await alice.send(x), await alice.send(causal), await alice.send(padding)
        with torch.no_grad():
            pairs = [
                (layer(x, src_mask=causal), far(xs, src_mask=mask)),
                (layer(x, src_key_padding_mask=padding), far(xs, src_key_padding_mask=pad)),
                (layer(x, causal, padding), far(xs, mask, pad)),
            ]
            for options in ({"need_weights": False}, {"average_attn_weights": False}, {}):
                wanted = attention(x, x, x, key_padding_mask=padding, **options)
                got = look(xs, xs, xs, key_padding_mask=pad, **options)
                pairs += [pair for pair in zip(wanted, got, strict=True) if pair[0] is not None]
        for wanted, got in pairs:
            assert torch.allclose(await got.fetch(), wanted, atol=1e-5)


async def test_padded_sequences_are_packed_from_values_that_can_be_waited_for(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.randn(4, 3, 2))
        with pytest.raises((grid.NeedsAwait, grid.GridError)):
            nn.utils.rnn.pack_padded_sequence(x, await g["alice"].send(torch.tensor([4, 2, 1])))


async def _sent(g: grid.Grid, value: Any) -> Any:
    if isinstance(value, tuple):
        sent = {id(each): await _sent(g, each) for each in value}
        return tuple(sent[id(each)] for each in value)
    return await g["alice"].send(value)


def _called(layer: nn.Module, given: Any) -> Any:
    return layer(*given) if isinstance(given, tuple) else layer(given)


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for each in value or () for tensor in _flat(each)]


def _run(layer: nn.Module, given: Any) -> list[torch.Tensor]:
    """Outputs, gradients and buffers of one step."""
    layer.zero_grad()
    first = given[0] if isinstance(given, tuple) else given
    if first.is_floating_point():
        first.requires_grad_()
        first.grad = None
    out = _flat(_called(layer, given))
    if first.requires_grad or any(True for _ in layer.parameters()):
        sum((each * each).sum() + each.sum() for each in out).backward()  # type: ignore[union-attr]
    grads = [parameter.grad for parameter in layer.parameters()] + [first.grad]
    return [*out, *[grad for grad in grads if grad is not None], *layer.buffers()]


async def _check(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor], what: str) -> None:
    for number, (one, other) in enumerate(zip(wanted, got, strict=True)):
        assert isinstance(other, grid.Pointer), what
        assert torch.allclose(await other.detach().fetch(), one.detach(), rtol=1e-4, atol=1e-4), f"{number} of {what}"


async def test_scaled_attention_is_causal_without_a_mask_from_here(peers: Folders) -> None:
    q, k, v = torch.randn(3, 2, 2, 4, 8).unbind(0)
    async with grid.connect(folders=peers) as g:
        far: Any = [await g["alice"].send(each) for each in (q, k, v)]
        got = F.scaled_dot_product_attention(*far, is_causal=True)
        assert torch.allclose(await got.fetch(), F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-5)


async def test_a_convolution_of_what_lies_time_first(peers: Folders) -> None:
    here = [torch.randn(5, 2, 3), torch.randn(3, 3, 4), torch.randn(4)]
    async with grid.connect(folders=peers) as g:
        far = [(await g["alice"].send(each)).requires_grad_() for each in here]
        near = [each.clone().requires_grad_() for each in here]
        convolve: Any = torch.conv_tbc
        got, wanted = convolve(*far, 1), convolve(*near, 1)
        (got * got).sum().backward()
        (wanted * wanted).sum().backward()
        grads: Any = [[each.grad for each in values] for values in (near, far)]
        await _check([wanted, *grads[0]], [got, *grads[1]], "conv_tbc")
        assert got.stride() == wanted.stride()

        def gradients(*values: Any) -> Any:
            return torch.func.grad(lambda *each: convolve(*each, 1).pow(2).sum(), (0, 1, 2))(*values)

        for one, other in zip(await g.run(gradients, *(each.detach() for each in far)), gradients(*here), strict=True):
            assert torch.allclose(await one.get(), other, rtol=1e-4, atol=1e-4)
