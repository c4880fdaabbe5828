"""What makes a channel, a neuron or an attention head important: one score per unit of every group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compressors import importance
from compressors.channels import Graph, Group, Member, along
from compressors.state import Context
from compressors.task import Task
from harness.core.errors import NotApplicable

Kind = Literal["l1", "l2", "bn_scale", "taylor", "hessian", "activation", "rank", "pca", "random"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Kinds whose scores have no common scale: for a ranking over layers they are divided by their mean.
RELATIVE: tuple[Kind, ...] = ("l1", "l2", "activation", "rank", "pca")
#: Kinds that need the outputs of layers, and those that need the loss.
OF_FEATURES: tuple[Kind, ...] = ("activation", "rank", "pca")
OF_LOSS: tuple[Kind, ...] = ("taylor", "hessian")

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
#: How much of a layer's variance the principal directions that pca looks at have.
ENERGY = 0.95


def scores(
    kind: Kind, graph: Graph, context: Context, *, samples: int, layer_only: bool = False
) -> dict[str, Tensor]:
    """
    A score [units] for every group of *graph* that *kind* says something about; higher is more important.

    l1, l2: the norm of a channel's weights: sum of |w| (Li 2017, arXiv:1608.08710) or of w^2, the mean over
    the group's layers and sides (Fang 2023, arXiv:2301.12900), or with *layer_only* of the layer that makes
    it. taylor: sum of (w g)^2 (Molchanov 2019), hessian: sum of w^2 H_ii / 2 (LeCun 1990), both over all
    weights and biases that make or norm the channel. bn_scale: |gamma| (Liu 2017, arXiv:1708.06519).
    activation: mean |x|. rank: mean rank of the feature maps (HRank, Lin 2020). pca: see
    :func:`principal`. random.
    Of a unit of several channels the mean; the sum of what is measured in the loss.
    """
    if kind == "random":
        return {name: torch.rand(len(group.units)) for name, group in graph.groups.items()}
    if kind in OF_FEATURES:
        found = _of_features(kind, graph, context.task, samples)
    else:
        weights = _weight_scores(kind, graph, context, samples)
        found = {}
        for name, group in graph.groups.items():
            value = _of_weights(kind, group, weights, layer_only)
            if value is not None:
                found[name] = value
    if not found:
        raise NotApplicable(f"importance: {kind} does not apply: {_LACKS[kind]}", hint="Use importance: l2.")
    units = {name: value[graph.groups[name].units] for name, value in found.items()}
    return {name: value.sum(1) if kind in OF_LOSS else value.mean(1) for name, value in units.items()}


_LACKS: dict[Kind, str] = {
    "bn_scale": "no channels that could go have a batch norm behind them.",
    "rank": "no layer that could go makes feature maps; vectors have no rank.",
}
for _kind in KINDS:
    _LACKS.setdefault(_kind, "the model has no channels that could go.")


def relative(kind: Kind, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """*found* on one scale for all layers."""
    if kind not in RELATIVE:
        return dict(found)
    return {name: value / value.mean().clamp(min=1e-30) for name, value in found.items()}


def _weight_scores(kind: Kind, graph: Graph, context: Context, samples: int) -> dict[str, Tensor]:
    """A score for every weight of the model's groups, by parameter name."""
    members = [m for group in graph.groups.values() for m in group.members]
    layers = {m.name: m.layer for m in members if m.role == "out" or kind not in OF_LOSS}
    names = {
        f"{layer}.{key}": layer
        for layer, module in layers.items()
        for key, _ in module.named_parameters(recurse=False)
        if key in ("weight", "bias")
    }
    if kind == "bn_scale":
        return {name: graph.module.get_parameter(name).detach().abs() for name in names}
    assert kind in ("l1", "l2", "taylor", "hessian")
    return importance.scores(kind, graph.module, names, context, samples=samples)


def _of_weights(kind: Kind, group: Group, weights: Mapping[str, Tensor], layer_only: bool) -> Tensor | None:
    """The score [channels] of a group from scores of weights; None: this kind has no say here."""
    parts = []
    for member in group.members:
        values = weights.get(f"{member.name}.weight")
        if values is None or (values.ndim == 1 and not isinstance(member.layer, _NORMS)):
            continue
        if kind == "bn_scale" and not isinstance(member.layer, _BatchNorm):
            continue
        if kind in OF_LOSS and member.role == "in":
            continue
        if layer_only and not (member.name == group.name and member.role == "out"):
            continue
        parts.append(_at_roots(group, member, along(member, values)))
        bias = weights.get(f"{member.name}.bias") if kind in OF_LOSS else None
        if bias is not None:
            parts.append(_at_roots(group, member, bias[member.channels]))
    if not parts:
        return None
    total = torch.stack(parts).sum(0)
    return total if kind in OF_LOSS else total / len(parts)


