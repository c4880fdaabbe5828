"""prune_weights: masks by hand-worked values, every importance on every kind of model, zeros that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressors import importance
from compressors.kernels import masks
from compressors.passes.prune_weights import Options
from compressors.state import Context, State
from compressors.training import tidy
from harness.core.errors import CellError, NotApplicable, UsageError
from tests.compressors.models import MODELS, Trained, run_pass, trained

QUICK = {"finetune": {"epochs": 1, "lr": 0.003}}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Trained:
    return trained(request.param)


def density(tensor: Tensor) -> float:
    return float(tensor.count_nonzero() / tensor.numel())


def test_threshold_leaves_eight_of_twelve() -> None:
    """F06: |w| < 2 takes the 1 alone; 9 non-zeros become 8, density .667, sparsity .333."""
    w = torch.tensor([[1.0, 2, 0, 3], [4, 0, 5, 6], [7, 8, 0, 9]])
    pruned = w.masked_fill(masks.by_threshold(w.abs(), 2.0), 0)
    assert pruned.tolist() == [[0, 2, 0, 3], [4, 0, 5, 6], [7, 8, 0, 9]]
    assert int(w.count_nonzero()) == 9
    assert int(pruned.count_nonzero()) == 8
    assert density(pruned) == pytest.approx(0.667, abs=5e-4)
    assert 1 - density(pruned) == pytest.approx(0.333, abs=5e-4)


def test_cubic_schedule_is_zhu_and_guptas() -> None:
    """F17 with s_i = 0, s_f = 0.8, n = 4: 0.8 (1 - (3/4)^3, (1/2)^3, (1/4)^3, 0)."""
    found = [masks.cubic(t, 4, 0.8) for t in range(5)]
    assert found == pytest.approx([0, 0.4625, 0.7, 0.7875, 0.8])


def test_ratio_ranks_each_layer_or_all_together() -> None:
    scores = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([5.0, 6, 7, 8])}
    local = masks.by_ratio(scores, 0.5, together=False)
    assert [mask.tolist() for mask in local.values()] == [[True, True, False, False]] * 2
    together = masks.by_ratio(scores, 0.25, together=True)
    assert [mask.tolist() for mask in together.values()] == [[True, True, False, False], [False] * 4]
    # All of a would go: its best weight stays, so that the layer lives.
    assert masks.by_ratio(scores, 0.5, together=True)["a"].tolist() == [True, True, True, False]


def test_two_of_four_inputs_stay() -> None:
    row = torch.tensor([[3.0, 1, 2, 4, 1, 1, 9, 8]])
    assert masks.n_of_m(row, 2, 4).tolist() == [[False, True, True, False, True, True, False, False]]
    kernel = torch.rand(5, 8, 3, 3)
    kept = ~masks.n_of_m(kernel, 1, 4)
    assert torch.equal(kept.reshape(5, 2, 4, 3, 3).sum(2), torch.ones(5, 2, 3, 3, dtype=torch.int64))


def test_blocks_go_as_a_whole_and_edges_count_what_they_have() -> None:
    scores = torch.tensor([[1.0, 1, 9], [1, 1, 9], [5, 5, 2]])
    blocks = masks.block_scores(scores, 2, 2)
    assert blocks.tolist() == [[1, 9], [5, 2]]
    spread = masks.spread(torch.tensor([[True, False], [False, True]]), scores.shape, 2, 2)
    assert spread.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_proximal_steps_shrink_weights_and_rows() -> None:
    assert masks.soft_threshold(torch.tensor([3.0, -0.5, -2]), 1.0).tolist() == [2, 0, -1]
    # Row norms 5 and 0.5, two weights each: the limit is 1 * sqrt(2).
    found = masks.group_soft_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    assert found[0].norm().item() == pytest.approx(5 - 2**0.5)
    assert found[1].tolist() == [0, 0]


class Line(nn.Module):
    """w . x, whose every derivative is worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.layer.weight.data = torch.tensor([[2.0, 3.0]])

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


