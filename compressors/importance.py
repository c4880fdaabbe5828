"""What makes a weight important: one score per weight, higher is more; from values, gradients or inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from compressors.state import Context
from compressors.task import Task
from harness.core.errors import CellError, NotApplicable, UsageError

Kind = Literal["l1", "l2", "taylor", "movement", "snip", "hessian", "wanda", "random"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def scores(
    kind: Kind, module: nn.Module, names: Mapping[str, str], context: Context, *, samples: int
) -> dict[str, Tensor]:
    """
    A score for every weight of the layers *names* (parameter name -> layer name), in the weight's shape.

    Kinds, for a weight w with gradient g (Molchanov 2019, SNIP 2019, LeCun 1990, Wanda 2023): l1 |w|,
    l2 w^2, taylor mean of (w g)^2 over batches, snip |w g| of the mean gradient, hessian w^2 H_ii / 2,
    wanda |w| |x|_2, random. Movement needs training: see :class:`Movement`.
    """
    weights = {name: module.get_parameter(name).detach() for name in names}
    if kind in ("l1", "l2"):
        return {name: w.abs() if kind == "l1" else w.square() for name, w in weights.items()}
    if kind == "random":
        return {name: torch.rand_like(w) for name, w in weights.items()}
    if kind == "wanda":
        norms = input_norms(module, set(names.values()), context.task, samples)
        return {name: weights[name].abs() * norms[layer] for name, layer in names.items()}
    if kind == "hessian":
        diagonal = hessian_diagonal(module, list(names), context, samples)
        return {name: w.square() * diagonal[name].clamp(min=0) / 2 for name, w in weights.items()}
    found = [{n: g[n] for n in names} for g in gradients(module, context, samples)]
    if kind == "snip":
        return {n: (w * sum(g[n] for g in found) / len(found)).abs() for n, w in weights.items()}
    return {n: torch.stack([(w * g[n]).square() for g in found]).mean(0) for n, w in weights.items()}


class Movement:
    """Scores -w g, summed over the steps of a training (Sanh 2020, arXiv:2005.07683)."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.scores: dict[str, Tensor] = {}

    def before_step(self, module: nn.Module) -> None:
        """The hook for training."""
        for name in self.names:
            weight = module.get_parameter(name)
            if weight.grad is not None:
                moved = -(weight.detach() * weight.grad)
                self.scores[name] = self.scores[name] + moved if name in self.scores else moved


def gradients(module: nn.Module, context: Context, samples: int) -> Iterator[dict[str, Tensor]]:
    """The gradient of the task's loss by every parameter, batch by batch, over about *samples* samples."""
    model = copy.deepcopy(module).eval().requires_grad_(True)
    for loss in _losses(model, context, samples):
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        yield {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
        }


def hessian_diagonal(
    module: nn.Module, names: list[str], context: Context, samples: int, probes: int = 4
) -> dict[str, Tensor]:
    """
    The diagonal of the loss's Hessian by Hutchinson's estimate: the mean of v * (H v) over random signs v.

    Exact where the Hessian is diagonal.
    """
    model = copy.deepcopy(module).eval().requires_grad_(True)
    parameters = [model.get_parameter(name) for name in names]
    totals = [torch.zeros_like(p) for p in parameters]
    count = 0
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for loss in _losses(model, context, samples):
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            for _ in range(probes):
                signs = [torch.randint_like(p, 2) * 2 - 1 for p in parameters]
                products = torch.autograd.grad(
                    first, parameters, signs, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                totals = [t + s * hv for t, s, hv in zip(totals, signs, products, strict=True)]
                count += 1
    return {name: (total / count).detach() for name, total in zip(names, totals, strict=True)}


def _losses(model: nn.Module, context: Context, samples: int) -> Iterator[Tensor]:
    task = context.task
    if task.train_loader is None or task.loss is None:
        raise UsageError(
            f"importance: needs train_loader() and loss(), which the task {task.name} does not have.",
            hint="Use importance: l1, wanda or random.",
        )
    seen = 0
    for inputs, targets in task.batches(task.train_loader(context.seed), "train_loader"):
        if seen >= samples or targets is None:
            break
        outputs = task.run(model, inputs)
        yield task.loss(outputs[0] if len(outputs) == 1 else outputs, targets)
        seen += inputs[0].shape[0]
    if not seen:
        raise CellError("build_failed", "train_loader() gave no labelled batch to take gradients from.")


def input_norms(module: nn.Module, layers: set[str], task: Task, samples: int) -> dict[str, Tensor]:
    """
    |x|_2 of the input that each weight of *layers* is multiplied with, over *samples* calibration samples.

    Of a linear layer [1, in], of a convolution [out or 1, in / groups, *kernel]: it multiplies the weight.
    """
    squares: dict[str, Tensor] = {}
    handles = []
    for name in layers:
        layer = module.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(_watch(name, squares)))
    try:
        seen = 0
        for inputs, _ in task.batches(task.calibration_loader(0), "calibration_loader"):
            if seen >= samples:
                break
            with torch.no_grad():
                task.run(module, inputs)
            seen += inputs[0].shape[0]
    finally:
        for handle in handles:
            handle.remove()
    unseen = layers - squares.keys()
    if unseen:
        raise NotApplicable(f"wanda: {sorted(unseen)[0]} is never called, so its inputs are not known.")
    return {name: value.sqrt() for name, value in squares.items()}


def _watch(name: str, squares: dict[str, Tensor]) -> Callable[[nn.Module, Any], None]:
    def hook(layer: nn.Module, arguments: Any) -> None:
        found = _input_squares(name, layer, arguments[0])
        squares[name] = squares[name] + found if name in squares else found

    return hook


def _input_squares(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    """The sums of squares of *x* in a shape that multiplies the layer's weight."""
    if isinstance(layer, nn.Linear):
        return x.square().flatten(0, -2).sum(0, keepdim=True)
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)) or isinstance(layer.padding, str):
        raise NotApplicable(
            f"wanda does not apply to {name}, a {type(layer).__name__}.", hint="Exclude it or use l1."
        )
    flat = isinstance(layer, nn.Conv1d)
    image = x.unsqueeze(2) if flat else x

    def pair(value: tuple[int, ...], fill: int) -> tuple[int, ...]:
        return (fill, *value) if flat else value

    kernel = pair(layer.kernel_size, 1)
    patches = functional.unfold(
        image, kernel, pair(layer.dilation, 1), pair(layer.padding, 0), pair(layer.stride, 1)
    )
    sums = patches.square().sum((0, 2)).reshape(layer.groups, -1, *layer.weight.shape[2:])
    return sums.repeat_interleave(layer.out_channels // layer.groups, 0)
