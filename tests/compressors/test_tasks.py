"""The shipped models: what they are, and that pruned_int8 keeps its promise on real data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressors import task
from compressors.build import build, lookup
from harness.config import load_recipe
from harness.core.types import FormatName
from tests.compressors.conftest import FORMATS, Built, artifacts, ignore, request

PARAMETERS = {"digits_cnn": 93_322, "mnist": 431_080, "mobilenet_v2": 3_504_872}


@pytest.mark.parametrize("name", PARAMETERS)
def test_model_has_the_published_number_of_parameters(name: str) -> None:
    assert sum(p.numel() for p in task.load(name).model().parameters()) == PARAMETERS[name]


def test_digits_are_split_once_and_evenly() -> None:
    loaded = task.load("digits_cnn")
    (validation,), (test,), (train,) = (
        list(loaded.validation_loader()),
        list(loaded.test_loader()),
        list(loaded.calibration_loader(0)),
    )
    assert [len(labels) for _, labels in (train, validation, test)] == [1050, 297, 450]
    assert all(images.shape[1:] == (1, 28, 28) for images, _ in (train, validation, test))
    for _, labels in (train, validation, test):
        shares = torch.bincount(labels) / len(labels)
        assert (shares - 0.1).abs().max() < 0.01
    seen = {image.numpy().tobytes() for images, _ in (train, validation, test) for image in images}
    assert len(seen) == 1797


def test_training_images_are_bent_anew_every_epoch() -> None:
    loaded = task.load("digits_cnn")
    assert loaded.train_loader is not None
    loader = loaded.train_loader(0)
    first, second = (torch.cat([images for images, _ in loader]) for _ in range(2))
    again = torch.cat([images for images, _ in loaded.train_loader(0)])
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.fixture(scope="module")
def digits(cache: Path) -> Built:
    """The real thing, trained once."""
    recipes = [load_recipe(name) for name in ("fp32", "int8", "pruned", "pruned_int8")]
    return {r.name: artifacts(build(request(r, "digits_cnn"), cache, ignore)) for r in recipes}


@pytest.mark.parametrize("format", FORMATS)
def test_digits_cnn_is_right_in_99_of_100(digits: Built, format: FormatName) -> None:
    score = digits["fp32"][format].score
    assert score is not None
    assert score.values[0] >= 0.99
    assert score.samples == 450


@pytest.mark.parametrize("format", FORMATS)
def test_pruned_int8_is_a_tenth_and_as_right(digits: Built, format: FormatName) -> None:
    """One seed; benchmarks/small.py shows it over five."""
    fp32, small = digits["fp32"][format], digits["pruned_int8"][format]
    assert small.bytes * 10 <= fp32.bytes
    assert small.score is not None
    assert fp32.score is not None
    assert small.score.values[0] >= fp32.score.values[0] - 0.01


@pytest.mark.parametrize("recipe", ["int8", "pruned", "pruned_int8"])
def test_every_recipe_quarters_the_file(digits: Built, recipe: str) -> None:
    for format in FORMATS:
        assert digits[recipe][format].bytes < 0.3 * digits["fp32"][format].bytes


def test_pruned_recipes_share_the_pruned_model(digits: Built, cache: Path) -> None:
    pruned, small = digits["pruned"]["onnx"], digits["pruned_int8"]["onnx"]
    assert small.steps[1].parameters == pruned.steps[1].parameters == 23_626
    assert small.steps[1].cached
    assert lookup(request(load_recipe("pruned_int8"), "digits_cnn"), cache) is not None
