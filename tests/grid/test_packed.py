"""Sequences of different lengths: padded, packed, through recurrent layers and back, with gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn
from torch.utils._python_dispatch import TorchDispatchMode

import grid
from peer.folders import Folders
from tests.grid.forms import is_same, value_of

LENGTHS = torch.tensor([2, 5, 4, 5, 1])

FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "padded": lambda net, parts: rnn.pad_sequence(parts),
    "padded before": lambda net, parts: rnn.pad_sequence(parts, True, 1.5, "left"),
    "packed": lambda net, parts: _packed(parts).data,
    "packed from a list": lambda net, parts: rnn.pack_sequence(parts, enforce_sorted=False).data,
    "steps first": lambda net, parts: (
        rnn.pack_padded_sequence(rnn.pad_sequence(parts[1:4]), [5, 4, 3], False, False).data
    ),
    "unpacked": lambda net, parts: rnn.pad_packed_sequence(_packed(parts), True, -1.0, 7),
    "parts again": lambda net, parts: rnn.unpack_sequence(_packed(parts)),
    "a layer": lambda net, parts: _through(net, parts),
    "without gradients": lambda net, parts: _without_gradients(net, parts),
}


def _packed(parts: Any) -> Any:
    return rnn.pack_padded_sequence(rnn.pad_sequence(parts, True), LENGTHS, batch_first=True, enforce_sorted=False)


def _through(net: Any, parts: Any) -> Any:
    out, hidden = net(_packed(parts))
    padded, lengths = rnn.pad_packed_sequence(out, batch_first=True)
    return padded, lengths, hidden


def _without_gradients(net: Any, parts: Any) -> Any:
    with torch.inference_mode():
        return _through(net, [part.detach() for part in parts])


async def test_padding_and_packing_give_what_they_give_here(peers: Folders) -> None:
    here = [torch.randn(int(length), 3) for length in LENGTHS]
    layers = [nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True), nn.GRU(3, 4, batch_first=True)]
    async with grid.connect(folders=peers) as g:
        for layer in layers:
            there = await g["alice"].send(copy.deepcopy(layer))
            for name, form in FORMS.items():
                given = [part.clone().requires_grad_() for part in here]
                sent = [(await g["alice"].send(part)).requires_grad_() for part in here]
                wanted, got = form(layer, given), form(there, sent)
                assert is_same(await value_of(got), wanted), name
                if name != "without gradients":
                    _sum(wanted).backward()
                    _sum(got).backward()
                    for one, other in zip(given, sent, strict=True):
                        assert (one.grad is None) == (other.grad is None), name
                        assert one.grad is None or is_same(await value_of(other.grad), one.grad), name
            for one, other in zip(layer.parameters(), there.parameters(), strict=True):
                assert is_same(await value_of(other.grad), one.grad)


def _sum(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return sum(_sum(each) for each in value)
    return value.pow(2).sum() if value.is_floating_point() else 0


async def test_wrong_lengths_get_torchs_own_words(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.randn(3, 5, 2))
        for lengths, text in (([2, 5, 4], "sorted"), ([5, 4, 0], "greater than 0"), ([5, 4], "equal to batch_size")):
            with pytest.raises(RuntimeError, match=text):
                rnn.pack_padded_sequence(x, lengths, batch_first=True)
        packed = rnn.pack_padded_sequence(x, [5, 4, 4], batch_first=True)
        with pytest.raises((RuntimeError, ValueError), match="total_length"):
            rnn.pad_packed_sequence(packed, total_length=3)


def test_tensors_that_are_here_go_torchs_own_way() -> None:
    parts = [torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)]
    padded = rnn.pad_sequence(parts, padding_value=2.0)
    assert padded.shape == (4, 2, 3) and bool((padded[2:, 0] == 2).all())
    padded.sum().backward()
    assert all(part.grad is not None and bool((part.grad == 1).all()) for part in parts)
    assert torch.vander(torch.tensor([1.0, 2.0, 3.0]), 3).tolist() == [[1, 1, 1], [4, 2, 1], [9, 3, 1]]


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_tensors_that_are_here_are_padded_as_ever_by_torch_itself() -> None:
    with _Seen() as seen:
        rnn.pad_sequence([torch.ones(3), torch.ones(2)])
    assert "aten.copy_.default" in seen.names, "torch's C++ writes them; what it says in Python is slower"
