"""Depth pruning: which blocks can go, what they are worth by hand, targets, limits and refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressors import bypassing, counting, score
from compressors.passes import prune_layers
from compressors.state import Context, State
from compressors.training import tidy
from harness.core.errors import NotApplicable, UsageError
from tests.compressors.models import run_pass, trained

RAW: dict[str, Any] = {"finetune": {"epochs": 0}, "epochs": 0, "bn_samples": 0}
QUICK: dict[str, Any] = {"finetune": {"epochs": 1, "lr": 0.003}}


class Turn(nn.Module):
    """x + W x for rows of two numbers."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 2, bias=False)
        self.dense.weight.data = torch.tensor(weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.dense(x)
        return result


def turns() -> nn.Module:
    """Doubles, turns by a right angle, adds a little: influence 0, 1 and something small."""
    return nn.Sequential(
        Turn([[1.0, 0.0], [0.0, 1.0]]),
        Turn([[-1.0, -1.0], [1.0, -1.0]]),
        Turn([[0.0, 0.0], [1.0, 0.0]]),
    )


def fed(*batches: tuple[Tensor, Tensor]) -> Context:
    context = trained("tabular").context
    task = dataclasses.replace(
        context.task,
        example_inputs=lambda: (torch.zeros_like(batches[0][0][:1]),),
        calibration_loader=lambda _: list(batches),
        validation_loader=lambda: list(batches),
        train_loader=lambda _: list(batches),
        loss=nn.functional.mse_loss,
    )
    return dataclasses.replace(context, task=task)


CONTEXT = (torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 4.0]]))


def test_influence_by_hand() -> None:
    """
    (1, 0) -> (2, 0): cosine 1; -> (0, 2): cosine 0; -> (0, 2) with nothing added: cosine 1.

    (0, 1) -> (0, 2) -> (-2, 0) -> (-2, -2): cosines 1, 0 and 1 / sqrt(2).
    """
    context = fed((torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2)))
    found = bypassing.influence(turns(), ["0", "1", "2"], context, 100)
    assert found == pytest.approx({"0": 0.0, "1": 1.0, "2": (1 - 2**-0.5) / 2}, abs=1e-6)


def test_loss_without_a_block_by_hand() -> None:
    """
    Targets are the model's outputs (0, 2) and (0, 4), so its loss is 0.

    Without block 0: (0, 1), (0, 2): mean of 0 1 0 4 = 5/4. Without block 1: (2, 2), (4, 4): mean of 4 0 16 0.
    Without block 2: the same as with it, as the first numbers are zero.
    """
    module = turns()
    assert bypassing.loss(module, fed(CONTEXT), 100) == 0
    found = bypassing.worth("loss", module, ["0", "1", "2"], fed(CONTEXT), 100)
    assert found == pytest.approx({"0": 1.25, "1": 5.0, "2": 0.0})


def applied(**options: Any) -> State:
    chosen = prune_layers.Options.model_validate({**RAW, **options})
    return prune_layers.apply(State(module=tidy(turns())), chosen, fed(CONTEXT))


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({}, [2]),
        ({"count": 2}, [0, 2]),
        ({"importance": "influence"}, [0]),
        ({"max_loss_increase": 1.0}, [2]),
        ({"max_loss_increase": 2.0}, [0, 2]),
        ({"max_loss_increase": 2.0, "exclude": ["2"]}, [0]),
        ({"include": ["1"]}, [1]),
        ({"macs": 0.7}, [2]),
        ({"parameters": 0.34}, [0, 2]),
    ],
)
def test_the_least_useful_blocks_go(options: dict[str, Any], gone: list[int]) -> None:
    after = applied(**options)
    assert [i for i in range(3) if isinstance(after.module.get_submodule(str(i)), nn.Identity)] == gone


