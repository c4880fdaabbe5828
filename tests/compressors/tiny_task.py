"""Digits at 8x8 and a small residual network with what passes find hard: BN, depthwise, ReLU6, a sum."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

METRIC = "accuracy"
TRAINING = {"epochs": 4, "lr": 0.01, "weight_decay": 0.01}

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
loss = nn.functional.cross_entropy


class Block(nn.Module):
    """A depthwise convolution beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.pointwise(nn.functional.relu6(self.norm(self.depthwise(x))))
        return result


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        Block(16),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 1, 8, 8),)


def train_loader(seed: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=32, shuffle=True)


def validation_loader() -> list[tuple[Tensor, Tensor]]:
    return [(x[1200:1500], y[1200:1500])]


def test_loader() -> list[tuple[Tensor, Tensor]]:
    return [(x[1500:], y[1500:])]
