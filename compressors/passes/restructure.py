"""Simplify the model: fold batch norm, merge linear convolutions, remove what does nothing, GAP heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compressors import options as shared
from harness.core.errors import CellError, NotApplicable, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressors.state import Context, State

NEEDS = ("float", "eager")
BREAKS = ("original_layers", "batch_norm")


class Options(shared.PassOptions):
    """Options of restructure."""

    rewrites: tuple[Literal["fold", "merge", "identities", "dense_to_conv", "gap"], ...] = Field(
        default=("fold", "merge", "identities"),
        min_length=1,
        description="what is done, in this order: fold batch norm into the layer before it; merge"
        " convolutions or linear layers with nothing between them; remove identities and dead layers;"
        " dense_to_conv: make flatten and dense a convolution over the whole image; gap: replace flatten"
        " and dense by global average pooling and a smaller dense layer (needs fine-tuning)",
    )
    finetune: shared.FineTuning = Field(
        default=shared.FineTuning(epochs=0), description="training afterwards; only gap needs it"
    )


def apply(state: State, options: Options, context: Context) -> State:
    """The same function with fewer layers, but for gap."""
    if state.quantised is not None:
        raise UsageError("an integer model cannot be rewritten.", hint="Put restructure before quantise.")
    import copy

    from compressors import constraints, rewriting, tuning
    from compressors.training import tidy

    module = copy.deepcopy(state.module)
    inputs = context.task.example_inputs()
    done: list[str] = []
    for name in options.rewrites:
        before = _answers(module, context)
        module, told = rewriting.REWRITES[name](module, inputs, options.allow_growth)
        if told and name not in rewriting.INEXACT:
            _require_equal(before, _answers(module, context), name)
        done += told
    if not done:
        raise NotApplicable(
            f"restructure does not apply: nothing in the model to do for {', '.join(options.rewrites)}."
        )
    tidy(module)
    kept, gone = constraints.kept(state.constraints, module)
    names = {name for name, _ in module.named_parameters()}
    after = state.replaced(
        module,
        note="; ".join(done[:6]) + (f"; {len(done) - 6} more" if len(done) > 6 else ""),
        constraints=kept,
        dropped=dict.fromkeys(gone, "the layer was rewritten"),
        bits={name: bits for name, bits in state.bits.items() if name in names},
    )
    return tuning.finetune(after, options.finetune, context, stage="restructure")


def _answers(module: nn.Module, context: Context) -> list[tuple[Tensor, ...]]:
    from compressors import score

    samples = score.samples(context.task, 8)
    return [score.forward(module.eval(), sample, context.task) for sample in samples]


def _require_equal(before: list[tuple[Tensor, ...]], after: list[tuple[Tensor, ...]], name: str) -> None:
    """Refuse an exact rewrite after which the model says something else, but for rounding."""
    for one, two in zip(before, after, strict=True):
        for a, b in zip(one, two, strict=True):
            scale = float(a.abs().max()) + 1e-6
            if a.shape != b.shape or float((a - b).abs().max()) > 1e-3 * scale:
                raise CellError("build_failed", f"rewrites: {name} changed the model's outputs.")
