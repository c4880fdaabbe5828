"""Search how to train the model (rate, schedule, optimiser, epochs ...) and keep the best weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from compressors import options as shared
from harness.core.errors import CellError, EdgebenchError, NotApplicable, UsageError
from harness.core.types import Progress

if TYPE_CHECKING:
    import optuna
    from torch import nn

    from compressors.state import Context, State

NEEDS = ("float", "eager")

Optimiser = Literal["adamw", "adam", "sgd"]
Schedule = Literal["one_cycle", "cosine", "step", "constant"]


class Options(shared.PassOptions):
    """Options of search_training."""

    trials: int = Field(default=12, ge=1, le=10_000, description="trainings that are tried")
    sampler: Literal["tpe", "random"] = Field(
        default="tpe", description="learn from earlier trials where to look, or do not"
    )
    start: Literal["model", "new"] = Field(
        default="model", description="train the model as it is, or begin with new weights in every trial"
    )
    lr: tuple[float, float] = Field(
        default=(1e-4, 2e-2), description="least and largest rate, > 0 and ≤ 10, searched by its logarithm"
    )
    weight_decay: tuple[float, float] = Field(
        default=(1e-4, 0.1), description="least and largest weight decay, > 0 and ≤ 1, by its logarithm"
    )
    epochs: tuple[int, int] = Field(default=(5, 20), description="fewest and most epochs, 1 to 100000")
    optimisers: tuple[Optimiser, ...] = Field(
        default=("adamw", "sgd"), min_length=1, description="optimisers to choose from"
    )
    schedules: tuple[Schedule, ...] = Field(
        default=("one_cycle", "cosine"), min_length=1, description="schedules to choose from"
    )
    batch_sizes: tuple[int, ...] = Field(
        default=(), description="batch sizes to choose from; none: as the train loader gives them"
    )
    patiences: tuple[int, ...] = Field(
        default=(), description="patiences of early stopping to choose from; none: no early stopping"
    )
    rest: shared.FineTuning = Field(
        default=shared.FineTuning(),
        description="what is not searched: alpha, temperature, momentum …",
    )
    storage: str | None = Field(
        default=None,
        min_length=1,
        description="SQLite file that keeps every finished trial, so that a search that was stopped goes on",
    )

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, most in (("lr", 10.0), ("weight_decay", 1.0), ("epochs", 100_000)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise ValueError(
                    f"{name} must be two numbers, 0 < least ≤ most ≤ {most:g}, found {low}, {high}"
                )
        for name in ("batch_sizes", "patiences"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name} must be whole numbers ≥ 1, found {min(getattr(self, name))}")
        return self


def apply(state: State, options: Options, context: Context) -> State:
    """The model with the weights that had the best validation score, its own if no trial was better."""
    task = context.task
    if state.quantised is not None:
        raise UsageError("integer weights cannot be trained.", hint="Put search_training before quantise.")
    if task.train_loader is None or task.loss is None or task.metric is None:
        raise NotApplicable(
            f"search_training does not apply: the task {task.name} has no train_loader(), loss() and"
            " metric()."
        )
    if not task.has_test_split:
        raise UsageError(
            f"the task {task.name} has no test_loader(), so trials would be chosen on what the result is"
            " scored on.",
            hint="Give the task a test_loader() or use finetune.",
        )
    import optuna

    from compressors import score

    study = _study(state, options, context)
    found = _search(study, state, options, context)
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        why = study.trials[-1].user_attrs.get("reason", "none was started")
        raise CellError(
            "build_failed",
            f"none of {options.trials} trials could be trained to its end; the last: {why}",
            hint="Try smaller rates (option lr).",
        )
    best = max(complete, key=lambda t: (t.value or 0.0, -t.number))
    own = score.of_validation(state.module, task)
    told = f"{len(complete)} trials, best validation {task.metric_name} {best.value:.4f} (it had {own:.4f})"
    if options.start == "model" and (best.value or 0.0) <= own:
        return state.replaced(state.module, note=f"{told}, so it stays as it was")
    after = found.get(best.number) or _train(state, best.params, options, context, best.number)
    return after.replaced(after.module, note=f"{told}: {_strategy(best.params)}")


def _study(state: State, options: Options, context: Context) -> optuna.Study:
    """A new study, or the one in the storage that searched the same for the same weights and seed."""
    import hashlib
    from pathlib import Path

    import optuna

    from compressors import source
    from harness.core.types import digest

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    weights = hashlib.sha256()
    for tensor in state.module.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    asked = options.model_dump(exclude={"trials", "storage", "allow_growth"}, mode="json")
    model = [source.task_digest(context.task.path), str(state.module), weights.hexdigest(), context.seed]
    name = digest([source.own_digest("passes/search_training"), model, asked])[:32]
    if options.storage is None:
        return optuna.create_study(study_name=name, direction="maximize")
    path = Path(options.storage).expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return optuna.create_study(
            storage=f"sqlite:///{path}", study_name=name, direction="maximize", load_if_exists=True
        )
    except Exception as error:
        first = str(error).split("\n", 1)[0]
        raise UsageError(f"storage: {path} cannot be used as a SQLite file: {first}") from error


def _search(study: optuna.Study, state: State, options: Options, context: Context) -> dict[int, State]:
    """Try until enough trials are done; the best one of this run by its number."""
    import optuna

    from compressors import score

    space = _space(options)
    done = sum(_counts(trial) for trial in study.trials)
    best: tuple[float, dict[int, State]] = (float("-inf"), {})
    while done < options.trials:
        # A sampler of its own for every trial: a search that goes on finds what one without a stop finds.
        seed = (context.seed * 1_000_003 + done) % 2**32
        study.sampler = (
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
            if options.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        trial = study.ask(space) if done else None
        params = trial.params if trial else _usual(space)
        reason, value, after = "", None, None
        try:
            after = _train(state, params, options, context, done)
            value = score.of_validation(after.module, context.task)
        except EdgebenchError as error:  # e.g. the loss became NaN: this one is no good, the next may be
            reason = error.message
        number = _keep(study, trial, space=space, params=params, value=value, reason=reason)
        if after is not None and value is not None and value > best[0]:
            best = (value, {number: after})
        done += 1
        note = reason or f"validation {value:.4f}: {_strategy(params)}"
        context.report(Progress(stage="search_training", done=done, total=options.trials, note=note))
    return best[1]


def _counts(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial came to its end; one that was stopped did not."""
    return trial.value is not None or "reason" in trial.user_attrs


