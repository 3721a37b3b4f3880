"""Architectures as public tutorials write them, from torch.nn alone: what models are tried with.

`ZOO` has for each how it is made, an example to capture it with, and inputs of other sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """Deep Residual Learning, table 1; `width` 64 is the paper's."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, inside = [], width
        for number in range(4):
            outside = width * 2**number
            stages.append(
                nn.Sequential(BasicBlock(inside, outside, 1 if not number else 2), BasicBlock(outside, outside))
            )
            inside = outside
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


class Positions(nn.Module):
    """Sines and cosines, as in the tutorial of nn.Transformer."""

    def __init__(self, width: int, longest: int = 64) -> None:
        super().__init__()
        at = torch.arange(longest).unsqueeze(1)
        scale = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        table = torch.zeros(1, longest, width)
        table[0, :, 0::2], table[0, :, 1::2] = torch.sin(at * scale), torch.cos(at * scale)
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        table: Any = self.table
        return x + table[:, : x.size(1)]  # type: ignore[no-any-return]


class TransformerEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 32)
        self.positions = Positions(32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(32, 5)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.positions(self.words(tokens) * math.sqrt(32))
        x = self.encoder(x, src_key_padding_mask=padding)
        if padding is not None:  # what is padded is zero in one of torch's ways of computing it, and not in the other
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        return self.out(x.mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Two layers, both ways; gives its states too."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 12)
        self.rnn = kind(12, 16, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2)  # type: ignore[call-arg, arg-type]
        self.out = nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Any]:
        out, state = self.rnn(self.words(tokens))
        return self.out(out[:, -1]), state


class CachedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        present = torch.stack((torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)))
        scores = (q @ present[0].transpose(-2, -1)) / math.sqrt(width // self.heads)
        total = present.shape[3]
        rows, columns = torch.arange(length)[:, None] + (total - length), torch.arange(total)[None]
        scores = scores.masked_fill(columns > rows, float("-inf"))
        out = (F.softmax(scores, dim=-1) @ present[1]).transpose(1, 2).reshape(batch, length, width)
        return self.proj(out), present


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CachedAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        attended, present = self.attn(self.ln_1(x), past)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), present


