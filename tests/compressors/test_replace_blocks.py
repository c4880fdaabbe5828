"""replace_blocks: shapes and parameters by hand, training block by block, refusals, promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compressors import replacements
from compressors.constraints import broken
from compressors.replacements import CannotReplace, Replacement
from harness.core.errors import UsageError
from tests.compressors.models import run_pass, trained

NONE = {"training": {"epochs": 0}}
QUICK: dict[str, Any] = {"training": {"epochs": 3, "lr": 0.01}}


def _made(block: nn.Module, shape: tuple[int, ...], kind: str, width: float = 0.25) -> Replacement:
    given = torch.rand(shape)
    return replacements.of(block, given, block(given), kind, width, skip=False, positive=False)


@pytest.mark.parametrize(
    ("block", "shape", "kind", "parameters"),
    [
        # 64 -> 12 -> 48; without a ReLU the first layer needs no bias
        (nn.Linear(64, 48), (1, 64), "bottleneck", 64 * 12 + 12 + 12 * 48 + 48),
        (nn.Linear(64, 48), (1, 5, 64), "low_rank", 64 * 12 + 12 * 48 + 48),
        (nn.Conv2d(16, 16, 3), (1, 16, 8, 8), "depthwise", 16 * 9 + 16 * 16 + 16),
        (nn.Conv2d(16, 32, 3, stride=2), (1, 16, 9, 9), "low_rank", 16 * 4 * 9 + 4 * 32 + 32),
        (nn.Conv2d(16, 32, 5, padding=2), (1, 16, 8, 8), "bottleneck", 68 + 4 * 4 * 25 + 4 + 160),
        (nn.Linear(8, 8), (1, 8), "identity", 0),
    ],
)
def test_parameters_by_hand(block: nn.Module, shape: tuple[int, ...], kind: str, parameters: int) -> None:
    new = _made(block, shape, kind)
    assert sum(p.numel() for p in new.parameters()) == parameters
    x = torch.rand(3, *shape[1:])
    assert new(x).shape == block(x).shape


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)),  # 9 -> 9
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3)),  # 9 -> 5: a stride of 2
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()),  # 9 -> 4: no padding
        nn.Sequential(nn.Conv2d(4, 6, 2), nn.ReLU()),  # 9 -> 8
        nn.MaxPool2d((1, 3)),  # 9 x 9 -> 9 x 3
    ],
)
@pytest.mark.parametrize("kind", ["bottleneck", "depthwise", "low_rank"])
def test_a_block_of_many_layers_keeps_its_shape(block: nn.Module, kind: str) -> None:
    new = _made(block, (1, 4, 9, 9), kind)
    x = torch.rand(2, 4, 9, 9)
    assert new(x).shape == block(x).shape


@pytest.mark.parametrize(
    ("block", "shape", "kind", "sentence"),
    [
        (nn.Linear(8, 4), (1, 8), "identity", r"takes \[1, 8\] and gives \[1, 4\], no identity does"),
        (nn.Linear(8, 4), (1, 8), "depthwise", "works on vectors, and a depthwise block on images"),
        (nn.Flatten(), (1, 4, 3, 3), "bottleneck", r"takes \[1, 4, 3, 3\] and gives \[1, 36\]"),
        (nn.Upsample(scale_factor=2), (1, 4, 3, 3), "bottleneck", "takes 3 places and gives 6"),
    ],
)
def test_what_no_block_can_do(block: nn.Module, shape: tuple[int, ...], kind: str, sentence: str) -> None:
    with pytest.raises(CannotReplace, match=sentence):
        _made(block, shape, kind)


def test_skip_and_relu_by_hand() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))
        layer.bias.zero_()
    x = torch.tensor([[1.0, 3.0]])
    assert Replacement(layer)(x, "more", mask=None).tolist() == [[1, -6]]
    assert Replacement(layer, skip=True)(x).tolist() == [[2, -3]]
    assert Replacement(layer, skip=True, positive=True)(x).tolist() == [[2, 0]]


def test_outputs_decide_about_skip_and_relu() -> None:
    one = torch.tensor([1.0, 2.0, 3.0])
    assert replacements.is_positive(torch.tensor([0.0, 1.0]))
    assert not replacements.is_positive(torch.tensor([-0.1, 1.0]))
    assert not replacements.is_positive(torch.zeros(3))
    assert replacements.is_near(one, one + torch.tensor([0.1, -0.1, 0.1]))
    assert not replacements.is_near(one, -one)
    assert not replacements.is_near(one, one[:2])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", {"blocks": ["2"], "kind": "depthwise"}),
        ("residual", {"blocks": ["Block", "6"], "width": 0.25}),
        ("encoder", {"blocks": ["*.mlp"], "width": 0.25}),
        ("tabular", {"blocks": ["re:^[03]$"], "kind": "low_rank", "width": 0.25}),
    ],
)
def test_every_kind_of_model_gets_smaller(name: str, options: dict[str, Any]) -> None:
    model = trained(name)
    state, report = run_pass(
        "replace_blocks", {**options, **QUICK, "finetune": {"epochs": 2, "lr": 0.01}}, model
    )
    assert report.parameters < model.report.parameters
    assert report.macs < model.report.macs
    assert any(isinstance(layer, Replacement) for layer in state.module.modules())
    assert any(change.kind.endswith(("-> Replacement", "-> nothing")) for change in report.layers)
    assert report.score is not None
    assert report.score > 0.5


def test_blocks_learn_what_the_old_ones_gave_and_nothing_else_moves() -> None:
    model = trained("plain")
    state, report = run_pass("replace_blocks", {"blocks": ["2", "6"], "width": 0.25, **QUICK}, model)
    again, _ = run_pass("replace_blocks", {"blocks": ["2", "6"], "width": 0.25, **QUICK}, model)
    told = report.note.removeprefix("bottleneck: relative error of blocks ").split(", ")
    for part in told:
        _, before, _, after = part.split(" ")
        assert float(after) < float(before) / 2
    weights, old = state.module.state_dict(), model.state.module.state_dict()
    assert all(torch.equal(weights[f"{n}.{k}"], old[f"{n}.{k}"]) for n in "08" for k in ("weight", "bias"))
    assert all(torch.equal(weights[n], value) for n, value in again.module.state_dict().items())


def test_of_blocks_inside_each_other_the_outer_one_is_replaced() -> None:
    state, _ = run_pass("replace_blocks", {"blocks": ["3*"], "width": 0.25, **NONE}, trained("residual"))
    assert isinstance(state.module.get_submodule("3"), Replacement)


def test_promises_of_replaced_blocks_end_and_the_others_are_kept() -> None:
    model = trained("plain")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.5, "finetune": {"epochs": 0}}, model)
    options = {"blocks": ["6"], "kind": "low_rank", "width": 0.25, **QUICK, "finetune": {"epochs": 1}}
    state, report = run_pass("replace_blocks", options, model, after=pruned)
    assert sorted(state.constraints) == ["0.weight", "2.weight", "8.weight"]
    assert broken(state.module, state.constraints) is None
    assert "no longer kept as they are: 6.weight (its block was replaced)" in report.note


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "plain",
            {"blocks": ["6"], "width": 1.0},
            "kind: bottleneck makes 6 no smaller: 5,472 parameters instead of 3,120",
        ),
        ("plain", {"blocks": ["1"], "kind": "identity"}, "makes 1 no smaller: 0 parameters instead of 0"),
        ("plain", {"blocks": ["8"], "kind": "identity"}, "kind: 8 takes .* so identity cannot replace it"),
        ("plain", {"blocks": ["nine"]}, "blocks: There is no layer 'nine'"),
        ("encoder", {"blocks": ["ViTAttention"]}, "attention gives more than one tensor"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=r"replace_blocks \(after train\): .*" + sentence):
        run_pass("replace_blocks", {**options, **NONE}, trained(name))


def test_growth_can_be_asked_for() -> None:
    options = {"blocks": ["6"], "width": 1.0, "allow_growth": True, **NONE}
    _, report = run_pass("replace_blocks", options, trained("plain"))
    assert report.parameters == trained("plain").report.parameters + 5472 - 3120
