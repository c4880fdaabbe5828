"""restructure: rewrites that compute the same with fewer layers, by hand-worked values and on real models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from compressors import counting, rewriting
from compressors.passes import restructure
from compressors.state import State
from compressors.training import tidy
from harness.core.errors import CellError, NotApplicable
from tests.compressors.models import run_pass, trained


def rewritten(module: nn.Module, name: str, shape: tuple[int, ...], *, grow: bool = False) -> tuple[Any, Any]:
    """A copy of *module* after one rewrite, and what was told; both give the same for random inputs."""
    tidy(module)
    inputs = (torch.zeros(1, *shape),)
    found, told = rewriting.REWRITES[name](copy.deepcopy(module), inputs, grow)
    if name not in rewriting.INEXACT:
        x = torch.randn(3, *shape)
        assert torch.allclose(module(x), found.eval()(x), atol=1e-4)
    return found, told


def test_batch_norm_is_folded_by_its_formula() -> None:
    """w = 2, b = 1; norm: mean 3, variance 4 (eps 0), gain 6, shift 5. So w' = 6, b' = (1 - 3) 3 + 5 = -1."""
    layer, norm = nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0)
    tensors: Any = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    for tensor, value in zip(tensors, (2.0, 1, 3, 4, 6, 5), strict=True):
        tensor.data.fill_(value)
    found, told = rewritten(nn.Sequential(layer, norm), "fold", (1,))
    assert (found[0].weight.item(), found[0].bias.item()) == (6, -1)
    assert isinstance(found[1], nn.Identity)
    assert told == ["1 folded into 0"]


def test_two_3x3_are_one_5x5_and_stride_spreads_the_second() -> None:
    """F01: k = k1 + (k2 - 1) s1. Of all-one kernels 3 and 2 with stride 2: 1 1 2 1 1."""
    one, two = nn.Conv2d(1, 1, (1, 3), stride=(1, 2), bias=False), nn.Conv2d(1, 1, (1, 2), bias=False)
    for layer in (one, two):
        layer.weight.data.fill_(1.0)
    found, _ = rewritten(nn.Sequential(one, two), "merge", (1, 4, 9), grow=True)
    assert found[0].weight.flatten().tolist() == [1, 1, 2, 1, 1]
    assert found[0].stride == (1, 2)
    found, _ = rewritten(
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3)), "merge", (2, 8, 8), grow=True
    )
    assert found[0].kernel_size == (5, 5)
    assert found[0].padding == (1, 1)


def test_merge_that_makes_more_weights_is_left_alone() -> None:
    """F01, N08: two 3x3 of 8 channels have 18 C^2 weights, one 5x5 has 25 C^2."""
    pair = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False))
    assert rewritten(pair, "merge", (8, 9, 9))[1] == []
    found, told = rewritten(pair, "merge", (8, 9, 9), grow=True)
    assert told == ["0 and 1 merged"]
    assert [counting.parameters(m) for m in (pair, found)] == [18 * 64, 25 * 64]


@pytest.mark.parametrize(
    ("layers", "merges"),
    [
        ([nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 2)], 2),
        ([nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)], 0),
    ],
)
def test_linear_layers_merge_in_chains_but_not_across_an_activation(
    layers: list[nn.Module], merges: int
) -> None:
    assert len(rewritten(nn.Sequential(*layers), "merge", (6,))[1]) == merges


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (nn.Conv2d(2, 8, 1, bias=False), nn.Conv2d(8, 3, 3, padding=1), True),
        (nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 3, padding=1), False),  # the bias is missing at the border
        (nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), False),
        (nn.Conv2d(2, 8, 3, groups=2), nn.Conv2d(8, 3, 1), False),
    ],
)
def test_borders_decide_whether_convolutions_merge(first: nn.Module, second: nn.Module, merged: bool) -> None:
    assert bool(rewritten(nn.Sequential(first, second), "merge", (2, 8, 8), grow=True)[1]) is merged


class Twice(nn.Module):
    """A layer that is called twice, and one whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.shared, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shared(self.norm(self.twice(self.twice(x))))
        result: torch.Tensor = self.last(y) + y
        return result