class GPT(nn.Module):
    """Small, with tied weights; takes tokens and the cache [layers, 2, batch, heads, past, width], gives both on."""

    def __init__(
        self, vocabulary: int = 40, longest: int = 64, width: int = 32, heads: int = 4, layers: int = 2
    ) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        self.shape = 2, 2, heads, width // heads

    def empty(self, batch: int) -> Tensor:
        layers, two, heads, width = self.shape
        return torch.zeros(layers, two, batch, heads, 0, width)

    def forward(self, tokens: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        past = cache.shape[4]
        x = self.wte(tokens) + self.wpe(torch.arange(past, past + tokens.shape[1]))
        presents = []
        for block, layer in zip(self.h, cache, strict=True):
            x, present = block(x, layer)
            presents.append(present)
        return self.lm_head(self.ln_f(x)), torch.stack(presents)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def double(inside: int, outside: int) -> nn.Module:
            layers = []
            for first in (inside, outside):
                layers += [nn.Conv2d(first, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        self.down1, self.down2, self.bottom = double(1, 4), double(4, 8), double(8, 16)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.join2, self.join1 = double(16, 8), double(8, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self._joined(self.up2(self.bottom(self.pool(two))), two, self.join2)
        return self.out(self._joined(self.up1(x), one, self.join1))  # type: ignore[no-any-return]

    def _joined(self, x: Tensor, skip: Tensor, join: nn.Module) -> Tensor:
        dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return join(torch.cat([skip, x], dim=1))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class MobileNet(nn.Module):
    """Inverted residuals with depthwise convolutions, squeeze-excite, hard swish, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True))
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.excite = SqueezeExcite(24)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.excite(self.depth(self.expand(x))))
        return self.head(x.mean([2, 3]))  # type: ignore[no-any-return]


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.positions = nn.Parameter(torch.randn(1, 17, 24))
        self.attention = nn.ModuleList(nn.MultiheadAttention(24, 4, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for attention, norm in zip(self.attention, self.norms, strict=True):
            y = norm(x)
            x = x + attention(y, y, y, need_weights=False)[0]
            x = x + self.mlp(y)
        return self.head(x[:, 0])  # type: ignore[no-any-return]


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


def tcn() -> nn.Module:
    layers: list[nn.Module] = []
    for level, (inside, outside) in enumerate([(2, 8), (8, 8)]):
        dilation = 2**level
        convolution = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(inside, outside, 3, padding=2 * dilation, dilation=dilation)
        )
        layers += [convolution, Chomp(2 * dilation), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers)


class VariationalAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 32), nn.ReLU())
        self.mu, self.logvar = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 784), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x.view(-1, 784))
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return self.decoder(z), mu, logvar


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(1, 4, 5), nn.PReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 8))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.pairwise_distance(F.normalize(self.tower(left)), F.normalize(self.tower(right)))


class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 16), nn.ELU(), nn.Linear(16, 16))
        self.rho = nn.Sequential(nn.Linear(32, 16), nn.ELU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.phi(x)
        return self.rho(torch.cat([x.sum(dim=1), x.max(dim=1).values], -1)).squeeze(-1)  # type: ignore[no-any-return]


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.gate = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for plain, gate in zip(self.plain, self.gate, strict=True):
            opened = torch.sigmoid(gate(x))
            x = opened * F.relu(plain(x)) + (1 - opened) * x
        return x


class Seq2Seq(nn.Module):
    """A GRU encoder, and a decoder of GRU cells with additive attention over it."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.encoder, self.cell = nn.GRU(8, 12, batch_first=True), nn.GRUCell(20, 12)
        self.query, self.key, self.score = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 1)
        self.out = nn.Linear(12, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        states, last = self.encoder(self.source(source))
        hidden, keys, outputs = last[0], self.key(states), []
        for step in range(target.size(1)):
            scores = self.score(torch.tanh(self.query(hidden).unsqueeze(1) + keys)).squeeze(2)
            context = torch.bmm(F.softmax(scores, dim=-1).unsqueeze(1), states).squeeze(1)
            hidden = self.cell(torch.cat([self.target(target[:, step]), context], dim=1), hidden)
            outputs.append(F.log_softmax(self.out(hidden), dim=-1))
        return torch.stack(outputs, dim=1)


class Experts(nn.Module):
    """A mixture with dense gating of the best two."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)) for _ in range(4))
        self.gate = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        best, which = torch.topk(self.gate(x), 2, dim=-1)
        gates = torch.zeros(x.shape[0], 4, dtype=x.dtype).scatter(1, which, F.softmax(best, -1))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return torch.einsum("be,beo->bo", gates, outputs)


class GraphNet(nn.Module):
    """Two graph convolutions over a dense adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = adjacency + torch.eye(adjacency.size(-1))
        degree = adjacency.sum(-1).clamp(min=1).pow(-0.5)
        adjacency = degree.unsqueeze(-1) * adjacency * degree.unsqueeze(-2)
        return adjacency @ self.second(F.dropout(torch.relu(adjacency @ self.first(x)), training=self.training))


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 1)
        self.filters = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**at) for at in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**at) for at in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(8, 6, 1) for _ in range(3))
        self.out = nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), torch.zeros(1)
        for at, (filtered, gated, skip) in enumerate(zip(self.filters, self.gates, self.skips, strict=True)):
            padded = F.pad(x, (2**at, 0))
            y = torch.tanh(filtered(padded)) * torch.sigmoid(gated(padded))
            total = total + skip(y)
            x = x + y
        return self.out(F.leaky_relu(total))  # type: ignore[no-any-return]


class TransformerDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True, norm_first=True)
        self.out = nn.Linear(16, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1))
        hidden = self.model(self.words(source), self.words(target), tgt_mask=mask, tgt_is_causal=True)
        return self.out(hidden)  # type: ignore[no-any-return]


@dataclass
class Detections:
    boxes: Tensor
    scores: Tensor
    note: str = "none"


class Detector(nn.Module):
    """Gives an object of its own class."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.scores = nn.Linear(7, 9), nn.Linear(9, 4), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Detections:
        x = self.body(x).relu()
        return Detections(self.boxes(x), self.scores(x).softmax(-1))


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"age": nn.Linear(4, 1), "class": nn.Linear(4, 3)})

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"heads": {name: head(x) for name, head in self.heads.items()}, "all": [x, (x + 1, None)], "scale": 2.0}


class LanguageModel(nn.Module):
    """The word model of the examples: an LSTM whose decoder is its embedding, and the state it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.rnn = nn.Embedding(25, 10), nn.LSTM(10, 10, 2)
        self.decoder = nn.Linear(10, 25)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, hidden = self.rnn(self.encoder(tokens), hidden)
        return F.log_softmax(self.decoder(out).view(-1, 25), dim=1), hidden


class Counters(nn.Module):
    """Buffers of integers and truths, integer inputs, integer arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randint(0, 100, (10, 3)))
        self.register_buffer("seen", torch.tensor([True, False] * 5))
        self.register_buffer("offset", torch.tensor(7))

    def forward(self, at: Tensor) -> Tensor:
        table, seen, offset = self.table, self.seen, self.offset
        return torch.where(seen[at].unsqueeze(-1), table[at] % 7 + offset, -(table[at] // 2))  # type: ignore[index, operator, no-any-return]


class Options(nn.Module):
    """Named and optional arguments, flags and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, residual: bool = False, times: int = 1
    ) -> Tensor:
        y = x
        for _ in range(times):
            y = self.fc(y) * scale
        y = y if mask is None else y.masked_fill(mask, 0.0)
        return x + y if residual else y


def floats(*shape: int) -> Tensor:
    return torch.randn(shape)


