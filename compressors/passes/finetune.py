"""Train the model a little more, so that it recovers from the passes before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from compressors import options as shared

if TYPE_CHECKING:
    from compressors.state import Context, State

NEEDS = ("float", "eager")


class Options(shared.FineTuning, shared.PassOptions):
    """Options of finetune."""

    epochs: int = Field(default=10, ge=1, le=100_000, description="passes over the train loader")


def apply(state: State, options: Options, context: Context) -> State:
    """The model after *options.epochs* more epochs."""
    from compressors import tuning

    return tuning.finetune(state, options, context, stage="finetune")
