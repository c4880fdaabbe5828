"""Pruned channels, neurons and heads: budgets counted on paper, rounds, gates, promises and refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from compressors import pruning_loop, score
from compressors.constraints import Constraint
from compressors.passes import prune_channels
from harness.core.errors import NotApplicable, UsageError
from harness.core.types import Progress
from tests.compressors.models import Trained, run_pass, trained
from tests.compressors.test_channels import RAW, apply, fed

QUICK: dict[str, Any] = {"finetune": {"epochs": 1, "lr": 0.003}}


@pytest.mark.parametrize("name", ["plain", "residual", "encoder", "tabular"])
@pytest.mark.parametrize("importance", ["l1", "taylor", "hessian", "activation", "pca", "random"])
def test_every_importance_on_every_model(name: str, importance: str) -> None:
    model = trained(name)
    _, report = run_pass("prune_channels", {"importance": importance, "samples": 64, **RAW}, model)
    assert report.parameters < 0.5 * model.report.parameters


@pytest.mark.parametrize(
    ("name", "importance", "sentence"),
    [
        ("encoder", "rank", r"importance: rank does not apply: no layer .* feature maps"),
        ("tabular", "rank", r"importance: rank does not apply"),
        ("plain", "bn_scale", r"importance: bn_scale does not apply: .* batch norm"),
        ("encoder", "bn_scale", r"importance: bn_scale does not apply"),
    ],
)
def test_importance_without_its_ground_says_so(name: str, importance: str, sentence: str) -> None:
    with pytest.raises(NotApplicable, match=sentence):
        run_pass("prune_channels", {"importance": importance, **RAW}, trained(name))


@pytest.mark.parametrize(("name", "importance"), [("residual", "rank"), ("residual", "bn_scale")])
def test_importance_where_it_has_its_ground(name: str, importance: str) -> None:
    run_pass("prune_channels", {"importance": importance, "samples": 64, **RAW}, trained(name))


def plain_costs(a: int, b: int, c: int) -> dict[str, int]:
    """What the plain model has with a, b filters and c neurons, counted on paper."""
    return {
        "macs": 36 * 9 * a + 16 * 9 * a * b + 4 * b * c + 10 * c,
        "parameters": 9 * a + a + 9 * a * b + b + 4 * b * c + c + 10 * c + 10,
    }


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("option", ["macs", "parameters"])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_no_channel_more_would_fit_the_budget(option: str, share: float, together: bool) -> None:
    model = trained("plain")
    full = plain_costs(16, 16, 48)
    assert (full["macs"], full["parameters"]) == (model.report.macs, model.report.parameters)
    after, report = run_pass("prune_channels", {option: share, "global": together, **RAW}, model)
    left: list[int] = [after.module.get_parameter(f"{n}.weight").shape[0] for n in (0, 2, 6)]
    costs = plain_costs(*left)
    assert (costs["macs"], costs["parameters"]) == (report.macs, report.parameters)
    assert costs[option] <= share * full[option]
    one_more = [plain_costs(*(n + (i == k) for k, n in enumerate(left)))[option] for i in range(3)]
    assert min(one_more) > share * full[option]


def test_budget_that_cannot_be_reached_says_what_can() -> None:
    with pytest.raises(UsageError, match=r"macs: 45 cannot be reached: .* smallest model has [\d,]+\."):
        run_pass("prune_channels", {"macs": 0.001, **RAW}, trained("plain"))


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_rounds_end_where_one_shot_does(kind: str) -> None:
    model = trained("plain")
    told: list[Progress] = []
    context = dataclasses.replace(model.context, report=told.append)
    options = {"ratio": 0.5, "schedule": {"kind": kind, "rounds": 2, "epochs": 1}, **QUICK}
    chosen = prune_channels.Options.model_validate(options)
    after = prune_channels.apply(model.state, chosen, context)
    sizes = [m.weight.shape[0] for m in after.module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sizes == [8, 8, 24, 10]
    first = {"linear": "60 of 80", "cubic": "45 of 80"}[kind]  # half of the way, 7/8 of it
    assert next(p.note for p in told if "left" in p.note and p.total == 2 and p.done == 1).startswith(first)
    _, report = run_pass("prune_channels", options, model)
    assert report.score is not None
    assert report.score > 0.7


def test_gate_keeps_the_last_good_round() -> None:
    """A bound that no pruned model keeps: nothing changes; one that all keep: all rounds; one between."""
    model = trained("plain")
    options = {"ratio": 0.9, "max_ratio": 0.95, "schedule": {"kind": "linear", "rounds": 3}, **QUICK}
    after, report = run_pass("prune_channels", {**options, "min_score": 1.0}, model)
    assert not report.changed
    assert "stopped at min_score 1: round 1 would fall to 0." in report.note
    _, lowest = run_pass("prune_channels", {**options, "min_score": 0.0}, model)
    after, report = run_pass("prune_channels", {**options, "min_score": 0.75}, model)
    assert score.of_validation(after.module, model.task) >= 0.75
    assert lowest.parameters < report.parameters < model.report.parameters
    assert "stopped at min_score 0.75" in report.note


def test_gate_needs_a_split_of_its_own() -> None:
    model = trained("plain")
    task = dataclasses.replace(model.task, has_test_split=False)
    without = dataclasses.replace(model, context=dataclasses.replace(model.context, task=task))
    with pytest.raises(UsageError, match=r"min_score: the task \S+ has no test_loader\(\)"):
        run_pass("prune_channels", {"min_score": 0.5, **RAW}, without)


def test_batch_norms_are_measured_again_by_hand() -> None:
    """Two batches of inputs (1, 3) and (5, 5): means 2 and 5, variances 2 and 0, so 3.5 and 1."""
    module = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.9))
    target = torch.zeros(2)
    context = fed((torch.tensor([[1.0], [3.0]]), target), (torch.tensor([[5.0], [5.0]]), target))
    weight = module.get_parameter("0.weight").clone()
    after: Any = pruning_loop.reestimated(module, context.task, 0, 100)
    assert (after[0].running_mean.item(), after[0].running_var.item()) == (3.5, 1.0)
    assert torch.equal(after[0].weight, weight)
    assert (after[0].momentum, after.training, after[0].training) == (0.1, False, False)


def test_pruned_model_has_its_own_batch_norm_statistics() -> None:
    """What the norm sees has changed with the neurons in front: its statistics are the new inputs'."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.rand(32, 3)
    for samples, same in ((32, True), (0, False)):
        after: Any = apply(module, fed((x, torch.zeros(32, 2))), include=["0"], bn_samples=samples)
        assert after[0].weight.shape == (4, 3)
        mean = after[:3](x).mean(0)
        assert torch.allclose(after[3].running_mean, mean, atol=1e-5) is same


