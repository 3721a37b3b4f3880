"""Programs in the style of public tutorials, on pointers and here: the same losses, the same weights.

With PEERGRID_FULL set, all of them.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
import torch
from torch import nn

import grid
import tests.grid.programs.classical
import tests.grid.programs.decisions
import tests.grid.programs.generative
import tests.grid.programs.meta
import tests.grid.programs.numbers
import tests.grid.programs.packed
import tests.grid.programs.sequences
import tests.grid.programs.vision  # noqa: F401  # each adds its programs
from peer.folders import Folders
from tests.full import FULL
from tests.grid.programs.program import PROGRAMS

SEED = 7
EACH_TIME = (
    "attention_with_padding beta_policy char_rnn chatbot checkpoints_with_dropout confusion_and_attention_to_one dcgan "
    "deep_q distillation ensemble gaussian_process padded_batches q_learning viterbi "
    "lstm_tagger maml mnist_cnn parametrized_layers polynomial_by_hand proximal_policy resnet sine_waves_with_lbfgs "
    "spatial_transformer text_classification_with_bags transformer_language_model unet vae"
).split()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of transformers
@pytest.mark.parametrize("name", sorted(PROGRAMS) if FULL else EACH_TIME)
async def test_a_program_gives_at_a_peer_what_it_gives_here(peers: Folders, name: str) -> None:
    program = PROGRAMS[name]
    here = dict(program.make())
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        there = {key: await alice.send(copy.deepcopy(value)) for key, value in here.items()}
        torch.manual_seed(SEED)
        expected = program.train(**here)
        alice.manual_seed(SEED)
        results = await asyncio.to_thread(program.train, **there)
        for number, (wanted, got) in enumerate(zip(expected, results, strict=True)):
            assert _close(wanted, await _value(got)), f"result {number} of {name}"
        for key, value in here.items():
            if isinstance(value, nn.Module):
                back = (await there[key].fetch()).state_dict()
                assert back.keys() == value.state_dict().keys()
                for path, wanted in value.state_dict().items():
                    assert _close(wanted, back[path]), f"{key}.{path} of {name}"


async def _value(result: Any) -> Any:
    return await result.fetch() if isinstance(result, grid.Pointer) else result


def _close(wanted: Any, got: Any) -> bool:
    one, other = torch.as_tensor(wanted).detach(), torch.as_tensor(got).detach()
    return one.shape == other.shape and torch.allclose(one.to(other.dtype), other, rtol=1e-3, atol=1e-4)
