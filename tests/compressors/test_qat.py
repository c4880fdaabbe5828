"""qat: better than rounding afterwards, keeps zeros, learns from the original, and converts to integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compressors import constraints, integer_graph, score
from compressors.formats import onnx as onnx_format
from compressors.passes import qat
from harness.core.errors import NotApplicable, UsageError
from tests.compressors.models import run_pass, trained


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


QUICK = {"epochs": 1, "lr": 0.002}
NONE = {"finetune": {"epochs": 0}}


@pytest.mark.parametrize("name", ["residual", "tabular"])
def test_result_is_the_int8_graph_that_was_trained(name: str) -> None:
    model = trained(name)
    state, report = run_pass("qat", QUICK, model)
    assert report.score >= model.report.score - 0.03  # type: ignore[operator]
    assert state.quantised is not None
    for sample in score.samples(model.task, 4):
        (a,), (b,) = (
            score.forward(g, sample, model.task) for g in (state.quantised.folded, state.quantised.unfolded)
        )
        assert torch.equal(a, b)
    exact = integer_graph.integers_in(state.quantised.unfolded)
    for key, integers in exact.items():
        if key in dict(state.module.named_parameters()):
            weight = state.module.get_parameter(key)
            assert float((integers.dequantised() - weight).abs().max()) <= float(integers.scale.max()) * 0.51


def test_two_bits_need_training() -> None:
    """Rounding a trained model to 2 bits loses much; training with the rounding brings it back."""
    plain = trained("plain")
    _, rounded = run_pass("quantise", {"bits": 2, "calibration": 32}, plain)
    state, report = run_pass("qat", {"bits": 2, "epochs": 2, "lr": 0.0005, "alpha": 0.5}, plain)
    assert report.score > rounded.score + 0.02  # type: ignore[operator]
    assert "0.5 of the loss from the original model's answers" in report.note
    assert state.quantised is not None
    assert all(i.bits == 2 for i in integer_graph.integers_in(state.quantised.unfolded).values())


def test_zeros_survive_and_chosen_layers_stay_float(tmp_path: Path) -> None:
    plain = trained("plain")
    pruned, _ = run_pass("prune_weights", {"ratio": 0.6, **NONE}, plain)
    state, report = run_pass("qat", {**QUICK, "keep_float": ["8"]}, plain, after=pruned)
    assert constraints.broken(state.module, pruned.constraints) is None
    assert report.sparsity > 0.55  # type: ignore[operator]
    assert state.quantised is not None
    assert "8.weight" not in integer_graph.integers_in(state.quantised.unfolded)
    onnx_format.export(state, plain.task.example_inputs(), tmp_path / "x")
    assert onnx_format.arithmetic(tmp_path / "x") == "in integers: 1 QGemm, 2 QLinearConv; in float: 1 Gemm"


def test_what_cannot_be_trained_is_refused() -> None:
    plain = trained("plain")
    context = dataclasses.replace(plain.context, task=dataclasses.replace(plain.task, train_loader=None))
    with pytest.raises(UsageError, match=r"plain_task has no train_loader\(\) and loss\(\)"):
        qat.apply(plain.state, qat.Options(), context)
    with pytest.raises(NotApplicable, match="no convolution or linear layer is left"):
        qat.apply(plain.state, qat.Options(keep_float=("*",)), plain.context)
    done, _ = run_pass("quantise", {"calibration": 8}, plain)
    with pytest.raises(UsageError, match="quantised already"):
        qat.apply(done, qat.Options(), plain.context)
