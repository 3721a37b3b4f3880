"""Distillation, transfer, metric and meta learning, and the tools of training loops."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrizations, prune
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.grid.programs.program import Values, classes, program


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def school() -> Values:
    return {"teacher": mlp(6, 16, 4), "student": mlp(6, 5, 4), "x": torch.randn(8, 6), "y": classes(4, 8)}


@program(school)
def distillation(teacher: Any, student: Any, x: Any, y: Any) -> Any:
    teacher.eval()
    student.train()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    T, losses = 2.0, []
    for _ in range(3):
        with torch.no_grad():
            wanted = teacher(x)
        logits = student(x)
        soft = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(logits / T, dim=-1), F.softmax(wanted / T, dim=-1))
        cosine = nn.CosineEmbeddingLoss()(logits, wanted, target=torch.ones(x.size(0)))
        loss = 0.25 * soft * T**2 + 0.5 * nn.CrossEntropyLoss()(logits, y) + 0.25 * cosine
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def backbone() -> Values:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    return {"net": net, "head": nn.Linear(8, 3), "x": torch.randn(8, 6), "y": classes(3, 8)}


@program(backbone)
def transfer_learning(net: Any, head: Any, x: Any, y: Any) -> Any:
    for param in net.parameters():
        param.requires_grad = False
    net[3] = head
    optimizer = torch.optim.SGD(
        [{"params": head.weight}, {"params": [head.bias], "weight_decay": 0.0, "lr": 0.1}],
        lr=0.01, momentum=0.9, weight_decay=1e-2,
    )  # fmt: skip
    best = copy.deepcopy(net.state_dict())
    for epoch in range(2):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch == 0:
            best = copy.deepcopy(net.state_dict())
    last = net(x)
    for param in net[0].parameters():
        param.requires_grad_()
    optimizer.add_param_group({"params": net[0].parameters(), "lr": 1e-3})
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    after = net(x)
    net.load_state_dict(best)
    return [loss, last, after, net(x)]


def faces() -> Values:
    return {"net": mlp(6, 8, 3), "a": torch.randn(5, 6), "p": torch.randn(5, 6), "n": torch.randn(5, 6),
            "which": torch.arange(5)}  # fmt: skip


@program(faces)
def triplets(net: Any, a: Any, p: Any, n: Any, which: Any) -> Any:
    optimizer = torch.optim.RAdam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        one, same, other = (F.normalize(net(x), dim=1) for x in (a, p, n))
        loss = F.triplet_margin_loss(one, same, other, margin=0.5)
        distance = F.pairwise_distance(one, other)
        loss = loss + torch.mean(torch.clamp(1.0 - distance, min=0.0) ** 2)
        similarity = F.cosine_similarity(one.unsqueeze(1), same.unsqueeze(0), dim=2) / 0.1
        loss = loss + F.cross_entropy(similarity, which)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def tasks() -> Values:
    x = torch.randn(3, 5, 1)
    return {"net": mlp(1, 8, 1), "x": x, "y": torch.sin(x)}


@program(tasks)
def maml(net: Any, x: Any, y: Any) -> Any:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        total: Any = 0
        for task in range(3):
            params = dict(net.named_parameters())
            inner = F.mse_loss(functional_call(net, params, (x[task],)), y[task])
            grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
            fast = {name: p - 0.1 * g for (name, p), g in zip(params.items(), grads, strict=False)}
            total = total + F.mse_loss(functional_call(net, fast, (x[task],)), y[task])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.detach())
    return losses


@program(school)
def gradients_of_each_sample(teacher: Any, student: Any, x: Any, y: Any) -> Any:
    params = {name: value.detach() for name, value in student.named_parameters()}

    def loss_of(params: Any, sample: Any, target: Any) -> Any:
        return F.cross_entropy(functional_call(student, params, (sample.unsqueeze(0),)), target.unsqueeze(0))

    each = vmap(grad(loss_of), in_dims=(None, 0, 0))(params, x, y)
    return list(each.values())


def deep() -> Values:
    return {"net": mlp(6, 8, 8, 3), "x": torch.randn(8, 6), "y": classes(3, 8)}


@program(deep)
def accumulation_and_averages(net: Any, x: Any, y: Any) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ema = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    swa = swa_utils.AveragedModel(net)
    scheduler = swa_utils.SWALR(optimizer, swa_lr=0.05)
    for _ in range(3):
        for start in range(0, 8, 4):
            loss = F.cross_entropy(net(x[start : start + 4]), y[start : start + 4]) / 2
            loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0, norm_type=float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(net)
        swa.update_parameters(net)
        scheduler.step()
    return [loss, norm, ema(x), swa(x)]


@program(deep)
def checkpointing(net: Any, x: Any, y: Any) -> Any:
    for _ in range(2):
        net.zero_grad()
        h = checkpoint(net[:2], x, use_reentrant=False)
        out = checkpoint_sequential(net[2:], 2, h, use_reentrant=False)
        loss = F.cross_entropy(out, y)
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    return [loss]


class Doubtful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop, self.act = nn.Linear(6, 6), nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        return self.act(self.drop(self.linear(x))) + torch.rand_like(x).bernoulli_(0.5) * x


def doubtful() -> Values:
    return {"net": nn.Sequential(*(Doubtful() for _ in range(3))), "x": torch.rand(5, 6)}


@program(doubtful)
def checkpoints_with_dropout(net: Any, x: Any) -> Any:
    def all_of(h: Any) -> Any:
        return checkpoint(net[1], checkpoint(net[0], F.dropout(h, 0.2), use_reentrant=False), use_reentrant=False)

    results = []
    for way in (True, False):
        h = x.clone().requires_grad_()
        checkpoint(net[2], checkpoint(all_of, h, use_reentrant=way), use_reentrant=way).pow(2).sum().backward()
        results += [h.grad, *(p.grad.clone() for p in net.parameters())]
    h = x.clone().requires_grad_()
    loss = checkpoint_sequential(net, 3, h, use_reentrant=False).pow(2).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return [*results, h.grad, torch.rand_like(x)]


def three() -> Values:
    nets = {f"net{n}": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)) for n in range(3)}
    return {**nets, "x": torch.randn(5, 4)}


@program(three)
def ensemble(net0: Any, net1: Any, net2: Any, x: Any) -> Any:
    parameters, buffers = stack_module_state([net0, net1, net2])
    base = copy.deepcopy(net0).to("meta")

    def one(parameters: Any, buffers: Any, x: Any) -> Any:
        return functional_call(base, (parameters, buffers), (x,))

    return [vmap(one, in_dims=(0, 0, None))(parameters, buffers, x), net0(x)]


@program(deep)
def parametrized_layers(net: Any, x: Any, y: Any) -> Any:
    parametrizations.weight_norm(net[0])
    parametrizations.orthogonal(net[2], orthogonal_map="cayley", use_trivialization=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        loss = F.multi_margin_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, net[2].weight @ net[2].weight.T]


@program(deep)
def pruning(net: Any, x: Any, y: Any) -> Any:
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    prune.ln_structured(net[2], "weight", amount=2, n=2, dim=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prune.remove(net[0], "weight")
    prune.remove(net[2], "weight")
    return [loss, (net[0].weight == 0).sum(), net[2].weight]


def words() -> Values:
    return {"target": nn.Embedding(20, 6), "context": nn.Embedding(20, 6), "centre": classes(20, 5),
            "near": classes(20, 5), "far": classes(20, 5, 3)}  # fmt: skip


@program(words)
def skip_gram(target: Any, context: Any, centre: Any, near: Any, far: Any) -> Any:
    optimizer = torch.optim.Adam([*target.parameters(), *context.parameters()], lr=1e-2)
    losses = []
    for _ in range(2):
        v, u, neg = target(centre), context(near), context(far)
        positive = F.logsigmoid(torch.einsum("bd,bd->b", v, u))
        negative = F.logsigmoid(-torch.bmm(neg, v.unsqueeze(2)).squeeze(2)).sum(1)
        loss = -(positive + negative).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses
