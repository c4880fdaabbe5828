"""Remove whole filters, neurons and attention heads with all that depends on them, then train again."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from compressors import options as shared
from harness.core.errors import NotApplicable, UsageError
from harness.core.types import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from compressors import pruning_loop
    from compressors.channels import Graph
    from compressors.selecting import Layer
    from compressors.state import Context, State


NEEDS = ("float", "eager")


class Schedule(shared.Options):
    """How the model shrinks to its target."""

    kind: Literal["one_shot", "linear", "cubic"] = Field(
        default="one_shot", description="all at once, in equal rounds, or in rounds that become smaller"
    )
    rounds: int = Field(default=3, ge=1, le=1000, description="rounds of linear and cubic")
    epochs: int = Field(default=1, ge=0, le=100_000, description="epochs of training between two rounds")


class Slimming(shared.Training):
    """Training that drives the scales of batch norms to zero before channels are ranked (Liu 2017)."""

    strength: float = Field(
        default=0.01, gt=0, le=100, description="weight of the scales' L1 norm in the loss"
    )
    epochs: int = Field(default=0, ge=0, le=100_000, description="passes over the train loader; 0: none")


class Options(shared.PassOptions):
    """Options of prune_channels."""

    ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of the channels that is removed; 0.5 if nothing is a target",
    )
    macs: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="target instead of ratio: share of the multiply-accumulates that may be left",
    )
    parameters: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="target instead of ratio: share of the parameters that may be left",
    )
    importance: Literal[
        "l1", "l2", "bn_scale", "taylor", "hessian", "activation", "rank", "pca", "random"
    ] = Field(
        default="l2",
        description="what makes a channel important: norm of its weights, scale of its batch norm, estimated"
        " change of the loss (taylor, hessian), its mean activation, rank of its feature maps (HRank), its"
        " share in the main directions of the activations (pca); random is the control",
    )
    over: Literal["group", "layer"] = Field(
        default="group",
        description="l1 and l2: of all layers that have the channel, or of the one that makes it (Li 2017)",
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
    kinds: tuple[Literal["filters", "neurons", "heads"], ...] = Field(
        default=("filters", "neurons", "heads"),
        min_length=1,
        description="what may go: channels of convolutions, of linear layers, heads of attentions",
    )
    include: tuple[str, ...] = Field(
        default=(),
        description="layers to cut by name, pattern (features.*), re:expression or type; none: all",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="layers that keep all channels, named like include; so do those tied to them by a sum",
    )
    samples: int = Field(
        default=512, ge=1, le=10_000_000, description="samples that gradients and features are taken from"
    )
    bn_samples: int = Field(
        default=512,
        ge=0,
        le=10_000_000,
        description="training samples that batch norms are measured again on before training; 0: not",
    )
    slimming: Slimming = Field(
        default=Slimming(), description="training towards small batch norm scales before pruning"
    )
    schedule: Schedule = Field(default=Schedule(), description="how the model shrinks to its target")
    min_score: float | None = Field(
        default=None,
        description="stop before the validation score falls below this: the last round that kept it counts",
    )
    finetune: shared.FineTuning = Field(
        default=shared.FineTuning(), description="training after the channels are gone"
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [n for n in ("ratio", "macs", "parameters") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both be given: choose one target")
        return self

    @property
    def rounds(self) -> int:
        """How often channels are removed."""
        return 1 if self.schedule.kind == "one_shot" else self.schedule.rounds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Goal:
    """Where a round goes."""

    first: dict[str, int]  # units of each group at first
    share: float  # of the whole removal
    budget: pruning_loop.Budget | None


def apply(state: State, options: Options, context: Context) -> State:
    """A smaller model: least important channels removed, then fine-tuned, once or in rounds."""
    if state.quantised is not None:
        raise UsageError(
            "channels of an integer model cannot be removed.",
            hint="Put prune_channels before quantise in the recipe.",
        )
    from compressors import pruning_loop
    from compressors.training import deterministic

    pruning_loop.require_gate(context.task, options.min_score)
    _require_layers(state.module, options)
    state = _slimmed(state, options, context)
    with deterministic(context.seed):
        first = {name: len(g.units) for name, g in _graph(state.module, options, context).groups.items()}
    budget = pruning_loop.budget(state.module, context.task, macs=options.macs, parameters=options.parameters)
    start = budget.cost(state.module, context.task) if budget else 0
    good = state
    for done in range(1, options.rounds + 1):
        share = pruning_loop.progress(options.schedule.kind, done, options.rounds)
        limit = budget and dataclasses.replace(budget, most=round(start - share * (start - budget.most)))
        with deterministic(context.seed):
            after = _pruned(good, options, context, _Goal(first=first, share=share, budget=limit))
        after = _trained(after, options, context, last=done == options.rounds)
        kept, found = pruning_loop.passes(after.module, context.task, options.min_score)
        note = after.note + (f", validation {found:.4f}" if found is not None else "")
        context.report(Progress(stage="prune_channels", done=done, total=options.rounds, note=note))
        if not kept:
            return _stopped(good, state, options, context, f"round {done} would fall to {found:.4f}")
        good = after
    return good


def _stopped(good: State, state: State, options: Options, context: Context, why: str) -> State:
    """The last good state, trained as long as a finished one, if that keeps the score as well."""
    from compressors import pruning_loop

    why = f"stopped at min_score {options.min_score:g}: {why}"
    if good is state:
        return state.replaced(state.module, note=why)
    trained = _trained(good, options, context, last=True)
    better = pruning_loop.passes(trained.module, context.task, options.min_score)[0]
    return dataclasses.replace(trained if better else good, note=f"{good.note}; {why}")


def _require_layers(module: nn.Module, options: Options) -> None:
    from compressors import layers

    found = {name: layer for name, layer in module.named_modules() if name}
    for option in ("include", "exclude"):
        layers.named(found, getattr(options, option), option)


def _slimmed(state: State, options: Options, context: Context) -> State:
    """*state* after training with the L1 norm of all batch norm scales in the loss, by proximal steps."""
    if not options.slimming.epochs:
        return state
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from compressors import training
    from compressors.kernels import masks

    def after_step(module: nn.Module, rate: float) -> None:
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, _BatchNorm) and layer.affine:
                    layer.weight.copy_(masks.soft_threshold(layer.weight, rate * options.slimming.strength))

    if not any(isinstance(layer, _BatchNorm) and layer.affine for layer in state.module.modules()):
        raise NotApplicable("slimming does not apply: the model has no batch norm.", hint="Leave it out.")
    module = training.fit(
        state.module,
        context.task,
        options.slimming,
        seed=context.seed,
        stage="prune_channels (slimming)",
        report=context.report,
        hooks=training.Hooks(after_step=after_step),
        constraints=state.constraints,
    )
    return state.replaced(module)


def _graph(module: nn.Module, options: Options, context: Context) -> Graph:
    """The groups of a copy of *module* that may be cut; NotApplicable if there are none."""
    from compressors import layers
    from compressors.channels import Graph

    found = {name: layer for name, layer in module.named_modules() if name}
    kept: dict[str, str] = {}
    if options.include:
        inside = _with_children(layers.named(found, options.include, "include"), found)
        kept = {name: "it is not included" for name in found if name not in inside}
    outside = _with_children(layers.named(found, options.exclude, "exclude"), found)
    kept |= dict.fromkeys(outside, "it is excluded")
    graph = Graph(copy.deepcopy(module), context.task.example_inputs(), kept=kept, kinds=options.kinds)
    if not graph.groups:
        reasons = "; ".join(f"{name} stays whole: {why}" for name, why in list(graph.whole.items())[:3])
        raise NotApplicable(
            f"prune_channels has nothing to remove: the model has no {' or '.join(options.kinds)} that could"
            f" go{f' ({reasons})' if reasons else ''}."
        )
    return graph


def _with_children(names: list[str], found: dict[str, nn.Module]) -> set[str]:
    """*names* and the layers inside of them."""
    inside = tuple(f"{name}." for name in names)
    return {*names, *(name for name in found if name.startswith(inside))} if names else set()


def _pruned(
    state: State,
    options: Options,
    context: Context,
    goal: _Goal,
) -> State:
    """*state* with the share of the whole removal done, its batch norms measured again; not yet trained."""
    from compressors import channel_scores, constraints, pruning_loop
    from compressors.selecting import Layer
    from compressors.training import tidy

    graph = _graph(state.module, options, context)
    scores = channel_scores.scores(
        options.importance,
        graph,
        context,
        samples=options.samples,
        layer_only=options.over == "layer",
    )
    if options.across_layers:
        scores = channel_scores.relative(options.importance, scores)
    units = {
        name: Layer(
            scores=values,
            first=goal.first[name],
            channels=graph.groups[name].units.shape[1],
            round_to=1 if graph.groups[name].kind == "heads" else options.round_to,
        )
        for name, values in scores.items()
    }
    counts = _counts(state.module, units, options, context, goal)
    if options.rounds == 1 and not any(counts.values()):
        _refuse_nothing(units, options)
    gone = {name: units[name].lowest(count) for name, count in counts.items()}
    module = graph.cut(gone)
    pruning_loop.reestimated(module, context.task, context.seed, options.bn_samples)
    kept, lost = constraints.sliced(state.constraints, tidy(module))
    left = sum(len(units[n].scores) - count for n, count in counts.items())
    total = sum(goal.first[name] for name in units)
    return state.replaced(
        module,
        constraints=kept,
        dropped=dict.fromkeys(lost, "the layer is gone"),
        note=f"{left:,} of {total:,} channels and heads in {len(units)} groups are left",
    )


def _refuse_nothing(units: dict[str, Layer], options: Options) -> None:
    widest = max(len(layer.scores) * layer.channels for layer in units.values())
    limits = f"max_ratio {options.max_ratio:g} and round_to {options.round_to}"
    raise UsageError(
        f"{'round_to' if options.round_to > 1 else 'ratio'}: nothing is left to prune with {limits}:"
        f" the widest layer has {widest} channels.",
        hint="Choose a smaller round_to or a larger ratio.",
    )


def _counts(
    module: nn.Module,
    units: dict[str, Layer],
    options: Options,
    context: Context,
    goal: _Goal,
) -> dict[str, int]:
    """How many units of each group go: by ratio, or as few as fit the budget."""
    from compressors import selecting

    together, budget = options.across_layers, goal.budget
    if budget is None:
        ratio = (0.5 if options.ratio is None else options.ratio) * goal.share
        return selecting.by_ratio(units, ratio, together=together, max_ratio=options.max_ratio)
    names = selecting.order(units, together=together)

    def counts(number: int) -> dict[str, int]:
        return selecting.counted(units, names, number, options.max_ratio)

    def smaller(gone: Mapping[str, int]) -> nn.Module:
        graph = _graph(module, options, context)
        return graph.cut({name: units[name].lowest(n) for name, n in gone.items()}).eval()

    def fits(gone: Mapping[str, int]) -> bool:
        return budget.fits(smaller(gone), context.task)

    found = selecting.fewest(len(names), lambda number: fits(counts(number)))
    if found is None:
        least = budget.cost(smaller(counts(len(names))), context.task)
        raise UsageError(
            f"{budget.option}: {budget.most:,} cannot be reached: with max_ratio {options.max_ratio:g} and"
            f" round_to {options.round_to} the smallest model has {least:,}.",
            hint="Choose a larger share, a larger max_ratio, or prune more layers.",
        )
    return selecting.filled(units, counts(found), [*names, *names[:found]], fits)


def _trained(state: State, options: Options, context: Context, *, last: bool) -> State:
    from compressors import tuning

    again = options.finetune
    if not last:
        again = again.model_copy(update={"epochs": options.schedule.epochs})
    return tuning.finetune(state, again, context, stage="prune_channels")
