"""The data of the LeNet tasks: MNIST where its files are, else scikit-learn's digits at 28x28."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.core import plugins

FOLDER, _FOLDER = "EDGEBENCH_MNIST_FOLDER", "~/.cache/edgebench/mnist"
MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def source() -> ModuleType:
    """The task whose data is used; nothing is downloaded for it."""
    folder = Path(os.environ.get(FOLDER, _FOLDER)).expanduser()
    there = all((folder / name).is_file() for name in MNIST_FILES)
    return plugins.load("compressors.tasks", "mnist" if there else "digits_cnn")


def train_loader(seed: int) -> Iterable[Any]:
    """Training images; digits are bent anew in every epoch."""
    found: Iterable[Any] = source().train_loader(seed)
    return found


def validation_loader() -> Iterable[Any]:
    """The images that options are chosen on."""
    found: Iterable[Any] = source().validation_loader()
    return found


def test_loader() -> Iterable[Any]:
    """The images that nothing is chosen on."""
    found: Iterable[Any] = source().test_loader()
    return found
