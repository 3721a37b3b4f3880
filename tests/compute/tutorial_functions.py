"""Functions as tutorials write them, each with its arguments: what a plan has to be able to be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import grid

Case = tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]
CASES: dict[str, Case] = {}


def case(make: Callable[[], tuple[Any, ...]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        CASES[function.__name__] = function, make
        return function

    return add


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def labels(count: int, classes: int) -> torch.Tensor:
    return torch.randint(0, classes, (count,))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


# --- linear algebra, iterations -----------------------------------------------------------------------------


@case(lambda: (x(6, 6),))
def power_iteration(a: torch.Tensor) -> Any:
    a = a @ a.T

    def step(i: Any, v: torch.Tensor) -> torch.Tensor:
        v = a @ v
        return v / v.norm()

    v = grid.repeat(50, step, torch.ones(6) / math.sqrt(6))
    return v @ a @ v, v.abs()


@case(lambda: (x(20, 5),))
def pca(data: torch.Tensor) -> Any:
    centred = data - data.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[:2].T).abs(), values**2 / (len(data) - 1)


@case(lambda: (torch.rand(5) + 0.5,))
def newton_square_root(a: torch.Tensor) -> Any:
    found, steps = grid.while_loop(
        lambda g, n: (g * g - a).abs().max() > 1e-5, lambda g, n: ((g + a / g) / 2, n + 1), (a, 0), limit=50
    )
    return found, steps


@case(lambda: (x(30, 2),))
def k_means(points: torch.Tensor) -> Any:
    def step(centres: torch.Tensor, before: torch.Tensor, n: torch.Tensor) -> Any:
        nearest = torch.cdist(points, centres).argmin(1)
        member = F.one_hot(nearest, 3).to(points.dtype)
        new = (member.T @ points) / member.sum(0).clamp(min=1)[:, None]
        return new, centres.clone(), n + 1

    start = points[:3]
    centres, _, n = torch.while_loop(
        lambda c, before, n: ((c - before).abs().sum() > 1e-6) & (n < 50), step, (start, start + 1, torch.tensor(0))
    )
    return centres, torch.cdist(points, centres).argmin(1), n


@case(lambda: (x(12, 4), x(12)))
def least_squares_by_descent(features: torch.Tensor, target: torch.Tensor) -> Any:
    def step(i: Any, w: torch.Tensor) -> torch.Tensor:
        return w - 0.05 * features.T @ (features @ w - target) / len(target)

    return grid.repeat(100, step, torch.zeros(4))


@case(lambda: (x(5, 5), x(5)))
def conjugate_gradients(a: torch.Tensor, b: torch.Tensor) -> Any:
    a = a @ a.T + 5 * torch.eye(5)

    def step(i: Any, found: Any, r: Any, p: Any) -> Any:
        along = a @ p
        alpha = (r @ r) / (p @ along)
        new = r - alpha * along
        return found + alpha * p, new, new + (new @ new) / (r @ r) * p

    return grid.repeat(4, step, torch.zeros(5), b, b)[0]


@case(lambda: (torch.rand(4, 4) + 0.1,))
def sinkhorn(costs: torch.Tensor) -> Any:
    kernel = torch.exp(-costs / 0.5)

    def step(i: Any, u: Any, v: Any) -> Any:
        u = 0.25 / (kernel @ v)
        return u, 0.25 / (kernel.T @ u)

    u, v = grid.repeat(30, step, torch.ones(4), torch.ones(4))
    return u[:, None] * kernel * v


@case(lambda: (torch.rand(5, 5),))
def page_rank(links: torch.Tensor) -> Any:
    moves = links / links.sum(0, keepdim=True)
    return grid.repeat(40, lambda i, r: 0.85 * moves @ r + 0.03, torch.full((5,), 0.2))


@case(lambda: (torch.rand(6, 6),))
def shortest_paths(weights: torch.Tensor) -> Any:
    return grid.repeat(3, lambda i, d: (d[:, :, None] + d[None]).amin(1).minimum(d), weights)


@case(lambda: (x(8, 8),))
def game_of_life(board: torch.Tensor) -> Any:
    kernel = torch.tensor([[1.0, 1, 1], [1, 0, 1], [1, 1, 1]])[None, None]

    def step(i: Any, b: torch.Tensor) -> torch.Tensor:
        near = F.conv2d(b[None, None], kernel, padding=1)[0, 0]
        return ((near == 3) | ((near == 2) & (b > 0))).to(b.dtype)

    return grid.repeat(5, step, (board > 0).float())


@case(lambda: (x(3), torch.tensor(0.1)))
def runge_kutta(y: torch.Tensor, dt: torch.Tensor) -> Any:
    def f(v: torch.Tensor) -> torch.Tensor:
        return torch.stack([10 * (v[1] - v[0]), v[0] * (28 - v[2]) - v[1], v[0] * v[1] - 8 / 3 * v[2]])

    def step(v: torch.Tensor, _: torch.Tensor) -> Any:
        a = f(v)
        b = f(v + dt / 20 * a)
        c = f(v + dt / 20 * b)
        v = v + dt / 60 * (a + 2 * b + 2 * c + f(v + dt / 10 * c))
        return v, v

    return grid.scan(step, y, torch.zeros(10))


# --- sequences --------------------------------------------------------------------------------------------------


@case(lambda: (x(2, 5, 4), nn.GRUCell(4, 6)))
def gru_loop(sequence: torch.Tensor, cell: nn.Module) -> Any:
    def step(h: torch.Tensor, item: torch.Tensor) -> Any:
        h = cell(item, h)
        return h, h

    h, every = grid.scan(step, torch.zeros(2, 6), sequence.transpose(0, 1))
    return h, every.transpose(0, 1)


@case(lambda: (x(7, 3), x(3, 3)))
def recurrence_with_gradient(sequence: torch.Tensor, weight: torch.Tensor) -> Any:
    weight = weight.clone().requires_grad_()

    def step(h: torch.Tensor, item: torch.Tensor) -> Any:
        h = torch.tanh(h @ weight + item)
        return h, h

    _, every = grid.scan(step, torch.zeros(3), sequence)
    every.pow(2).mean().backward()
    return weight.grad


@case(lambda: (x(2, 6, 8), nn.MultiheadAttention(8, 2, batch_first=True)))
def causal_attention(sequence: torch.Tensor, attention: nn.Module) -> Any:
    mask = torch.triu(torch.ones(6, 6, dtype=torch.bool), diagonal=1)
    return attention(sequence, sequence, sequence, attn_mask=mask, need_weights=False)[0]


@case(lambda: (x(2, 3, 5, 4), x(2, 3, 5, 4), x(2, 3, 5, 4)))
def attention_by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(torch.ones(5, 5).tril() == 0, float("-inf"))
    return scores.softmax(-1) @ v


@case(lambda: (labels(6, 10), nn.Embedding(10, 8), nn.Linear(8, 10)))
def greedy_decoding(prompt: torch.Tensor, embed: nn.Module, head: nn.Module) -> Any:
    def step(i: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        following = head(embed(tokens).mean(0)).argmax()
        return torch.cat([tokens[1:], following[None]])

    return grid.repeat(5, step, prompt)


@case(lambda: (x(9), torch.rand(3)))
def exponential_average(series: torch.Tensor, weight: torch.Tensor) -> Any:
    return grid.scan(lambda m, v: ((1 - 0.1) * m + 0.1 * v, m), torch.tensor(0.0), series)


@case(lambda: (torch.rand(8), torch.rand(8)))
def discounted_returns(rewards: torch.Tensor, done: torch.Tensor) -> Any:
    total, returns = grid.scan(
        lambda r, each: (each[0] + 0.9 * r * (each[1] < 0.8),) * 2, torch.tensor(0.0), (rewards, done), reverse=True
    )
    return (returns - returns.mean()) / (returns.std() + 1e-8), total


@case(lambda: (x(5, 3), torch.rand(3, 3).softmax(1)))
def viterbi(emissions: torch.Tensor, transitions: torch.Tensor) -> Any:
    def step(score: torch.Tensor, emission: torch.Tensor) -> Any:
        best, where = (score[:, None] + transitions.log()).max(0)
        return best + emission, where

    score, back = grid.scan(step, emissions[0], emissions[1:])
    return score.max(), back


@case(lambda: (x(4, 6, 5),))
def positional_encoding(tokens: torch.Tensor) -> Any:
    place = torch.arange(6).float()[:, None]
    rate = torch.exp(torch.arange(0, 4, 2).float() * (-math.log(10000.0) / 4))
    code = torch.zeros(6, 5)
    code[:, 0:4:2] = torch.sin(place * rate)
    code[:, 1:4:2] = torch.cos(place * rate)
    return tokens + code


# --- training ---------------------------------------------------------------------------------------------------


@case(lambda: (small(), x(16, 4), labels(16, 3)))
def epochs_of_adam(model: nn.Module, data: torch.Tensor, target: torch.Tensor) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def step(_: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return torch.zeros(()), loss.detach()

    def epoch(i: Any, losses: torch.Tensor) -> torch.Tensor:
        _, found = grid.scan(step, torch.zeros(()), (data.view(4, 4, 4), target.view(4, 4)))
        return torch.cat([losses[1:], found.mean()[None]])

    return grid.repeat(3, epoch, torch.zeros(3)), dict(model.state_dict())


@case(lambda: (small(), x(8, 4), labels(8, 3)))
def weight_decay_and_clipping(model: nn.Module, data: torch.Tensor, target: torch.Tensor) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)

    def step(i: Any, loss: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(data), target, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return grid.repeat(6, step, torch.zeros(())), list(model.parameters())


@case(lambda: (small(), x(4, 5, 4), x(4, 5, 3)))
def maml(model: nn.Module, support: torch.Tensor, wanted: torch.Tensor) -> Any:
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(p: Any, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(torch.func.functional_call(model, p, (inputs,)), target)

    def adapted(p: Any, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        grads = torch.func.grad(loss)(p, inputs, target)
        return loss({name: p[name] - 0.1 * grads[name] for name in p}, inputs, target)

    def outer(p: Any) -> torch.Tensor:
        return torch.vmap(lambda a, b: adapted(p, a, b))(support, wanted).mean()

    return torch.func.grad(outer)(weights)


@case(lambda: (x(8, 4), labels(8, 3), small()))
def per_sample_gradient_norms(data: torch.Tensor, target: torch.Tensor, model: nn.Module) -> Any:
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(p: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, p, (a[None],)), b[None])

    grads = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, data, target)
    return torch.stack([g.flatten(1).pow(2).sum(1) for g in grads.values()]).sum(0).sqrt()


@case(lambda: (x(4), x(4, 4)))
def newton_with_hessian(start: torch.Tensor, a: torch.Tensor) -> Any:
    a = a @ a.T + torch.eye(4)

    def energy(v: torch.Tensor) -> torch.Tensor:
        return v @ a @ v / 2 + (v**4).sum()

    gradient = torch.func.grad(energy)
    curvature = torch.func.hessian(energy)
    return grid.repeat(3, lambda i, v: v - torch.linalg.solve(curvature(v), gradient(v)), start)


@case(lambda: (x(6, 4), small()))
def saliency(images: torch.Tensor, model: nn.Module) -> Any:
    images = images.clone().requires_grad_()
    model(images).max(1).values.sum().backward()
    return images.grad.abs()  # type: ignore[union-attr]


@case(lambda: (x(6, 4), labels(6, 3), small()))
def adversarial_examples(images: torch.Tensor, target: torch.Tensor, model: nn.Module) -> Any:
    def step(i: Any, moved: torch.Tensor) -> torch.Tensor:
        grad = torch.func.grad(lambda v: F.cross_entropy(model(v), target))(moved)
        return images + (moved + 0.05 * grad.sign() - images).clamp(-0.1, 0.1)

    return grid.repeat(4, step, images)


@case(lambda: (small(), small(), x(6, 4)))
def moving_average_of_weights(student: nn.Module, teacher: nn.Module, data: torch.Tensor) -> Any:
    with torch.no_grad():
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.mul_(0.9).add_(fast, alpha=0.1)
    return teacher(data), teacher


@case(lambda: (x(8, 4), x(8, 4), x(8, 4)))
def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, other: torch.Tensor) -> Any:
    soft = F.kl_div(F.log_softmax(student / 2, -1), F.softmax(teacher / 2, -1), reduction="batchmean") * 4
    return soft + F.triplet_margin_loss(student, teacher, other) + F.cosine_similarity(student, other).mean()


@case(lambda: (x(6, 8), x(6, 3), x(6, 3)))
def vae_loss(images: torch.Tensor, mean: torch.Tensor, log_var: torch.Tensor) -> Any:
    decoded = torch.sigmoid(mean @ torch.ones(3, 8) * 0.1)
    rebuilt = F.binary_cross_entropy(decoded, images.sigmoid(), reduction="sum")
    return rebuilt - 0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())


@case(lambda: (x(8, 16), x(8, 16)))
def contrastive_loss(a: torch.Tensor, b: torch.Tensor) -> Any:
    both = F.normalize(torch.cat([a, b]), dim=1)
    alike = both @ both.T / 0.5
    alike.fill_diagonal_(float("-inf"))
    return F.cross_entropy(alike, torch.cat([torch.arange(8, 16), torch.arange(8)]))


@case(
    lambda: (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
        x(5, 1, 8, 8),
    )
)
def running_statistics(model: nn.Module, images: torch.Tensor) -> Any:
    for part in images.split(3):
        model(part)
    return model.eval()(images), model[1].running_mean, model[1].num_batches_tracked  # type: ignore[index]


# --- statistics and metrics -------------------------------------------------------------------------------------


@case(lambda: (x(20, 3), labels(20, 3)))
def confusion_matrix(scores: torch.Tensor, target: torch.Tensor) -> Any:
    counts = torch.zeros(9, dtype=torch.int64)
    counts.index_add_(0, target * 3 + scores.argmax(1), torch.ones(20, dtype=torch.int64))
    counts = counts.view(3, 3)
    precision = counts.diag() / counts.sum(0).clamp(min=1)
    recall = counts.diag() / counts.sum(1).clamp(min=1)
    return {"counts": counts, "f1": 2 * precision * recall / (precision + recall).clamp(min=1e-9)}


@case(lambda: (torch.rand(15), (torch.rand(15) > 0.5).long()))
def area_under_curve(scores: torch.Tensor, target: torch.Tensor) -> Any:
    order = scores.argsort(descending=True)
    hits = target[order].cumsum(0) / target.sum().clamp(min=1)
    false = (1 - target[order]).cumsum(0) / (1 - target).sum().clamp(min=1)
    return torch.trapezoid(hits, false)


@case(lambda: (x(10, 6), labels(10, 6)))
def top_k_and_rank(scores: torch.Tensor, target: torch.Tensor) -> Any:
    hit = (scores.topk(3, 1).indices == target[:, None]).any(1).float().mean()
    rank = (scores > scores.gather(1, target[:, None])).sum(1) + 1
    return hit, (1 / rank).mean(), torch.quantile(rank.float(), 0.5)


@case(lambda: (x(12, 4), x(12)))
def cross_validation(features: torch.Tensor, target: torch.Tensor) -> Any:
    errors = []
    for fold in range(3):
        held = slice(fold * 4, fold * 4 + 4)
        rest = torch.cat([features[: fold * 4], features[fold * 4 + 4 :]])
        wanted = torch.cat([target[: fold * 4], target[fold * 4 + 4 :]])
        w = torch.linalg.solve(rest.T @ rest + 0.1 * torch.eye(4), rest.T @ wanted)
        errors.append(((features[held] @ w - target[held]) ** 2).mean())
    return torch.stack(errors)


@case(lambda: (x(10, 3), x(7, 3)))
def nearest_neighbours(train: torch.Tensor, test: torch.Tensor) -> Any:
    away = ((test[:, None] - train[None]) ** 2).sum(-1)
    near, where = away.topk(3, largest=False)
    return near.sqrt(), where.sort(1).values


@case(lambda: (x(50),))
def histogram_and_moments(values: torch.Tensor) -> Any:
    normal = (values - values.mean()) / values.std(unbiased=False)
    counts = torch.histc(values, bins=5, min=-3, max=3)
    return counts, (normal**3).mean(), (normal**4).mean() - 3, values.median(), torch.cov(values.view(2, 25))


@case(lambda: (x(40), x(5)))
def moving_statistics(series: torch.Tensor, kernel: torch.Tensor) -> Any:
    windows = series.unfold(0, 5, 1)
    smooth = F.conv1d(series[None, None], kernel[None, None], padding=2)[0, 0]
    return windows.mean(1), windows.std(1), smooth, series.diff(), series.cummax(0).values


@case(lambda: (x(4, 4), torch.tensor(3.0)))
def branch_by_value(a: torch.Tensor, limit: torch.Tensor) -> Any:
    y = torch.cond(a.norm() > limit, lambda v: v / v.norm(), lambda v: v * 2, (a,))
    return torch.where(y > 0, y, y.exp() - 1)


@case(lambda: (x(6, 3), torch.rand(6) > 0.5))
def masked_statistics(values: torch.Tensor, mask: torch.Tensor) -> Any:
    count = mask.sum().clamp(min=1)
    mean = torch.where(mask[:, None], values, 0).sum(0) / count
    spread = (torch.where(mask[:, None], values - mean, 0) ** 2).sum(0) / count
    return mean, spread.sqrt(), values.masked_fill(~mask[:, None], float("-inf")).amax(0)


@case(lambda: (torch.rand(3, 8, 8),))
def image_processing(image: torch.Tensor) -> Any:
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)[None, None]
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    edges = F.conv2d(grey, torch.stack([sobel, sobel.T])[:, None], padding=1).norm(dim=1)
    return (
        F.interpolate(edges[None], scale_factor=2, mode="bilinear"),
        image.flip(-1).rot90(1, (1, 2)),
        F.unfold(grey, 3),
    )


@case(lambda: (x(4, 6), x(4, 6)))
def correlation_and_fft(a: torch.Tensor, b: torch.Tensor) -> Any:
    spectrum = torch.fft.rfft(a)
    return torch.corrcoef(a), spectrum.abs(), torch.fft.irfft(spectrum * torch.fft.rfft(b), n=6)


@case(lambda: (torch.rand(5) * 3, torch.rand(5)))
def log_likelihood(rates: torch.Tensor, seen: torch.Tensor) -> Any:
    normal = torch.distributions.Normal(rates, 1.0, validate_args=False)
    counts = torch.distributions.Poisson(rates + 0.1, validate_args=False)
    return normal.log_prob(seen).sum(), counts.log_prob(seen.round()).sum(), normal.entropy()


@case(lambda: (x(5, 4), (labels(5, 4), {"scale": torch.tensor(2.0)}), 3, "mean"))
def nested_arguments(a: torch.Tensor, pair: Any, times: int, how: str) -> Any:
    index, options = pair
    total = torch.zeros(4)
    for row in a:
        total += row * options["scale"]
    total[index] = -1.0
    return {"total": getattr(total, how)(), "parts": [a.roll(n, 0) for n in range(times)]}
