"""cluster: few values, zeros that stay, the gradient of a value, codebooks that later steps keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compressors import constraints
from compressors.passes import cluster
from compressors.state import State
from compressors.training import tidy
from harness.core.errors import CellError, NotApplicable, UsageError
from tests.compressors.models import MODELS, run_pass, trained

QUICK = {"finetune": {"epochs": 1, "lr": 0.002}}
NONE = {"finetune": {"epochs": 0}}


def values(weight: Tensor) -> list[float]:
    return sorted(set(weight.flatten().tolist()))


def one_layer(rows: list[list[float]]) -> State:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return State(module=tidy(nn.Sequential(layer)))


def clustered(state: State, **options: Any) -> State:
    chosen = cluster.Options.model_validate({**options, **NONE})
    return cluster.apply(state, chosen, trained("plain").context)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_few_values_and_is_trained_with_them(name: str) -> None:
    model = trained(name)
    after, report = run_pass("cluster", {"bits": 3, **QUICK}, model)
    assert report.changed
    for parameter, promise in after.constraints.items():
        assert promise.shared is not None
        assert len(values(after.module.get_parameter(parameter))) <= 8
        assert after.bits[parameter] <= 3
    before, _ = run_pass("cluster", {"bits": 3, **NONE}, model)
    first = next(iter(after.constraints))
    assert not torch.equal(before.module.get_parameter(first), after.module.get_parameter(first))
    assert report.bytes is not None
    assert report.bytes < 4 * report.parameters


def test_example_of_the_paper_with_its_bytes() -> None:
    """Han 2016, figure 3: 4 values, of which 0 is one here; 16 weights of 2 bits and 4 values of 4 bytes."""
    han = [
        [2.09, -0.98, 1.48, 0.09],
        [0.05, -0.14, -1.08, 2.12],
        [-0.91, 1.92, 0, -1.03],
        [1.87, 0, 1.53, 1.49],
    ]
    after = clustered(one_layer(han), clusters=4, zeros=False)
    weight = after.module.get_parameter("0.weight")
    assert values(weight) == pytest.approx([-1.0, 0.0, 1.5, 2.0], abs=1e-6)
    assert dict(after.bits) == {"0.weight": 2}
    assert "3.2x" in after.note


def test_zeros_stay_zero_and_cost_no_value() -> None:
    after = clustered(one_layer([[0.0, 1.0, 0.0], [3.0, 1.2, 3.2]]), clusters=2)
    weight = after.module.get_parameter("0.weight")
    assert weight.flatten().tolist() == pytest.approx([0.0, 1.1, 0.0, 3.1, 1.1, 3.1])
    assert int((weight == 0).sum()) == 2
    assert after.constraints["0.weight"].zeros is not None
    free = clustered(one_layer([[0.0, 1.0, 0.0], [3.0, 1.2, 3.2]]), clusters=2, zeros=False)
    assert values(free.module.get_parameter("0.weight")) == pytest.approx([0.55, 3.1])


def test_gradient_of_a_value_is_the_sum_of_its_members() -> None:
    """y = w x with w = (c, c, d), x = (1, 2, 5): dy/dc = 3, so one step of SGD moves both members by 3 lr."""
    state = clustered(one_layer([[1.0, 1.0, 4.0]]), clusters=2)
    layer = state.module.requires_grad_(True)
    layer(torch.tensor([[1.0, 2.0, 5.0]])).sum().backward()
    constraints.gather_gradients(layer, state.constraints)
    gradient = layer.get_parameter("0.weight").grad
    assert gradient is not None
    assert gradient.tolist() == [[3.0, 3.0, 5.0]]


def test_scopes_share_one_codebook() -> None:
    plain = trained("plain")
    found, report = run_pass("cluster", {"clusters": 6, "scope": "model", **QUICK}, plain)
    everything = torch.cat([found.module.get_parameter(n).flatten() for n in found.constraints])
    assert len(values(everything)) <= 6
    assert "6 values in 1 codebooks" in report.note
    names = list(found.constraints)
    layers = [name.removesuffix(".weight") for name in names]
    groups = {"clusters": 5, "scope": "group", "groups": [layers[:2]], **QUICK}
    found, _ = run_pass("cluster", groups, plain)
    together = torch.cat([found.module.get_parameter(n).flatten() for n in names[:2]])
    assert len(values(together)) <= 5
    others = torch.cat([found.module.get_parameter(n).flatten() for n in names[2:]])
    assert len(values(others)) > 5
    with pytest.raises(UsageError, match=f"{layers[0]} is in group 1 and in group 2"):
        run_pass("cluster", {**groups, "groups": [layers[:2], layers[:1]]}, plain)


def test_local_bits_by_type() -> None:
    found, _ = run_pass("cluster", {"bits": 2, "local": {"Conv2d": 4}, **NONE}, trained("plain"))
    sizes = {
        type(found.module.get_submodule(name.removesuffix(".weight"))).__name__: len(
            values(found.module.get_parameter(name))
        )
        for name in found.constraints
    }
    assert sizes["Linear"] == 4
    assert 8 < sizes["Conv2d"] <= 16


@pytest.mark.parametrize("init", ["linear", "density", "random", "kmeans++"])
def test_same_seed_gives_the_same_codebook(init: str) -> None:
    one, two = (run_pass("cluster", {"bits": 3, "init": init, **NONE}, trained("tabular"))[0] for _ in "ab")
    for name in one.constraints:
        assert torch.equal(one.module.get_parameter(name), two.module.get_parameter(name))


def test_sparsity_survives_clustering_and_the_codebook_survives_finetuning() -> None:
    plain = trained("plain")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.6, **NONE}, plain)
    shared, _ = run_pass("cluster", {"bits": 3, **QUICK}, plain, after=pruned)
    tuned, _ = run_pass("finetune", {"epochs": 1, "lr": 0.01}, plain, after=shared)
    for name, promise in pruned.constraints.items():
        assert promise.zeros is not None
        for state in (shared, tuned):
            weight = state.module.get_parameter(name)
            assert int(weight[promise.zeros].count_nonzero()) == 0
            assert len(values(weight)) <= 9
        assert not torch.equal(shared.module.get_parameter(name), tuned.module.get_parameter(name))
    assert dict(tuned.bits) == dict(shared.bits)


def test_pruning_a_clustered_model_keeps_the_codebook() -> None:
    plain = trained("plain")
    shared, _ = run_pass("cluster", {"bits": 3, **NONE}, plain)
    pruned, report = run_pass("prune_weights", {"ratio": 0.5, **QUICK}, plain, after=shared)
    assert report.sparsity is not None
    assert report.sparsity > 0.4
    for name, promise in pruned.constraints.items():
        assert promise.shared is not None
        assert len(values(pruned.module.get_parameter(name))) <= 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 4, "clusters": 9}, "bits and clusters cannot both be given"),
        ({"scope": "group"}, "scope group needs groups"),
        ({"groups": [["0"]]}, "groups need scope: group"),
        ({"local": {"0": 20}}, "must have from 1 to 15 bits, found 20"),
        ({"local": {"0": 2}, "scope": "model"}, "local needs scope: layer"),
    ],
)
def test_options_that_do_not_fit_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        cluster.Options(**options)


def test_a_layer_that_is_not_there_and_a_model_without_weights() -> None:
    with pytest.raises(UsageError, match="include: There is no layer 'nothere'"):
        run_pass("cluster", {"include": ["nothere"], **NONE}, trained("plain"))
    with pytest.raises(UsageError, match="local: There is no layer 'nothere'"):
        run_pass("cluster", {"local": {"nothere": 3}, **NONE}, trained("plain"))
    with pytest.raises(NotApplicable, match="cluster does not apply"):
        clustered(State(module=tidy(nn.Sequential(nn.ReLU()))))


def test_as_many_values_as_weights_is_refused_as_bigger() -> None:
    """64 weights as numbers of 64 values need more bytes than the weights: the contract refuses."""
    tabular = trained("tabular")
    with pytest.raises(CellError, match="bigger or slower: bytes"):
        run_pass("cluster", {"bits": 15, "include": ["6"], **NONE}, tabular)
