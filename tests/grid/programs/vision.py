"""Convolutional networks: digits, residual blocks, U-Net, a convolutional autoencoder, a spatial transformer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.grid.programs.program import Values, classes, program


class DigitNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3)
        self.drop = nn.Dropout2d(0.25)
        self.fc1 = nn.Linear(8 * 5 * 5, 16)
        self.drop2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(self.drop(x), 1)
        x = self.drop2(F.relu(self.fc1(x)))
        return F.log_softmax(self.fc2(x), dim=1)


def digits() -> Values:
    return {"net": DigitNet(), "images": torch.randn(12, 1, 14, 14), "labels": classes(10, 12)}


@program(digits)
def mnist_cnn(net: Any, images: Any, labels: Any) -> Any:
    optimizer = torch.optim.Adadelta(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    losses = []
    for _ in range(2):
        net.train()
        for x, y in zip(images.split(4), labels.split(4), strict=False):
            optimizer.zero_grad()
            loss = F.nll_loss(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        scheduler.step()
    net.eval()
    with torch.no_grad():
        output = net(images)
        test_loss = F.nll_loss(output, labels, reduction="sum")
        pred = output.argmax(dim=1, keepdim=True)
        correct = pred.eq(labels.view_as(pred)).sum()
    return [*losses, test_loss, correct]


class Block(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: Any = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Any) -> Any:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class TinyResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 8, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, 5)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Any) -> Any:
        return self.fc(torch.flatten(self.avgpool(self.layer1(self.stem(x))), 1))


def pictures() -> Values:
    return {"net": TinyResNet(), "images": torch.rand(8, 3, 12, 12), "labels": classes(5, 8)}


@program(pictures)
def resnet(net: Any, images: Any, labels: Any) -> Any:
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    running = 0.0
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    images = (images - mean) / std
    for _ in range(3):
        images = torch.flip(images, dims=[3])
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(net(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), max_norm=1.0)
        optimizer.step()
        scheduler.step()
        running += loss.item() * images.size(0)
    net.eval()
    _, predicted = torch.max(net(images), 1)
    top = net(images).topk(3, 1).indices.t()
    in_top = top.eq(labels.view(1, -1).expand_as(top)).reshape(-1).float().sum(0)
    return [running, loss, (predicted == labels).float().mean(), in_top]


def double(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, 3, padding=1),
        nn.GroupNorm(2, out),
        nn.LeakyReLU(0.1),
        nn.Conv2d(out, out, 3, padding="same"),
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double(1, 4), double(4, 8), double(8, 8)
        self.up2 = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.merge2 = double(16, 4)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.merge1 = double(8, 4)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Any) -> Any:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        up = self.merge2(torch.cat([self.up2(bottom), second], dim=1))
        up = self.up1(up)
        dy, dx = first.size(2) - up.size(2), first.size(3) - up.size(3)
        up = F.pad(up, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.head(self.merge1(torch.cat([first, up], dim=1)))


def masks() -> Values:
    return {"net": UNet(), "images": torch.randn(2, 1, 8, 12), "masks": (torch.rand(2, 1, 8, 12) > 0.5).float()}


@program(masks)
def unet(net: Any, images: Any, masks: Any) -> Any:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    criterion = nn.BCEWithLogitsLoss()
    losses = []
    for _ in range(2):
        logits = net(images)
        p = torch.sigmoid(logits)
        dice = 1 - (2 * (p * masks).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
        loss = criterion(logits, masks) + dice.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(net.parameters(), clip_value=0.1)
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        guess = (torch.sigmoid(net(images)) > 0.5).int()
        iou = (guess & masks.int()).sum() / (guess | masks.int()).sum()
    return [*losses, iou]


def photos() -> Values:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2, padding=1), nn.SiLU(),
        nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), nn.ELU(),
        nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid(),
    )  # fmt: skip
    return {"net": net, "images": torch.rand(4, 3, 8, 8)}


@program(photos)
def denoising_autoencoder(net: Any, images: Any) -> Any:
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3, momentum=0.5, centered=True)
    losses = []
    for _ in range(3):
        noisy = torch.clamp(images + 0.3 * torch.randn_like(images), 0.0, 1.0)
        loss = F.mse_loss(net(noisy), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


class Patches(nn.Module):
    """A small vision transformer: patches by a strided convolution, a class token, learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8) * 0.02)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))

    def forward(self, x: Any) -> Any:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        return self.head(self.encoder(x)[:, 0])


def patches() -> Values:
    return {"net": Patches(), "images": torch.rand(4, 3, 8, 8), "labels": classes(5, 4)}


@program(patches)
def vision_transformer(net: Any, images: Any, labels: Any) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=3e-3, momentum=0.95)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=3)
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    net.eval()
    with torch.no_grad():
        return [*losses, net(images)]


class Straightened(nn.Module):
    """Turns and moves its images to where they are read best, then reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), nn.ReLU(True), nn.Flatten(), nn.Linear(64, 6))
        self.look[4].weight.data.zero_()
        self.look[4].bias.data.copy_(torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float))
        self.read = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(256, 5))

    def forward(self, x: Any) -> Any:
        theta = self.look(x).view(-1, 2, 3)
        places = F.affine_grid(theta, list(x.size()), align_corners=False)
        return self.read(F.grid_sample(x, places, align_corners=False))


def tilted() -> Values:
    return {"net": Straightened(), "images": torch.rand(4, 1, 12, 12), "labels": classes(5, 4)}


@program(tilted)
def spatial_transformer(net: Any, images: Any, labels: Any) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(p.grad for p in net.parameters())]
