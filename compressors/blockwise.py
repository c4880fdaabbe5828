"""Train blocks one by one, each on what its teacher's block takes and gives (arXiv:1911.12491)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressors import teaching
from compressors.kernels import distillation
from compressors.options import Training
from compressors.state import Context, State
from compressors.training import Hooks, fit
from harness.core.errors import UsageError


class Blocks(nn.Module):
    """The student's blocks behind their teacher: gives the relative error of each block for a batch."""

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: teaching.Pairs) -> None:
        super().__init__()
        self.model = student
        self.pairs = dict(pairs)
        self.before = nn.ModuleList()
        self.behind = nn.ModuleList()
        self.guide = (teaching.Watched(teacher, pairs.values()).eval(),)  # in a tuple: no part of this module

    def forward(self, *inputs: Tensor) -> Tensor:
        """Errors, [blocks]: mean squared difference as a share of the teacher's variance."""
        (guide,) = self.guide
        with torch.no_grad():
            guide(*inputs)
        errors = []
        for i, (own, other) in enumerate(self.pairs.items()):
            found = self.model.get_submodule(own)(self.before[i](guide.inputs[other]))
            found, wanted = distillation.same_places(self.behind[i](found), guide.outputs[other])
            errors.append(distillation.relative_error(found, wanted))
        return torch.stack(errors)


def train(
    state: State,
    teacher: nn.Module,
    pairs: teaching.Pairs,
    options: Training,
    context: Context,
    *,
    stage: str,
    option: str = "blocks",
) -> tuple[State, dict[str, tuple[float, float]]]:
    """
    *state* with the blocks of *pairs* (student's name -> teacher's) trained all at once, each on its own.

    Also the relative error of each block on validation samples, before and after. Blocks whose widths
    differ from the teacher's get adapters in front and behind, which are trained and then left out.
    """
    blocks = Blocks(state.module, teacher, pairs)
    _adapt(blocks, context, option)
    before = _errors(blocks, context)
    trained = [p for own in pairs for p in state.module.get_submodule(own).parameters()]
    task = context.task
    if options.epochs and trained and task.train_loader is not None and task.loss is not None:
        # The score of early stopping needs the whole model, which only comes together after this.
        blocks = fit(  # type: ignore[assignment]
            blocks,
            task,
            options.model_copy(update={"patience": None}),
            seed=context.seed,
            stage=stage,
            report=context.report,
            hooks=Hooks(loss=lambda inputs, errors, targets: errors.sum()),  # noqa: ARG005
            constraints={f"model.{name}": c for name, c in state.constraints.items()},
        )
    after = _errors(blocks, context)
    found = state.replaced(blocks.model, dropped=state.dropped, note=state.note)
    return found, {own: (before[own], after[own]) for own in pairs}


def _adapt(blocks: Blocks, context: Context, option: str) -> None:
    """Put adapters around the blocks that are not as wide as their teacher's."""
    own = teaching.observed(blocks.model, blocks.pairs, context, option)
    (guide,) = blocks.guide
    other = teaching.observed(guide.model, blocks.pairs.values(), context, option)
    for ours, theirs in blocks.pairs.items():
        try:
            blocks.before.append(teaching.Adapter(other.inputs[theirs], own.inputs[ours]))
            blocks.behind.append(teaching.Adapter(own.outputs[ours], other.outputs[theirs]))
        except ValueError as error:
            raise UsageError(
                f"{option}: {ours} takes {list(own.inputs[ours].shape)} and gives"
                f" {list(own.outputs[ours].shape)},"
                f" the teacher's {theirs} {list(other.inputs[theirs].shape)} and"
                f" {list(other.outputs[theirs].shape)}, which cannot be compared.",
                hint="Pair blocks that work on tensors with as many dimensions.",
            ) from error


@torch.no_grad()
def _errors(blocks: Blocks, context: Context) -> dict[str, float]:
    """The relative error of every block, mean over the batches of the validation split."""
    task = context.task
    rows = [
        task.run(blocks.eval(), inputs)[0]
        for inputs, _ in task.batches(task.validation_loader(), "validation_loader")
    ]
    return dict(zip(blocks.pairs, torch.stack(rows).mean(0).tolist(), strict=True))


def summary(errors: dict[str, tuple[float, float]]) -> str:
    """One line: the worst block and the error of all, before and after training."""
    worst = max(errors, key=lambda name: errors[name][1])
    told = [f"{name} {old:.3f} -> {new:.3f}" for name, (old, new) in list(errors.items())[:4]]
    more = f", worst {worst} {errors[worst][1]:.3f}" if len(errors) > 4 else ""
    return f"relative error of blocks {', '.join(told)}{more}"
