"""distil: the formulas by hand, every teacher and student, promises, refusals, the cache."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressors import cache, steps, stored, task, teaching, tuning
from compressors.build import BuildRequest, build
from compressors.constraints import broken
from compressors.kernels import distillation
from compressors.passes import distil
from compressors.state import State
from compressors.training import tidy
from harness.core.errors import NotApplicable, UsageError
from harness.core.types import Recipe, Step
from tests.compressors.conftest import FORMATS, artifacts, ignore, request
from tests.compressors.models import MODELS, run_pass, trained, zeros

QUICK: dict[str, Any] = {"epochs": 1, "lr": 0.005}
STUDENT = "student_models.py"


def test_soft_targets_by_hand() -> None:
    """F13: q_i = exp(z_i / T) / sum exp(z_j / T); an average of the outputs would be 1/3 for all."""
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    sharp = [0.665241, 0.244728, 0.090031]  # e^2, e, 1 of 11.107338
    soft = [0.506480, 0.307196, 0.186324]  # e, e^.5, 1 of 5.367003
    assert distillation.soft_targets(logits, 1)[0].tolist() == pytest.approx(sharp, abs=1e-6)
    assert distillation.soft_targets(logits, 2)[0].tolist() == pytest.approx(soft, abs=1e-6)


def test_loss_by_hand() -> None:
    """F09 with T = 2, alpha = 0.7: teacher (0.75, 0.25) when softened, student (0.5, 0.5), label 0."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl == pytest.approx(0.130812, abs=1e-6)
    soft = tuning.distance((student,), (teacher,), 2)
    assert soft.item() == pytest.approx(4 * kl, abs=1e-6)
    hard = nn.functional.cross_entropy(student, torch.tensor([0]))
    assert hard.item() == pytest.approx(0.693147, abs=1e-6)
    assert distillation.mixed(hard, soft, 0.7).item() == pytest.approx(0.574218, abs=1e-5)


def test_attention_by_hand() -> None:
    """Channels (3, 0) and (0, 4): mean squares 4.5 and 8, of length 1 0.490261 and 0.871576."""
    features = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    assert distillation.attention_map(features)[0].tolist() == pytest.approx([0.490261, 0.871576], abs=1e-5)
    left = torch.tensor([[[[1.0, 0.0]]]])
    distance = (0.490261 - 1) ** 2 + 0.871576**2
    assert distillation.attention_distance(features, left).item() == pytest.approx(distance, abs=1e-5)
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])  # [n, tokens, channels]
    assert distillation.attention_map(tokens)[0].tolist() == pytest.approx([9 / 337**0.5, 16 / 337**0.5])


def test_relative_error_is_one_for_the_mean() -> None:
    wanted = torch.tensor([1.0, 3.0])
    assert distillation.relative_error(torch.tensor([2.0, 2.0]), wanted).item() == pytest.approx(1)
    assert distillation.relative_error(wanted, wanted).item() == 0


def test_moving_teacher_keeps_its_share() -> None:
    old, new = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(new.weight, 3.0)
    new.running_mean.fill_(5.0)  # type: ignore[union-attr]
    teaching._following(old, 0.75)(teaching.Watched(new, []), 0.1)
    assert old.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert old.running_mean.item() == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "teacher"),
    [("plain", t) for t in ("original", "before", "ema", "born_again", "train")]
    + [(name, t) for name in ("residual", "tabular") for t in ("original", "ema", "born_again")]
    + [("encoder", "original")],
)
def test_every_kind_of_model_learns_and_keeps_its_zeros(name: str, teacher: str) -> None:
    model = trained(name)
    pruned, _ = run_pass("prune_weights", {"ratio": 0.5, "finetune": {"epochs": 0}}, model)
    state, report = run_pass("distil", {"teacher": teacher, **QUICK}, model, after=pruned)
    assert report.changed
    assert broken(state.module, pruned.constraints) is None
    assert state.constraints.keys() == pruned.constraints.keys()
    assert zeros(state.module) >= zeros(pruned.module)
    assert f"learned from {teacher}" in report.note
    assert "% of the validation samples" in report.note