def _keep(
    study: optuna.Study,
    trial: optuna.Trial | None,
    *,
    space: dict[str, Any],
    params: dict[str, Any],
    value: float | None,
    reason: str,
) -> int:
    """Write a finished trial into the study, and so into its file; its number there."""
    import optuna

    state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
    told = {"reason": reason} if value is None else {}
    if trial is None:  # the first one, which the study did not choose
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params=params, distributions=space, value=value, user_attrs=told
            )
        )
        return len(study.trials) - 1
    for key, text in told.items():
        trial.set_user_attr(key, text)
    study.tell(trial, value, state=state)
    return int(trial.number)


def _space(options: Options) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    choices: dict[str, tuple[Any, ...]] = {
        "optimiser": options.optimisers,
        "schedule": options.schedules,
        "batch_size": options.batch_sizes,
        "patience": options.patiences,
    }
    return {
        "lr": FloatDistribution(*options.lr, log=True),
        "weight_decay": FloatDistribution(*options.weight_decay, log=True),
        "epochs": IntDistribution(*options.epochs),
    } | {name: CategoricalDistribution(values) for name, values in choices.items() if values}


def _usual(space: dict[str, Any]) -> dict[str, Any]:
    """What is tried first: the usual options of training, or what is allowed nearest to them."""
    usual = shared.FineTuning()
    found: dict[str, Any] = {}
    for name, values in space.items():
        wanted = getattr(usual, name)
        if hasattr(values, "choices"):
            found[name] = wanted if wanted in values.choices else values.choices[0]
        else:
            found[name] = min(max(wanted, values.low), values.high)
    return found


def _train(state: State, params: dict[str, Any], options: Options, context: Context, number: int) -> State:
    """*state* trained with the strategy *params*."""
    from compressors import given, tuning
    from compressors.constraints import project

    if options.start == "new":
        module: nn.Module = given.reborn(state.module, context.task, context.seed)
        project(module, state.constraints)
        state = state.replaced(module)
    training = options.rest.model_copy(update=params)
    return tuning.finetune(state, training, context, stage=f"search_training (trial {number + 1})")


def _strategy(params: dict[str, Any]) -> str:
    numbers = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in params.items()}
    return ", ".join(f"{name} {value}" for name, value in numbers.items())