def test_what_is_used_twice_is_left_alone() -> None:
    """twice's weights serve two calls, and shared's output is needed as it is."""
    assert rewritten(Twice(), "fold", (4,))[1] == []


class Branches(nn.Module):
    """A residual sum with a branch that is always zero, and a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1), nn.Linear(5, 5)
        self.tail = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Identity(), nn.Linear(32, 2))
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.unused(x.new_zeros(1, 5))
        result: torch.Tensor = self.tail(x + self.b(self.a(x)))
        return result


def test_dead_branches_unused_layers_and_identities_go() -> None:
    found, told = rewritten(Branches(), "identities", (2, 4, 4))
    assert told == ["b is always zero", "a has no effect", "unused has no effect", "2 identities removed"]
    assert counting.parameters(found) == 32 * 2 + 2
    assert [name for name, _ in found.tail.named_children()] == ["1", "3"]


def test_dense_head_becomes_a_convolution_or_a_mean() -> None:
    """F02: y = mean over HW; HWC K weights become C K, exact for a constant image."""
    head = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(3 * 16, 5))
    found, _ = rewritten(head, "dense_to_conv", (1, 4, 4))
    assert found[2][0].weight.shape == (5, 3, 4, 4)
    assert counting.parameters(found) == counting.parameters(head)
    found, _ = rewritten(head, "gap", (1, 4, 4))
    assert counting.parameters(head) - counting.parameters(found) == 16 * 3 * 5 - 3 * 5
    flat = torch.full((2, 1, 4, 4), 0.7)
    assert torch.allclose(found(flat), head(flat), atol=1e-5)


def test_residual_network_is_folded_and_says_the_same() -> None:
    """Two batch norms go; score and outputs stay."""
    model = trained("residual")
    state, report = run_pass("restructure", {}, model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in state.module.modules())
    assert report.score == model.report.score
    assert report.parameters == model.report.parameters - 2 * 16
    assert "1 folded into 0" in report.note
    _, quantised = run_pass("quantise", {"calibration": 32}, model, after=state)
    assert quantised.score is not None
    assert quantised.score > 0.8


def test_gap_head_is_smaller_and_learns_again() -> None:
    model = trained("plain")
    options = {"rewrites": ["gap"], "finetune": {"epochs": 6, "lr": 0.01}}
    _, report = run_pass("restructure", options, model)
    assert report.parameters == model.report.parameters - 3 * 16 * 48
    assert report.score is not None
    assert report.score > 0.6


def test_masks_survive_where_layers_do_and_end_with_a_word_where_they_do_not() -> None:
    model = trained("residual")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.5, "finetune": {"epochs": 0}}, model)
    after, report = run_pass("restructure", {"rewrites": ["fold"]}, model, after=pruned)
    assert after.constraints.keys() == pruned.constraints.keys()  # folding scales rows: zeros stay zero
    assert "no longer kept" not in report.note


@pytest.mark.parametrize("name", ["plain", "encoder"])
def test_model_with_nothing_to_simplify_is_told(name: str) -> None:
    with pytest.raises(
        NotApplicable, match=r"restructure does not apply: nothing in the model to do for fold"
    ):
        run_pass("restructure", {"rewrites": ["fold"]}, trained(name))


def test_tabular_model_is_folded() -> None:
    model = trained("tabular")
    _, report = run_pass("restructure", {}, model)
    assert report.parameters == model.report.parameters - 2 * 64


def test_rewrite_that_changes_the_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: Any, inputs: Any, grow: bool) -> Any:
        module.get_submodule("8").bias.data.add_(1)
        return module, ["done"]

    monkeypatch.setitem(rewriting.REWRITES, "fold", wrong)
    model = trained("plain")
    with pytest.raises(CellError, match="fold changed the model's outputs"):
        restructure.apply(State(module=model.state.module), restructure.Options(), model.context)
