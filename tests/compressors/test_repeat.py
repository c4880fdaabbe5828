"""The same recipe twice gives the same bytes in every format, whether steps are run again or restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compressors.build import build
from harness.core.errors import UsageError
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


def test_mended_recipe_goes_on_behind_the_step_that_failed(tmp_path: Path) -> None:
    """The refusal names the passes before it; what they built is not built again."""
    wrong = Step(name="low_rank", options={"rank": 9, "include": ["8"]})
    right = Step(name="low_rank", options={"rank": 4, "include": ["8"], "finetune": LITTLE})
    recipes = [Recipe(name="r", steps=(PRUNE, step, QUANTISE)) for step in (wrong, right)]
    with pytest.raises(UsageError, match=r"low_rank \(after train, prune_weights\): rank 9 makes 8 bigger"):
        build(request(recipes[0], MODELS["plain"], formats=("onnx",)), tmp_path, ignore)
    made = artifacts(build(request(recipes[1], MODELS["plain"], formats=("onnx",)), tmp_path, ignore))
    assert [step.cached for step in made["onnx"].steps] == [True, True, False, False]


def test_order_that_cannot_work_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = Recipe(name="r", steps=(QUANTISE, PRUNE))
    with pytest.raises(UsageError, match=r"step 2 \(prune_weights\) needs float weights"):
        build(request(recipe, MODELS["plain"], formats=("onnx",)), tmp_path, ignore)
    assert not list(tmp_path.glob("steps/*/report.json"))
