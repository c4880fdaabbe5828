"""Channel scores and cuts: formulas worked by hand; a cut model is the model with silent channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressors import channel_scores, counting, score, selecting
from compressors.channel_scores import Kind
from compressors.channels import Graph, Group
from compressors.passes import prune_channels
from compressors.state import Context, State
from compressors.training import tidy
from tests.compressors.models import trained

ALL: Any = ("filters", "neurons", "heads")
RAW: dict[str, Any] = {"finetune": {"epochs": 0}}


def graph_of(module: nn.Module, *shape: int, kept: Sequence[str] = ()) -> Graph:
    return Graph(module, (torch.zeros(1, *shape),), kept=dict.fromkeys(kept, "excluded"), kinds=ALL)


def scores(kind: Kind, module: nn.Module, *shape: int, **options: Any) -> dict[str, list[float]]:
    context = options.pop("context", trained("tabular").context)
    found = channel_scores.scores(kind, graph_of(module, *shape), context, samples=99, **options)
    return {name: values.tolist() for name, values in found.items()}


def fed(
    *batches: tuple[Tensor, Tensor], loss: Any = nn.functional.mse_loss, base: str = "tabular"
) -> Context:
    """A context whose training and calibration data are *batches*."""
    context = trained(base).context
    task = dataclasses.replace(
        context.task,
        train_loader=lambda _: list(batches),
        calibration_loader=lambda _: list(batches),
        example_inputs=lambda: (torch.zeros_like(batches[0][0][:1]),),
        loss=loss,
    )
    return dataclasses.replace(context, task=task)


def set_weight(layer: Any, values: list[Any]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values).reshape(layer.weight.shape))


def apply(module: nn.Module, context: Context, **options: Any) -> nn.Module:
    chosen = prune_channels.Options.model_validate({**RAW, **options})
    return prune_channels.apply(State(module=tidy(module)), chosen, context).module


def test_f12_norms_of_filters_by_hand() -> None:
    """Filters [3 0 0 0] and [1 1 1 1]: L1 says 3 < 4, L2 squared 9 > 4 (Li 2017: of the filter)."""
    module = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 1, bias=False))
    set_weight(module[0], [3.0, 0.0, 0.0, 0.0, 1.0, -1.0, 1.0, 1.0])
    set_weight(module[2], [5.0, -2.0])
    assert scores("l1", module, 1, 2, 2, layer_only=True) == {"0": [3.0, 4.0]}
    assert scores("l2", module, 1, 2, 2, layer_only=True) == {"0": [9.0, 4.0]}
    # Over the group: the mean with the layer behind, |5| and |-2|.
    assert scores("l1", module, 1, 2, 2) == {"0": [4.0, 3.0]}
    assert scores("l2", module, 1, 2, 2) == {"0": [17.0, 4.0]}


def test_taylor_by_hand() -> None:
    """
    y = v . W x with x = (1, 2), W = [[1, 0], [2, 1]], v = (1, -1): h = (1, 4), y = -3, target 0.

    dL/dy = 2 y = -6, dL/dW_ij = -6 v_i x_j = [[-6, -12], [6, 12]]; (w g)^2: 36 + 0 and 144 + 144.
    """
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    set_weight(module[0], [[1.0, 0.0], [2.0, 1.0]])
    set_weight(module[1], [[1.0, -1.0]])
    context = fed((torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)))
    assert scores("taylor", module, 2, context=context) == {"0": [36.0, 288.0]}


def test_hessian_by_hand() -> None:
    """
    y_i = v_i W_i x, L = (y_1^2 + y_2^2) / 2: H_ij = v_i^2 x_j^2, and nothing beside the diagonal if x has
    one number: x = (1, 0) and (0, 2) give H_i = v_i^2 (1, 4) / 2. With v = (1, 2), W = [[1, 0], [2, 1]]:
    w^2 H / 2 = 1/4 + 0 and 4 + 4.
    """
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    set_weight(module[0], [[1.0, 0.0], [2.0, 1.0]])
    set_weight(module[1], [[1.0, 0.0], [0.0, 2.0]])
    context = fed(*[(torch.tensor([x]), torch.zeros(1, 2)) for x in ([1.0, 0.0], [0.0, 2.0])])
    assert scores("hessian", module, 2, context=context) == {"0": pytest.approx([0.25, 8.0])}


def test_batch_norm_scales_by_hand() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    set_weight(module[1], [0.1, -2.0, 0.5, 1.0])
    assert scores("bn_scale", module, 3) == {"0": pytest.approx([0.1, 2.0, 0.5, 1.0])}
    context = fed((torch.rand(8, 3), torch.zeros(8, 2)))
    after = apply(module, context, ratio=0.5, importance="bn_scale")
    assert after.get_parameter("1.weight").tolist() == [-2.0, 1.0]


def test_rank_of_feature_maps_by_hand() -> None:
    """A 1x1 convolution hands three maps on, of rank 1 (all ones), 3 (identity) and 2 (diag 1 1 0)."""
    module = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 1))
    set_weight(module[0], torch.eye(3).tolist())
    maps = torch.stack([torch.ones(3, 3), torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0]))])[None]
    context = fed((torch.cat([maps, 5 * maps]), torch.zeros(2, 1)))
    assert scores("rank", module, 3, 3, 3, context=context) == {"0": [1.0, 3.0, 2.0]}
    # The mean of 1 and 0 over two samples; flattened maps are maps as well.
    context = fed((torch.cat([maps, 0 * maps]), torch.zeros(2, 1)))
    flat = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    set_weight(flat[0], torch.eye(3).tolist())
    assert scores("rank", flat, 3, 3, 3, context=context) == {"0": [0.5, 1.5, 1.0]}


def test_mean_activation_by_hand() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    set_weight(module[0], [[1.0, 0.0], [0.0, 1.0]])
    context = fed((torch.tensor([[1.0, 4.0], [-2.0, 2.0]]), torch.zeros(2, 1)))
    assert scores("activation", module, 2, context=context) == {"0": [0.5, 3.0]}


def test_principal_directions_by_hand() -> None:
    """Variances 9 and 1 along (3, 4) / 5 and (-4, 3) / 5: the first has 0.9."""
    first, second = torch.tensor([3.0, 4.0]) / 5, torch.tensor([-4.0, 3.0]) / 5
    covariance = (9 * torch.outer(first, first) + torch.outer(second, second)).double()
    main = channel_scores.principal(covariance, energy=0.85)
    assert main.tolist() == pytest.approx([9 * 9 / 25, 9 * 16 / 25])
    every = channel_scores.principal(covariance, energy=1.0)
    assert every.tolist() == pytest.approx([9 * 9 / 25 + 16 / 25, 9 * 16 / 25 + 9 / 25])  # the variances
    assert channel_scores.principal(torch.zeros(2, 2).double()).tolist() == [0.0, 0.0]


def test_counts_by_hand() -> None:
    low, high = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.5, 5.0, 6.0, 7.0])
    units = {n: selecting.Layer(scores=s, first=4) for n, s in {"a": low, "b": high}.items()}
    assert selecting.by_ratio(units, 0.5, together=False, max_ratio=0.9) == {"a": 2, "b": 2}
    # Together the lowest four of eight are 1, 2, 2.5 and 3; at most half of a layer: 5 goes for 3.
    assert selecting.by_ratio(units, 0.5, together=True, max_ratio=0.9) == {"a": 3, "b": 1}
    assert selecting.by_ratio(units, 0.5, together=True, max_ratio=0.5) == {"a": 2, "b": 2}
    assert selecting.order(units, together=True) == ["a", "a", "b", "a", "a", "b", "b", "b"]
    assert selecting.order(units, together=False) == ["a", "b", "a", "b", "a", "b", "a", "b"]
    assert selecting.fewest(9, lambda n: n >= 4) == 4
    assert selecting.fewest(9, lambda n: n > 9) is None


def test_what_need_not_go_comes_back() -> None:
    """A unit of a costs 2, one of b 5, 12 may stay; one of each does (7): back comes one of b or two of a."""
    units = {n: selecting.Layer(scores=torch.rand(4), first=4) for n in ("a", "b")}

    def fits(gone: Mapping[str, int]) -> bool:
        return 2 * (4 - gone["a"]) + 5 * (4 - gone["b"]) <= 12

    names = ["a", "b", "a", "b", "a", "b"]
    assert selecting.filled(units, {"a": 3, "b": 3}, names, fits) == {"a": 3, "b": 2}
    assert selecting.filled(units, {"a": 3, "b": 3}, [*names, "a"], fits) == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("now", "gone", "round_to", "most", "expected"),
    [
        (22, 11, 8, 0.9, 14),  # 11 left -> 8
        (22, 0, 8, 0.9, 0),  # untouched
        (10, 5, 8, 0.9, 2),  # 5 left -> 0 is none, so 8
        (7, 3, 8, 0.9, 0),  # too narrow
        (16, 8, 8, 0.4, 0),  # 10 must stay, the next multiple is 16: whole
        (16, 16, 1, 0.9, 14),  # ceil(1.6) must stay
    ],
)
def test_rounding_by_hand(now: int, gone: int, round_to: int, most: float, expected: int) -> None:
    layer = selecting.Layer(scores=torch.rand(now), first=now, round_to=round_to)
    assert layer.rounded(gone, most) == expected


class Branches(nn.Module):
    """A grouped convolution, a concatenation, a residual sum and a depthwise convolution in one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.side = nn.Conv2d(8, 6, 1)
        self.joined = nn.Conv2d(14, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.stem(x))
        b = torch.cat([torch.relu(self.grouped(a)), torch.relu(self.side(a))], 1)
        c = torch.relu(self.norm(self.depthwise(self.joined(b))))
        result: Tensor = self.head((a + c).mean((2, 3)))
        return result


