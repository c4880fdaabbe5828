"""
How well pruning works beside Torch-Pruning used alone, at the same multiply-accumulates.

One row per way to prune: test accuracy before and after the same fine-tuning (mean ± standard deviation
over seeds), parameters, multiply-accumulates, seconds of pruning. Torch-Pruning gets the ratio, found by
bisection, at which its model is just within the budget that ours is given; the training, the data and the
trained model are the same.

    python -m benchmarks.compression_pruning [--model digits_cnn] [--seeds 3] [--macs 0.25] [--epochs 8]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_pruning
from torch import nn

from compressors import contract, counting, importance, score, steps, task, tuning
from compressors.options import FineTuning
from compressors.state import Context, State
from compressors.training import deterministic, fit, tidy
from harness.core import plugins
from harness.core.types import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to prune, with one value per seed."""

    name: str
    before: tuple[float, ...]  # test score as pruned
    after: tuple[float, ...]  # and after fine-tuning
    parameters: tuple[int, ...]
    macs: tuple[int, ...]
    seconds: tuple[float, ...]  # of pruning alone


#: From a trained state to a pruned, not yet trained one.
Pruner = Callable[[State, Context], State]


def ours(state: State, context: Context, **options: Any) -> State:
    """Our pass without its fine-tuning, with which every row is trained alike."""
    module = plugins.load(steps.PASSES, "prune_channels")
    chosen = module.Options.model_validate({**options, "finetune": {"epochs": 0}})
    found: State = module.apply(state, chosen, context)
    return found


def torch_pruning_alone(
    state: State, context: Context, *, macs: float, kind: str, together: bool = False
) -> State:
    """What a user of Torch-Pruning writes: the largest model of its MetaPruner within *macs*."""
    most = int(macs * counting.macs(state.module, context.task))
    low, high, best = 0.0, 1.0, None
    for _ in range(10):
        ratio = (low + high) / 2
        module = _meta_pruned(state.module, context, ratio, kind, together)
        if counting.macs(module, context.task) <= most:
            high, best = ratio, module
        else:
            low = ratio
    assert best is not None
    return State(module=best)


def _meta_pruned(module: nn.Module, context: Context, ratio: float, kind: str, together: bool) -> nn.Module:
    inputs = context.task.example_inputs()
    model = copy.deepcopy(module).requires_grad_(True)
    estimates = {
        "l2": torch_pruning.importance.GroupMagnitudeImportance(p=2),
        "taylor": torch_pruning.importance.GroupTaylorImportance(),
    }
    if kind == "taylor":
        gradients = list(importance.gradients(model, context, 512))
        for name, parameter in model.named_parameters():
            parameter.grad = torch.stack([g[name] for g in gradients]).sum(0)
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=estimates[kind],
            pruning_ratio=ratio,
            global_pruning=together,
            max_pruning_ratio=0.9,
            ignored_layers=[last],
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        pruner.step()
    return tidy(model)


def rows(
    model: str, *, seeds: Sequence[int], macs: float, epochs: int, lr: float = 2e-3, quick: bool = False
) -> list[Row]:
    """Every way to prune *model* to the share *macs* of its multiply-accumulates."""
    ways: dict[str, Pruner] = {}
    for kind, together in (("l2", False), ("l2", True), ("taylor", True)):
        where = "global" if together else "local"
        ways[f"Torch-Pruning {kind} {where}"] = partial(
            torch_pruning_alone, macs=macs, kind=kind, together=together
        )
    for kind, together in (
        ("random", False),
        ("l1", False),
        ("l2", False),
        ("l2", True),
        ("taylor", False),
        ("taylor", True),
        ("hessian", True),
        ("activation", False),
        ("pca", False),
    ):
        where = "global" if together else "local"
        options: dict[str, Any] = {"macs": macs, "importance": kind, "global": together}
        ways[f"ours {kind} {where}"] = partial(ours, **options)
    if quick:
        ways = {name: way for name, way in ways.items() if name.endswith(("l2 local", "taylor global"))}
    starts = [_trained(model, seed) for seed in seeds]
    return [_row(name, way, starts, FineTuning(epochs=epochs, lr=lr)) for name, way in ways.items()]


def _trained(model: str, seed: int) -> tuple[State, Context]:
    loaded = task.load(model)
    with deterministic(seed):
        module = loaded.model()
        if loaded.training is not None:
            module = fit(module, loaded, loaded.training, seed=seed, stage="train", report=_quiet)
    state = State(module=tidy(module))
    return state, Context(task=loaded, seed=seed, report=_quiet, original=state.module, before=("train",))


def _row(name: str, way: Pruner, starts: Sequence[tuple[State, Context]], training: FineTuning) -> Row:
    found: list[tuple[float, float, int, int, float]] = []
    for state, context in starts:
        started = time.monotonic()
        with deterministic(context.seed):
            pruned = way(state, context)
        seconds = time.monotonic() - started
        contract.require(pruned, context.task, name, before=state)
        trained = tuning.finetune(pruned, training, context, stage=name)
        found.append(
            (
                _score(pruned, context),
                _score(trained, context),
                counting.parameters(pruned.module),
                counting.macs(pruned.module, context.task),
                seconds,
            )
        )
    before, after, parameters, macs, taken = zip(*found, strict=True)
    return Row(name=name, before=before, after=after, parameters=parameters, macs=macs, seconds=taken)


def _score(state: State, context: Context) -> float:
    found = score.of_module(state.module, context.task)
    assert found is not None
    return found


def _quiet(event: Progress) -> None:
    pass


def table(found: Sequence[Row]) -> str:
    """*found* as lines of text, scores in percent."""
    lines = [f"{'way':28} {'as pruned':>14} {'fine-tuned':>14} {'parameters':>11} {'MACs':>10} {'s':>6}"]
    for row in found:
        spread = [f"{100 * statistics.mean(v):6.2f} ± {_deviation(v):4.2f}" for v in (row.before, row.after)]
        sizes = f"{statistics.mean(row.parameters):11,.0f} {statistics.mean(row.macs):10,.0f}"
        lines.append(
            f"{row.name:28} {spread[0]:>14} {spread[1]:>14} {sizes} {statistics.mean(row.seconds):6.2f}"
        )
    return "\n".join(lines)


def _deviation(values: Sequence[float]) -> float:
    return 100 * statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n")[0])
    parser.add_argument("--model", default="digits_cnn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--macs", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(
        options.model,
        seeds=range(options.seeds),
        macs=options.macs,
        epochs=options.epochs,
        quick=options.quick,
    )
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
