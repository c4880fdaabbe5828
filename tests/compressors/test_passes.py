"""Each pass does what it says, keeps what the contract asks, and refuses what cannot work."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from compressors import contract, counting, rebuild, score, task, tuning
from compressors.options import FineTuning
from compressors.passes import finetune, prune_channels, quantise
from compressors.state import Context, State
from compressors.steps import check_recipe
from compressors.training import deterministic, tidy
from harness.core.errors import CellError, UsageError
from harness.core.types import Recipe, Step
from tests.compressors.conftest import TINY, ignore


@pytest.fixture(scope="module")
def tiny() -> task.Task:
    return task.load(str(TINY))


@pytest.fixture(scope="module")
def context(tiny: task.Task) -> Context:
    with deterministic(0):
        return Context(task=tiny, seed=0, report=ignore, original=tidy(tiny.model()))


@pytest.fixture(scope="module")
def fresh(context: Context) -> State:
    return State(module=context.original)


@pytest.fixture(scope="module")
def quantised(fresh: State, context: Context) -> State:
    return quantise.apply(fresh, quantise.Options(calibration=32), context)


def prune(state: State, context: Context, **options: Any) -> State:
    chosen = {"finetune": {"epochs": 0}, **options}
    return prune_channels.apply(state, prune_channels.Options.model_validate(chosen), context)


def channels(state: State) -> list[int]:
    return [
        layer.weight.shape[0] for layer in state.module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_half_of_the_channels_go_and_the_outputs_stay(
    fresh: State, context: Context, importance: str
) -> None:
    """The residual sum ties the convolutions; the last layer is the output and is left alone."""
    before = copy.deepcopy(fresh.module.state_dict())
    after = prune(fresh, context, ratio=0.5, importance=importance)
    assert channels(fresh) == [16, 16, 16, 32, 10]
    assert channels(after) == [8, 8, 8, 16, 10]
    contract.require(after, context.task, "prune_channels", before=fresh)
    assert all(torch.equal(before[key], value) for key, value in fresh.module.state_dict().items())


def test_l2_keeps_the_channels_with_the_largest_weights(context: Context) -> None:
    module = tidy(nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Flatten(), nn.Linear(144, 10)))
    layers: Any = module
    layers[0].weight.data = torch.tensor([3.0, 1.0, 4.0, 2.0]).reshape(4, 1, 1, 1).expand(4, 1, 3, 3).clone()
    layers[2].weight.data.fill_(0.01)
    after = prune(State(module=module), context, ratio=0.5, importance="l2")
    assert isinstance(after.module, nn.Sequential)
    assert isinstance(after.module[0], nn.Conv2d)
    assert after.module[0].weight[:, 0, 0, 0].tolist() == [3.0, 4.0]


def test_channels_left_are_a_multiple_of_round_to(fresh: State, context: Context) -> None:
    assert channels(prune(fresh, context, ratio=0.3, round_to=4)) == [8, 8, 8, 20, 10]


def test_global_ranking_spares_important_layers(fresh: State, context: Context) -> None:
    local = prune(fresh, context, ratio=0.4)
    together = prune(fresh, context, ratio=0.4, **{"global": True})
    assert channels(together) != channels(local)


def test_excluded_layers_stay_whole(fresh: State, context: Context) -> None:
    assert channels(prune(fresh, context, ratio=0.5, exclude=["6"])) == [8, 8, 8, 32, 10]
    with pytest.raises(
        UsageError, match=r"exclude: There is no layer '3\.poitwise'\. Did you mean '3\.pointwise'"
    ):
        prune(fresh, context, exclude=["3.poitwise"])


def test_pruned_model_is_rebuilt_from_its_tensors(fresh: State, context: Context, tiny: task.Task) -> None:
    """Batch norm, depthwise convolution and all: no module is ever pickled."""
    pruned = prune(fresh, context, ratio=0.5)
    again = tidy(rebuild.resized(tiny.model(), pruned.module.state_dict()))
    inputs = (torch.rand(4, 1, 8, 8),)
    (wanted,), (found,) = (score.forward(m, inputs, tiny) for m in (pruned.module, again))
    assert torch.equal(wanted, found)


def test_model_with_a_fixed_size_inside_is_a_failure_that_says_so(context: Context) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense = nn.Conv2d(1, 8, 3), nn.Linear(288, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.dense(self.conv(x).reshape(-1, 288))
            return result

    before = State(module=tidy(Fixed()))
    with pytest.raises(CellError, match=r"After prune_channels the model"):
        contract.require(prune(before, context), context.task, "prune_channels", before=before)


def test_finetuning_trains_a_copy(fresh: State, context: Context) -> None:
    options = finetune.Options(epochs=1, lr=0.01)
    after = finetune.apply(fresh, options, context)
    before_score, after_score = (score.of_module(s.module, context.task) for s in (fresh, after))
    assert before_score is not None
    assert after_score is not None
    assert after_score > before_score + 0.2
    assert contract.changed(fresh, after)
    assert not contract.changed(fresh, tuning.finetune(fresh, FineTuning(epochs=0), context, stage="x"))


def test_finetuning_can_learn_from_the_original(fresh: State, context: Context) -> None:
    """With the answers of the model itself as the only goal, an already equal model stays put."""
    options = finetune.Options(epochs=1, lr=1e-4, alpha=1.0, weight_decay=0.0, optimiser="sgd")
    after = finetune.apply(fresh, options, context)
    assert isinstance(fresh.module, nn.Sequential)
    assert isinstance(after.module, nn.Sequential)
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(fresh.module.parameters(), after.module.parameters(), strict=True)
    ]
    assert max(moved) < 0.02


def test_distance_to_a_teacher_is_hintons() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2), T = 1: KL = 0.75 ln 1.5 + 0.25 ln 0.5."""
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    wanted = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert tuning.distance((student,), (teacher,), 1.0).item() == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize("step", ["prune_channels", "finetune", "quantise"])
def test_nothing_trains_or_prunes_integers(quantised: State, context: Context, step: str) -> None:
    module: Any = {"prune_channels": prune_channels, "finetune": finetune, "quantise": quantise}[step]
    with pytest.raises(UsageError, match=r"quantise"):
        module.apply(quantised, module.Options(), context)