def silence(module: nn.Module, group: Group, gone: Sequence[int]) -> None:
    """Make the channels zero where they are made and normed, so that cutting them changes nothing."""
    channels = group.units[list(gone)].flatten()
    with torch.no_grad():
        for member in group.members:
            rows = member.channels[torch.isin(member.roots, channels)]
            for parameter in member.layer.parameters():
                if member.role == "out":
                    parameter[rows] = 0


@pytest.mark.parametrize("name", ["grouped", "side", "stem"])
def test_cut_channels_are_gone_and_nothing_else(name: str) -> None:
    """Sums, concatenations, groups and depthwise: the model without them is the model with them silent."""
    torch.manual_seed(0)
    module = Branches().eval()
    graph = graph_of(module, 2, 6, 6)
    found = next(g for g in graph.groups.values() if name in [m.name for m in g.members if m.role == "out"])
    gone = [1, 2]
    silence(module, found, gone)
    x = torch.rand(3, 2, 6, 6)
    with torch.no_grad():
        wanted = module(x)
        before = counting.parameters(module)
        assert torch.allclose(graph.cut({found.name: gone})(x), wanted, atol=1e-6)
    assert counting.parameters(module) < before
    assert graph.whole == {"head": "its channels are the model's outputs"}


def test_units_of_grouped_convolutions_are_channels_of_every_group() -> None:
    graph = graph_of(Branches(), 2, 6, 6)
    grouped = graph.groups["grouped"]
    assert (grouped.kind, grouped.units.tolist()) == ("filters", [[0, 4], [1, 5], [2, 6], [3, 7]])
    (joined,) = [g for g in graph.groups.values() if "depthwise" in [m.name for m in g.members]]
    assert {m.name for m in joined.members if m.role == "out"} == {"stem", "joined", "depthwise", "norm"}
    assert joined.units.shape == (4, 2)  # tied to the grouped convolution that reads it


