"""Remove whole blocks, the least useful first, then train again: a shallower model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from compressors import options as shared
from harness.core.errors import NotApplicable, UsageError
from harness.core.types import Progress

if TYPE_CHECKING:
    from compressors import pruning_loop
    from compressors.state import Context, State

NEEDS = ("float", "eager")
BREAKS = ("original_layers",)


class Options(shared.PassOptions):
    """Options of prune_layers."""

    count: int | None = Field(
        default=None, ge=1, le=100_000, description="blocks that are removed; 1 if nothing is a target"
    )
    macs: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="target instead of count: share of the multiply-accumulates that may be left",
    )
    parameters: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="target instead of count: share of the parameters that may be left",
    )
    max_loss_increase: float | None = Field(
        default=None,
        ge=0,
        description="stop before the loss on held-out samples is higher than before by more than this; alone"
        " or with a target",
    )
    importance: Literal["loss", "influence", "random"] = Field(
        default="loss",
        description="what a block is worth: by how much the loss on the validation split rises without it, or"
        " 1 - the cosine between what it gets and what it gives; random is the control",
    )
    include: tuple[str, ...] = Field(
        default=(),
        description="blocks that may go by name, pattern (layers.*), re:expression or type; none: all"
        " residual blocks and layers that keep the shape",
    )
    exclude: tuple[str, ...] = Field(default=(), description="blocks that stay, named like include")
    samples: int = Field(default=1024, ge=1, le=10_000_000, description="samples that blocks are judged on")
    epochs: int = Field(default=1, ge=0, le=100_000, description="epochs of training between two blocks")
    bn_samples: int = Field(
        default=512,
        ge=0,
        le=10_000_000,
        description="training samples that batch norms are measured again on before training; 0: not",
    )
    min_score: float | None = Field(
        default=None, description="stop before the validation score falls below this"
    )
    finetune: shared.FineTuning = Field(
        default=shared.FineTuning(), description="training after the last block is gone"
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [n for n in ("count", "macs", "parameters") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both be given: choose one target")
        return self


def apply(state: State, options: Options, context: Context) -> State:
    """The model with blocks passed by, trained after each and longer after the last."""
    if state.quantised is not None:
        raise UsageError("blocks of an integer model cannot be removed.", hint="Put it before quantise.")
    from compressors import bypassing, pruning_loop, tuning
    from compressors.training import deterministic

    task = context.task
    pruning_loop.require_gate(task, options.min_score)
    left = bypassing.candidates(state.module, task, options.include, options.exclude)
    budget = pruning_loop.budget(state.module, task, macs=options.macs, parameters=options.parameters)
    most = _most(options, len(left), budget)
    limit = None
    if options.max_loss_increase is not None:
        limit = bypassing.loss(state.module, context, options.samples) + options.max_loss_increase
    good, gone, why = state, list[str](), ""
    while len(gone) < most and not why and not (budget and budget.fits(good.module, task)):
        with deterministic(context.seed + len(gone)):
            name, worth = _least(good, left, options, context)
            after = _without(good, name, options, context)
        last = len(gone) + 1 == most or (budget is not None and budget.fits(after.module, task))
        again = options.finetune if last else options.finetune.model_copy(update={"epochs": options.epochs})
        after = tuning.finetune(after, again, context, stage="prune_layers")
        why = _stop(after, options, context, limit)
        if not why:
            left.remove(name)
            gone.append(f"{name} ({options.importance} {worth:.4g})")
            good = after
        context.report(Progress(stage="prune_layers", done=len(gone), total=most, note=why or gone[-1]))
    if budget is not None and not why and not budget.fits(good.module, task):
        raise UsageError(
            f"{budget.option}: {budget.most:,} cannot be reached: without all {len(gone)} blocks that can go"
            f" the model has {budget.cost(good.module, task):,}.",
            hint="Choose a larger share, or prune channels as well.",
        )
    note = f"without {', '.join(gone)}" if gone else "every block stays"
    return _finished(good, state, options, context, limit, note=note, why=why)


def _most(options: Options, blocks: int, budget: pruning_loop.Budget | None) -> int:
    """How many blocks may go at most."""
    if options.count is not None and options.count > blocks:
        raise UsageError(f"count: the model has {blocks} blocks that can go, not {options.count}.")
    if options.count is not None:
        return options.count
    return blocks if budget is not None or options.max_loss_increase is not None else 1


def _least(state: State, left: list[str], options: Options, context: Context) -> tuple[str, float]:
    from compressors import bypassing

    if not left:
        raise NotApplicable("prune_layers has no block left to remove.")
    worth = bypassing.worth(options.importance, state.module, left, context, options.samples)
    name = min(left, key=lambda block: worth[block])
    return name, worth[name]


def _without(state: State, name: str, options: Options, context: Context) -> State:
    """*state* with the block *name* passed by and batch norms measured again."""
    from compressors import bypassing, constraints, pruning_loop
    from compressors.training import tidy

    module = bypassing.without(state.module, name, context.task)
    pruning_loop.reestimated(module, context.task, context.seed, options.bn_samples)
    kept, lost = constraints.kept(state.constraints, tidy(module))
    names = {key for key, _ in module.named_parameters()}
    return state.replaced(
        module,
        constraints=kept,
        dropped={**state.dropped, **dict.fromkeys(lost, "the block is gone")},
        bits={key: bits for key, bits in state.bits.items() if key in names},
    )


def _stop(state: State, options: Options, context: Context, limit: float | None) -> str:
    """Why *state* is not good enough; "" if it is."""
    from compressors import bypassing, pruning_loop

    if limit is not None:
        loss = bypassing.loss(state.module, context, options.samples)
        if loss > limit:
            return f"stopped at max_loss_increase: the next would have a loss of {loss:.4f}, over {limit:.4f}"
    kept, score = pruning_loop.passes(state.module, context.task, options.min_score)
    if not kept:
        return f"stopped at min_score {options.min_score:g}: the next would fall to {score:.4f}"
    return ""


def _finished(
    good: State, start: State, options: Options, context: Context, limit: float | None, *, note: str, why: str
) -> State:
    """The result; one that stopped early is trained as long as a finished one, if that makes it no worse."""
    from compressors import tuning

    note = "; ".join(filter(None, (note, why)))
    if why and good is not start:
        trained = tuning.finetune(good, options.finetune, context, stage="prune_layers")
        good = good if _stop(trained, options, context, limit) else trained
    return dataclasses.replace(good, note=note)
