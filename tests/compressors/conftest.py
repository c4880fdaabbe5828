"""One small model, built once in every recipe and format by real exporters, for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressors.build import BuildRequest, build
from harness.core.types import Artifact, Failure, FormatName, Progress, Recipe, Step

TINY = Path(__file__).with_name("tiny_task.py")
FORMATS: tuple[FormatName, ...] = ("executorch", "onnx", "tflite")
PRUNE = Step(
    name="prune_channels", options={"ratio": 0.5, "round_to": 4, "finetune": {"epochs": 3, "lr": 0.01}}
)
QUANTISE = Step(name="quantise", options={"calibration": 64})
RECIPES = {
    "fp32": Recipe(name="fp32"),
    "int8": Recipe(name="int8", steps=(QUANTISE,)),
    "pruned_int8": Recipe(name="pruned_int8", steps=(PRUNE, QUANTISE)),
}

Built = dict[str, dict[FormatName, Artifact]]


def request(
    recipe: Recipe, model: str | Path = TINY, *, seed: int = 0, formats: tuple[FormatName, ...] = FORMATS
) -> BuildRequest:
    return BuildRequest(model=str(model), recipe=recipe, formats=formats, seed=seed)


def ignore(event: Progress) -> None:
    """Nobody watches."""


def artifacts(results: dict[FormatName, Artifact | Failure]) -> dict[FormatName, Artifact]:
    failed = {name: result.reason for name, result in results.items() if isinstance(result, Failure)}
    assert failed == {}
    return {name: result for name, result in results.items() if isinstance(result, Artifact)}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def built(cache: Path) -> Built:
    return {name: artifacts(build(request(recipe), cache, ignore)) for name, recipe in RECIPES.items()}