def test_a_head_goes_as_a_whole() -> None:
    """Without heads 0 and 2 the encoder is the encoder whose projection does not read them."""
    model = trained("encoder")
    module = model.task.model().eval()
    graph = Graph(module, model.task.example_inputs(), kept={}, kinds=("heads",))
    assert {name: g.units.shape for name, g in graph.groups.items()} == {
        f"vit.vit.layers.{i}.attention.v_proj": (4, 8) for i in range(2)
    }
    block: Any = module.get_submodule("vit.vit.layers.0.attention")
    with torch.no_grad():
        block.o_proj.weight[:, [*range(8), *range(16, 24)]] = 0
    x = torch.rand(3, 1, 8, 8)
    (wanted,) = score.forward(module, (x,), model.task)
    (found,) = score.forward(graph.cut({"vit.vit.layers.0.attention.v_proj": [0, 2]}), (x,), model.task)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert block.num_attention_heads == 2
    assert [p.out_features for p in (block.q_proj, block.k_proj, block.v_proj)] == [16, 16, 16]
    assert block.o_proj.in_features == 16


def test_torch_attention_keeps_its_width_but_not_its_neurons() -> None:
    module = nn.Sequential(
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0), nn.Flatten(), nn.Linear(80, 2)
    ).eval()
    graph = graph_of(module, 5, 16)
    assert list(graph.groups) == ["0.linear1"]
    assert "torch.nn.MultiheadAttention fixes its width" in graph.whole.values()
    with torch.no_grad():
        assert graph.cut({"0.linear1": [0, 1, 2]})(torch.rand(2, 5, 16)).shape == (2, 2)


def test_tied_layers_stay_whole() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    module[2].weight = module[0].weight
    assert graph_of(module, 4).groups == {}


def test_eager_attention_has_the_same_heads() -> None:
    """Matrix products and a softmax in the place of one fused operation."""
    model = trained("encoder")
    module: Any = model.task.model().eval()
    names = [graph_of(module, 1, 8, 8).groups.keys()]
    module.vit.config._attn_implementation = "eager"
    names.append(graph_of(module, 1, 8, 8).groups.keys())
    assert names[0] == names[1]


def test_group_norm_over_joined_channels_keeps_them_whole() -> None:
    """A group of the norm must keep its own channels; over one layer's channels each loses the same."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3)
            self.joined, self.third = nn.GroupNorm(4, 16), nn.Conv2d(16, 8, 3)
            self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.joined(torch.cat([self.one(x), self.two(x)], 1))
            result: Tensor = self.head(self.norm(self.third(x)).mean((2, 3)))
            return result

    graph = graph_of(Normed().eval(), 1, 8, 8)
    assert {name: group.units.tolist() for name, group in graph.groups.items()} == {
        "third": [[0, 4], [1, 5], [2, 6], [3, 7]]
    }
    assert graph.whole["one"] == "joined joins it with other channels in 4 groups"
    assert graph.cut({"third": [0]})(torch.rand(2, 1, 8, 8)).shape == (2, 2)
