"""Which channels of a model hang together, by Torch-Pruning's dependency graph, and how they are cut."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Kind = Literal["filters", "neurons", "heads"]

#: How attention modules call the number of their heads, and their three projections.
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "heads")
PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)
#: What some of them call the width of all heads.
HEADS_WIDTHS = ("all_head_size", "inner_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One layer of a group: its channels [n] and the channels of the group's root that they follow [n]."""

    name: str
    layer: nn.Module
    role: Literal["out", "in"]  # which side of the layer the channels are
    channels: Tensor
    roots: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """
    Channels that are cut together in every layer that has them.

    *units* [n, channels of one]: what can go by itself: a channel, the same channel of every group of a
    grouped convolution, or an attention head.
    """

    name: str  # of the layer that makes the channels
    kind: Kind
    units: Tensor
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Channels."""
        return self.units.numel()


class Graph:
    """The groups of *module*; *kept* layers stay whole. ``whole`` says of layers why they cannot be cut."""

    def __init__(
        self, module: nn.Module, inputs: tuple[Tensor, ...], *, kept: Mapping[str, str], kinds: Sequence[Kind]
    ) -> None:
        import torch_pruning

        self.module = module.requires_grad_(True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch_pruning")
            self._graph: Any = torch_pruning.DependencyGraph().build_dependency(module, inputs, verbose=False)
        self._names = {layer: name for name, layer in module.named_modules()}
        self._heads = {attention.value: attention for attention in _attentions(module)}
        self._tied = set(_tied(module))
        self.whole: dict[str, str] = {}
        self.groups: dict[str, Group] = {}
        for found in self._graph.get_all_groups(root_module_types=(_ConvNd, nn.Linear)):
            group = self._group(found)
            why = self._why_whole(found, group, kept)
            if why is None and group.kind in kinds:
                self.groups[group.name] = group
            elif why is not None:
                self.whole[group.name] = why

    def _group(self, found: Any) -> Group:
        root = found[0].dep.target.module
        size = len(found[0].idxs)
        heads = next((self._heads[m] for m in _outs(self._graph, found) if m in self._heads), None)
        kind: Kind = "filters" if isinstance(root, _ConvNd) else "neurons"
        units = torch.arange(size)
        if heads is not None:
            kind, units = "heads", units.reshape(heads.count, -1)
        else:
            ties = self._ties(found)
            units = units.reshape(ties if size % ties == 0 else 1, -1).T
        members = sorted(self._members(found), key=lambda member: (member.name, member.role))
        return Group(name=self._names[root], kind=kind, units=units, members=tuple(members))

    def _ties(self, found: Any) -> int:
        """In how many equal parts the channels must stay, for grouped convolutions and norms."""
        most = 1
        for item in found:
            layer, out = item.dep.target.module, self._graph.is_out_channel_pruning_fn(item.dep.handler)
            if _parts(layer) > 1 and (out or isinstance(layer, _ConvNd)):
                most = max(most, _parts(layer))
        return most

    def _members(self, found: Any) -> Iterator[Member]:
        for item in found:
            layer = item.dep.target.module
            if layer not in self._names or item.root_idxs is None or not item.idxs:
                continue
            pairs = sorted((r, c) for r, c in zip(item.root_idxs, item.idxs, strict=True) if r is not None)
            roots, channels = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
            out = self._graph.is_out_channel_pruning_fn(item.dep.handler)
            yield Member(
                name=self._names[layer],
                layer=layer,
                role="out" if out else "in",
                channels=channels,
                roots=roots,
            )

    def _why_whole(self, found: Any, group: Group, kept: Mapping[str, str]) -> str | None:
        outs = _outs(self._graph, found)
        for item in found:
            if not item.dep.target.outputs and self._graph.is_out_channel_pruning_fn(item.dep.handler):
                return "its channels are the model's outputs"
        for layer in outs:
            if (name := self._names.get(layer)) in kept:
                return kept[str(name)]
            if isinstance(layer, nn.MultiheadAttention):
                return "torch.nn.MultiheadAttention fixes its width"
        for member in group.members:
            if member.name in self._tied:
                return "its weight is shared with another layer"
        if group.kind != "heads" and any(_is_attention(item.dep.target.name) for item in found):
            return "it feeds an attention whose heads are not known"
        if group.kind == "heads" and not self._heads_alone(found, group):
            return "its attention has other layers between the heads and their projections"
        for member in group.members:
            parts = _parts(member.layer)
            if parts > 1 and (len(member.channels) != _width(member) or group.size % parts):
                return f"{member.name} joins it with other channels in {parts} groups"
        return None

    def _heads_alone(self, found: Any, group: Group) -> bool:
        """Whether the channels are those of one attention: made by its projections, read by linear layers."""
        attentions = [self._heads[m] for m in _outs(self._graph, found) if m in self._heads]
        makers = {member.layer for member in group.members if member.role == "out"}
        readers = [member.layer for member in group.members if member.role == "in"]
        return (
            len(attentions) == 1
            and makers == set(attentions[0].projections)
            and bool(readers)
            and all(isinstance(layer, nn.Linear) for layer in readers)
            and all(torch.equal(member.channels, member.roots) for member in group.members)
        )

    def cut(self, gone: Mapping[str, Sequence[int]]) -> nn.Module:
        """The module, changed in place, without the units *gone* (group -> numbers of units)."""
        layers = dict(self.module.named_modules())
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch_pruning")
            for name, numbers in gone.items():
                if not numbers:
                    continue
                group, root = self.groups[name], layers[name]
                channels = sorted(group.units[list(numbers)].flatten().tolist())
                prune = self._graph.get_pruner_of_module(root).prune_out_channels
                self._graph.get_pruning_group(root, prune, channels).prune()
                if group.kind == "heads":
                    (attention,) = {
                        self._heads[m.layer]
                        for m in group.members
                        if m.role == "out" and m.layer in self._heads
                    }
                    attention.shrink(len(numbers))
        self.module.zero_grad(set_to_none=True)
        return self.module


def _outs(graph: Any, found: Any) -> list[nn.Module]:
    return [i.dep.target.module for i in found if graph.is_out_channel_pruning_fn(i.dep.handler)]


def _parts(layer: nn.Module) -> int:
    """In how many groups a layer works that must stay equally wide; 1 for a depthwise convolution."""
    if isinstance(layer, _ConvNd):
        return 1 if layer.groups == layer.out_channels else layer.groups
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else 1


def _width(member: Member) -> int:
    layer = member.layer
    if isinstance(layer, _ConvNd):
        return layer.out_channels if member.role == "out" else layer.in_channels
    return layer.num_channels if isinstance(layer, nn.GroupNorm) else len(member.channels)


def _is_attention(name: str) -> bool:
    return any(op in name for op in ("ScaledDotProduct", "SoftmaxBackward", "BmmBackward"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Attention:
    """A module with projections to queries, keys and values for a number of heads."""

    module: nn.Module
    key: str  # the attribute with the number of heads
    projections: tuple[nn.Linear, ...]

    @property
    def count(self) -> int:
        return int(getattr(self.module, self.key))

    @property
    def value(self) -> nn.Linear:
        return self.projections[2]

    def shrink(self, gone: int) -> None:
        """Tell the module that *gone* heads are not there any more; their weights are cut already."""
        left = self.count - gone
        width = self.value.out_features // left * self.count
        for key in HEADS_WIDTHS:
            if getattr(self.module, key, None) == width:
                setattr(self.module, key, self.value.out_features)
        setattr(self.module, self.key, left)


def _attentions(module: nn.Module) -> Iterator[_Attention]:
    for layer in module.modules():
        key = next((k for k in HEAD_COUNTS if isinstance(getattr(layer, k, None), int)), None)
        children = dict(layer.named_children())
        names = next((n for n in PROJECTIONS if all(isinstance(children.get(x), nn.Linear) for x in n)), None)
        if key is None or names is None:
            continue
        projections = tuple(c for c in map(children.__getitem__, names) if isinstance(c, nn.Linear))
        count, widths = int(getattr(layer, key)), {p.out_features for p in projections}
        if count > 0 and len(widths) == 1 and widths.pop() % count == 0:
            yield _Attention(module=layer, key=key, projections=projections)


def _tied(module: nn.Module) -> Iterator[str]:
    """Layers one of whose parameters another layer has as well."""
    owners: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for names in owners.values():
        if len(names) > 1:
            yield from names


def along(member: Member, values: Tensor) -> Tensor:
    """
    The sums of *values*, shaped like the weight of the member's layer, over all but its channels [n].

    The input channels of a grouped convolution are those of its groups, one behind the other.
    """
    layer = member.layer
    if values.ndim == 1:
        return values[member.channels]
    if not isinstance(layer, _ConvNd):
        rows = isinstance(layer, nn.Linear) and member.role == "out"
        return values.sum(1 if rows else 0)[member.channels]
    flipped = isinstance(layer, _ConvTransposeNd)
    if (member.role == "out") != flipped:
        return values.flatten(1).sum(1)[member.channels]
    parts = values.reshape(layer.groups, values.shape[0] // layer.groups, values.shape[1], -1)
    return parts.sum((1, 3)).flatten()[member.channels]