HINTS = {
    "plain": {"hints": {"0": "2"}, "attention": {"2": "0"}},
    "residual": {"hints": {"3": "0"}, "attention": {"3": "3"}},
    "encoder": {
        "hints": {"vit.vit.layers.0.mlp.fc1": "vit.vit.layers.1.mlp.fc2"},
        "attention": {"vit.vit.layers.0": "vit.vit.layers.1"},
    },
    "tabular": {"hints": {"3": "0"}},
}


@pytest.mark.parametrize("name", MODELS)
def test_features_of_other_widths_are_learned_through_adapters(name: str) -> None:
    model = trained(name)
    state, report = run_pass("distil", {**HINTS[name], **QUICK}, model)
    assert report.parameters == model.report.parameters  # no adapter is left behind
    assert str(state.module) == str(model.state.module)
    assert report.changed


def test_hints_bring_features_nearer() -> None:
    model = trained("plain")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.8, "finetune": {"epochs": 0}}, model)
    images = torch.cat([x for x, _ in model.task.validation_loader()])

    def far(state: State) -> float:
        parts = [list(m.children())[:6] for m in (state.module, model.state.module)]
        one, two = (nn.Sequential(*p)(images) for p in parts)
        return nn.functional.mse_loss(one, two).item()

    common = {"alpha": 0.0, "epochs": 4, "lr": 0.01}
    without, _ = run_pass("distil", common, model, after=pruned)
    hinted, _ = run_pass("distil", {"hints": {"5": "5"}, "hint_weight": 100, **common}, model, after=pruned)
    assert far(hinted) < far(without) / 2


def test_given_student_learns_and_is_smaller() -> None:
    model = trained("plain")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.5, "finetune": {"epochs": 0}}, model)
    options = {"student": "small_model", "epochs": 8, "lr": 0.02}
    state, report = run_pass("distil", options, model, after=pruned)
    assert report.parameters == 80 + 584 + 144 + 170
    assert report.score is not None
    assert report.score > 0.6
    assert state.constraints == {}
    assert "(small_model is another model)" in report.note
    assert "small_model (978 parameters) learned from original" in report.note
    again, _ = run_pass("distil", options, model, after=pruned)
    assert all(
        torch.equal(a, b) for a, b in zip(state.module.parameters(), again.module.parameters(), strict=True)
    )


def test_student_of_a_file_beside_the_task_comes_back_from_the_cache_in_a_new_process(tmp_path: Path) -> None:
    model = trained("plain")
    state, report = run_pass("distil", {"student": STUDENT, **QUICK}, model)
    assert report.parameters == 64 * 16 + 16 + 170
    stored.save(tmp_path, state, model.task, 0)
    del sys.modules["student_models"]  # as in a new process
    found = stored.load(tmp_path, model.task, 0)
    assert found is not None
    assert type(found.module).__name__ == "Narrow"


def test_blocks_are_trained_alone_before_the_whole() -> None:
    model = trained("plain")
    options = {"student": "small_model", "epochs": 0, "block_epochs": 6, "lr": 0.01}
    state, report = run_pass("distil", {"blocks": {"2": "2", "5": "6"}, **options}, model)
    told = report.note.split("relative error of blocks ")[1]
    errors = [float(n) for part in told.split(";")[0].split(", ") for n in part.split(" ")[1::2]]
    assert errors[1] < errors[0] / 2
    assert errors[3] < errors[2] / 2
    untouched, _ = run_pass("distil", {**options}, model)
    weights = state.module.state_dict(), untouched.module.state_dict()
    moved = {name.split(".")[0] for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert moved == {"2", "5"}


def test_another_task_can_teach() -> None:
    """tiny_task has the same inputs and classes, and trains its own model."""
    model = trained("plain")
    _, report = run_pass("distil", {"teacher": "tiny_task.py", "student": "small_model", **QUICK}, model)
    assert "learned from tiny_task.py" in report.note


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"student": "five_classes"},
            r"student: five_classes gives float32\[1, 5\] where its teacher gives float32\[1, 10\]",
        ),
        ({"student": "smal_model"}, "student: .*plain_task.py: There is no function 'smal_model'"),
        ({"student": "nowhere.py"}, "student: the file nowhere.py does not exist"),
        ({"student": f"{STUDENT}:number"}, r"number\(\) must return a torch.nn.Module, found a int"),
        (
            {"student": f"{STUDENT}:broken"},
            r"student_models.py:\d+: broken\(\) raised RuntimeError: no weights here",
        ),
        ({"teacher": "orginal"}, "There is no teacher 'orginal'"),
        ({"teacher": "tabular_task.py"}, "teacher: it does not take the inputs of plain_task"),
        ({"teacher": "ema", "student": "small_model"}, "student: the teacher ema is the average"),
        ({"generations": 2}, "generations: only the teacher born_again"),
        ({"hints": {"0": "nine"}}, "hints: There is no layer 'nine'"),
        ({"hints": {"0": "8"}}, r"hints: 0 gives \[1, 16, 6, 6\] and the teacher's 8 \[1, 10\]"),
        ({"attention": {"6": "6"}}, "attention: 6 gives .* cannot be compared"),
        ({"blocks": {"0": "8"}}, "blocks: 0 takes .* cannot be compared"),
        ({"student": "five_classes", "blocks": {"7": "0"}}, "five_classes gives"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=r"distil \(after train\): .*" + sentence):
        run_pass("distil", {**options, **QUICK}, trained("plain"))


