"""What build promises: verified files, a cache that knows what decides a file, the same bytes for a seed."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compressors import cache as storage
from compressors.build import BuildRequest, build, lookup
from harness.core import tensors
from harness.core.errors import EdgebenchError, UsageError
from harness.core.types import Artifact, Failure, FormatName, Progress, Recipe, Step
from tests.compressors.conftest import (
    FORMATS,
    PRUNE,
    QUANTISE,
    RECIPES,
    TINY,
    Built,
    artifacts,
    ignore,
    request,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_file_is_what_its_artifact_says(built: Built, recipe: str, format: FormatName) -> None:
    artifact = built[recipe][format]
    path = Path(artifact.path)
    assert path.stat().st_size == artifact.bytes
    assert storage.sha256(path) == artifact.sha256
    assert artifact.gzip_bytes < artifact.bytes
    assert [spec.shape for spec in artifact.inputs] == [(1, 1, 8, 8)]
    assert [spec.shape for spec in artifact.outputs] == [(1, 10)]
    assert {spec.dtype for spec in (*artifact.inputs, *artifact.outputs)} == {"float32"}
    assert artifact.parity is not None
    assert artifact.parity.samples >= 64
    assert artifact.score is not None
    assert artifact.score.samples == 297
    assert artifact.score.values[0] > 0.8
    assert [step.name for step in artifact.steps] == ["train", *(s.name for s in RECIPES[recipe].steps)]


def test_check_file_holds_inputs_then_the_outputs_of_the_file(built: Built) -> None:
    for artifact in (built[recipe][format] for recipe in RECIPES for format in FORMATS):
        stored = tensors.load(Path(artifact.check_path))
        assert [t.shape for t in stored] == [(1, 1, 8, 8)] * 8 + [(1, 10)] * 8
        assert artifact.check_sets == 8


def test_formats_of_one_recipe_give_the_same_answers(built: Built) -> None:
    """One graph, one calibration: what the runtimes compute differs by rounding only."""
    for recipe in RECIPES:
        scores = [built[recipe][format].score for format in FORMATS]
        values = [score.values[0] for score in scores if score is not None]
        assert max(values) - min(values) <= 0.007  # two of 297 samples


def test_pruning_and_quantising_make_files_smaller(built: Built) -> None:
    for format in FORMATS:
        sizes = [built[recipe][format].bytes for recipe in ("fp32", "int8", "pruned_int8")]
        assert sizes == sorted(sizes, reverse=True)


def test_second_build_is_answered_without_torch(built: Built, cache: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from compressors.build import lookup\n"
        "from tests.compressors.conftest import RECIPES, request\n"
        "found = lookup(request(RECIPES['pruned_int8']), pathlib.Path(sys.argv[1]))\n"
        "heavy = {'torch', 'numpy', 'onnx', 'executorch', 'litert_torch'} & set(sys.modules)\n"
        "print(sorted(found), all(a.cached for a in found.values()), sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['executorch', 'onnx', 'tflite'] True []\n"


def test_recipes_with_the_same_steps_share_their_files(built: Built, cache: Path) -> None:
    found = lookup(request(Recipe(name="other", steps=(QUANTISE,))), cache)
    assert found is not None
    shared = artifacts(found)
    assert {a.recipe for a in shared.values()} == {"other"}
    assert [shared[f].path for f in FORMATS] == [built["int8"][f].path for f in FORMATS]


@pytest.mark.parametrize(
    "other",
    [
        request(RECIPES["int8"], seed=1),
        request(Recipe(name="int8", steps=(Step(name="quantise", options={"calibration": 65}),))),
        request(Recipe(name="pruned", steps=(PRUNE,))),
    ],
    ids=["seed", "option", "steps"],
)
def test_what_was_not_built_is_not_found(built: Built, cache: Path, other: BuildRequest) -> None:
    assert lookup(other, cache) is None


def test_changed_task_is_not_found(built: Built, cache: Path, tmp_path: Path) -> None:
    same = tmp_path / "tiny_task.py"
    shutil.copy(TINY, same)
    assert lookup(request(RECIPES["fp32"], same), cache) is not None
    same.write_text(TINY.read_text() + "\nTRAINING['epochs'] = 5\n")
    assert lookup(request(RECIPES["fp32"], same), cache) is None


def test_steps_are_shared_between_recipes(built: Built) -> None:
    """fp32 was built first, so the others took its training."""
    assert built["fp32"]["onnx"].steps[0].cached is False
    assert built["pruned_int8"]["onnx"].steps[0].cached is True
    assert built["pruned_int8"]["onnx"].steps[1].cached is False


def test_damaged_entry_is_built_again(built: Built, cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    wanted = dataclasses.replace(request(RECIPES["pruned_int8"]), formats=("onnx",))
    found = lookup(wanted, copy)
    assert found is not None
    path = Path(artifacts(found)["onnx"].path)
    path.write_bytes(path.read_bytes()[:-1])
    assert lookup(wanted, copy) is None
    again = artifacts(build(wanted, copy, ignore))["onnx"]
    assert again.sha256 == built["pruned_int8"]["onnx"].sha256
    assert again.steps[1].cached is True


def test_same_seed_gives_the_same_bytes(built: Built, tmp_path: Path) -> None:
    """Trained, pruned, quantised and exported anew, in another process than the first time."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        again = pool.apply(build, (request(RECIPES["pruned_int8"]), tmp_path, ignore))
    hashes = {format: artifact.sha256 for format, artifact in artifacts(again).items()}
    assert hashes == {format: built["pruned_int8"][format].sha256 for format in FORMATS}


