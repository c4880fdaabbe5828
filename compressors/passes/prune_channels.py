"""Remove whole channels and neurons with everything that depends on them, then train again."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compressors import options as shared
from harness.core import plugins
from harness.core.errors import CellError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressors.state import Context, State
    from compressors.task import Task


NEEDS = ("float", "eager")


class Options(shared.PassOptions):
    """Options of prune_channels."""

    ratio: float = Field(default=0.5, gt=0, lt=1, description="share of the channels that is removed")
    importance: Literal["l1", "l2", "taylor"] = Field(
        default="l2",
        description="what makes a channel important: the norm of its weights, or weight times gradient",
    )
    across_layers: bool = Field(
        default=False,
        alias="global",
        description="rank all channels of the model together, not layer by layer",
    )
    max_ratio: float = Field(
        default=0.9, gt=0, lt=1, description="the largest share that is removed from one layer"
    )
    round_to: int = Field(
        default=1, ge=1, le=1024, description="channels that are left are a multiple of this"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="layers that stay whole, by name or pattern (features.0.*)"
    )
    samples: int = Field(
        default=512, ge=1, description="training samples that gradients are taken from (taylor)"
    )
    finetune: shared.FineTuning = Field(
        default=shared.FineTuning(), description="training after the channels are gone"
    )


def apply(state: State, options: Options, context: Context) -> State:
    """A smaller model: least important channels removed, then fine-tuned."""
    if state.quantised is not None:
        raise UsageError(
            "channels of an integer model cannot be removed.",
            hint="Put prune_channels before quantise in the recipe.",
        )
    from compressors import constraints, tuning
    from compressors.training import deterministic, tidy

    with deterministic(context.seed):
        module = copy.deepcopy(state.module).requires_grad_(True)
        _prune(module, options, context)
    kept, gone = constraints.sliced(state.constraints, tidy(module))
    after = state.replaced(module, constraints=kept, dropped=dict.fromkeys(gone, "the layer is gone"))
    return tuning.finetune(after, options.finetune, context, stage="prune_channels")


def _prune(module: nn.Module, options: Options, context: Context) -> None:
    """Remove channels from *module* in place."""
    import torch_pruning

    inputs = context.task.example_inputs()
    kept = [*_output_layers(module, inputs), *_excluded(module, options.exclude)]
    if options.importance == "taylor":
        _accumulate_gradients(module, context.task, context.seed, options.samples)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch_pruning")
        pruner = torch_pruning.pruner.BasePruner(
            module,
            inputs,
            importance=_importance(options.importance),
            global_pruning=options.across_layers,
            pruning_ratio=options.ratio,
            max_pruning_ratio=options.max_ratio,
            round_to=options.round_to,
            ignored_layers=kept,
            # Their defaults are dicts that all pruners of the process would share.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        pruner.step()
    module.zero_grad(set_to_none=True)


def _importance(name: str) -> Any:
    import torch_pruning

    if name == "taylor":
        return torch_pruning.importance.GroupTaylorImportance()
    return torch_pruning.importance.GroupMagnitudeImportance(p=1 if name == "l1" else 2)


def _output_layers(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """The layers whose channels are the model's outputs."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(module, inputs)
    found = []
    for layer in module.modules():
        prune = graph.get_pruner_of_module(layer)
        if layer not in graph.module2node or prune is None or not _has_channels(layer):
            continue
        group = graph.get_pruning_group(layer, prune.prune_out_channels, [0])
        if any(not dep.target.outputs and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in group):
            found.append(layer)
    return found


def _has_channels(layer: nn.Module) -> bool:
    from torch import nn

    return isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))


def _excluded(module: nn.Module, patterns: tuple[str, ...]) -> list[nn.Module]:
    layers = {name: layer for name, layer in module.named_modules() if name}
    found = []
    for pattern in patterns:
        matching = fnmatch.filter(layers, pattern)
        if not matching:
            unknown = plugins.unknown(
                "layer", pattern, [n for n, layer in layers.items() if _has_channels(layer)]
            )
            raise UsageError(f"exclude: {unknown.message}", hint=unknown.hint)
        found += [layers[name] for name in matching]
    return found


def _accumulate_gradients(module: nn.Module, task: Task, seed: int, samples: int) -> None:
    """Leave the gradient of the task's loss over *samples* training samples in the parameters."""
    if task.train_loader is None or task.loss is None:
        raise UsageError(
            f"importance: taylor needs train_loader() and loss(), which the task {task.name} does not have.",
            hint="Use importance: l2.",
        )
    seen = 0
    for inputs, targets in task.batches(task.train_loader(seed), "train_loader"):
        if seen >= samples or targets is None:
            break
        outputs = task.run(module, inputs)
        loss = task.loss(outputs[0] if len(outputs) == 1 else outputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        seen += inputs[0].shape[0]
    if not seen:
        raise CellError("build_failed", "train_loader() gave no labelled batch to take gradients from.")
