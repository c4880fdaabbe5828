"""low_rank: factors by hand-worked values, ranks that pay, and refusals with figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compressors import splitting
from compressors.kernels import factors
from compressors.passes import low_rank
from compressors.state import State
from compressors.training import tidy
from harness.core.errors import NotApplicable, UsageError
from tests.compressors.models import MODELS, run_pass, trained

QUICK = {"finetune": {"epochs": 3, "lr": 0.005}}
NONE = {"finetune": {"epochs": 0}}


def test_svd_keeps_the_largest_values_and_leaves_the_rest_as_error() -> None:
    """F14: of diag(3, 2, 1) rank 2 leaves an error of 1, rank 1 one of sqrt(2^2 + 1^2)."""
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    for rank, error in ((3, 0.0), (2, 1.0), (1, 5**0.5)):
        a, b = factors.svd(matrix, rank)
        assert a.shape == (3, rank)
        assert b.shape == (rank, 3)
        assert (matrix - a @ b).norm().item() == pytest.approx(error, abs=1e-5)
        assert a.is_contiguous()
        assert b.is_contiguous()


def test_rank_for_energy_is_the_smallest_that_holds_it() -> None:
    """Squares 9, 4, 1 of 14: 0.643, 0.929, 1."""
    values = torch.tensor([3.0, 2.0, 1.0])
    assert [factors.rank_for_energy(values, e) for e in (0.6, 0.7, 0.9, 0.95)] == [1, 2, 2, 3]


def test_budget_goes_where_a_parameter_keeps_most() -> None:
    values = {"steep": torch.tensor([10.0, 1.0]), "flat": torch.tensor([10.0, 9.0])}
    costs = {"steep": (10, 100), "flat": (10, 100)}
    assert factors.ranks_for_budget(values, costs, 30) == {"steep": 1, "flat": 2}
    assert factors.ranks_for_budget(values, costs, 20) == {"steep": 1, "flat": 1}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(7, 5),
        nn.Linear(5, 7, bias=False),
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 3, (3, 5), padding="same", dilation=(1, 2)),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(3, 4, 5, stride=2, padding=2),
    ],
)
@pytest.mark.parametrize("conv", ["spatial", "tucker"])
def test_full_rank_computes_the_same(layer: nn.Module, conv: str) -> None:
    torch.manual_seed(0)
    split = splitting.of(layer, conv)
    assert split is not None
    rank: Any = split.rank(list(split.full))
    new = split.replacement(rank)
    weight = layer.get_parameter("weight")
    shape = (2, weight.shape[1], *[9] * (weight.ndim - 2))
    x = torch.rand(*shape)
    assert torch.allclose(new(x), layer(x), atol=1e-5)
    assert torch.allclose(new.weight, weight, atol=1e-5)
    assert split.parameters(rank) == sum(p.numel() for n, p in new.named_parameters() if "weight" in n)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("conv", ["spatial", "tucker"])
def test_every_kind_of_model_gets_smaller(name: str, conv: str) -> None:
    model = trained(name)
    _, report = run_pass("low_rank", {"ratio": 0.3, "conv": conv, **QUICK}, model)
    assert report.parameters < model.report.parameters
    assert report.macs < model.report.macs
    assert any("-> Factors" in change.kind for change in report.layers)
    assert report.score is not None
    assert report.score > 0.5


def test_budget_and_energy() -> None:
    plain = trained("plain")
    state, _ = run_pass("low_rank", {"budget": 0.5, **NONE}, plain)
    weights = [sum(p.numel() for p in s.module.parameters() if p.ndim > 1) for s in (plain.state, state)]
    assert 0.4 < weights[1] / weights[0] <= 0.5
    fine, rough = (run_pass("low_rank", {"energy": e, **NONE}, plain)[1] for e in (0.8, 0.5))
    assert rough.parameters < fine.parameters < plain.report.parameters


def test_rank_that_cannot_be_or_does_not_pay_is_refused_with_figures() -> None:
    plain = trained("plain")
    with pytest.raises(UsageError, match=r"low_rank \(after train\): rank: 11 is larger than 8 has, 10"):
        run_pass("low_rank", {"rank": 11, "include": ["8"]}, plain)
    with pytest.raises(UsageError, match="rank 9 makes 8 bigger: 522 weights instead of 480"):
        run_pass("low_rank", {"rank": 9, "include": ["8"]}, plain)
    with pytest.raises(UsageError, match=r"makes .* bigger"):
        run_pass("low_rank", {"ratio": 1.0}, plain)


def test_layers_that_do_not_pay_stay_whole_and_are_told() -> None:
    _, report = run_pass("low_rank", {"ratio": 0.6, "conv": "none", **NONE}, trained("plain"))
    assert report.note == "8 rank 6 of 10; whole, because factors would be bigger: 6"


def test_model_without_a_layer_to_split_is_told() -> None:
    plain = trained("plain")
    depthwise = State(module=tidy(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))))
    with pytest.raises(NotApplicable, match="none of 0 can be split"):
        low_rank.apply(depthwise, low_rank.Options(), plain.context)


def test_masks_of_split_layers_end_and_the_report_says_so() -> None:
    plain = trained("plain")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.5, **NONE}, plain)
    after, report = run_pass("low_rank", {"ratio": 0.3, "include": ["6"], **NONE}, plain, after=pruned)
    assert sorted(after.constraints) == ["0.weight", "2.weight", "8.weight"]
    assert "no longer kept as they are: 6.weight (split into low-rank factors)" in report.note


def test_split_layers_can_be_pruned_and_keep_their_zeros() -> None:
    plain = trained("plain")
    split, _ = run_pass("low_rank", {"ratio": 0.4, **NONE}, plain)
    pruned, report = run_pass("prune_weights", {"ratio": 0.5, **QUICK}, plain, after=split)
    assert "6.0.weight" in pruned.constraints
    assert report.sparsity is not None
    assert report.sparsity > 0.45