def test_limits_are_told() -> None:
    assert applied(max_loss_increase=1.0).note == (
        "without 2 (loss 0); stopped at max_loss_increase: the next would have a loss of 1.2500, over 1.0000"
    )
    nothing = applied(max_loss_increase=0.5, exclude=["2"])
    assert nothing.note.startswith("every block stays; stopped at max_loss_increase")
    assert counting.parameters(nothing.module) == 12


def test_candidates_of_the_models() -> None:
    """Residual blocks as a whole, not what is inside of them; layers that change the shape are none."""
    found = {n: trained(n) for n in ("residual", "encoder")}
    chosen = {n: bypassing.candidates(m.state.module, m.task, (), ()) for n, m in found.items()}
    assert chosen == {"residual": ["3"], "encoder": ["vit.vit.layers.0", "vit.vit.layers.1"]}
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Turn([[0.0, 0.0], [0.0, 0.0]]), nn.Linear(2, 3))
    assert bypassing.candidates(plain, fed(CONTEXT).task, (), ()) == ["0", "2"]


@pytest.mark.parametrize("name", ["plain", "tabular"])
def test_model_without_such_blocks_says_so(name: str) -> None:
    with pytest.raises(NotApplicable, match="prune_layers does not apply: no block or layer of the model"):
        run_pass("prune_layers", RAW, trained(name))


@pytest.mark.parametrize("importance", ["loss", "influence", "random"])
@pytest.mark.parametrize("name", ["residual", "encoder"])
def test_models_lose_a_block(name: str, importance: str) -> None:
    model = trained(name)
    after, report = run_pass("prune_layers", {"importance": importance, "samples": 64, **QUICK}, model)
    assert model.report.macs is not None
    assert report.macs is not None
    assert report.macs < 0.6 * model.report.macs
    assert report.note.startswith(f"without {'3' if name == 'residual' else 'vit.vit.layers.'}")
    assert score.of_validation(after.module, model.task) > (0.3 if importance == "random" else 0.6)


def test_block_with_several_inputs_gives_the_first_back() -> None:
    x = torch.rand(2, 3)
    assert bypassing.Bypass(0)(x, None, mask=1) is x
    assert bypassing.Bypass(2)(x, 5) == (x, None)


def test_gate_on_the_score() -> None:
    model = trained("encoder")
    after, report = run_pass("prune_layers", {"min_score": 1.0, **QUICK}, model)
    assert not report.changed
    assert "stopped at min_score 1: the next would fall to 0." in report.note
    after, report = run_pass("prune_layers", {"min_score": 0.3, "count": 1, **QUICK}, model)
    assert report.changed
    assert score.of_validation(after.module, model.task) >= 0.3


def test_zeros_of_what_stays_are_kept_and_the_rest_is_told() -> None:
    model = trained("encoder")
    sparse, _ = run_pass("prune_weights", {"ratio": 0.5, "finetune": {"epochs": 0}}, model)
    after, report = run_pass("prune_layers", QUICK, model, after=sparse)
    gone = "0" if "without vit.vit.layers.0" in report.note else "1"
    assert f"vit.vit.layers.{1 - int(gone)}.mlp.fc1.weight" in after.constraints
    assert f"vit.vit.layers.{gone}.mlp.fc1.weight" in after.dropped
    assert "the block is gone" in report.note


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("encoder", {"count": 3}, r"count: the model has 2 blocks that can go, not 3"),
        ("encoder", {"macs": 0.001}, r"macs: 317 cannot be reached: without all 2 blocks"),
        ("encoder", {"include": ["nonesuch"]}, r"include: There is no layer 'nonesuch'"),
        ("plain", {"include": ["0"]}, r"include: 0 cannot go: it turns \[1, 1, 8, 8\] into \[1, 16, 6, 6\]"),
    ],
)
def test_options_that_cannot_work(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run_pass("prune_layers", {**RAW, **options}, trained(name))


def test_one_target() -> None:
    with pytest.raises(ValueError, match="count and macs cannot both be given"):
        prune_layers.Options.model_validate({"count": 1, "macs": 0.5})
