"""Blocks that a model can do without: which keep the shape of what they are given, and what each is worth."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors import layers
from compressors.state import Context
from compressors.task import Batch, Task
from harness.core.errors import NotApplicable, UsageError

Kind = Literal["loss", "influence", "random"]


class Bypass(nn.Module):
    """In the place of a block with several inputs or outputs: gives its first input back."""

    def __init__(self, outputs: int) -> None:
        """*outputs*: 0 for a tensor, otherwise how many a tuple has; all but the first are None."""
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, *_arguments: Any, **_named: Any) -> Any:
        """*x*, as the block would give it."""
        return x if not self.outputs else (x, *([None] * (self.outputs - 1)))


@dataclass(slots=True, kw_only=True)
class _Call:
    """How a block was called."""

    count: int = 0
    arguments: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    output: Any = None

    @property
    def given(self) -> Any:
        return self.arguments[0] if self.arguments else None

    @property
    def first(self) -> Any:
        return self.output[0] if isinstance(self.output, tuple) and self.output else self.output

    @property
    def same_shape(self) -> bool:
        a, b = self.given, self.first
        return isinstance(a, Tensor) and isinstance(b, Tensor) and (a.shape, a.dtype) == (b.shape, b.dtype)

    def replacement(self) -> nn.Module:
        if len(self.arguments) == 1 and not self.named and isinstance(self.output, Tensor):
            return nn.Identity()
        return Bypass(len(self.output) if isinstance(self.output, tuple) else 0)


def candidates(
    module: nn.Module, task: Task, include: tuple[str, ...], exclude: tuple[str, ...]
) -> list[str]:
    """
    Blocks that can go, by name in the order of the model.

    Without *include*: the innermost residual blocks (with all weights zero they give back what they get),
    and outside of them the innermost layers with weights whose output has the shape of their input.
    """
    found = {name: layer for name, layer in module.named_modules() if name}
    calls = _calls(module, found, _sample(task))
    outside = set(layers.named(found, exclude, "exclude"))
    if include:
        inside = [name for name in layers.named(found, include, "include") if name not in outside]
        for name in inside:
            _require_same_shape(name, calls[name])
        return _innermost(inside, outer=True)
    possible = [
        name
        for name, layer in found.items()
        if layers.weighted(layer) and calls[name].count == 1 and calls[name].same_shape
    ]
    residual = _innermost([n for n in possible if _is_residual(found[n], calls[n])])
    rest = _innermost([n for n in possible if not any(_overlap(n, r) for r in residual)])
    chosen = [n for n in possible if n in {*residual, *rest} and n not in outside]
    if not chosen:
        raise NotApplicable(
            "prune_layers does not apply: no block or layer of the model gives out the shape that it gets"
            + (", but for excluded ones." if residual or rest else "."),
        )
    return chosen


def _require_same_shape(name: str, call: _Call) -> None:
    if call.count == 1 and call.same_shape:
        return
    if call.count != 1:
        why = f"it is called {call.count} times"
    elif isinstance(call.given, Tensor) and isinstance(call.first, Tensor):
        why = f"it turns {list(call.given.shape)} into {list(call.first.shape)}"
    else:
        why = "it does not give a tensor for a tensor"
    raise UsageError(
        f"include: {name} cannot go: {why}.", hint="Choose a block whose output has the shape of its input."
    )


def _sample(task: Task) -> tuple[Tensor, ...]:
    for inputs, _ in task.batches(task.calibration_loader(0), "calibration_loader"):
        return tuple(tensor[:1] for tensor in inputs)
    return task.example_inputs()


def _calls(module: nn.Module, found: Mapping[str, nn.Module], inputs: tuple[Tensor, ...]) -> dict[str, _Call]:
    calls = {name: _Call() for name in found}

    def watch(call: _Call) -> Any:
        def hook(_layer: nn.Module, arguments: Any, named: Any, output: Any) -> None:
            call.count += 1
            call.arguments, call.named, call.output = arguments, named, output

        return hook

    handles = [
        layer.register_forward_hook(watch(calls[name]), with_kwargs=True) for name, layer in found.items()
    ]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _is_residual(layer: nn.Module, call: _Call) -> bool:
    """Whether the block gives back its input once all of its weights are zero."""
    empty = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.zero_()
        output = empty(*call.arguments, **call.named)
    first = output[0] if isinstance(output, tuple) else output
    return torch.equal(first, call.given)


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _innermost(names: list[str], *, outer: bool = False) -> list[str]:
    """Those of *names* that have no other of them inside, or with *outer* that are in no other."""
    if outer:
        return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    return [n for n in names if not any(other.startswith(f"{n}.") for other in names)]


def without(module: nn.Module, name: str, task: Task) -> nn.Module:
    """A copy of *module* in which the block *name* is passed by."""
    call = _calls(module, {name: module.get_submodule(name)}, _sample(task))[name]
    return layers.replace(copy.deepcopy(module), name, call.replacement())


def worth(
    kind: Kind, module: nn.Module, names: list[str], context: Context, samples: int
) -> dict[str, float]:
    """
    What each block is worth; less is better to remove.

    loss: how much the loss on held-out samples rises without it. influence: 1 - the mean cosine between
    what it gets and what it gives, token by token or place by place (ShortGPT, Men 2024, arXiv:2403.03853).
    """
    if kind == "random":
        return dict(zip(names, torch.rand(len(names)).tolist(), strict=True))
    if kind == "influence":
        return influence(module, names, context, samples)
    base = loss(module, context, samples)
    return {name: loss(without(module, name, context.task), context, samples) - base for name in names}


def influence(module: nn.Module, names: list[str], context: Context, samples: int) -> dict[str, float]:
    """1 - the mean cosine between the input and the output of each block."""
    totals, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    found = {name: module.get_submodule(name) for name in names}
    for inputs, _ in _held_out(context, samples):
        for name, call in _calls(module, found, inputs).items():
            dim = 1 if call.given.ndim == 4 else -1
            cosines = functional.cosine_similarity(call.given.double(), call.first.double(), dim)
            totals[name] += float(cosines.sum())
            counts[name] += cosines.numel()
    return {name: 1 - totals[name] / counts[name] for name in names}


def loss(module: nn.Module, context: Context, samples: int) -> float:
    """The mean of the task's loss on held-out samples."""
    task, total, count = context.task, 0.0, 0
    if task.loss is None:
        raise UsageError(
            f"importance: loss needs loss(), which the task {task.name} does not have.",
            hint="Use importance: influence.",
        )
    with torch.no_grad():
        for inputs, targets in _held_out(context, samples):
            if targets is None:
                continue
            outputs = task.run(module, inputs)
            value = task.loss(outputs[0] if len(outputs) == 1 else outputs, targets)
            total += float(value) * len(targets)
            count += len(targets)
    if not count:
        raise UsageError("importance: loss: there are no labelled samples to measure it on.")
    return total / count


def _held_out(context: Context, samples: int) -> Iterator[Batch]:
    """Samples of the validation split; of the training data if the validation split is the test split."""
    task, seen = context.task, 0
    own = task.has_test_split or task.train_loader is None
    loader = task.validation_loader() if own or task.train_loader is None else task.train_loader(context.seed)
    for inputs, targets in task.batches(loader, "validation_loader" if own else "train_loader"):
        if seen >= samples:
            return
        left = samples - seen
        yield tuple(tensor[:left] for tensor in inputs), None if targets is None else targets[:left]
        seen += inputs[0].shape[0]
