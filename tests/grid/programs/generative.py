"""Autoencoders, adversarial networks, diffusion, a flow, and a picture that is optimised itself."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.grid.programs.program import Values, program


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, 8)
        self.fc21, self.fc22 = nn.Linear(8, 3), nn.Linear(8, 3)
        self.fc3, self.fc4 = nn.Linear(3, 8), nn.Linear(8, 16)

    def reparameterize(self, mu: Any, logvar: Any) -> Any:
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return mu + eps * std

    def forward(self, x: Any) -> Any:
        h = F.relu(self.fc1(x.view(-1, 16)))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = self.reparameterize(mu, logvar)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def small_pictures() -> Values:
    return {"model": VAE(), "data": torch.rand(6, 1, 4, 4)}


@program(small_pictures)
def vae(model: Any, data: Any) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        recon, mu, logvar = model(data)
        bce = F.binary_cross_entropy(recon, data.view(-1, 16), reduction="sum")
        kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        loss = bce + kld
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / len(data))
    return losses


def weights_init(m: Any) -> None:
    if m.__class__.__name__.find("Conv") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif m.__class__.__name__.find("BatchNorm") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)


def adversaries() -> Values:
    generator = nn.Sequential(
        nn.ConvTranspose2d(5, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.ConvTranspose2d(8, 1, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(1, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(6, 1, 4, 1, 0, bias=False), nn.Sigmoid(),
    )  # fmt: skip
    return {"netG": generator, "netD": discriminator, "real": torch.rand(4, 1, 8, 8), "noise": torch.randn(4, 5, 1, 1)}


@program(adversaries)
def dcgan(netG: Any, netD: Any, real: Any, noise: Any) -> Any:
    netG.apply(weights_init)
    netD.apply(weights_init)
    criterion = nn.BCELoss()
    optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-3, betas=(0.5, 0.999))
    optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(2):
        netD.zero_grad()
        label = real.new_full((real.size(0),), 1.0)
        errD_real = criterion(netD(real).view(-1), label)
        errD_real.backward()
        fake = netG(noise)
        label.fill_(0.0)
        errD_fake = criterion(netD(fake.detach()).view(-1), label)
        errD_fake.backward()
        optimizerD.step()
        netG.zero_grad()
        label.fill_(1.0)
        errG = criterion(netD(fake).view(-1), label)
        errG.backward()
        optimizerG.step()
        losses += [(errD_real + errD_fake).item(), errG.item()]
    with torch.no_grad():
        return [*losses, netG(noise).detach()]


def critics() -> Values:
    critic = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    return {"critic": critic, "real": torch.randn(5, 2), "fake": torch.randn(5, 2), "mix": torch.rand(5, 1)}


@program(critics)
def wgan_gradient_penalty(critic: Any, real: Any, fake: Any, mix: Any) -> Any:
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.0, 0.9))
    losses = []
    for _ in range(2):
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        scores = critic(between)
        (gradients,) = torch.autograd.grad(
            outputs=scores, inputs=between, grad_outputs=torch.ones_like(scores), create_graph=True, retain_graph=True
        )
        penalty = ((gradients.norm(2, dim=1) - 1) ** 2).mean()
        loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


class Denoiser(nn.Module):
    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Embedding(10, 8)
        self.register_buffer("steps", torch.arange(4))
        self.net = nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 2))

    def forward(self, x: Any, t: Any) -> Any:
        half = torch.exp(self.steps * -(math.log(10000) / 3))
        angles = t[:, None].float() * half[None, :]
        embedding = torch.cat((angles.sin(), angles.cos()), dim=-1) + self.time(t)
        return self.net(torch.cat((x, embedding), dim=-1))


def points() -> Values:
    return {"net": Denoiser(), "data": torch.randn(6, 2), "betas": torch.linspace(1e-4, 0.2, 10)}


@program(points)
def diffusion(net: Any, data: Any, betas: Any) -> Any:
    alphas = torch.cumprod(1.0 - betas, dim=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        t = torch.randint_like(data[:, 0], 0, 10).long()
        noise = torch.randn_like(data)
        a = alphas.gather(-1, t).reshape(-1, 1)
        loss = F.smooth_l1_loss(net(a.sqrt() * data + (1 - a).sqrt() * noise, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        x = torch.randn_like(data)
        for i in reversed(range(10)):
            t = torch.full_like(x[:, 0], i, dtype=torch.long)
            mean = (x - betas[i] * net(x, t) / torch.sqrt(1.0 - alphas[i])) / torch.sqrt(1.0 - betas[i])
            x = mean if i == 0 else mean + torch.sqrt(betas[i]) * torch.randn_like(x)
    return [*losses, x]


def gram_matrix(features: Any) -> Any:
    a, b, c, d = features.size()
    flat = features.view(a * b, c * d)
    return torch.mm(flat, flat.t()).div(a * b * c * d)


def paintings() -> Values:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1))
    return {"net": net, "content": torch.rand(1, 3, 8, 8), "style": torch.rand(1, 3, 8, 8)}


@program(paintings)
def style_transfer(net: Any, content: Any, style: Any) -> Any:
    net.requires_grad_(False)
    wanted, painted = net(content).detach(), gram_matrix(net(style)).detach()
    picture = content.clone()
    picture.requires_grad_(True)
    optimizer = torch.optim.LBFGS([picture], max_iter=3)
    run = [0]
    scores = []
    while run[0] <= 4:

        def closure() -> Any:
            with torch.no_grad():
                picture.clamp_(0, 1)
            optimizer.zero_grad()
            features = net(picture)
            loss = 1e3 * F.mse_loss(gram_matrix(features), painted) + F.mse_loss(features, wanted)
            loss.backward()
            run[0] += 1
            scores.append(loss.item())
            return loss

        optimizer.step(closure)
    with torch.no_grad():
        picture.clamp_(0, 1)
    return [*scores, picture]


class Coupling(nn.Module):
    mask: torch.Tensor

    def __init__(self, mask: list[float]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor(mask), persistent=False)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Any) -> Any:
        s, t = self.net(x * self.mask).chunk(2, dim=1)
        s = torch.tanh(s) * (1 - self.mask)
        return x * torch.exp(s) + t * (1 - self.mask), s.sum(1)


def densities() -> Values:
    flow = nn.ModuleList([Coupling([1.0, 1, 0, 0]), Coupling([0.0, 0, 1, 1])])
    return {"flow": flow, "x": torch.randn(6, 4)}


@program(densities)
def coupling_flow(flow: Any, x: Any) -> Any:
    optimizer = torch.optim.Adamax(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        z, total = x, 0
        for layer in flow:
            z, logdet = layer(z)
            total = total + logdet
        normal = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
        loss = -(normal.log_prob(z).sum(1) + total).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses
