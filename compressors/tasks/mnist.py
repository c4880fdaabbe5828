"""MNIST: 70,000 real handwritten digits and LeNet-5; downloads 11 MB on first use."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors import idx

METRIC = "accuracy"
TRAINING = {"epochs": 5, "lr": 2e-3, "weight_decay": 0.01, "channels_last": True}

#: Where the files are kept, and where they come from: addresses, separated by spaces.
FOLDER, MIRRORS = "EDGEBENCH_MNIST_FOLDER", "EDGEBENCH_MNIST_MIRRORS"
_FOLDER = "~/.cache/edgebench/mnist"
_MIRRORS = "https://ossci-datasets.s3.amazonaws.com/mnist https://storage.googleapis.com/cvdf-datasets/mnist"
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
VALIDATION_SAMPLES = 5_000
BATCH, LARGE_BATCH = 128, 1_000


def model() -> nn.Module:
    """LeNet-5 as 20C5-P2-50C5-P2-500F-10: 431,080 parameters."""
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


def train_loader(seed: int) -> Shuffled:
    """The first 55,000 training images, shuffled anew in every epoch."""
    images, labels = _split("train")
    return Shuffled(images[:-VALIDATION_SAMPLES], labels[:-VALIDATION_SAMPLES], seed)


def validation_loader() -> Iterator[tuple[Tensor, Tensor]]:
    """The last 5,000 training images."""
    images, labels = _split("train")
    return _batches(images[-VALIDATION_SAMPLES:], labels[-VALIDATION_SAMPLES:])


def test_loader() -> Iterator[tuple[Tensor, Tensor]]:
    """The 10,000 test images."""
    return _batches(*_split("t10k"))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy."""
    return functional.cross_entropy(outputs, targets)


def metric(outputs: Tensor, targets: Tensor) -> float:
    """Share of right answers."""
    return (outputs.argmax(1) == targets).float().mean().item()


class Shuffled:
    """Training batches in a new order each time; an incomplete last batch is left out."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int) -> None:
        self.images, self.labels = images, labels
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return max(1, len(self.images) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator)
        for chosen in torch.split(order[: len(self) * BATCH], BATCH):
            yield _pixels(self.images[chosen]), self.labels[chosen]


def _batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for part, answers in zip(torch.split(images, LARGE_BATCH), torch.split(labels, LARGE_BATCH), strict=True):
        yield _pixels(part), answers


def _pixels(images: Tensor) -> Tensor:
    """Bytes [n, 28, 28] as floats in [0, 1], [n, 1, 28, 28]."""
    return images[:, None].float() / 255


@functools.cache
def _split(name: str) -> tuple[Tensor, Tensor]:
    folder = Path(os.environ.get(FOLDER, _FOLDER)).expanduser()
    mirrors = os.environ.get(MIRRORS, _MIRRORS).split()
    images, labels = (
        idx.read(idx.fetch(file, SHA256[file], folder, mirrors))
        for file in (f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz")
    )
    return images, labels.long()
