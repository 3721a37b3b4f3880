"""Recurrent networks, attention and transformers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.grid.programs.program import Values, classes, program


class CharRNN(nn.Module):
    """Names to languages, one letter after the other, as the classic tutorial has it."""

    def __init__(self, letters: int, hidden: int, out: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.i2h = nn.Linear(letters, hidden)
        self.h2h = nn.Linear(hidden, hidden)
        self.h2o = nn.Linear(hidden, out)
        self.softmax = nn.LogSoftmax(dim=1)

    def forward(self, line: Any, hidden: Any) -> Any:
        hidden = torch.tanh(self.i2h(line) + self.h2h(hidden))
        return self.softmax(self.h2o(hidden)), hidden

    def init_hidden(self) -> Any:
        return torch.zeros(1, self.hidden_size)


def names() -> Values:
    line = F.one_hot(classes(9, 6), 9).float().unsqueeze(1)
    return {"rnn": CharRNN(9, 8, 4), "line": line, "category": torch.tensor([2])}


@program(names)
def name_classifier(rnn: Any, line: Any, category: Any) -> Any:
    criterion = nn.NLLLoss()
    losses = []
    for _ in range(2):
        hidden = rnn.init_hidden()
        rnn.zero_grad()
        for i in range(line.size()[0]):
            output, hidden = rnn(line[i], hidden)
        loss = criterion(output, category)
        loss.backward()
        for p in rnn.parameters():
            p.data.add_(p.grad.data, alpha=-0.05)
        losses.append(loss.item())
    top_n, top_i = output.topk(1)
    return [*losses, top_n, top_i]


class TextRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(12, 6)
        self.rnn = nn.RNN(6, 7, num_layers=2, nonlinearity="relu", batch_first=True)
        self.decoder = nn.Linear(7, 12)

    def forward(self, x: Any, h: Any = None) -> Any:
        out, h = self.rnn(self.encoder(x), h)
        return self.decoder(out), h


def text() -> Values:
    return {"net": TextRNN(), "text": classes(12, 3, 11)}


@program(text)
def char_rnn(net: Any, text: Any) -> Any:
    optimizer = torch.optim.Adagrad(net.parameters(), lr=0.05)
    hidden, losses = None, []
    for i in range(0, 8, 4):
        x, y = text[:, i : i + 4], text[:, i + 1 : i + 5]
        out, hidden = net(x, hidden)
        hidden = hidden.detach()
        loss = F.cross_entropy(out.reshape(-1, 12), y.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, hidden]


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(10, 4)

    def forward(self, sentence: Any) -> Any:
        out, _ = self.lstm(self.word_embeddings(sentence))
        return F.log_softmax(self.hidden2tag(out), dim=-1)


def sentences() -> Values:
    return {"model": Tagger(), "words": classes(20, 4, 6), "tags": classes(4, 4, 6)}


@program(sentences)
def lstm_tagger(model: Any, words: Any, tags: Any) -> Any:
    loss_function = nn.NLLLoss(ignore_index=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        model.zero_grad()
        tag_scores = model(words)
        loss = loss_function(tag_scores.view(-1, 4), tags.view(-1))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return [*losses, model(words).argmax(-1)]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(15, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Any) -> Any:
        return self.gru(self.dropout(self.embedding(x)))


class Decoder(nn.Module):
    """Additive attention over what the encoder gave, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(15, 8)
        self.Wa, self.Ua, self.Va = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.out = nn.Linear(8, 15)

    def step(self, token: Any, hidden: Any, memory: Any) -> Any:
        query = hidden.permute(1, 0, 2)
        scores = self.Va(torch.tanh(self.Wa(query) + self.Ua(memory))).squeeze(2).unsqueeze(1)
        context = torch.bmm(F.softmax(scores, dim=-1), memory)
        output, hidden = self.gru(torch.cat((self.embedding(token), context), dim=2), hidden)
        return self.out(output), hidden

    def forward(self, memory: Any, hidden: Any, target: Any = None) -> Any:
        token = torch.ones_like(memory[:, :1, 0], dtype=torch.long)
        outputs = []
        for i in range(4):
            output, hidden = self.step(token, hidden, memory)
            outputs.append(output)
            if target is not None:
                token = target[:, i].unsqueeze(1)
            else:
                _, best = output.topk(1)
                token = best.squeeze(-1).detach()
        return F.log_softmax(torch.cat(outputs, dim=1), dim=-1)


