"""Regression, factorisation, kernels, and gradients by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.grid.programs.program import Values, classes, program


def curve() -> Values:
    x = torch.linspace(-math.pi, math.pi, 50)
    weights = {name: torch.randn((), requires_grad=True) for name in "abcd"}
    return {"x": x, "y": torch.sin(x), **weights}


@program(curve)
def polynomial_by_hand(x: Any, y: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    learning_rate = 1e-5
    for t in range(5):
        y_pred = a + b * x + c * x**2 + d * x**3
        loss = (y_pred - y).pow(2).sum()
        if t % 2 == 1:
            loss_value = loss.item()
        loss.backward()
        with torch.no_grad():
            a -= learning_rate * a.grad
            b -= learning_rate * b.grad
            c -= learning_rate * c.grad
            d -= learning_rate * d.grad
            a.grad = None
            b.grad = None
            c.grad = None
            d.grad = None
    return [loss, loss_value, a, b, c, d]


class Legendre3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return 0.5 * (5 * x**3 - 3 * x)

    @staticmethod
    def backward(ctx: Any, grad_output: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad_output * 1.5 * (5 * x**2 - 1)


@program(curve)
def polynomial_with_its_own_function(x: Any, y: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    for _ in range(3):
        loss = (a + b * Legendre3.apply(c + d * x) - y).pow(2).sum()
        loss.backward()
        with torch.no_grad():
            for w in (a, b, c, d):
                w -= 5e-6 * w.grad
                w.grad.zero_()
    return [loss, a, b, c, d]


class Polynomial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in "abc":
            setattr(self, name, nn.Parameter(torch.randn(())))

    def forward(self, x: Any) -> Any:
        y = self.a + self.b * x
        for power in (2, 3):
            y = y + self.c * x**power
        return y


def polynomial() -> Values:
    x = torch.linspace(-2, 2, 20)
    return {"model": Polynomial(), "x": x, "y": torch.sin(x)}


@program(polynomial)
def polynomial_module(model: Any, x: Any, y: Any) -> Any:
    criterion = torch.nn.MSELoss(reduction="sum")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, dampening=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(4):
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plateau.step(loss.item())
    return [loss, optimizer.param_groups[0]["lr"]]


def table() -> Values:
    x = torch.randn(20, 5)
    return {"model": nn.Linear(5, 1), "x": x, "y": (x.sum(1, keepdim=True) > 0).float()}


@program(table)
def logistic_regression_with_lbfgs(model: Any, x: Any, y: Any) -> Any:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=3, line_search_fn="strong_wolfe")
    losses = []

    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(x), y) + 1e-2 * model.weight.pow(2).sum()
        loss.backward()
        return loss

    for _ in range(2):
        losses.append(optimizer.step(closure).detach())
    with torch.no_grad():
        accuracy = ((torch.sigmoid(model(x)) > 0.5) == (y > 0.5)).float().mean()
    return [*losses, accuracy]


class Factors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(6, 4), nn.Embedding(7, 4)
        self.user_bias, self.item_bias = nn.Embedding(6, 1), nn.Embedding(7, 1)
        nn.init.zeros_(self.user_bias.weight)
        nn.init.xavier_uniform_(self.users.weight)

    def forward(self, user: Any, item: Any) -> Any:
        product = (self.users(user) * self.items(item)).sum(1)
        return product + self.user_bias(user).squeeze() + self.item_bias(item).squeeze()


def ratings() -> Values:
    return {"model": Factors(), "user": classes(6, 10), "item": classes(7, 10), "rating": torch.rand(10) * 5}


@program(ratings)
def matrix_factorisation(model: Any, user: Any, item: Any, rating: Any) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=1e-4, amsgrad=True)
    losses = []
    for _ in range(3):
        loss = F.mse_loss(model(user, item), rating)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def observations() -> Values:
    x = torch.linspace(0, 1, 8).unsqueeze(1)
    logs = {name: torch.zeros(1, requires_grad=True) for name in ("length", "scale", "noise")}
    return {"x": x, "y": torch.sin(6 * x).squeeze(), "new": torch.rand(3, 1), **logs}


@program(observations)
def gaussian_process(x: Any, y: Any, new: Any, length: Any, scale: Any, noise: Any) -> Any:
    def kernel(a: Any, b: Any) -> Any:
        return scale.exp() * torch.exp(-0.5 * torch.cdist(a, b).pow(2) / length.exp().pow(2))

    optimizer = torch.optim.Adam([length, scale, noise], lr=0.1)
    losses = []
    for _ in range(3):
        covariance = (
            scale.exp() * torch.exp(-0.5 * (x - x.t()).pow(2) / length.exp().pow(2))
            + (noise.exp() * 0.1 + 1e-3) * torch.diag(torch.ones_like(y))
        )  # fmt: skip
        lower = torch.linalg.cholesky(covariance)
        alpha = torch.cholesky_solve(y.unsqueeze(1), lower)
        loss = 0.5 * (y @ alpha.squeeze()) + lower.diagonal().log().sum() + 4 * math.log(2 * math.pi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        cross = kernel(new, x)
        mean = cross @ alpha
        half = torch.linalg.solve_triangular(lower, cross.t(), upper=False)
        variance = kernel(new, new).diagonal() - half.pow(2).sum(0)
    return [*losses, mean, variance]


def design() -> Values:
    x = torch.randn(12, 3, dtype=torch.float64)
    return {"x": x, "y": x @ torch.tensor([1.0, 2, 3], dtype=torch.float64)}


@program(design)
def linear_algebra(x: Any, y: Any) -> Any:
    closed = torch.linalg.solve(x.T @ x + torch.diag(torch.full_like(y[:3], 0.1)), x.T @ y)
    centred = x - x.mean(0, keepdim=True)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / 11)
    q, r = torch.linalg.qr(x)
    return [closed, s, (u @ torch.diag(s) @ v), eigenvalues, q @ r, torch.linalg.pinv(x) @ y, torch.cov(x.T)]


def clusters() -> Values:
    return {"x": torch.randn(30, 2) + torch.repeat_interleave(torch.eye(3, 2) * 4, 10, 0)}


@program(clusters)
def k_means(x: Any) -> Any:
    centres = x[::10].clone()
    for _ in range(4):
        nearest = torch.cdist(x, centres).argmin(1)
        member = F.one_hot(nearest, num_classes=3).to(x.dtype)
        centres = (member.T @ x) / member.sum(0).clamp(min=1).unsqueeze(1)
    return [centres, nearest]


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, t: Any) -> Any:
        return self.net(t)


def oscillator() -> Values:
    return {"net": Field(), "t": torch.linspace(0, 1, 10).view(-1, 1)}


@program(oscillator)
def physics_informed(net: Any, t: Any) -> Any:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    t.requires_grad_(True)
    losses = []
    for _ in range(2):
        u = net(t)
        du = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)[0]
        ddu = torch.autograd.grad(du, t, torch.ones_like(du), create_graph=True)[0]
        start = torch.zeros_like(t[:1]).requires_grad_()
        loss = ((ddu + 4 * du + 400 * u) ** 2).mean() * 1e-4 + (net(start).squeeze() - 1) ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


class GraphLayer(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(into, out))
        self.bias = nn.Parameter(torch.empty(out))
        bound = 1.0 / math.sqrt(out)
        self.weight.data.uniform_(-bound, bound)
        self.bias.data.uniform_(-bound, bound)

    def forward(self, x: Any, adj: Any) -> Any:
        return torch.mm(adj, torch.mm(x, self.weight)) + self.bias


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gc1, self.gc2 = GraphLayer(5, 6), GraphLayer(6, 3)

    def forward(self, x: Any, adj: Any) -> Any:
        x = F.dropout(F.relu(self.gc1(x, adj)), 0.5, training=self.training)
        return F.log_softmax(self.gc2(x, adj), dim=1)


def citations() -> Values:
    adj = (torch.rand(9, 9) > 0.6).float() + torch.eye(9)
    return {"model": Graph(), "x": torch.rand(9, 5), "adj": adj, "labels": classes(3, 9), "train": torch.arange(4)}


@program(citations)
def graph_convolution(model: Any, x: Any, adj: Any, labels: Any, train: Any) -> Any:
    degree = adj.sum(1).pow(-0.5)
    adj = degree.diag() @ adj @ torch.diag(degree)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        output = model(x, adj)
        loss = F.nll_loss(output[train], labels[train])
        loss.backward()
        optimizer.step()
    model.eval()
    output = model(x, adj)
    correct = output.max(1)[1].type_as(labels).eq(labels).double().sum()
    return [loss, correct / len(labels)]