def _build_quickly(root: Path) -> list[tuple[bool, bool]]:
    wanted = dataclasses.replace(request(RECIPES["fp32"]), formats=("onnx",))
    made = artifacts(build(wanted, root, ignore))["onnx"]
    return [(made.cached, step.cached) for step in made.steps]


def test_two_processes_do_not_build_the_same_twice(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        flags = pool.map(_build_quickly, [tmp_path, tmp_path], chunksize=1)
    assert sorted(flags) == [[(False, False)], [(True, True)]]


def test_progress_tells_every_epoch_and_every_stage(tmp_path: Path) -> None:
    events: list[Progress] = []
    wanted = dataclasses.replace(request(RECIPES["fp32"]), formats=("onnx",))
    build(wanted, tmp_path, events.append)
    assert [e.done for e in events if e.stage == "train"] == [1, 2, 3, 4]
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["check the task", "train", "export onnx", "verify onnx"]


UNSUPPORTED = """
import torch
from torch import nn
TRAINED = True
METRIC = "accuracy"
class Rare(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)
def model(): return Rare()
def example_inputs(): return (torch.zeros(1, 3),)
def validation_loader(): return [(torch.rand(4, 3), torch.zeros(4, dtype=torch.long))]
"""


def test_missing_operator_is_a_stored_failure_that_names_it(tmp_path: Path) -> None:
    task = tmp_path / "rare.py"
    task.write_text(UNSUPPORTED)
    wanted = request(RECIPES["fp32"], task)
    results = build(wanted, tmp_path, ignore)
    for failure in results.values():
        assert isinstance(failure, Failure)
        assert failure.status == "unsupported_op"
        assert "bessel_j0" in failure.reason
    assert lookup(wanted, tmp_path) == results


@pytest.mark.parametrize(
    ("condition", "why"),
    [("torch.compiler.is_exporting()", "ValueError: not this way"), ("x.sum() > 9", "values of a tensor")],
)
def test_failed_export_names_the_line_of_the_task(tmp_path: Path, condition: str, why: str) -> None:
    task = tmp_path / "branching.py"
    branch = f"        if {condition}:\n            raise ValueError('not this way')\n        return x * 2"
    task.write_text(UNSUPPORTED.replace("        return torch.special.bessel_j0(x)", branch))
    for failure in build(request(RECIPES["fp32"], task), tmp_path, ignore).values():
        assert isinstance(failure, Failure)
        assert failure.status == "export_failed"
        assert why in failure.reason
        line = 8 if "x.sum" in condition else 9
        assert failure.reason.endswith(f"(at branching.py:{line}).")


def test_file_with_outputs_of_another_dtype_says_so(
    built: Built, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressors.formats import onnx

    shutil.copytree(cache / "steps", tmp_path / "steps")
    right = onnx.outputs
    monkeypatch.setattr(onnx, "outputs", lambda *a: ((y.astype("float64"),) for (y,) in right(*a)))
    wanted = request(RECIPES["fp32"], formats=("onnx",))
    failure = build(wanted, tmp_path, ignore)["onnx"]
    assert isinstance(failure, Failure)
    assert failure.status == "wrong_output"
    assert "gives float64[1, 10], where the model gives float32[1, 10]" in failure.reason


def test_missing_exporter_is_a_failure_that_names_the_install_command(
    built: Built, cache: Path, tmp_path: Path
) -> None:
    """The other formats go on."""
    shutil.copytree(cache / "steps", tmp_path / "steps")
    code = (
        "import sys, pathlib\n"
        "sys.modules['executorch'] = None  # as if it was not there\n"
        "from compressors.build import build\n"
        "from tests.compressors.conftest import RECIPES, ignore, request\n"
        "found = build(request(RECIPES['fp32']), pathlib.Path(sys.argv[1]), ignore)\n"
        "print(*(getattr(found[f], 'reason', f) for f in found), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    failure, *others = done.stdout.splitlines()
    assert "pip install 'edgebench[executorch]'" in failure
    assert others == ["onnx", "tflite"]


def test_cache_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cache folder .*file/cache cannot be written: Not a directory"):
        build(request(RECIPES["fp32"]), tmp_path / "file" / "cache", ignore)


LIMITED = """
import pathlib, resource, sys
from compressors.build import build, open_file
from harness.core.errors import EdgebenchError
from tests.compressors.conftest import RECIPES, ignore, request
root = pathlib.Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk: a write fails in the middle
try:
    {call}
except EdgebenchError as error:
    print(error)
"""


# The limit is the whole process's. What litert-torch and ExecuTorch's runtime write elsewhere (temporary
# files, shared memory) meets it, too, and ends the process, so each kind of write has the other formats.
@pytest.mark.parametrize(
    ("what", "format"),
    [
        ("training", "onnx"),
        ("export", "onnx"),
        ("export", "executorch"),
        ("file", "onnx"),
        ("file", "tflite"),
    ],
)
def test_full_cache_folder_is_one_sentence(
    built: Built, cache: Path, tmp_path: Path, what: str, format: FormatName
) -> None:
    """Whatever was being written; and nothing is stored as if the model was at fault."""
    root = tmp_path / "cache"
    call = f"build(request(RECIPES['fp32'], formats=('{format}',)), root, ignore)"
    if what == "export":
        shutil.copytree(cache / "steps", root / "steps")
    if what == "file":
        call = f"open_file(pathlib.Path({built['fp32'][format].path!r}), root, None)"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(call=call), str(root)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"The cache folder {root} cannot be written: File too large."), done.stderr
    assert done.stdout.count("\n") == 1
    assert not list(root.rglob("failure.json"))


def test_cache_folder_with_something_else_in_it_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "steps").touch()
    with pytest.raises(EdgebenchError, match=r"cache folder .* cannot be written: (File exists|Not a dir)"):
        build(request(RECIPES["fp32"]), tmp_path, ignore)


BRANCHING = UNSUPPORTED.replace("return torch.special.bessel_j0(x)", "return x if x.sum() > 0 else -x")


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_model_that_branches_on_values_is_told_so(tmp_path: Path, recipe: str) -> None:
    task = tmp_path / "branching.py"
    task.write_text(BRANCHING)
    for failure in build(request(RECIPES[recipe], task), tmp_path, ignore).values():
        assert isinstance(failure, Failure)
        assert "its control flow depends on the values of a tensor" in failure.reason


def test_diverging_training_fails_and_is_not_stored(tmp_path: Path) -> None:
    task = tmp_path / "wild.py"
    task.write_text(TINY.read_text().replace('"lr": 0.01', '"lr": 10, "optimiser": "sgd"'))
    wanted = dataclasses.replace(request(RECIPES["fp32"], task), formats=("onnx",))
    failure = build(wanted, tmp_path, ignore)["onnx"]
    assert isinstance(failure, Failure)
    assert failure.status == "build_failed"
    assert "smaller learning rate than 10" in failure.reason
    assert lookup(wanted, tmp_path) is None


def test_pass_order_that_cannot_work_is_refused(cache: Path, built: Built) -> None:
    recipe = Recipe(name="wrong", steps=(QUANTISE, Step(name="finetune", options={"epochs": 1})))
    with pytest.raises(
        UsageError,
        match=r"step 2 \(finetune\) needs float weights, but step 1 \(quantise\) .*Put finetune before",
    ):
        build(request(recipe), cache, ignore)


def test_artifact_survives_json(built: Built, cache: Path) -> None:
    artifact = built["int8"]["tflite"]
    stored = json.loads((Path(artifact.path).parent / "artifact.json").read_text())
    assert stored["path"] == "tiny_task.tflite"
    found = lookup(request(RECIPES["int8"]), cache)
    assert found is not None
    again = found["tflite"]
    assert isinstance(again, Artifact)
    fresh = dataclasses.replace(again, cached=False, steps=artifact.steps)
    assert fresh == artifact
