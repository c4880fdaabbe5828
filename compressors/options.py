"""Options that tasks and passes share; light, so that a recipe can be checked without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.core import plugins
from harness.core.errors import UsageError


class Options(BaseModel):
    """What the options of every pass have in common: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class PassOptions(Options):
    """What every pass of a recipe takes besides its own options."""

    allow_growth: bool = Field(
        default=False,
        description="accept a result with more parameters, bytes or multiply-accumulates than before",
    )


class Training(Options):
    """How a model is trained; a task's ``TRAINING`` and the fine-tuning options of passes."""

    epochs: int = Field(default=10, ge=0, le=100_000, description="passes over the train loader")
    lr: float = Field(default=1e-3, gt=0, le=10, description="peak learning rate")
    optimiser: Literal["adamw", "adam", "sgd"] = Field(default="adamw", description="optimiser")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="weight decay")
    schedule: Literal["one_cycle", "cosine", "step", "constant"] = Field(
        default="one_cycle", description="learning rate over time"
    )
    warmup: float = Field(
        default=0.25, ge=0, le=0.9, description="share of one_cycle in which the rate rises"
    )
    step_epochs: int = Field(
        default=10, ge=1, le=100_000, description="epochs after which the rate of step falls"
    )
    step_factor: float = Field(default=0.1, gt=0, le=1, description="what the rate of step is multiplied by")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="samples of a batch; none: as the train loader gives them",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="epochs without a better validation score after which training ends with the best"
        " weights; none: train all epochs and keep the last",
    )
    channels_last: bool = Field(default=False, description="train in NHWC memory order; faster for many CNNs")
    threads: int = Field(
        default=1, ge=1, le=1024, description="threads; 1 makes weights the same on any core count"
    )


class FineTuning(Training):
    """How a compressed model is trained again."""

    epochs: int = Field(default=10, ge=0, le=100_000, description="passes over the train loader; 0: none")
    alpha: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="weight of the original model's answers in the loss, 0: labels only",
    )
    temperature: float = Field(
        default=4.0, gt=0, le=100, description="softens the answers that are learned from"
    )


def option_error(where: str, options: type[BaseModel], error: ValidationError) -> UsageError:
    """The first problem that pydantic found, as one sentence; *where* says whose options they are."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        unknown = plugins.unknown("option", key, _siblings(options, first["loc"]))
        return UsageError(f"{where}: {unknown.message}", hint=unknown.hint)
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # of several options together
        return UsageError(f"{where}: {f'{key}: ' if key else ''}{text}.")
    text = text[:1].lower() + text[1:]
    return UsageError(f"{where}: {key}: {text}, found {first['input']!r}.")


def _siblings(options: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The dotted names of the options that stand where the last of *location* does."""
    model = options
    for part in location[:-1]:
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    prefix = "".join(f"{part}." for part in location[:-1])
    return [prefix + (field.alias or name) for name, field in model.model_fields.items()]