def pairs() -> Values:
    return {"encoder": Encoder(), "decoder": Decoder(), "source": classes(15, 3, 5), "target": classes(15, 3, 4)}


@program(pairs)
def seq2seq_attention(encoder: Any, decoder: Any, source: Any, target: Any) -> Any:
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (encoder, decoder)]
    criterion = nn.NLLLoss()
    losses = []
    for forced in (True, False):
        for optimizer in optimizers:
            optimizer.zero_grad()
        memory, hidden = encoder(source)
        out = decoder(memory, hidden, target if forced else None)
        loss = criterion(out.view(-1, out.size(-1)), target.view(-1))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
    return losses


class Positions(nn.Module):
    pe: torch.Tensor

    def __init__(self, size: int, length: int = 16) -> None:
        super().__init__()
        position = torch.arange(length).unsqueeze(1)
        scale = torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
        pe = torch.zeros(length, 1, size)
        pe[:, 0, 0::2] = torch.sin(position * scale)
        pe[:, 0, 1::2] = torch.cos(position * scale)
        self.register_buffer("pe", pe)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Any) -> Any:
        return self.dropout(x + self.pe[: x.size(0)])


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.positions = Positions(8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1)
        self.transformer_encoder = nn.TransformerEncoder(layer, 2)
        self.linear = nn.Linear(8, 11)

    def forward(self, src: Any, src_mask: Any = None) -> Any:
        src = self.positions(self.embedding(src) * math.sqrt(8))
        if src_mask is None:
            src_mask = nn.Transformer.generate_square_subsequent_mask(len(src))
        return self.linear(self.transformer_encoder(src, src_mask))


def tokens() -> Values:
    return {"model": LanguageModel(), "data": classes(11, 13, 4)}


@program(tokens)
def transformer_language_model(model: Any, data: Any) -> Any:
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.95)
    model.train()
    losses = []
    for i in range(0, 12, 6):
        seq, targets = data[i : i + 6], data[i + 1 : i + 7].reshape(-1)
        loss = criterion(model(seq).view(-1, 11), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    scheduler.step()
    model.eval()
    with torch.no_grad():
        output = model(data[:6]).view(-1, 11)
        total = len(data) * criterion(output, data[1:7].reshape(-1)).item()
    return [*losses, total / (len(data) - 1)]


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.src, self.tgt = nn.Embedding(10, 8), nn.Embedding(10, 8)
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
        self.generator = nn.Linear(8, 10)

    def forward(self, src: Any, tgt: Any, tgt_mask: Any, src_pad: Any, tgt_pad: Any) -> Any:
        out = self.transformer(
            self.src(src), self.tgt(tgt), tgt_mask=tgt_mask, src_key_padding_mask=src_pad,
            tgt_key_padding_mask=tgt_pad, memory_key_padding_mask=src_pad,
        )  # fmt: skip
        return self.generator(out)


def translations() -> Values:
    source = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 8, 9, 2]])
    target = torch.tensor([[1, 4, 3, 2, 0], [1, 6, 2, 0, 0]])
    return {"net": Translator(), "source": source, "target": target}


