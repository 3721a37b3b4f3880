"""Programs whose indices are computed: tables that are looked up, counted in and walked through; and gammas drawn."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import nn

from tests.grid.programs.program import Values, program


def markov() -> Values:
    moves, shows = torch.rand(3, 3).softmax(1), torch.rand(3, 4).softmax(1)
    return {"moves": moves, "shows": shows, "seen": torch.randint(0, 4, (6,))}


@program(markov)
def viterbi(moves: Any, shows: Any, seen: Any) -> Any:
    """The likeliest path, walked back by the indices of its maxima; and how often each move is on it."""
    score, back = shows[:, seen[0]].log() - math.log(3), []
    for at in range(1, len(seen)):
        score, best = (score[:, None] + moves.log()).max(0)
        score = score + shows[:, seen[at]].log()
        back.append(best)
    path = [score.argmax()]
    for best in reversed(back):
        path.insert(0, best[path[0]])
    counts = torch.zeros_like(moves)
    for one, other in itertools.pairwise(path):
        counts[one, other] += 1
    return score, torch.stack(path), counts


def world() -> Values:
    return {"table": torch.zeros(5, 2), "steps": torch.randint(0, 5, (12, 2)), "actions": torch.randint(0, 2, (12,))}


@program(world)
def q_learning(table: Any, steps: Any, actions: Any) -> Any:
    for (state, following), action in zip(steps, actions, strict=True):
        reward = (following == 4).float()
        target = reward + 0.9 * table[following].max()
        table[state, action] += 0.5 * (target - table[state, action])
    return table, table.argmax(1)


def classified() -> Values:
    return {"net": nn.Linear(4, 3), "x": torch.randn(10, 4), "labels": torch.randint(0, 3, (10,))}


@program(classified)
def confusion_and_attention_to_one(net: Any, x: Any, labels: Any) -> Any:
    """A matrix counted element by element, and gradients of the score of the class that won (as saliency maps take)."""
    x.requires_grad_()
    matrix, found = torch.zeros_like(net.weight[:, :3], dtype=torch.int64), net(x).argmax(1)
    for label, guess in zip(labels, found, strict=True):
        matrix[label, guess] += 1
    scores = net(x[0])
    scores[scores.argmax()].backward()
    return matrix, x.grad


def bounded() -> Values:
    return {"net": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), "states": torch.randn(6, 3)}


@program(bounded)
def beta_policy(net: Any, states: Any) -> Any:
    """A policy over actions between 0 and 1, and its gradient through what it draws."""
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    losses = []
    for _ in range(3):
        one, other = (nn.functional.softplus(net(states)) + 1).unbind(1)
        policy = torch.distributions.Beta(one, other, validate_args=False)  # type: ignore[no-untyped-call]
        action = policy.rsample()
        loss = (action - 0.7).pow(2).mean() - 0.01 * policy.entropy().mean()  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses
