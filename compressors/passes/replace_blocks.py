"""Swap blocks for smaller ones, train each on what the old block gave, then all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compressors import options as shared
from harness.core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from compressors.replacements import Replacement
    from compressors.state import Context, State
    from compressors.teaching import Watched

NEEDS = ("float", "eager")
BREAKS = ("original_layers",)


class Options(shared.PassOptions):
    """Options of replace_blocks."""

    blocks: tuple[str, ...] = Field(
        min_length=1,
        description="blocks that are replaced, by name, pattern (features.*), re:expression or type; of"
        " blocks inside each other the outer one",
    )
    kind: Literal["bottleneck", "depthwise", "low_rank", "identity"] = Field(
        default="bottleneck",
        description="1x1, k x k and 1x1 convolutions or two linear layers with a ReLU | depthwise and 1x1"
        " convolutions | a narrow layer and a 1x1 or linear one without a ReLU | nothing",
    )
    width: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="channels in the middle as a share of the block's narrower side; not of depthwise",
    )
    skip: bool = Field(
        default=True,
        description="add a new block's input to its output where the old block's output is near its input",
    )
    training: shared.Training = Field(
        default=shared.Training(epochs=5, lr=5e-3),
        description="training of each block alone on the old block's inputs and outputs",
    )
    finetune: shared.FineTuning = Field(
        default=shared.FineTuning(epochs=0, alpha=0.7), description="training of the whole model after that"
    )


def apply(state: State, options: Options, context: Context) -> State:
    """The model with smaller blocks, trained one by one and then, if asked for, together."""
    if state.quantised is not None:
        raise UsageError(
            "an integer model has no blocks to replace.", hint="Put replace_blocks before quantise."
        )
    import copy

    from compressors import blockwise, layers, teaching, tuning
    from compressors.training import tidy

    names = _outermost(state.module, options.blocks)
    watched = teaching.observed(state.module, names, context, "blocks")
    new = _replacements(watched, names, options, context)
    _require_smaller(state, new, options)
    module = copy.deepcopy(state.module)
    for name, replacement in new.items():
        module = layers.replace(module, name, replacement)
    dropped = {
        name: "its block was replaced"
        for name in state.constraints
        if any(name.startswith(f"{block}.") for block in names)
    }
    after = state.replaced(
        tidy(module),
        constraints={name: c for name, c in state.constraints.items() if name not in dropped},
        bits={n: b for n, b in state.bits.items() if not any(n.startswith(f"{block}.") for block in names)},
        dropped=dropped,
    )
    pairs = {name: name for name in names}
    after, errors = blockwise.train(
        after, state.module, pairs, options.training, context, stage="replace_blocks"
    )
    after = after.replaced(after.module, dropped=dropped, note=f"{options.kind}: {blockwise.summary(errors)}")
    return tuning.finetune(after, options.finetune, context, stage="replace_blocks (all)")


def _outermost(module: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    """The blocks that *patterns* mean, without those inside another one."""
    from compressors import layers

    every = {name: layer for name, layer in module.named_modules() if name}
    found = layers.named(every, patterns, "blocks")
    return [n for n in found if not any(n.startswith(f"{other}.") for other in found if other != n)]


def _replacements(
    watched: Watched, names: list[str], options: Options, context: Context
) -> dict[str, Replacement]:
    """A new block for each of *names*, made for what the old one takes and gives."""
    from compressors import replacements, score

    given, results = dict(watched.inputs), dict(watched.outputs)
    for name in names:
        if name in watched.several:
            raise UsageError(
                f"blocks: {name} gives more than one tensor, so no single block can replace it.",
                hint="Choose the layers inside it.",
            )
    positive, near = dict.fromkeys(names, True), dict.fromkeys(names, options.skip)
    for inputs, _ in context.task.batches(context.task.validation_loader(), "validation_loader"):
        score.forward(watched, inputs, context.task)
        for name in names:
            positive[name] &= replacements.is_positive(watched.outputs[name])
            near[name] &= replacements.is_near(watched.inputs[name], watched.outputs[name])
    found = {}
    for name in names:
        try:
            found[name] = replacements.of(
                watched.model.get_submodule(name),
                given[name],
                results[name],
                options.kind,
                options.width,
                skip=near[name],
                positive=positive[name],
            )
        except replacements.CannotReplace as error:
            raise UsageError(
                f"kind: {name} {error}, so {options.kind} cannot replace it.",
                hint="Choose another kind or other blocks.",
            ) from error
        replacements.start(found[name])
    return found


def _require_smaller(state: State, new: dict[str, Replacement], options: Options) -> None:
    """Refuse blocks that are no smaller than those they replace."""
    from compressors import counting

    if options.allow_growth:
        return
    for name, replacement in new.items():
        old = counting.parameters(state.module.get_submodule(name))
        size = counting.parameters(replacement)
        if size >= old:
            raise UsageError(
                f"kind: {options.kind} makes {name} no smaller: {size:,} parameters instead of {old:,}.",
                hint="Choose a smaller width or another kind, or leave the block out.",
            )