@program(translations)
def transformer_translation(net: Any, source: Any, target: Any) -> Any:
    for p in net.parameters():
        if p.dim() > 1:
            nn.init.uniform_(p, -0.2, 0.2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) ** -0.5, (step + 1) * 0.5))
    losses = []
    for _ in range(2):
        given, wanted = target[:, :-1], target[:, 1:]
        size = given.shape[1]
        mask = (torch.triu(torch.ones((size, size))) == 1).transpose(0, 1)
        mask = mask.float().masked_fill(mask == 0, float("-inf")).masked_fill(mask == 1, 0.0)
        logits = net(source, given, mask, source == 0, given == 0)
        loss = F.cross_entropy(logits.reshape(-1, 10), wanted.reshape(-1), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    net.eval()
    ys = torch.ones_like(source[:, :1])
    with torch.no_grad():
        for _ in range(2):
            mask = nn.Transformer.generate_square_subsequent_mask(ys.size(1)).bool()
            out = net(source, ys, mask, source == 0, ys == 0)
            ys = torch.cat([ys, out[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return [*losses, ys]


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(20, 6, sparse=False)
        self.fc = nn.Linear(6, 4)
        self.init_weights()

    def init_weights(self) -> None:
        self.embedding.weight.data.uniform_(-0.5, 0.5)
        self.fc.weight.data.uniform_(-0.5, 0.5)
        self.fc.bias.data.zero_()

    def forward(self, text: Any, offsets: Any) -> Any:
        return self.fc(self.embedding(text, offsets))


def news() -> Values:
    return {
        "model": BagOfWords(), "text": classes(20, 13), "offsets": torch.tensor([0, 4, 9]), "label": classes(4, 3),
    }  # fmt: skip


@program(news)
def text_classification_with_bags(model: Any, text: Any, offsets: Any, label: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(text, offsets), label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.detach())
    return losses


class Sine(nn.Module):
    """Two LSTM cells, one number at a time, going on by themselves in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm1, self.lstm2 = nn.LSTMCell(1, 6), nn.LSTMCell(6, 6)
        self.linear = nn.Linear(6, 1)

    def forward(self, values: Any, future: int = 0) -> Any:
        outputs = []
        h_t, c_t = torch.zeros(values.size(0), 6), torch.zeros(values.size(0), 6)
        h_t2, c_t2 = torch.zeros(values.size(0), 6), torch.zeros(values.size(0), 6)
        for x in values.split(1, dim=1):
            h_t, c_t = self.lstm1(x, (h_t, c_t))
            h_t2, c_t2 = self.lstm2(h_t, (h_t2, c_t2))
            outputs += [self.linear(h_t2)]
        for _ in range(future):
            h_t, c_t = self.lstm1(outputs[-1], (h_t, c_t))
            h_t2, c_t2 = self.lstm2(h_t, (h_t2, c_t2))
            outputs += [self.linear(h_t2)]
        return torch.cat(outputs, dim=1)


def waves() -> Values:
    return {"seq": Sine(), "waves": torch.sin(torch.arange(8.0) / 3 + torch.rand(4, 1))}


@program(waves)
def sine_waves_with_lbfgs(seq: Any, waves: Any) -> Any:
    criterion = nn.MSELoss()
    optimizer = torch.optim.LBFGS(seq.parameters(), lr=0.8, max_iter=3)
    losses = []

    def closure() -> Any:
        optimizer.zero_grad()
        loss = criterion(seq(waves[:, :-1]), waves[:, 1:])
        losses.append(loss.item())
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    with torch.no_grad():
        pred = seq(waves[:, :-1], future=3)
    return [*losses, pred]


def padded() -> Values:
    net = nn.ModuleDict({"attend": nn.MultiheadAttention(8, 2, batch_first=True), "cell": nn.GRUCell(8, 8)})
    return {"net": net, "x": torch.randn(3, 4, 8), "lengths": torch.tensor([4, 2, 3]), "places": torch.arange(4)}


@program(padded)
def attention_with_padding(net: Any, x: Any, lengths: Any, places: Any) -> Any:
    optimizer = torch.optim.NAdam(net.parameters(), lr=1e-2)
    padding = places[None, :] >= lengths[:, None]
    for _ in range(2):
        out, weights = net["attend"](x, x, x, key_padding_mask=padding, need_weights=True)
        hidden = torch.zeros(3, 8)
        for step in out.unbind(1):
            hidden = net["cell"](step, hidden)
        loss = hidden.pow(2).mean() - weights.std()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        quick, _ = net["attend"](x, x, x, key_padding_mask=padding, need_weights=False)
    return [loss, quick]