def test_task_without_training_data_is_told() -> None:
    import dataclasses

    plain = trained("plain")
    bare = dataclasses.replace(plain.context, task=dataclasses.replace(plain.task, train_loader=None))
    with pytest.raises(NotApplicable, match="has no train_loader"):
        distil.apply(State(module=tidy(plain.task.model())), distil.Options(), bare)


def _request(folder: Path, *steps_: Step) -> BuildRequest:
    recipe = Recipe(name="r", steps=steps_)
    return BuildRequest(model=str(folder / "plain_task.py"), recipe=recipe, formats=("onnx",), seed=0)


def test_step_before_teaches_from_memory_and_from_the_cache(tmp_path: Path) -> None:
    shutil.copy(MODELS["plain"], tmp_path / "plain_task.py")
    prune = Step(name="prune_weights", options={"ratio": 0.5, "finetune": {"epochs": 0}})
    learn = Step(name="distil", options={"teacher": "prune_weights", "student": "small_model", "epochs": 1})
    asked = _request(tmp_path, prune, learn)
    loaded = task.load(asked.model)
    one, _ = steps.run(asked, loaded, tmp_path, ignore)
    shutil.rmtree(cache.folder(tmp_path, "steps", cache.step_keys(asked)[-1]))
    again, reports = steps.run(asked, loaded, tmp_path, ignore)
    assert [report.cached for report in reports] == [True, True, False]
    assert "learned from prune_weights" in reports[-1].note
    weights = one.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_changed_student_file_is_another_step(tmp_path: Path) -> None:
    shutil.copy(MODELS["plain"], tmp_path / "plain_task.py")
    student = tmp_path / STUDENT
    shutil.copy(Path(__file__).with_name(STUDENT), student)
    for name in (STUDENT, f"{STUDENT}:model", str(student)):
        asked = _request(tmp_path, Step(name="distil", options={"student": name}))
        before = cache.step_keys(asked)
        text = student.read_text()
        student.write_text(text.replace("16", "12"))
        after = cache.step_keys(asked)
        student.write_text(text)
        assert before[0] == after[0]
        assert before[1] != after[1]


def test_student_with_replaced_blocks_passes_the_gate_of_every_format(tmp_path: Path) -> None:
    recipe = Recipe(
        name="taught",
        steps=(
            Step(name="distil", options={"student": "small_model", "epochs": 4, "lr": 0.02}),
            Step(name="replace_blocks", options={"blocks": ["2"], "kind": "depthwise"}),
            Step(name="quantise", options={"calibration": 32}),
        ),
    )
    shutil.copy(MODELS["plain"], tmp_path / "plain_task.py")
    found = artifacts(build(request(recipe, tmp_path / "plain_task.py"), tmp_path / "cache", ignore))
    assert found.keys() == set(FORMATS)
    assert {a.parameters for a in found.values()} == {978 - 584 + 72 + 72}
