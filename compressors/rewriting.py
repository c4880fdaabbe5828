"""
Rewrites that leave a model fewer layers: each finds its places in the exported graph and edits modules.

A layer counts only if it is called once and its parameters are its own: an edit changes no other call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from compressors import exporting, layers, quiet

Inputs = tuple[Tensor, ...]
#: From a module, which is changed in place, to it and one line for everything that was done.
Rewrite = Callable[[nn.Module, Inputs, bool], tuple[nn.Module, list[str]]]


class Zero(nn.Module):
    """The output of a branch that is always zero."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of [n, *shape] for n samples."""
        # Not x.new_zeros: to an exporter that would still need x, and all layers before it.
        return torch.zeros(x.shape[0], *self.shape, dtype=x.dtype, device=x.device)


def calls(module: nn.Module, inputs: Inputs) -> dict[str, Node]:
    """
    The operator of every layer with parameters that is called exactly once, by the layer's name.

    Operators that have no effect on the outputs are not there.
    """
    with exporting.explained("torch.export", "torch", did="trace"), quiet.exporters():
        program = torch.export.export(module, inputs)
    program.graph.eliminate_dead_code()
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found: dict[str, set[Node]] = {}
    for node in program.graph.nodes:
        for name in [names[n.name] for n in node.all_input_nodes if n.name in names]:
            found.setdefault(name.rpartition(".")[0], set()).add(node)
    return {name: next(iter(nodes)) for name, nodes in found.items() if len(nodes) == 1}


