"""Reinforcement learning: updates from a batch of what was seen."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal

from tests.grid.programs.program import Values, classes, program


class DQN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x: Any) -> Any:
        return self.layer2(F.relu(self.layer1(x)))


def replay() -> Values:
    policy = DQN()
    return {
        "policy_net": policy, "target_net": copy.deepcopy(policy), "state": torch.randn(6, 4),
        "action": classes(2, 6, 1), "reward": torch.randn(6), "next_state": torch.randn(6, 4),
        "done": torch.tensor([0.0, 1, 0, 0, 1, 0]),
    }  # fmt: skip


@program(replay)
def deep_q(policy_net: Any, target_net: Any, state: Any, action: Any, reward: Any, next_state: Any, done: Any) -> Any:
    optimizer = torch.optim.AdamW(policy_net.parameters(), lr=1e-2, amsgrad=True)
    target_net.load_state_dict(policy_net.state_dict())
    losses = []
    for _ in range(3):
        values = policy_net(state).gather(1, action)
        with torch.no_grad():
            best = target_net(next_state).max(1).values * (1 - done)
        expected = best * 0.99 + reward
        loss = nn.SmoothL1Loss()(values, expected.unsqueeze(1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(policy_net.parameters(), 100)
        optimizer.step()
        target, policy = target_net.state_dict(), policy_net.state_dict()
        for key in policy:
            target[key] = policy[key] * 0.1 + target[key] * 0.9
        target_net.load_state_dict(target)
        losses.append(loss.detach())
    return losses


def episode() -> Values:
    policy = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.6), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(dim=-1))
    return {"policy": policy, "states": torch.randn(5, 4), "rewards": torch.rand(5)}


@program(episode)
def reinforce(policy: Any, states: Any, rewards: Any) -> Any:
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    eps = torch.finfo(torch.float32).eps
    losses = []
    for _ in range(2):
        saved = []
        for state in states:
            m = Categorical(policy(state.unsqueeze(0)))
            action = m.sample()
            saved.append(m.log_prob(action))
        R: Any = 0.0
        returns: Any = []
        for r in rewards.flip(0):
            R = r + 0.99 * R
            returns.insert(0, R)
        returns = torch.stack(returns)
        returns = (returns - returns.mean()) / (returns.std() + eps)
        loss = torch.cat([-log_prob * R.unsqueeze(0) for log_prob, R in zip(saved, returns, strict=False)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.action_head, self.value_head = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.body(x))
        return self.action_head(x), self.value_head(x)


def rollout() -> Values:
    return {
        "model": ActorCritic(), "states": torch.randn(6, 4), "actions": classes(3, 6), "returns": torch.randn(6),
    }  # fmt: skip


@program(rollout)
def proximal_policy(model: Any, states: Any, actions: Any, returns: Any) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with torch.no_grad():
        old = Categorical(logits=model(states)[0]).log_prob(actions)
    for _ in range(2):
        logits, value = model(states)
        dist = Categorical(logits=logits)
        ratio = torch.exp(dist.log_prob(actions) - old)
        advantage = returns - value.squeeze(-1).detach()
        clipped = torch.clamp(ratio, 0.8, 1.2) * advantage
        policy_loss = -torch.min(ratio * advantage, clipped).mean()
        loss = policy_loss + 0.5 * F.mse_loss(value.squeeze(-1), returns) - 0.01 * dist.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [loss]


def control() -> Values:
    return {"mean": nn.Linear(3, 2), "log_std": torch.zeros(2, requires_grad=True), "states": torch.randn(5, 3)}


@program(control)
def continuous_policy(mean: Any, log_std: Any, states: Any) -> Any:
    optimizer = torch.optim.Adam([*mean.parameters(), log_std], lr=1e-2)
    for _ in range(2):
        dist = Normal(mean(states), log_std.exp())
        action = dist.mean + dist.stddev * torch.randn_like(dist.stddev)
        squashed = torch.tanh(action)
        log_prob = (dist.log_prob(action) - torch.log(1 - squashed.pow(2) + 1e-6)).sum(-1)
        loss = (0.2 * log_prob + squashed.pow(2).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [loss, log_std]
