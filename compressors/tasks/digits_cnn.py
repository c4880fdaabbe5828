"""Handwritten digits, 28x28: scikit-learn's 1,797 real scans and a CNN of 93,322 parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

METRIC = "accuracy"
TRAINING = {"epochs": 50, "lr": 4e-3, "weight_decay": 0.05, "channels_last": True}

TEST_SAMPLES = 450
VALIDATION_SAMPLES = 297
BATCH = 64
# How far a training image is bent: what still looks like a digit written by another hand.
ROTATION_RAD = math.radians(12)
SCALE, SHEAR, SHIFT, WARP = 0.12, 0.12, 0.16, 0.10


def model() -> nn.Module:
    """32C3-P2-64C3-P2-64C3-64F-10, convolutions without padding."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def small_model() -> nn.Module:
    """A student of 7,298 parameters, 1/12.8 of the model's: 8C3-P2-16C3-P2-16C3-24F-10."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    )


def example_inputs() -> tuple[Tensor, ...]:
    """One empty image."""
    return (torch.zeros(1, 1, 28, 28),)


def train_loader(seed: int) -> Augmented:
    """Training images, bent anew in every epoch."""
    return Augmented(*_split("train"), seed)


def validation_loader() -> list[tuple[Tensor, Tensor]]:
    """The images that options are chosen on."""
    return [_split("validation")]


def test_loader() -> list[tuple[Tensor, Tensor]]:
    """The images that nothing is chosen on."""
    return [_split("test")]


def calibration_loader() -> list[tuple[Tensor, Tensor]]:
    """Training images as they are."""
    return [_split("train")]


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, labels smoothed a little: the set is small."""
    return functional.cross_entropy(outputs, targets, label_smoothing=0.05)


class Augmented:
    """Shuffled batches of images that are rotated, scaled, sheared, shifted and warped at random."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int) -> None:
        self.images, self.labels = images, labels
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator)
        bent = _bend(self.images[order], self.generator)
        return zip(torch.split(bent, BATCH), torch.split(self.labels[order], BATCH), strict=True)


def _bend(images: Tensor, generator: torch.Generator) -> Tensor:
    count = len(images)

    def random(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * 2 - 1

    angle, shear = random() * ROTATION_RAD, random() * SHEAR
    wide, high = 1 + random() * SCALE, 1 + random() * SCALE
    across = torch.stack([angle.cos() * wide, -angle.sin() * high + shear, random() * SHIFT], 1)
    down = torch.stack([angle.sin() * wide, angle.cos() * high, random() * SHIFT], 1)
    grid = functional.affine_grid(torch.stack([across, down], 1), [count, 1, 28, 28], align_corners=False)
    warp = functional.interpolate(random(2, 4, 4) * WARP, size=(28, 28), mode="bicubic", align_corners=True)
    return functional.grid_sample(images, grid + warp.permute(0, 2, 3, 1), align_corners=False)


@functools.cache
def _split(name: str) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], [n, 1, 28, 28], and labels of one part of the fixed, stratified split."""
    digits = load_digits()
    images = functional.interpolate(
        torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, size=(28, 28), mode="bilinear"
    )
    labels = torch.tensor(digits.target, dtype=torch.int64)
    rest, test = train_test_split(
        torch.arange(len(labels)), test_size=TEST_SAMPLES, stratify=labels, random_state=0
    )
    train, validation = train_test_split(
        rest, test_size=VALIDATION_SAMPLES, stratify=labels[rest], random_state=0
    )
    part = {"train": train, "validation": validation, "test": test}[name]
    return images[part], labels[part]