def _behind(module: nn.Module, inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Pairs of layers of which the second takes the output of the first, which nothing else takes."""
    by_layer = calls(module, inputs)
    by_node = {node: name for name, node in by_layer.items()}
    for name, node in by_layer.items():
        source = node.args[0]
        if isinstance(source, Node) and source in by_node and len(source.users) == 1:
            yield by_node[source], name


def fold(module: nn.Module, inputs: Inputs, grow: bool) -> tuple[nn.Module, list[str]]:  # noqa: ARG001
    """Batch norm into the convolution or linear layer right before it: exact in evaluation mode."""
    done = []
    for first, second in list(_behind(module, inputs)):
        layer, norm = module.get_submodule(first), module.get_submodule(second)
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            continue
        module = layers.replace(module, first, _folded(layer, norm))
        module = layers.replace(module, second, nn.Identity())
        done.append(f"{second} folded into {first}")
    return module, done


@torch.no_grad()
def _folded(layer: Any, norm: Any) -> nn.Module:
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias
    layer.weight.copy_(layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias = nn.Parameter((bias - norm.running_mean) * scale + shift, requires_grad=False)
    return layer  # type: ignore[no-any-return]


def merge(module: nn.Module, inputs: Inputs, grow: bool) -> tuple[nn.Module, list[str]]:
    """Two layers with nothing between them into one, as long as there are such (and, without *grow*, pay)."""
    done: list[str] = []
    while True:
        for first, second in _behind(module, inputs):
            one, two = module.get_submodule(first), module.get_submodule(second)
            merged = _merged(one, two)
            if merged is None or (not grow and _weights(merged) > _weights(one) + _weights(two)):
                continue
            module = layers.replace(module, first, merged)
            module = layers.replace(module, second, nn.Identity())
            done.append(f"{first} and {second} merged")
            break
        else:
            return module, done


def _weights(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def _merged(one: nn.Module, two: nn.Module) -> nn.Module | None:
    """The layer that computes two(one(x)); None if no single one does."""
    if type(one) is nn.Linear and type(two) is nn.Linear:
        linear = nn.Linear(one.in_features, two.out_features, bias=_has_bias(one, two))
        return _with(linear, two.weight @ one.weight, _bias(one, two, two.weight))
    if type(one) is not nn.Conv2d or type(two) is not nn.Conv2d or not _can_merge(one, two):
        return None
    # W[t] = sum over u of W2[u] W1[t - s1 u]: k = k1 + (k2 - 1) s1 (RepVGG, DepthShrinker).
    weight = functional.conv_transpose2d(two.weight, one.weight, stride=one.stride)
    padding: Any = one.padding if any(one.padding) else two.padding
    conv = nn.Conv2d(
        one.in_channels,
        two.out_channels,
        (weight.shape[2], weight.shape[3]),
        stride=(one.stride[0] * two.stride[0], one.stride[1] * two.stride[1]),
        padding=padding,
        bias=_has_bias(one, two),
    )
    return _with(conv, weight, _bias(one, two, two.weight.sum((2, 3))))


def _can_merge(one: nn.Conv2d, two: nn.Conv2d) -> bool:
    """Whether the pair is linear and its borders are one convolution's."""
    for conv in (one, two):
        if conv.groups > 1 or set(conv.dilation) != {1} or conv.padding_mode != "zeros":
            return False
        if isinstance(conv.padding, str):
            return False
    if not any(two.padding):
        return True
    # What the second pads with zeros must be zero if the input was padded instead.
    pointwise = set(one.kernel_size) == {1} and set(one.stride) == {1} and not any(one.padding)
    return pointwise and (one.bias is None or not bool(one.bias.any()))


def _has_bias(one: Any, two: Any) -> bool:
    return one.bias is not None or two.bias is not None


def _bias(one: Any, two: Any, matrix: Tensor) -> Tensor | None:
    """What two(one(0)) is away from the borders."""
    parts = [matrix @ one.bias] if one.bias is not None else []
    parts += [two.bias] if two.bias is not None else []
    return torch.stack(parts).sum(0) if parts else None


@torch.no_grad()
def _with(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer  # type: ignore[no-any-return]


def identities(module: nn.Module, inputs: Inputs, grow: bool) -> tuple[nn.Module, list[str]]:  # noqa: ARG001
    """Layers that do nothing, that are never used, and branches that are always zero."""
    done = []
    for name, node in calls(module, inputs).items():
        layer = module.get_submodule(name)
        if isinstance(layer, layers.WEIGHTED) and not any(bool(p.any()) for p in layer.parameters()):
            shape = tuple(int(size) for size in node.meta["val"].shape[1:])
            module = layers.replace(module, name, Zero(shape))
            done.append(f"{name} is always zero")
    used = calls_at_all(module, inputs)
    for name, layer in list(module.named_modules()):
        own = {layers.parameter_name(name, key) for key, _ in layer.named_parameters(recurse=False)}
        if own and not own & used:
            old = layer
            module = layers.replace(module, name, nn.Identity())
            if _runs(module, inputs):
                done.append(f"{name} has no effect")
            else:
                module = layers.replace(module, name, old)
    for parent in list(module.modules()):
        if isinstance(parent, nn.Sequential):
            done += _without_idle(parent)
    return module, done


def calls_at_all(module: nn.Module, inputs: Inputs) -> set[str]:
    """The parameters that the outputs depend on."""
    with exporting.explained("torch.export", "torch", did="trace"), quiet.exporters():
        program = torch.export.export(module, inputs)
    program.graph.eliminate_dead_code()
    names = program.graph_signature.inputs_to_parameters
    used = {names[node.name] for node in program.graph.nodes if node.name in names and node.users}
    tensors = dict(module.named_parameters(remove_duplicate=False))
    ids = {id(tensors[name]) for name in used}
    return {name for name, tensor in tensors.items() if id(tensor) in ids}  # tied ones are used, too


def _runs(module: nn.Module, inputs: Inputs) -> bool:
    try:
        with torch.no_grad():
            module(*inputs)
    except (RuntimeError, AttributeError, TypeError, ValueError):
        return False  # the layer's shape is needed, so it stays
    return True


def _without_idle(parent: nn.Sequential) -> list[str]:
    """Take idle layers out of *parent*; the others keep their names."""
    idle = [
        name
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)
    ]
    idle = idle[: len(parent) - 1]  # one layer is left
    for name in idle:
        del parent._modules[name]
    return [f"{len(idle)} identities removed"] if idle else []


def dense_to_conv(module: nn.Module, inputs: Inputs, grow: bool) -> tuple[nn.Module, list[str]]:  # noqa: ARG001
    """Flatten and dense as a convolution over the whole image (Long 2015): exact, and takes larger images."""
    done = []
    for flatten, dense, shape in _heads(module, inputs):
        layer: Any = module.get_submodule(dense)
        conv = nn.Conv2d(shape[0], layer.out_features, shape[1:], bias=layer.bias is not None)
        filled = _with(conv, layer.weight.reshape(conv.weight.shape), layer.bias)
        module = layers.replace(module, flatten, nn.Identity())
        module = layers.replace(module, dense, nn.Sequential(filled, nn.Flatten()))
        done.append(f"{dense} is a convolution over {shape[1]}x{shape[2]}")
    return module, done


def gap(module: nn.Module, inputs: Inputs, grow: bool) -> tuple[nn.Module, list[str]]:  # noqa: ARG001
    """
    Flatten and dense as global average pooling and a dense layer of C inputs (Lin 2014).

    HW times fewer weights. They are sums over the image: right where it is constant, else to be trained.
    """
    done = []
    for flatten, dense, shape in _heads(module, inputs):
        layer: Any = module.get_submodule(dense)
        if shape[1] * shape[2] == 1:
            continue
        small = nn.Linear(shape[0], layer.out_features, bias=layer.bias is not None)
        filled = _with(small, layer.weight.reshape(layer.out_features, shape[0], -1).sum(2), layer.bias)
        module = layers.replace(module, flatten, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        module = layers.replace(module, dense, filled)
        done.append(f"{dense} sees the mean of {shape[1]}x{shape[2]} and not every place")
    return module, done


def _heads(module: nn.Module, inputs: Inputs) -> list[tuple[str, str, tuple[int, int, int]]]:
    """(flatten, dense, [C, H, W]) wherever the one follows the other in a Sequential."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    pairs = []
    for name, parent in module.named_modules():
        if not isinstance(parent, nn.Sequential):
            continue
        children = [
            (layers.parameter_name(name, key), layer)
            for key, layer in parent.named_children()
            if not isinstance(layer, (nn.Identity, nn.Dropout))
        ]
        for (one, first), (two, second) in itertools.pairwise(children):
            if isinstance(first, nn.Flatten) and type(second) is nn.Linear:
                pairs.append((one, two, first))
    handles = [
        flatten.register_forward_pre_hook(
            lambda layer, args: shapes.__setitem__(layer, tuple(args[0].shape[1:]))
        )
        for _, _, flatten in pairs
    ]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    found = [(one, two, shapes.get(flatten, ())) for one, two, flatten in pairs]
    return [(one, two, (s[0], s[1], s[2])) for one, two, s in found if len(s) == 3]


REWRITES: dict[str, Rewrite] = {
    "fold": fold,
    "merge": merge,
    "identities": identities,
    "dense_to_conv": dense_to_conv,
    "gap": gap,
}
#: Rewrites after which the model computes something else.
INEXACT = ("gap",)