def words(*shape: int) -> Tensor:
    return torch.randint(0, 20, shape)


def graph(batch: int, nodes: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, nodes, 5), (torch.rand(batch, nodes, nodes) > 0.5).float()


@dataclass(frozen=True)
class Case:
    """`example` is what the module is captured with (None: to be worked out), `calls` what it is called with."""

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    calls: Callable[[], list[Any]]


def _none() -> None:
    return None


ZOO: Final[dict[str, Case]] = {
    "resnet18": Case(lambda: ResNet18(8, 10), _none, lambda: [(floats(1, 3, 64, 64),), (floats(5, 3, 64, 64),)]),
    "transformer": Case(TransformerEncoder, _none, lambda: [(words(1, 8),), (words(5, 3),)]),
    "masked transformer": Case(
        TransformerEncoder,
        lambda: (words(2, 8), torch.zeros(2, 8, dtype=torch.bool)),
        lambda: [(words(3, 5), torch.arange(5) > torch.tensor([[3], [4], [2]])), (words(1, 2), torch.zeros(1, 2) > 0)],
    ),
    "lstm": Case(lambda: Recurrent(nn.LSTM), _none, lambda: [(words(1, 8),), (words(5, 3),)]),
    "gru": Case(lambda: Recurrent(nn.GRU), _none, lambda: [(words(1, 8),), (words(5, 3),)]),
    "gpt": Case(
        GPT,
        lambda: (words(2, 3), torch.zeros(2, 2, 2, 4, 5, 8)),
        lambda: [(words(1, 4), torch.zeros(2, 2, 1, 4, 0, 8)), (words(3, 1), floats(2, 2, 3, 4, 9, 8))],
    ),
    "u-net": Case(UNet, _none, lambda: [(floats(1, 1, 28, 28),), (floats(3, 1, 28, 28),)]),
    "mobilenet": Case(MobileNet, _none, lambda: [(floats(1, 3, 32, 32),), (floats(4, 3, 40, 24),)]),
    "vit": Case(ViT, lambda: floats(1, 3, 16, 16), lambda: [(floats(1, 3, 16, 16),), (floats(6, 3, 16, 16),)]),
    "tcn": Case(tcn, _none, lambda: [(floats(1, 2, 28),), (floats(4, 2, 50),)]),
    "autoencoder": Case(VariationalAutoencoder, _none, lambda: [(floats(1, 784),), (floats(4, 784),)]),
    "siamese": Case(
        Siamese,
        lambda: (floats(1, 1, 16, 16), floats(1, 1, 16, 16)),
        lambda: [(floats(1, 1, 16, 16), floats(1, 1, 16, 16)), (floats(4, 1, 16, 16), floats(4, 1, 16, 16))],
    ),
    "deep sets": Case(DeepSets, lambda: floats(2, 6, 3), lambda: [(floats(1, 6, 3),), (floats(5, 11, 3),)]),
    "highway": Case(Highway, _none, lambda: [(floats(1, 6),), (floats(5, 6),)]),
    "seq2seq": Case(
        Seq2Seq, lambda: (words(2, 6), words(2, 4)), lambda: [(words(1, 6), words(1, 4)), (words(5, 6), words(5, 4))]
    ),
    "experts": Case(Experts, _none, lambda: [(floats(1, 6),), (floats(7, 6),)]),
    "graph": Case(GraphNet, lambda: graph(2, 6), lambda: [graph(1, 6), graph(3, 9)]),
    "wavenet": Case(WaveNet, lambda: floats(2, 1, 30), lambda: [(floats(1, 1, 30),), (floats(4, 1, 50),)]),
    "encoder-decoder": Case(
        TransformerDecoder,
        lambda: (words(2, 6), words(2, 4)),
        lambda: [(words(1, 6), words(1, 4)), (words(3, 5), words(3, 7))],
    ),
    "own class": Case(Detector, _none, lambda: [(floats(1, 7),), (floats(5, 7),)]),
    "dictionary": Case(Dictionary, _none, lambda: [(floats(1, 4),), (floats(5, 4),)]),
    "language model": Case(
        LanguageModel,
        lambda: (words(6, 2), (floats(2, 2, 10), floats(2, 2, 10))),
        lambda: [
            (words(6, 1), (floats(2, 1, 10), floats(2, 1, 10))),
            (words(3, 5), (floats(2, 5, 10), floats(2, 5, 10))),
        ],
    ),
    "integers": Case(
        Counters, lambda: torch.tensor([1, 2]), lambda: [(torch.tensor([9]),), (torch.randint(0, 10, (7,)),)]
    ),
    "options": Case(
        Options,
        lambda: {
            "x": floats(2, 4),
            "mask": torch.zeros(2, 4, dtype=torch.bool),
            "scale": 2.0,
            "residual": True,
            "times": 2,
        },
        lambda: [{"x": floats(3, 4), "mask": floats(3, 4) > 0, "scale": 2.0, "residual": True, "times": 2}],
    ),
}