@pytest.fixture
def line(tmp_path: Any) -> Context:
    """Two batches of one sample, x = (1, 0) and (0, 2), targets 0, loss (w . x)^2 / 2."""
    from compressors import task

    path = tmp_path / "line.py"
    path.write_text(
        "import torch\nfrom tests.compressors.test_prune_weights import Line\n"
        "TRAINING = {'epochs': 1}\nmodel = Line\n"
        "t = torch.zeros(1, 1)\nrows = [(torch.tensor([[1., 0.]]), t), (torch.tensor([[0., 2.]]), t)]\n"
        "def example_inputs(): return (torch.zeros(1, 2),)\n"
        "def train_loader(seed): return rows\n"
        "def validation_loader(): return rows\n"
        "def loss(y, t): return (y - t).square().sum() / 2\n"
        "def metric(y, t): return -float((y - t).square().mean())\n"
    )
    return Context(task=task.load(str(path)), seed=0, report=print, original=tidy(Line()))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("l1", [2, 3]),
        ("l2", [4, 9]),
        # Gradients of the batches: (w1, 0) = (2, 0) and (0, 4 w2) = (0, 12).
        ("taylor", [(2 * 2) ** 2 / 2, (3 * 12) ** 2 / 2]),
        ("snip", [2 * 2 / 2, 3 * 12 / 2]),
        # Hessians diag(1, 0) and diag(0, 4), mean diag(1/2, 2): w^2 H / 2.
        ("hessian", [4 * 0.5 / 2, 9 * 2 / 2]),
        # |x|_2 is 1 for the first input, 2 for the second.
        ("wanda", [2 * 1, 3 * 2]),
    ],
)
def test_importance_is_the_formula(line: Context, kind: Any, wanted: list[float]) -> None:
    """F12: |w|, w^2, (w g)^2, |w g|, w^2 H_ii / 2 and |w| |x|."""
    found = importance.scores(kind, Line(), {"layer.weight": "layer"}, line, samples=100)
    assert found["layer.weight"].tolist() == [pytest.approx(wanted)]


def test_movement_sums_what_training_moves_away_from_zero() -> None:
    module = Line()
    movement = importance.Movement({"layer.weight": "layer"})
    for gradient in ([1.0, -1.0], [0.5, 0.0]):
        module.layer.weight.grad = torch.tensor([gradient])
        movement.before_step(module)
    assert movement.scores["layer.weight"].tolist() == [[-2 * 1 - 2 * 0.5, 3 * 1]]


def test_wanda_norms_of_a_convolution_fit_its_weight() -> None:
    """A grouped 1 x 2 convolution on (1, 2, 3): the left weight sees 1 and 2, the right 2 and 3."""
    layer = nn.Conv2d(2, 4, (1, 2), groups=2)
    x = torch.tensor([1.0, 2, 3]).expand(1, 2, 1, 3) * torch.tensor([1.0, 10]).reshape(1, 2, 1, 1)
    found = importance._input_squares("layer", layer, x)
    assert found.shape == layer.weight.shape
    assert found[:, 0, 0].tolist() == [[5, 13], [5, 13], [500, 1300], [500, 1300]]


@pytest.mark.parametrize("kind", importance.KINDS)
def test_every_importance_prunes_every_kind_of_model(model: Trained, kind: str) -> None:
    state, report = run_pass(
        "prune_weights", {"ratio": 0.6, "importance": kind, "samples": 64, **QUICK}, model
    )
    for promise in state.constraints.values():
        assert promise.zeros is not None
        assert density(~promise.zeros) == pytest.approx(0.4, abs=0.05)
    assert report.sparsity is not None
    assert report.sparsity > 0.4
    assert report.changed


def test_importance_beats_random(line: Context) -> None:
    plain = trained("plain")
    options = {"ratio": 0.8, "finetune": {"epochs": 0}}
    scores = {
        kind: run_pass("prune_weights", {**options, "importance": kind}, plain)[1].score
        for kind in ("l1", "random")
    }
    assert scores["l1"] is not None
    assert scores["random"] is not None
    assert scores["l1"] > scores["random"] + 0.1


@pytest.mark.parametrize("kind", ["iterative", "cubic"])
@pytest.mark.parametrize("together", [False, True])
def test_schedules_reach_the_target(kind: str, together: bool) -> None:
    options = {
        "ratio": 0.9,
        "global": together,
        "schedule": {"kind": kind, "rounds": 3},
        "finetune": {"epochs": 4, "lr": 0.01},
    }
    state, report = run_pass("prune_weights", options, trained("plain"))
    masked = [c.zeros for c in state.constraints.values() if c.zeros is not None]
    share = sum(int(m.sum()) for m in masked) / sum(m.numel() for m in masked)
    assert share == pytest.approx(0.9, abs=0.01)
    assert report.score is not None
    assert report.score > 0.7


