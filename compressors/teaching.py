"""Train a student on what its teacher answers and on what happens inside the teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors import score, tuning
from compressors.kernels import distillation
from compressors.options import FineTuning
from compressors.state import Context, State
from compressors.task import as_outputs
from compressors.training import Hooks, Loss
from harness.core import plugins
from harness.core.errors import UsageError

#: Student's layer -> teacher's layer.
Pairs = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What is taught besides the answers."""

    hints: Pairs = field(default_factory=dict)
    hint_weight: float = 1.0
    attention: Pairs = field(default_factory=dict)
    attention_weight: float = 1.0


class Watched(nn.Module):
    """A model that keeps the first input and the output of some of its layers until its next call."""

    def __init__(self, model: nn.Module, layers: Iterable[str], adapters: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(dict.fromkeys(layers))
        self.adapters = nn.ModuleList(adapters)
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}  # of a layer that gives several, the first
        self.several: set[str] = set()  # layers that give more than a tensor

    def forward(self, *inputs: Tensor) -> Any:
        """What the model gives."""
        self.inputs, self.outputs = {}, {}
        handles = [
            self.model.get_submodule(name).register_forward_hook(self._keep(name), with_kwargs=True)
            for name in self.layers
        ]
        try:
            return self.model(*inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG001
            given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            result = output[0] if isinstance(output, (tuple, list)) and output else output
            if given is not None:
                self.inputs[name] = given
            if isinstance(result, Tensor):
                self.outputs[name] = result
            if result is not output:
                self.several.add(name)

        return hook


class Adapter(nn.Module):
    """From features of the student to as many channels as its teacher's have; trained and then left out."""

    def __init__(self, found: Tensor, wanted: Tensor) -> None:
        super().__init__()
        self.step: nn.Module = nn.Identity()
        one, two = found.shape, wanted.shape
        if len(one) != len(two) or len(one) not in (2, 3, 4):
            raise ValueError
        if len(one) == 4 and one[1] != two[1]:
            self.step = nn.Conv2d(one[1], two[1], 1)
        elif len(one) == 3 and one[1] != two[1]:
            if one[2] != two[2]:
                raise ValueError
            self.step = nn.Conv1d(one[1], two[1], 1)
        elif one[-1] != two[-1] and len(one) < 4:
            self.step = nn.Linear(one[-1], two[-1])

    def forward(self, features: Tensor) -> Tensor:
        """*features* with the teacher's number of channels."""
        result: Tensor = self.step(features)
        return result


def learn(
    state: State,
    teacher: nn.Module,
    lessons: Lessons,
    options: FineTuning,
    context: Context,
    *,
    stage: str,
    moving: float | None = None,
) -> State:
    """
    *state* with its model taught by *teacher*, under its promises.

    With *moving* the teacher follows the student: its weights become moving * old + (1 - moving) * new.
    """
    pairs = [*lessons.hints.items(), *lessons.attention.items()]
    for option, chosen in (("hints", lessons.hints), ("attention", lessons.attention)):
        for own, other in chosen.items():
            require_layer(state.module, own, option)
            require_layer(teacher, other, option)
    guide = Watched(teacher, [other for _, other in pairs]).eval()
    adapters = _adapters(state.module, guide, lessons, context) if pairs else []
    pupil = Watched(state.module, [own for own, _ in pairs], adapters)
    inside = dataclasses.replace(
        state, module=pupil, constraints={f"model.{name}": c for name, c in state.constraints.items()}
    )
    hooks = Hooks(
        loss=_answers(guide, options, context),
        regulariser=_features(guide, lessons) if pairs else None,
        after_step=None if moving is None else _following(guide.model, moving),
    )
    found = tuning.finetune(inside, options, context, stage=stage, hooks=hooks)
    assert isinstance(found.module, Watched)
    return dataclasses.replace(found, module=found.module.model, constraints=state.constraints)


def require_layer(module: nn.Module, name: str, option: str) -> nn.Module:
    """The layer *name* of *module*; UsageError, naming the option, if there is none."""
    layers: dict[str, nn.Module] = {n: m for n, m in module.named_modules() if n}
    if name not in layers:
        unknown = plugins.unknown("layer", name, layers)
        raise UsageError(f"{option}: {unknown.message}", hint=unknown.hint)
    return layers[name]


def observed(module: nn.Module, layers: Iterable[str], context: Context, option: str) -> Watched:
    """*module* after a run on the example inputs; UsageError for a layer that takes or gives no tensor."""
    watched = Watched(module, layers).eval()
    score.forward(watched, context.task.example_inputs(), context.task)
    for name in watched.layers:
        if name not in watched.outputs or name not in watched.inputs:
            raise UsageError(
                f"{option}: {name} takes and gives no tensor when the model runs.",
                hint="Choose a layer that does.",
            )
    return watched


def _adapters(module: nn.Module, guide: Watched, lessons: Lessons, context: Context) -> list[nn.Module]:
    """An adapter per hint, made for what both models give for the example inputs."""
    pairs = {"hints": lessons.hints, "attention": lessons.attention}
    found: list[nn.Module] = []
    for option, chosen in pairs.items():
        ours = observed(module, chosen, context, option).outputs
        theirs = observed(guide.model, chosen.values(), context, option).outputs
        for own, other in chosen.items():
            one, two = ours[own], theirs[other]
            try:
                fits = _map_fits(one, two) if option == "attention" else Adapter(one, two)
            except ValueError as error:
                raise UsageError(
                    f"{option}: {own} gives {list(one.shape)} and the teacher's {other} {list(two.shape)},"
                    " which cannot be compared.",
                    hint="Pair layers with as many dimensions and tokens; vectors have no attention map.",
                ) from error
            if isinstance(fits, Adapter):
                found.append(fits)
    return found


def _map_fits(one: Tensor, two: Tensor) -> bool:
    if one.ndim != two.ndim or one.ndim not in (3, 4) or (one.ndim == 3 and one.shape[1] != two.shape[1]):
        raise ValueError
    return True


def _answers(guide: Watched, options: FineTuning, context: Context) -> Loss:
    """The task's loss mixed with the distance to the teacher's answers; runs the teacher once per batch."""
    own_loss = context.task.loss

    def loss(inputs: tuple[Tensor, ...], outputs: Any, targets: Tensor) -> Tensor:
        assert own_loss is not None  # fit has seen to it
        with torch.no_grad():
            answers = context.task.run(guide, inputs)
        hard = own_loss(outputs, targets)
        if not options.alpha:
            return hard
        soft = tuning.distance(as_outputs(outputs, "the model"), answers, options.temperature)
        return distillation.mixed(hard, soft, options.alpha)

    return loss


def _features(guide: Watched, lessons: Lessons) -> Any:
    """From the student in training to what its features lack; its teacher has just seen the same batch."""

    def missing(pupil: nn.Module) -> Tensor:
        assert isinstance(pupil, Watched)
        terms = []
        for adapter, (own, other) in zip(pupil.adapters, lessons.hints.items(), strict=True):
            found, wanted = distillation.same_places(adapter(pupil.outputs[own]), guide.outputs[other])
            terms.append(lessons.hint_weight * functional.mse_loss(found, wanted))
        for own, other in lessons.attention.items():
            found, wanted = distillation.same_places(pupil.outputs[own], guide.outputs[other])
            terms.append(lessons.attention_weight * distillation.attention_distance(found, wanted))
        return torch.stack(terms).sum()

    return missing


def _following(guide: nn.Module, moving: float) -> Any:
    @torch.no_grad()
    def follow(pupil: nn.Module, rate: float) -> None:  # noqa: ARG001
        assert isinstance(pupil, Watched)
        for old, new in zip(guide.parameters(), pupil.model.parameters(), strict=True):
            old.lerp_(new, 1 - moving)
        for kept, found in zip(guide.buffers(), pupil.model.buffers(), strict=True):
            kept.copy_(found)

    return follow
