"""share: layers that become one, kernels that become few, by values worked by hand; exports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compressors import counting, sharing
from compressors.build import build
from compressors.passes import share
from compressors.state import State
from compressors.training import tidy
from harness.core.errors import CellError, NotApplicable
from harness.core.types import Recipe, Step
from tests.compressors.conftest import TINY, artifacts, ignore, request
from tests.compressors.models import MODELS, run_pass, trained

QUICK = {"finetune": {"epochs": 1, "lr": 0.002}}
NONE = {"finetune": {"epochs": 0}}


def two_linears() -> State:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        module.get_parameter("2.weight").copy_(torch.tensor([[3.0, 2.0], [1.0, 0.0]]))
    return State(module=tidy(module))


@pytest.mark.parametrize(
    ("start", "weight"), [("mean", [[2.0, 2.0], [2.0, 2.0]]), ("first", [[1.0, 2.0], [3.0, 4.0]])]
)
def test_layers_of_one_shape_become_one(start: str, weight: list[list[float]]) -> None:
    """Two layers of 4 + 2 parameters: 12 become 6."""
    options = share.Options.model_validate({"start": start, **NONE})
    after = share.apply(two_linears(), options, trained("plain").context)
    assert after.module.get_parameter("2.weight") is after.module.get_parameter("0.weight")
    assert after.module.get_parameter("0.weight").tolist() == weight
    assert counting.parameters(after.module) == 6
    assert after.note == "0, 2 are one layer; 6 unique parameters of 12"


def test_tied_layers_are_trained_as_one_and_stay_tied_in_later_steps() -> None:
    encoder = trained("encoder")
    tied, report = run_pass("share", QUICK, encoder)
    assert "are one layer" in report.note
    assert report.parameters < counting.parameters(encoder.state.module)
    assert report.bytes == 4 * report.parameters
    tuned, _ = run_pass("finetune", {"epochs": 1}, encoder, after=tied)
    assert counting.parameters(tuned.module) == report.parameters


def test_a_promise_about_a_tied_layer_ends_and_is_told() -> None:
    encoder = trained("encoder")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.5, **NONE}, encoder)
    tied, report = run_pass("share", QUICK, encoder, after=pruned)
    assert set(tied.constraints) < set(pruned.constraints)
    assert "no longer kept as they are" in report.note


def test_prototypes_by_hand() -> None:
    """(1, 2), (2, 4), (-3, -6) are one direction, (0, 5) another; without factors (1, 2) and (2, 4) join."""
    rows = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-3.0, -6.0], [0.0, 5.0]])
    found, numbers, factors = sharing.prototypes(rows, 2, 0, scaled=True)
    assert torch.allclose(factors[:, None] * found[numbers], rows, atol=1e-5)
    assert numbers[0] == numbers[1] == numbers[2] != numbers[3]
    found, numbers, factors = sharing.prototypes(rows, 2, 0, scaled=False)
    assert factors.tolist() == [1.0] * 4
    assert numbers[0] == numbers[1] == numbers[3] != numbers[2]
    assert torch.allclose(found[numbers[0]], rows[[0, 1, 3]].mean(0))


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_kernels_with_factors_are_fewer_parameters(name: str, across: bool) -> None:
    model = trained(name)
    options: dict[str, Any] = {"what": "kernels", "kernels": 6, "across_layers": across, **QUICK}
    after, report = run_pass("share", options, model)
    assert report.parameters < counting.parameters(model.state.module)
    made = [m for m in after.module.modules() if isinstance(m, sharing.PrototypeConv)]
    assert made
    assert all(len(m.prototypes) <= 6 for m in made)
    if across:
        assert len({id(m.prototypes) for m in made}) == 1


def test_a_layer_of_prototypes_computes_what_the_convolution_does() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    numbers, factors = torch.randint(3, (6, 2)), torch.randn(6, 2)
    book = nn.Parameter(torch.randn(3, 3, 3))
    layer = sharing.PrototypeConv(conv, book, factors, numbers)
    with torch.no_grad():
        conv.weight.copy_(factors[..., None, None] * book[numbers])
    x = torch.randn(2, 4, 9, 9)
    assert torch.allclose(layer(x), conv(x), atol=1e-6)


def test_equal_kernels_stay_equal_in_later_steps() -> None:
    plain = trained("plain")
    after, report = run_pass("share", {"what": "kernels", "kernels": 5, "scales": False, **QUICK}, plain)
    tuned, _ = run_pass("finetune", {"epochs": 1}, plain, after=after)
    assert "unique parameters" in report.note
    for state in (after, tuned):
        for name in after.constraints:
            rows = state.module.get_parameter(name).flatten(2).flatten(0, 1)
            assert len(torch.unique(rows, dim=0)) <= 5
    assert not torch.equal(
        after.module.get_parameter(next(iter(after.constraints))),
        tuned.module.get_parameter(next(iter(after.constraints))),
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_model_or_why_not(name: str) -> None:
    for options in ({"what": "layers"}, {"what": "kernels", "kernels": 4}):
        try:
            _, report = run_pass("share", {**options, **NONE}, trained(name))
            assert "unique parameters" in report.note
        except NotApplicable as error:
            assert "does not apply" in str(error)


def test_why_not_is_said() -> None:
    with pytest.raises(NotApplicable, match="the model has no convolution"):
        run_pass("share", {"what": "kernels", **NONE}, trained("tabular"))
    with pytest.raises(NotApplicable, match="no two of 0, 3, 6 have one type"):
        run_pass("share", NONE, trained("tabular"))
    with pytest.raises(NotApplicable, match="more than 9999 kernels"):
        run_pass("share", {"what": "kernels", "kernels": 9999, **NONE}, trained("plain"))


def test_more_prototypes_than_pay_are_refused() -> None:
    """16 kernels of 9 weights are 144; 15 prototypes and 16 factors are 151."""
    with pytest.raises(CellError, match=r"parameters from 6,090 to 6,097"):
        run_pass("share", {"what": "kernels", "kernels": 15, "include": ["0"], **NONE}, trained("plain"))


@pytest.mark.parametrize("scales", [True, False])
def test_shared_kernels_export(scales: bool, cache: Any) -> None:
    options = {"what": "kernels", "kernels": 4, "scales": scales, **NONE}
    recipe = Recipe(name="shared", steps=(Step(name="share", options=options),))
    made = artifacts(build(request(recipe, TINY), cache, ignore))
    assert set(made) == {"executorch", "onnx", "tflite"}