def _at_roots(group: Group, member: Member, values: Tensor) -> Tensor:
    return torch.zeros(group.size).index_add_(0, member.roots, values)


def _of_features(kind: Kind, graph: Graph, task: Task, samples: int) -> dict[str, Tensor]:
    """Scores [channels] from what the layers behind a group read, or from its own outputs if none does."""
    seen: dict[tuple[str, str], _Seen] = {}
    handles = []
    for name, group in graph.groups.items():
        readers = [m for m in group.members if m.role == "in" and isinstance(m.layer, (nn.Linear, _ConvNd))]
        makers = [m for m in group.members if m.role == "out" and isinstance(m.layer, (nn.Linear, _ConvNd))]
        for member in readers or makers:
            watched = seen[name, f"{member.name} {member.role}"] = _Seen(kind, group, member)
            register: Any = (
                member.layer.register_forward_pre_hook if readers else member.layer.register_forward_hook
            )
            handles.append(register(watched.hook))
    try:
        _feed(graph.module, task, samples)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[Tensor]] = {}
    for (name, _), watched in seen.items():
        value = watched.score()
        if value is not None:
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


def _feed(module: nn.Module, task: Task, samples: int) -> None:
    """Run *samples* calibration samples through *module*."""
    training, count = module.training, 0
    module.eval()
    with torch.no_grad():
        for inputs, _ in task.batches(task.calibration_loader(0), "calibration_loader"):
            if count >= samples:
                break
            part = tuple(tensor[: samples - count] for tensor in inputs)
            task.run(module, part)
            count += part[0].shape[0]
    module.train(training)


class _Seen:
    """What one layer was given, or gave, of a group's channels: sums, so that nothing large is kept."""

    def __init__(self, kind: Kind, group: Group, member: Member) -> None:
        self.kind, self.group, self.member = kind, group, member
        self.count, self.maps = 0, True
        self.first = torch.zeros(group.size, dtype=torch.float64)
        self.second = torch.zeros(group.size, group.size, dtype=torch.float64) if kind == "pca" else None

    def hook(self, layer: nn.Module, arguments: Any, output: Tensor | None = None) -> None:
        for maps in self._maps(layer, arguments[0] if output is None else output):
            if self.kind == "rank":
                self.maps = self.maps and min(maps.shape[-2:]) > 1
                self.first += torch.linalg.matrix_rank(maps).sum(0)
                self.count += len(maps)
                continue
            values = maps.double().movedim(1, 0).flatten(1)  # [channels, samples x places]
            self.first += values.abs().sum(1) if self.kind == "activation" else values.sum(1)
            self.count += values.shape[1]
            if self.second is not None:
                self.second += values @ values.T

    def _maps(self, layer: nn.Module, x: Tensor) -> Iterator[Tensor]:
        """*x* as maps [samples, channels, height, width] in the order of the group's channels."""
        if isinstance(layer, nn.Linear):
            x = x.flatten(0, -2)
        x = x.flatten(2) if x.ndim > 4 else x
        height, width = (x.shape[-2], x.shape[-1]) if x.ndim == 4 else (1, math.prod(x.shape[2:]))
        x = x.reshape(x.shape[0], x.shape[1], height, width)[:, self.member.channels]
        times = torch.bincount(self.member.roots, minlength=self.group.size)
        several = int(times.max())
        if several == 1:
            ordered = x.new_zeros(x.shape[0], self.group.size, height, width)
            ordered[:, self.member.roots] = x
            yield ordered
        elif bool((times == several).all()) and height * width == 1:  # flattened maps, read by a linear layer
            order = self.member.roots.argsort(stable=True)
            side = math.isqrt(several)
            shape = (side, side) if side * side == several else (1, several)
            yield x[:, order].reshape(x.shape[0], self.group.size, *shape)

    def score(self) -> Tensor | None:
        """[channels]; None if nothing was seen, or no maps where maps are needed."""
        if not self.count or not self.maps:
            return None
        mean = self.first / self.count
        if self.second is None:
            return mean.float()
        return principal(self.second / self.count - torch.outer(mean, mean)).float()


def principal(covariance: Tensor, energy: float = ENERGY) -> Tensor:
    """
    How much each channel has of the main directions of the activations: sum of lambda_k v_k^2 [channels].

    Over the largest eigenvalues lambda_k of *covariance* [n, n] that together have the share *energy* of
    the variance; v_k is the channel's part of the eigenvector. All of them would give the variances.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = values.sum()
    if not total:
        return torch.zeros_like(values)
    many = int((values.cumsum(0) / total < energy - 1e-12).sum()) + 1
    found: Tensor = (vectors[:, :many].square() * values[:many]).sum(1)
    return found
