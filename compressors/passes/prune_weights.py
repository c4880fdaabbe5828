"""Set unimportant weights to zero, for good: later steps keep the zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from compressors import options as shared
from harness.core.errors import NotApplicable, UsageError
from harness.core.types import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressors.state import Context, State

NEEDS = ("float", "eager")


class Schedule(shared.Options):
    """How sparsity grows to its target."""

    kind: Literal["one_shot", "iterative", "cubic"] = Field(
        default="one_shot",
        description="all at once, in equal rounds, or in rounds that become smaller (Zhu & Gupta 2017)",
    )
    rounds: int = Field(default=3, ge=1, le=1000, description="rounds of iterative and cubic")
    epochs: int = Field(default=1, ge=0, le=100_000, description="epochs of training between two rounds")


class Proximal(shared.Training):
    """Training that drives weights to zero before they are pruned."""

    kind: Literal["l1", "group_lasso"] = Field(
        default="l1", description="single weights, or whole filters and neurons"
    )
    strength: float = Field(default=0.01, gt=0, le=100, description="weight of the norm in the loss")
    epochs: int = Field(default=0, ge=0, le=100_000, description="passes over the train loader; 0: none")


class Options(shared.PassOptions):
    """Options of prune_weights."""

    ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of the weights that is zero afterwards; 0.5 if nothing is",
    )
    threshold: float | None = Field(
        default=None, gt=0, description="zero every weight whose importance is below this, instead of a ratio"
    )
    importance: Literal["l1", "l2", "taylor", "movement", "snip", "hessian", "wanda", "random"] = Field(
        default="l1", description="what makes a weight important; random is the control"
    )
    across_layers: bool = Field(
        default=False, alias="global", description="rank the weights of all layers together"
    )
    pattern: str | None = Field(
        default=None,
        pattern=r"^\d+:\d+$",
        description="N:M: of every M neighbouring inputs N weights stay (2:4); instead of a ratio",
    )
    block: tuple[int, int] | None = Field(
        default=None, description="rows (outputs) and columns of blocks that become zero as a whole"
    )
    schedule: Schedule = Field(default=Schedule(), description="how sparsity grows to its target")
    proximal: Proximal = Field(default=Proximal(), description="training towards zero before pruning")
    rewind: bool = Field(
        default=False,
        description="lottery ticket: after each round the weights that are left start again from the"
        " untrained model's and the task's training runs again, instead of fine-tuning",
    )
    samples: int = Field(
        default=512, ge=1, le=10_000_000, description="samples that importance is taken from"
    )
    include: tuple[str, ...] = Field(
        default=(),
        description="layers to prune by name, pattern (features.*), re:expression or type; none: all",
    )
    exclude: tuple[str, ...] = Field(default=(), description="layers that stay whole, named like include")
    finetune: shared.FineTuning = Field(
        default=shared.FineTuning(), description="training after the weights are zero"
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [n for n in ("ratio", "threshold", "pattern") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both be given: choose one target")
        if self.schedule.kind != "one_shot" and given not in ([], ["ratio"]):
            raise ValueError(f"schedule {self.schedule.kind} needs a ratio, not a {given[0]}")
        if self.block is not None and (self.pattern is not None or min(self.block) < 1):
            raise ValueError("block needs two numbers from 1 and no pattern")
        if self.pattern is not None:
            n, m = map(int, self.pattern.split(":"))
            if not 0 < n < m:
                raise ValueError(f"pattern must keep N of M with 0 < N < M, found {self.pattern}")
        return self


def apply(state: State, options: Options, context: Context) -> State:
    """The model with masks that later steps keep."""
    if state.quantised is not None:
        raise UsageError(
            "weights of an integer model cannot be pruned.", hint="Put prune_weights before quantise."
        )
    from compressors import constraints, layers

    found = layers.chosen(
        state.module, include=options.include, exclude=options.exclude, step="prune_weights"
    )
    names = layers.parameters_of(state.module, found)
    if options.rewind:
        _require_start(state, context)
    state = _proximal(state, options, context, list(names))
    ratios = _ratios(options)
    for done, ratio in enumerate(ratios, 1):
        zeros = _masks(state, options, context, names, ratio)
        new = {name: constraints.Constraint(zeros=mask) for name, mask in zeros.items() if mask.any()}
        state = _masked(state, constraints.merged(state.constraints, new))
        context.report(Progress(stage="prune_weights", done=done, total=len(ratios), note=state.note))
        state = _trained(state, options, context, last=done == len(ratios))
    return state


def _ratios(options: Options) -> list[float | None]:
    """The target of each round; None: threshold or pattern."""
    from compressors.kernels import masks

    if options.threshold is not None or options.pattern is not None:
        return [None]
    target = 0.5 if options.ratio is None else options.ratio
    rounds = 1 if options.schedule.kind == "one_shot" else options.schedule.rounds
    if options.schedule.kind == "cubic":
        return [masks.cubic(t, rounds, target) for t in range(1, rounds + 1)]
    return [target * t / rounds for t in range(1, rounds + 1)]


def _masks(
    state: State, options: Options, context: Context, names: dict[str, str], ratio: float | None
) -> dict[str, Tensor]:
    """True where a weight becomes zero; what was promised to be zero before goes first."""
    from compressors.kernels import masks

    scores = _scores(state, options, context, names)
    if options.pattern is not None:
        return _patterned(scores, options.pattern)
    for name, promise in state.constraints.items():
        if name in scores and promise.zeros is not None:
            scores[name] = scores[name].masked_fill(promise.zeros, float("-inf"))
    blocks, shapes = dict(scores), {name: score.shape for name, score in scores.items()}
    if options.block is not None:
        blocks = {name: masks.block_scores(score, *options.block) for name, score in scores.items()}
    if ratio is None:
        assert options.threshold is not None
        found = {name: masks.by_threshold(score, options.threshold) for name, score in blocks.items()}
    else:
        found = masks.by_ratio(blocks, ratio, together=options.across_layers)
    if options.block is not None:
        found = {name: masks.spread(mask, shapes[name], *options.block) for name, mask in found.items()}
    return found


def _scores(state: State, options: Options, context: Context, names: dict[str, str]) -> dict[str, Tensor]:
    from compressors import importance, training

    if options.importance != "movement":
        return importance.scores(options.importance, state.module, names, context, samples=options.samples)
    movement = importance.Movement(names)
    training.fit(
        state.module,
        context.task,
        options.finetune.model_copy(update={"epochs": max(options.schedule.epochs, 1)}),
        seed=context.seed,
        stage="prune_weights (movement)",
        report=context.report,
        hooks=training.Hooks(before_step=movement.before_step),
        constraints=state.constraints,
    )
    return movement.scores


def _patterned(scores: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    from compressors.kernels import masks

    n, m = map(int, pattern.split(":"))
    fitting = {name: score for name, score in scores.items() if score.shape[1] % m == 0}
    if not fitting:
        inputs = sorted({score.shape[1] for score in scores.values()})
        raise NotApplicable(
            f"pattern {pattern} needs layers with a multiple of {m} inputs, found {inputs}.",
            hint="Choose another pattern or other layers.",
        )
    return {name: masks.n_of_m(score, n, m) for name, score in fitting.items()}


def _masked(state: State, promises: dict[str, Any]) -> State:
    """*state* with its promises made true and told."""
    import copy

    from compressors import constraints

    module = copy.deepcopy(state.module)
    constraints.project(module, promises)
    masks = [c.zeros for c in promises.values() if c.zeros is not None]
    zeros, weights = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    note = f"{zeros:,} of {weights:,} weights in {len(masks)} layers are zero"
    return state.replaced(module, constraints=promises, note=note)


def _trained(state: State, options: Options, context: Context, *, last: bool) -> State:
    from compressors import tuning

    if options.rewind:
        return _rewound(state, context)
    again = options.finetune
    if not last:
        again = again.model_copy(update={"epochs": options.schedule.epochs})
    return tuning.finetune(state, again, context, stage="prune_weights")


def _proximal(state: State, options: Options, context: Context, names: list[str]) -> State:
    """*state* after training with the norm of the weights *names* in the loss, by proximal steps."""
    if not options.proximal.epochs:
        return state
    import torch

    from compressors import training
    from compressors.kernels import masks

    single = options.proximal.kind == "l1"
    shrink = masks.soft_threshold if single else masks.group_soft_threshold

    def after_step(module: nn.Module, rate: float) -> None:
        with torch.no_grad():
            for name in names:
                weight = module.get_parameter(name)
                weight.copy_(shrink(weight, rate * options.proximal.strength))

    module = training.fit(
        state.module,
        context.task,
        options.proximal,
        seed=context.seed,
        stage="prune_weights (proximal)",
        report=context.report,
        hooks=training.Hooks(after_step=after_step),
        constraints=state.constraints,
    )
    return state.replaced(module)


def _require_start(state: State, context: Context) -> None:
    """Refuse a rewind that has no start: weights that came with the task, or other layers than it has."""
    if context.task.training is None:
        raise UsageError(
            f"rewind: the task {context.task.name} brings trained weights: there is no start to go back to.",
            hint="Leave rewind out.",
        )
    start = context.task.model().state_dict()
    now = state.module.state_dict()
    if {k: v.shape for k, v in start.items()} != {k: v.shape for k, v in now.items()}:
        raise UsageError(
            f"rewind: {', '.join(context.before[1:])} changed layers, so the untrained model does not fit.",
            hint="Put prune_weights with rewind first in the recipe.",
        )


def _rewound(state: State, context: Context) -> State:
    """The untrained weights under the masks of *state*, trained as the task was (Frankle & Carbin 2019)."""
    from compressors import training

    task = context.task
    assert task.training is not None
    with training.deterministic(context.seed):
        start = task.model()
    module = training.fit(
        start,
        task,
        task.training,
        seed=context.seed,
        stage="prune_weights (rewound)",
        report=context.report,
        constraints=state.constraints,
    )
    return state.replaced(module, note=f"{state.note}; trained again from the start")
