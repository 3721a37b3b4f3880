"""Programs on sequences of different lengths, packed: a chatbot with attention, a classifier of padded batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import rnn

from tests.grid.programs.program import Values, program


class Encoder(nn.Module):
    def __init__(self, words: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(words, size)
        self.gru = nn.GRU(size, size, 2, dropout=0.1, bidirectional=True)

    def forward(self, source: Any, lengths: Any) -> Any:
        outputs, hidden = self.gru(rnn.pack_padded_sequence(self.embedding(source), lengths))
        outputs, _ = rnn.pad_packed_sequence(outputs)
        return outputs[:, :, : self.size] + outputs[:, :, self.size :], hidden


class Decoder(nn.Module):
    def __init__(self, words: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.gru = nn.GRU(size, size, 2, dropout=0.1)
        self.concat, self.out = nn.Linear(size * 2, size), nn.Linear(size, words)

    def forward(self, step: Any, hidden: Any, seen: Any) -> Any:
        output, hidden = self.gru(self.embedding(step), hidden)
        weights = F.softmax(torch.sum(output * seen, dim=2).t(), dim=1).unsqueeze(1)
        context = weights.bmm(seen.transpose(0, 1)).squeeze(1)
        output = torch.tanh(self.concat(torch.cat((output.squeeze(0), context), 1)))
        return F.softmax(self.out(output), dim=1), hidden


def conversation() -> Values:
    source, target = torch.randint(1, 12, (5, 3)), torch.randint(1, 12, (4, 3))
    source[4, 1:] = source[2:, 2] = target[3, 1] = 0
    return {"encoder": Encoder(12, 6), "decoder": Decoder(12, 6), "source": source, "target": target}


@program(conversation)
def chatbot(encoder: Any, decoder: Any, source: Any, target: Any) -> Any:
    optimizers = [torch.optim.Adam(net.parameters(), 0.01) for net in (encoder, decoder)]
    losses = []
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        seen, hidden = encoder(source, torch.tensor([5, 4, 2]))
        hidden, step, loss = hidden[:2], torch.ones_like(target[:1]), torch.zeros(())
        for at, wanted in enumerate(target):
            output, hidden = decoder(step, hidden, seen)
            step = wanted.view(1, -1) if at % 2 else output.topk(1)[1].view(1, -1)
            missed = -torch.log(torch.gather(output, 1, wanted.view(-1, 1)).squeeze(1))
            loss = loss + missed.masked_select(wanted != 0).mean()
        loss.backward()
        for net, optimizer in zip((encoder, decoder), optimizers, strict=True):
            nn.utils.clip_grad_norm_(net.parameters(), 50.0)
            optimizer.step()
        losses.append(loss.item())
    return losses


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.lstm = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.out = nn.Linear(10, 2)

    def forward(self, words: Any) -> Any:
        lengths = (words != 0).sum(1)
        packed = rnn.pack_padded_sequence(self.embedding(words), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.out(torch.cat([hidden[-2], hidden[-1]], 1))


def reviews() -> Values:
    return {
        "net": Classifier(),
        **{f"review{at}": torch.randint(1, 9, (size,)) for at, size in enumerate((3, 6, 2, 5))},
    }


@program(reviews)
def padded_batches(net: Any, **reviews: Any) -> Any:
    """Reviews of different lengths, padded by whoever puts a batch together."""
    words, labels = rnn.pad_sequence(list(reviews.values()), batch_first=True), torch.arange(4) % 2
    optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = -F.log_softmax(net(words), 1)[range(4), labels].mean()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses
