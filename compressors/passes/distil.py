"""Train a student (this model or a given smaller one) on a teacher's answers, features or blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from compressors import options as shared
from harness.core.errors import NotApplicable, UsageError

if TYPE_CHECKING:
    from torch import nn

    from compressors.state import Context, State

NEEDS = ("float", "eager")
BREAKS = ()


class Options(shared.FineTuning, shared.PassOptions):
    """Options of distil."""

    teacher: str = Field(
        default="original",
        min_length=1,
        description="original (the trained model) | before (the model that this step is given) | ema (the"
        " moving average of the student itself) | born_again (the model so far teaches one that begins anew)"
        " | a step before this one (prune_channels) | a task or a task's file",
    )
    student: str | None = Field(
        default=None,
        min_length=1,
        description="a smaller model to train: a function of the task's file (small_model) or file.py"
        " (file.py:function); none: the model so far, e.g. as it was pruned",
    )
    epochs: int = Field(default=10, ge=0, le=100_000, description="passes over the train loader")
    alpha: float = Field(
        default=0.7, ge=0, le=1, description="weight of the teacher's answers in the loss; the rest is labels"
    )
    hints: dict[str, str] = Field(
        default={}, description="student's layer: teacher's layer whose features it learns (mean square)"
    )
    hint_weight: float = Field(default=1.0, ge=0, le=1e6, description="weight of hints in the loss")
    attention: dict[str, str] = Field(
        default={}, description="student's layer: teacher's layer whose attention map it learns"
    )
    attention_weight: float = Field(default=10.0, ge=0, le=1e6, description="weight of attention in the loss")
    blocks: dict[str, str] = Field(
        default={},
        description="student's block: teacher's block; each is first trained alone on what the teacher's"
        " block takes and gives",
    )
    block_epochs: int = Field(default=5, ge=0, le=100_000, description="epochs of that first training")
    ema_decay: float = Field(
        default=0.99, ge=0, lt=1, description="how much of its old weights the teacher ema keeps per batch"
    )
    generations: int = Field(
        default=1, ge=1, le=20, description="of born_again: how often the student becomes the teacher"
    )


def apply(state: State, options: Options, context: Context) -> State:
    """The student after its training."""
    if state.quantised is not None:
        raise UsageError("an integer model cannot be taught.", hint="Put distil before quantise.")
    if context.task.train_loader is None or context.task.loss is None:
        raise NotApplicable(
            f"distil does not apply: the task {context.task.name} has no train_loader() and loss()."
        )
    from compressors import counting, given

    _require_sense(options)
    teacher = _teacher(state, options, context)
    pupil = _pupil(state, options, context)
    given.require_fit(pupil.module, teacher, context.task, options.student or "the model")
    generations = options.generations if options.teacher == "born_again" else 1
    notes: list[str] = []
    for generation in range(1, generations + 1):
        if options.teacher == "born_again" and options.student is None:
            pupil = _reborn(pupil, context, generation)
        taught, told = _taught(pupil, teacher, options, context)
        agreed = given.agreement(taught.module, teacher, context.task)
        if agreed is not None:
            told += [f"the same class as its teacher on {100 * agreed:.1f} % of the validation samples"]
        notes = told
        pupil, teacher = taught, taught.module
    who = options.student or "the model"
    size = f"{counting.parameters(pupil.module):,} parameters"
    note = f"{who} ({size}) learned from {options.teacher}; {'; '.join(notes)}".rstrip("; ")
    return state.replaced(
        pupil.module, constraints=pupil.constraints, dropped=pupil.dropped, bits=pupil.bits, note=note
    )


def _require_sense(options: Options) -> None:
    """Refuse options that contradict each other."""
    if options.teacher == "ema" and (options.blocks or options.student):
        other = "blocks" if options.blocks else "student"
        raise UsageError(
            f"{other}: the teacher ema is the average of the student itself.",
            hint=f"Choose another teacher or leave {other} out.",
        )
    if options.teacher != "born_again" and options.generations > 1:
        raise UsageError("generations: only the teacher born_again has them.", hint="Leave it out.")


def _teacher(state: State, options: Options, context: Context) -> nn.Module:
    import copy

    from compressors import given

    if options.teacher == "original":
        return context.original
    if options.teacher in ("before", "born_again"):
        return state.module
    if options.teacher == "ema":
        return copy.deepcopy(state.module)
    return given.teacher(options.teacher, context)


def _pupil(state: State, options: Options, context: Context) -> State:
    """What is trained: the state, or a given model, which takes over no promise."""
    from compressors import given

    if options.student is None:
        return state
    why = f"{options.student} is another model"
    return state.replaced(
        given.student(options.student, context.task),
        constraints={},
        dropped=dict.fromkeys(state.constraints, why),
        bits={},
    )


def _reborn(pupil: State, context: Context, generation: int) -> State:
    """*pupil* with new weights, its zeros and shared values kept."""
    from compressors import given
    from compressors.constraints import project

    module = given.reborn(pupil.module, context.task, context.seed + 7919 * generation)
    project(module, pupil.constraints)
    return pupil.replaced(module)


def _taught(pupil: State, teacher: nn.Module, options: Options, context: Context) -> tuple[State, list[str]]:
    """*pupil* after its blocks and then the whole were trained, and what to tell of it."""
    from compressors import blockwise, teaching

    told: list[str] = []
    if options.blocks:
        for own, other in options.blocks.items():
            teaching.require_layer(pupil.module, own, "blocks")
            teaching.require_layer(teacher, other, "blocks")
        alone = options.model_copy(update={"epochs": options.block_epochs})
        pupil, errors = blockwise.train(
            pupil, teacher, options.blocks, alone, context, stage="distil (blocks)"
        )
        told.append(blockwise.summary(errors))
    lessons = teaching.Lessons(
        hints=options.hints,
        hint_weight=options.hint_weight,
        attention=options.attention,
        attention_weight=options.attention_weight,
    )
    moving = options.ema_decay if options.teacher == "ema" else None
    dropped = pupil.dropped
    taught = teaching.learn(pupil, teacher, lessons, options, context, stage="distil", moving=moving)
    return taught.replaced(taught.module, dropped=dropped), told
