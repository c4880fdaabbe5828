"""The LeNet tasks: sizes, digits without MNIST's files, MNIST where they are, and an identity that tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressors import source
from compressors.tasks import _lenet_data, lenet5, lenet_300_100


def test_parameters_are_those_of_the_paper() -> None:
    for task, parameters in ((lenet5, 431_080), (lenet_300_100, 266_610)):
        model = task.model()
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert model(task.example_inputs()[0]).shape == (1, 10)


def test_mnist_is_taken_where_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_lenet_data.FOLDER, str(tmp_path))
    assert _lenet_data.source().__name__.endswith("digits_cnn")
    for name in _lenet_data.MNIST_FILES:
        (tmp_path / name).touch()
    assert _lenet_data.source().__name__.endswith("mnist")


def test_the_data_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = source.locate("lenet5")
    before = source.task_digest(path)
    folder = tmp_path / ".cache" / "edgebench" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz").touch()
    assert source.task_digest(path) != before