def test_slimming_makes_scales_small() -> None:
    model = trained("tabular")
    options = {"importance": "bn_scale", "slimming": {"epochs": 2, "strength": 5.0, "lr": 0.01}, **RAW}
    chosen = prune_channels.Options.model_validate(options)
    with_it = prune_channels._slimmed(model.state, chosen, model.context).module
    before, after = (m.get_parameter("1.weight").abs().sum() for m in (model.state.module, with_it))
    assert float(after) < 0.9 * float(before)
    run_pass("prune_channels", options, model)
    with pytest.raises(NotApplicable, match=r"slimming does not apply: the model has no batch norm"):
        run_pass("prune_channels", {"slimming": {"epochs": 1}, **RAW}, trained("plain"))


def test_same_seed_same_model() -> None:
    options = {"importance": "random", "schedule": {"kind": "linear", "rounds": 2, "epochs": 1}, **QUICK}
    one, two = (run_pass("prune_channels", options, trained("residual"))[0] for _ in range(2))
    for a, b in zip(one.module.state_dict().values(), two.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"exclude": ["nonesuch*"]}, r"exclude: There is no layer 'nonesuch\*'"),
        ({"include": ["nonesuch"]}, r"include: There is no layer 'nonesuch'"),
        ({"round_to": 64}, r"round_to: nothing is left to prune with .*round_to 64: the widest layer has 48"),
        ({"ratio": 0.001, "max_ratio": 0.01}, r"nothing is left to prune"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run_pass("prune_channels", {**options, **RAW}, trained("plain"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ratio": 0.5, "macs": 0.5}, "ratio and macs cannot both be given"),
        ({"ratio": 1.0}, "less than 1"),
        ({"macs": 0}, "greater than 0"),
        ({"kinds": []}, "at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        prune_channels.Options.model_validate(options)


@pytest.mark.parametrize("chosen", ["Linear", "re:^[68]$", "6"])
def test_layers_are_chosen_by_name_expression_and_type(chosen: str) -> None:
    model = trained("plain")
    only, _ = run_pass("prune_channels", {"include": [chosen], **RAW}, model)
    but, _ = run_pass("prune_channels", {"exclude": [chosen], **RAW}, model)
    sizes = [
        [m.weight.shape[0] for m in s.module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        for s in (only, but)
    ]
    assert sizes == [[16, 16, 24, 10], [8, 8, 48, 10]]
    with pytest.raises(NotApplicable, match=r"nothing to remove: .* \(8 stays whole: its channels are the"):
        run_pass("prune_channels", {"include": ["8"], **RAW}, model)


def test_zeros_and_codebooks_go_with_their_channels() -> None:
    """Zeros and shared values are kept through the cut, the training after it and the cache."""
    model: Trained = trained("plain")
    sparse, _ = run_pass("prune_weights", {"ratio": 0.6, **RAW}, model)
    weight = sparse.module.get_parameter("2.weight")
    numbers = (weight > 0).long().masked_fill(weight == 0, -1)
    with torch.no_grad():
        weight.copy_(torch.where(weight == 0, weight, torch.tensor([-0.25, 0.25])[(weight > 0).long()]))
    promises = {**sparse.constraints, "2.weight": Constraint(zeros=weight == 0, shared=numbers)}
    after, _ = run_pass(
        "prune_channels", QUICK, model, after=sparse.replaced(sparse.module, constraints=promises)
    )
    found = after.module.get_parameter("2.weight")
    assert found.shape == (8, 8, 3, 3)
    assert len(set(found.flatten().tolist())) == 3
    assert (found == 0).any()
