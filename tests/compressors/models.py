"""The four kinds of model that every pass works on or says why not, trained once, and how a pass is tried."""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from compressors import contract, score, steps, stored, task
from compressors.state import Context, State
from compressors.training import deterministic, fit, tidy
from harness.core import plugins
from harness.core.types import Step, StepReport
from tests.compressors.conftest import ignore

#: plain and residual (depthwise, batch norm, a sum) CNNs, a transformer encoder, an MLP on real tables.
MODELS = {
    name: Path(__file__).with_name(f"{file}_task.py")
    for name, file in {
        "plain": "plain",
        "residual": "tiny",
        "encoder": "encoder",
        "tabular": "tabular",
    }.items()
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A task with its trained model."""

    task: task.Task
    state: State
    report: StepReport
    context: Context
    module: ModuleType  # of the task's file

    def enter(self) -> None:
        """Make the task's classes those that are stored: another test may have loaded its file again."""
        sys.modules[self.module.__name__] = self.module


@functools.cache
def trained(name: str, seed: int = 0) -> Trained:
    """The model *name* of MODELS after its own training; the same for all tests of a process."""
    loaded = task.load(str(MODELS[name]))
    with deterministic(seed):
        fresh = loaded.model()
        assert loaded.training is not None
        trained_module = fit(fresh, loaded, loaded.training, seed=seed, stage="train", report=ignore)
    state = State(module=tidy(trained_module))
    report = contract.report("train", None, state, loaded, wall_s=0.0)
    context = Context(task=loaded, seed=seed, report=ignore, original=state.module, before=("train",))
    module = sys.modules[f"edgebench_task_{MODELS[name].stem}"]
    return Trained(task=loaded, state=state, report=report, context=context, module=module)


def run_pass(
    name: str, options: dict[str, Any], model: Trained, *, after: State | None = None
) -> tuple[State, StepReport]:
    """
    *model* (or the state *after* other passes) after the pass *name*, through all of the contract.

    The input must be unchanged, and the result must come back from the cache as it was stored.
    """
    model.enter()
    state = model.state if after is None else after
    before = {key: value.clone() for key, value in state.module.state_dict().items()}
    last = contract.report("before", None, state, model.task, wall_s=0.0)
    chosen = plugins.load("compressors.passes", name).Options.model_validate(options)
    found, report = steps.apply_step(Step(name=name, options=options), chosen, state, model.context, last)
    assert all(torch.equal(before[key], value) for key, value in state.module.state_dict().items())
    require_same(found, round_trip(found, model), model)
    return found, report


def round_trip(state: State, model: Trained) -> State:
    """*state* as the cache gives it back."""
    model.enter()
    with tempfile.TemporaryDirectory() as folder:
        stored.save(Path(folder), state, model.task, model.context.seed)
        found = stored.load(Path(folder), model.task, model.context.seed)
    assert found is not None, "what was stored cannot be restored"
    return found


def require_same(one: State, two: State, model: Trained) -> None:
    """Fail unless both compute the same, have the same layers and promise the same."""
    sample = score.samples(model.task, 1)[0]
    for a, b in zip(
        score.forward(one.reference, sample, model.task),
        score.forward(two.reference, sample, model.task),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert str(one.module) == str(two.module)
    for (name, a), (other, b) in zip(
        one.module.state_dict().items(), two.module.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    assert one.constraints.keys() == two.constraints.keys()
    assert dict(one.bits) == dict(two.bits)


def zeros(module: nn.Module) -> int:
    """Zeros among the parameters."""
    return sum(int((p == 0).sum()) for p in module.parameters())
