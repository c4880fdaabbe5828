"""The same recipe twice gives the same bytes in every format, whether steps are run again or restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compressors.build import build
from harness.core.types import FormatName, Recipe, Step
from tests.compressors.conftest import FORMATS, artifacts, ignore, request
from tests.compressors.models import MODELS

LITTLE = {"epochs": 1, "lr": 0.003}
LOW_RANK = Step(name="low_rank", options={"ratio": 0.3, "finetune": LITTLE})
PRUNE = Step(name="prune_weights", options={"ratio": 0.5, "importance": "taylor", "finetune": LITTLE})
QUANTISE = Step(name="quantise", options={"calibration": 32})
RECIPES = {
    "plain": Recipe(name="all", steps=(LOW_RANK, PRUNE, QUANTISE)),
    "encoder": Recipe(name="float", steps=(LOW_RANK, PRUNE)),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", RECIPES)
def test_same_recipe_twice_is_the_same_file(name: str, format: FormatName, tmp_path: Path) -> None:
    """Once from nothing, once more from nothing, once from the stored steps without the stored file."""
    wanted = request(RECIPES[name], MODELS[name], formats=(format,))
    first = artifacts(build(wanted, tmp_path / "a", ignore))[format]
    shutil.copytree(tmp_path / "a" / "steps", tmp_path / "c" / "steps")
    again = artifacts(build(wanted, tmp_path / "b", ignore))[format]
    restored = artifacts(build(wanted, tmp_path / "c", ignore))[format]
    assert not any(step.cached for step in again.steps)
    assert all(step.cached for step in restored.steps)
    assert first.sha256 == again.sha256 == restored.sha256
    assert [step.note for step in first.steps] == [step.note for step in restored.steps]
    assert first.steps[2].sparsity is not None
    assert first.steps[2].sparsity > 0.4
