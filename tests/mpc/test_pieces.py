"""Work on words: the same in pieces as at once, on tensors of any length, and on shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mpc import bits
from mpc.magnitude import Prefix
from mpc.pieces import BYTES, Array, at_once, by_pieces, upper

_LONG = 3 * BYTES // 8 + 5


def _work(words: Array, rows: Array) -> Sequence[Array]:
    return [words * 3 - rows[0], np.stack([rows[1], words]).astype(np.int16)]


@pytest.mark.parametrize("length", [0, 1, 8, 2 * BYTES // 8, _LONG])
def test_it_is_the_same_in_pieces_and_changes_nothing_that_it_is_given(length: int) -> None:
    words, rows = torch.randint(-(1 << 60), 1 << 60, (length,)), torch.randint(0, 9, (2, length))
    given = words.clone(), rows.clone()
    number, stacked = by_pieces(_work, words, rows)
    assert torch.equal(number, words * 3 - rows[0])
    assert torch.equal(stacked, torch.stack([rows[1], words]).to(torch.int16))
    assert torch.equal(words, given[0]) and torch.equal(rows, given[1])


@pytest.mark.parametrize("length", [0, 8, 24, 200])
def test_shapes_are_found_as_those_of_values_are(length: int) -> None:
    words, rows = torch.zeros(length, dtype=torch.int64), torch.zeros(2, length, dtype=torch.int64)
    made, foreseen = (by_pieces(_work, words.to(device), rows.to(device)) for device in ("cpu", "meta"))
    assert [(each.shape, each.dtype) for each in made] == [(each.shape, each.dtype) for each in foreseen]
    nibbles = torch.zeros(length, dtype=torch.int16)
    for lanes_of, count in ((bits.second_lanes, 2), (bits.third_lanes, 8)):
        packed = nibbles if count == 2 else nibbles[: length // 2].to(torch.uint8)
        for tensor in (packed, packed.to("meta")):
            made = at_once(lanes_of, bits.LANES, tensor)
            assert [(tuple(each.shape), each.dtype) for each in made] == [((length // count,), torch.uint8)] * 4
    for each in (nibbles, nibbles.to("meta")):
        assert bits.pack(each).shape == (length // 8,) and bits.unpack(bits.pack(each)).shape == (length,)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_words_move_as_unsigned_ones(dtype: type) -> None:
    width = np.dtype(dtype).itemsize * 8
    words = np.array([-1, 1, -(1 << (width - 1))], dtype)
    assert upper(words, width - 1).tolist() == [1, 0, 1]
    assert upper(words, 1).tolist() == [(1 << (width - 1)) - 1, 0, 1 << (width - 2)]


def _moved(words: Array, by: int, is_up: bool) -> Array:
    """Shifted up, where zeros come in, or down, where ones do."""
    numbers = words.astype(np.int64) & 0xFFFF
    moved: Array = (numbers << by if is_up else (numbers | 0xFFFF0000) >> by).astype(np.int16)
    return moved


@pytest.mark.parametrize(("is_up", "is_last", "count"), [(True, False, 14), (True, True, 10), (False, False, 7)])
@pytest.mark.parametrize("stride", [1, 4])
def test_products_of_shifted_masks_are_shifted_products(stride: int, is_up: bool, is_last: bool, count: int) -> None:
    """What a prefix network has of its words follows from fewer products than it takes."""
    prefix = Prefix(64, stride, is_up, is_last)
    words = torch.randint(-(1 << 15), 1 << 15, (2 if is_up else 1, 64), dtype=torch.int16)
    masks = torch.randint(-(1 << 15), 1 << 15, words.shape, dtype=torch.int16)
    dealt = prefix.derive([masks], None)[0]
    assert dealt.shape[0] == count
    passes = words[0].numpy()
    shifted = {at: _moved(passes, at * stride, is_up) for at in range(1, 4)}
    if is_up:
        shifted |= {3 + at: _moved(words[1].numpy(), at * stride, is_up) for at in range(1, 4)}
    opened = (words ^ masks).numpy()
    found = [torch.from_numpy(each) for each in prefix.of_opened(True, opened, masks.numpy(), dealt.numpy())]
    wanted = []
    if is_up:
        one, two = passes & shifted[1], passes & shifted[1] & shifted[2]
        wanted.append((passes & shifted[4]) ^ (one & shifted[5]) ^ (two & shifted[6]))
    if not is_last:
        wanted.append(passes & shifted[1] & shifted[2] & shifted[3])
    assert len(found) == len(wanted)
    assert all(torch.equal(each, torch.from_numpy(right)) for each, right in zip(found, wanted, strict=True))