def test_pattern_two_of_four_skips_layers_that_do_not_fit() -> None:
    state, _ = run_pass("prune_weights", {"pattern": "2:4", **QUICK}, trained("plain"))
    assert sorted(state.constraints) == ["2.weight", "6.weight", "8.weight"]  # 0 has one input channel
    for name in state.constraints:
        weight = state.module.get_parameter(name)
        assert int((weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1).max()) == 2


def test_blocks_threshold_and_proximal_training() -> None:
    plain = trained("plain")
    state, _ = run_pass("prune_weights", {"ratio": 0.5, "block": [4, 1], **QUICK}, plain)
    weight = state.module.get_parameter("6.weight")
    assert set((weight.reshape(12, 4, 64) == 0).sum(1).flatten().tolist()) == {0, 4}
    proximal = {"kind": "group_lasso", "strength": 1.0, "epochs": 2, "lr": 0.01}
    _, shrunk = run_pass("prune_weights", {"threshold": 1e-6, "proximal": proximal, **QUICK}, plain)
    assert shrunk.sparsity is not None
    assert shrunk.sparsity > 0.05


def test_lottery_ticket_starts_again_from_the_untrained_weights() -> None:
    """Winning or not, the ticket learns: it is trained as the model was, under its mask."""
    plain = trained("plain")
    state, report = run_pass("prune_weights", {"ratio": 0.8, "rewind": True}, plain)
    assert report.score is not None
    assert report.score > 0.7
    moved = state.module.get_parameter("0.bias")
    assert not torch.equal(moved, plain.state.module.get_parameter("0.bias"))


@pytest.mark.parametrize(
    "then",
    [
        ("finetune", {"epochs": 2, "optimiser": "sgd", "lr": 0.01}),
        ("finetune", {"epochs": 1, "optimiser": "adam", "weight_decay": 0.1}),
        ("quantise", {"calibration": 32}),
        ("prune_weights", {"ratio": 0.9, **QUICK}),
        ("prune_channels", {"ratio": 0.25, **QUICK}),
    ],
    ids=lambda then: then[0],
)
def test_zeros_survive_what_comes_after(then: tuple[str, dict[str, Any]]) -> None:
    plain = trained("plain")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.7, **QUICK}, plain)
    after, report = run_pass(*then, plain, after=pruned)
    assert after.constraints.keys() == pruned.constraints.keys()
    for name, promise in after.constraints.items():
        assert promise.zeros is not None
        assert not after.module.get_parameter(name)[promise.zeros].any()
    assert report.sparsity is not None
    assert report.sparsity > 0.5


def test_biases_and_excluded_layers_stay_whole() -> None:
    state, _ = run_pass(
        "prune_weights", {"ratio": 0.9, "exclude": ["8"], "finetune": {"epochs": 0}}, trained("plain")
    )
    assert sorted(state.constraints) == ["0.weight", "2.weight", "6.weight"]
    state, _ = run_pass("prune_weights", {"include": ["Linear"], **QUICK}, trained("plain"))
    assert sorted(state.constraints) == ["6.weight", "8.weight"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ratio": 0.5, "threshold": 0.1}, "ratio and threshold cannot both be given"),
        ({"pattern": "4:2"}, "pattern must keep N of M"),
        ({"threshold": 0.1, "schedule": {"kind": "cubic"}}, "schedule cubic needs a ratio"),
        ({"pattern": "2:4", "block": [1, 4]}, "block needs"),
    ],
)
def test_options_that_do_not_go_together_are_told(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Options.model_validate(options)


def test_what_cannot_be_pruned_is_told() -> None:
    plain = trained("plain")
    with pytest.raises(UsageError, match=r"prune_weights \(after train\): include: There is no layer '66'"):
        run_pass("prune_weights", {"include": ["66"]}, plain)
    with pytest.raises(NotApplicable, match="multiple of 7 inputs"):
        run_pass("prune_weights", {"pattern": "3:7"}, plain)
    with pytest.raises(NotApplicable, match="has no convolution or linear layer"):
        from compressors.passes import prune_weights

        bare = State(module=tidy(nn.Sequential(nn.Flatten(), nn.Softmax(1))))
        prune_weights.apply(bare, Options(), plain.context)


def test_loss_that_turns_nan_is_one_sentence() -> None:
    wild = {"ratio": 0.5, "finetune": {"epochs": 2, "lr": 10, "optimiser": "sgd", "schedule": "constant"}}
    with pytest.raises(CellError, match=r"prune_weights \(after train\).*the loss became .*option lr"):
        run_pass("prune_weights", wild, trained("plain"))
