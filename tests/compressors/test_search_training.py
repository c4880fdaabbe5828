"""search_training: what is tried, what is kept, going on after a stop, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from compressors import score, tuning
from compressors.constraints import broken
from compressors.options import FineTuning
from compressors.passes import search_training
from compressors.state import State
from compressors.training import tidy
from harness.core.errors import CellError, UsageError
from harness.core.types import Progress
from tests.compressors.models import MODELS, Trained, run_pass, trained

SMALL: dict[str, Any] = {"trials": 4, "epochs": [1, 2], "start": "new"}


def _same(one: State, two: State) -> bool:
    weights, others = one.module.state_dict(), two.module.state_dict()
    return all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_keeps_its_zeros(name: str) -> None:
    model = trained(name)
    pruned, _ = run_pass("prune_weights", {"ratio": 0.7, "finetune": {"epochs": 0}}, model)
    options = {"trials": 2, "epochs": [1, 1]}
    state, report = run_pass("search_training", options, model, after=pruned)
    assert broken(state.module, pruned.constraints) is None
    before, after = (score.of_validation(s.module, model.task) for s in (pruned, state))
    assert after >= before
    assert report.changed == (after > before)
    assert (
        f"2 trials, best validation accuracy {after:.4f} (it had {before:.4f})" in report.note
        or not report.changed
    )


def test_result_is_the_best_trial_on_the_validation_split() -> None:
    model = trained("tabular")
    seen: list[str] = []
    context = dataclasses.replace(model.context, report=lambda event: _remember(event, seen))
    state = search_training.apply(model.state, search_training.Options(**SMALL), context)
    found = [float(note.split()[1].rstrip(":")) for note in seen]
    assert len(found) == 4
    assert score.of_validation(state.module, model.task) == pytest.approx(max(found), abs=1e-4)
    assert "lr 0.001, weight_decay 0.01, epochs 2, optimiser adamw, schedule one_cycle" in seen[0]


def _remember(event: Progress, seen: list[str]) -> None:
    if event.stage == "search_training":
        seen.append(event.note)


def test_nothing_better_leaves_the_model_as_it_was() -> None:
    """A rate of 1e-9 changes no answer."""
    model = trained("tabular")
    options = {"trials": 2, "epochs": [1, 1], "lr": [1e-9, 1e-9], "optimisers": ["sgd"]}
    state, report = run_pass("search_training", options, model)
    assert _same(state, model.state)
    assert "so it stays as it was; changed nothing" in report.note


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_same_seed_same_weights(sampler: str) -> None:
    model = trained("tabular")
    options = {**SMALL, "trials": 7, "sampler": sampler, "batch_sizes": [20, 41], "patiences": [1]}
    one, two = (run_pass("search_training", options, model)[0] for _ in range(2))
    assert _same(one, two)


def test_search_that_was_stopped_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the fourth of seven trials: three are in the file, four are trained after that."""
    model = trained("tabular")
    options = {**SMALL, "trials": 7}
    whole, _ = run_pass("search_training", options, model)
    asked = search_training.Options(**options, storage=str(tmp_path / "new" / "trials.db"))
    trials = _counted(monkeypatch, stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        search_training.apply(model.state, asked, model.context)
    assert trials == ["1", "2", "3", "4"]
    trials = _counted(monkeypatch, stop_at=None)
    state = search_training.apply(model.state, asked, model.context)
    assert trials[:4] == ["4", "5", "6", "7"]
    assert len(trials) <= 5  # and the best one again for its weights, if it was of the first run
    assert _same(state, whole)
    trials = _counted(monkeypatch, stop_at=None)
    again = search_training.apply(model.state, asked, model.context)
    assert len(trials) == 1
    assert _same(again, whole)


def _counted(monkeypatch: pytest.MonkeyPatch, stop_at: int | None) -> list[str]:
    """The numbers of the trials that are trained from now on; Ctrl-C at the trial *stop_at*."""
    seen: list[str] = []
    real = _REAL

    def finetune(*args: Any, stage: str, **kwargs: Any) -> State:
        seen.append(stage.split("trial ")[1].rstrip(")"))
        if stop_at is not None and len(seen) == stop_at:
            raise KeyboardInterrupt
        return real(*args, stage=stage, **kwargs)

    monkeypatch.setattr(tuning, "finetune", finetune)
    return seen


_REAL = tuning.finetune


def test_other_weights_do_not_take_trials_of_this_file(tmp_path: Path) -> None:
    model = trained("tabular")
    options = {**SMALL, "trials": 1, "storage": str(tmp_path / "trials.db")}
    run_pass("search_training", options, model)
    pruned, _ = run_pass("prune_weights", {"ratio": 0.5, "finetune": {"epochs": 0}}, model)
    run_pass("search_training", options, model, after=pruned)
    assert len(optuna.get_all_study_names(storage=f"sqlite:///{tmp_path / 'trials.db'}")) == 2


def test_trials_that_fail_are_left_out_and_all_failing_is_told() -> None:
    model = trained("tabular")
    wild: dict[str, Any] = {
        "trials": 2,
        "epochs": [1, 1],
        "optimisers": ["sgd"],
        "lr": [10, 10],
        "schedules": ["constant"],
    }
    broken_model = tidy(model.task.model())
    for parameter in broken_model.parameters():
        parameter.data.fill_(torch.inf)
    lost: Trained = dataclasses.replace(model, state=State(module=broken_model))
    with pytest.raises(
        CellError, match=r"none of 2 trials could be trained to its end; the last: .*nan in epoch 1"
    ):
        search_training.apply(lost.state, search_training.Options(**wild), model.context)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": [0.1, 0.01]}, "lr must be two numbers, 0 < least ≤ most ≤ 10, found 0.1, 0.01"),
        ({"epochs": [0, 2]}, "epochs must be two numbers"),
        ({"batch_sizes": [0]}, "batch_sizes must be whole numbers ≥ 1, found 0"),
    ],
)
def test_ranges_that_are_none(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        search_training.Options(**options)


def test_no_search_on_the_test_split_and_no_file_that_is_no_database(tmp_path: Path) -> None:
    model = trained("tabular")
    own = dataclasses.replace(model.context, task=dataclasses.replace(model.task, has_test_split=False))
    with pytest.raises(UsageError, match=r"has no test_loader\(\), so trials would be chosen on"):
        search_training.apply(model.state, search_training.Options(), own)
    other = tmp_path / "notes.txt"
    other.write_text("no database " * 100)
    with pytest.raises(UsageError, match=r"notes\.txt cannot be used as a SQLite file"):
        search_training.apply(model.state, search_training.Options(storage=str(other)), model.context)


def test_usual_options_are_tried_first() -> None:
    space = search_training._space(search_training.Options(lr=(0.01, 0.1), batch_sizes=(8, 16)))
    usual = FineTuning()
    assert search_training._usual(space) == {
        "lr": 0.01,
        "weight_decay": usual.weight_decay,
        "epochs": usual.epochs,
        "optimiser": "adamw",
        "schedule": "one_cycle",
        "batch_size": 8,
    }
