"""MobileNetV2 at 224x224 with random weights: for latency only, its answers mean nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

LATENCY_ONLY = "random weights: mobilenet_v2 is for latency work only"

#: Expansion, output channels, blocks, stride of the first block (Sandler 2018, arXiv:1801.04381, table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
IMAGES, BATCH = 64, 8


def model() -> nn.Module:
    """MobileNetV2 1.0 for 1,000 classes: 3,504,872 parameters."""
    layers: list[nn.Module] = [_conv(3, 32, kernel=3, stride=2)]
    channels = 32
    for expansion, out, blocks, stride in STAGES:
        for i in range(blocks):
            layers.append(_Block(channels, out, expansion, stride if i == 0 else 1))
            channels = out
    layers += [_conv(channels, 1280, kernel=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    network = nn.Sequential(*layers)
    return _calibrated(_at_random(network))


def example_inputs() -> tuple[Tensor, ...]:
    """One empty image."""
    return (torch.zeros(1, 3, 224, 224),)


def validation_loader() -> Iterator[tuple[Tensor]]:
    """Random images without labels; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(IMAGES // BATCH):
        yield (_images(generator),)


class _Block(nn.Module):
    """An inverted residual block."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        layers = [_conv(channels, hidden, kernel=1)] if expansion > 1 else []
        layers.append(_conv(hidden, hidden, kernel=3, stride=stride, groups=hidden))
        layers.append(nn.Sequential(nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return x + result if self.residual else result


def _conv(channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6())


def _at_random(network: nn.Module) -> nn.Module:
    """
    *network* with random weights under which it behaves like a trained one.

    Positive depthwise kernels and shifts keep a difference between two images alive through 50 layers
    and do not blow up rounding, so that an int8 file can be told from a broken one.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.groups > 1:
                layer.weight.data.abs_()
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.bias, 0.5)
    return network


def _calibrated(network: nn.Module) -> nn.Module:
    """*network* with the statistics of its batch norms taken from random images."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain mean over the batches
    generator = torch.Generator().manual_seed(1)
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(_images(generator))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def _images(generator: torch.Generator) -> Tensor:
    """Blurred noise in [0, 1]: like photographs, neighbouring pixels are alike."""
    coarse = torch.rand(BATCH, 3, 14, 14, generator=generator)
    fine = torch.rand(BATCH, 3, 224, 224, generator=generator)
    return 0.8 * functional.interpolate(coarse, size=(224, 224), mode="bilinear") + 0.2 * fine
