"""Digits at 8x8 and a plain CNN: the shape of digits_cnn, small enough for many tests."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

METRIC = "accuracy"
TRAINING = {"epochs": 6, "lr": 0.01, "weight_decay": 0.01}

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
loss = nn.functional.cross_entropy


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 1, 8, 8),)


def train_loader(seed: int) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(seed))
    return [(x[part], y[part]) for part in torch.split(order, 32)]


def validation_loader() -> list[tuple[Tensor, Tensor]]:
    return [(x[1200:1500], y[1200:1500])]


def test_loader() -> list[tuple[Tensor, Tensor]]:
    return [(x[1500:], y[1500:])]


def small_model() -> nn.Module:
    """A student: 1/5 of the parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def five_classes() -> nn.Module:
    """A student that does not fit."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