def test_both_converted_graphs_compute_the_same(quantised: State, tiny: task.Task) -> None:
    assert quantised.quantised is not None
    for sample in score.samples(tiny, 8):
        (a,), (b,) = (
            score.forward(g, sample, tiny) for g in (quantised.quantised.folded, quantised.quantised.unfolded)
        )
        assert torch.equal(a, b)


def test_weights_of_a_quantised_model_are_whole_numbers_per_channel(quantised: State) -> None:
    assert quantised.quantised is not None
    frozen = {n: b for n, b in quantised.quantised.folded.named_buffers() if "_frozen_param" in n}
    assert len(frozen) == 5
    for tensor in frozen.values():
        assert tensor.dtype == torch.int8
        assert tensor.flatten(1).abs().amax(1).tolist() == [127] * len(
            tensor
        )  # each row uses its whole range


def test_report_counts_integers_that_became_zero(quantised: State, fresh: State, tiny: task.Task) -> None:
    assert quantised.quantised is not None
    report = contract.report("quantise", fresh, quantised, tiny, wall_s=0.0)
    assert report.parameters == sum(p.numel() for p in fresh.module.parameters())
    assert 0 < report.nonzeros < report.parameters
    assert report.changed


def test_macs_are_those_of_convolutions_and_matrix_products(tiny: task.Task) -> None:
    """3x3 over 16x4x4, depthwise 3x3, pointwise 16x16, then 64x32 and 32x10."""
    wanted = 9 * 16 * 16 + 9 * 16 * 16 + 16 * 16 * 16 + 64 * 32 + 32 * 10
    assert counting.macs(tiny.model().eval(), tiny) == wanted


def test_macs_of_attention_are_counted(tiny: task.Task) -> None:
    """8 tokens of 8: 3 products of 8x8 in, 1 out, and for 2 heads of 4 twice 8x8x4."""
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(x[:, 0], x[:, 0], x[:, 0], need_weights=False)[0]
            return result

    assert counting.macs(Attention().eval(), tiny) == 8 * 8 * 8 * 4 + 2 * 2 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Step(name="prune", options={}), r"no pass 'prune'"),
        (
            Step(name="prune_channels", options={"ratio": 1.5}),
            r"step 1 \(prune_channels\): ratio: .*less than 1, found 1\.5",
        ),
        (
            Step(name="quantise", options={"sceme": "static_int8"}),
            r"no option 'sceme'\. Did you mean 'scheme'",
        ),
        (
            Step(name="prune_channels", options={"finetune": {"lr": 0}}),
            r"finetune\.lr: .*greater than 0, found 0",
        ),
    ],
)
def test_wrong_option_is_one_sentence(step: Step, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check_recipe(Recipe(name="mine", steps=(step,)))
