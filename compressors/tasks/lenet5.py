"""LeNet-5 as 20-50-500-10 (431,080 parameters) on MNIST if its files are there, else on digits at 28x28."""

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
TRAINING = {"epochs": 40, "lr": 2e-3, "weight_decay": 0.02, "channels_last": True}


def model() -> nn.Module:
    """20C5-P2-50C5-P2-500F-10, convolutions without padding."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def example_inputs() -> tuple[Tensor, ...]:
    """One empty image."""
    return (torch.zeros(1, 1, 28, 28),)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, labels smoothed a little: digits are few."""
    return functional.cross_entropy(outputs, targets, label_smoothing=0.05)
