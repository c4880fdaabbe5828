"""LeNet-300-100 (266,610 parameters) on MNIST if its files are there, else on digits at 28x28."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors.tasks._lenet_data import test_loader, train_loader, validation_loader

__all__ = ["example_inputs", "loss", "model", "test_loader", "train_loader", "validation_loader"]

#: Which files decide about the data; that they are named here makes them part of the task's identity.
DATA = (
    "_lenet_data.py",
    "digits_cnn.py",
    "mnist.py",
    "~/.cache/edgebench/mnist/train-images-idx3-ubyte.gz",
)
METRIC = "accuracy"
TRAINING = {"epochs": 40, "lr": 2e-3, "weight_decay": 0.02}


def model() -> nn.Module:
    """784-300-100-10."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def example_inputs() -> tuple[Tensor, ...]:
    """One empty image."""
    return (torch.zeros(1, 1, 28, 28),)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, labels smoothed a little: digits are few."""
    return functional.cross_entropy(outputs, targets, label_smoothing=0.05)
