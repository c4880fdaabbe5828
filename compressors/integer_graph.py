"""Put integer weights into an exported graph: the two forms that exporters want, and the float twin."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators used below
from torch.fx import GraphModule, Node

from compressors.kernels.affine import Integers, rows

aten = torch.ops.aten
ops = torch.ops.quantized_decomposed
LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    """*module* as a graph with batch norm folded into the layers before."""
    from torchao.quantization.pt2e.utils import _fuse_conv_bn_, _fuse_linear_bn_

    graph: Any = torch.export.export(copy.deepcopy(module), inputs).module()  # it shares tensors
    _fuse_conv_bn_(graph)
    _fuse_linear_bn_(graph)
    return graph  # type: ignore[no-any-return]


def weight_name(node: Node) -> str | None:
    """The parameter that is the weight of a convolution or linear *node*; None for any other node."""
    if node.target not in LAYERS or not isinstance(node.args[1], Node):
        return None
    source = node.args[1]
    return str(source.target) if source.op == "get_attr" else None


def layers(graph: GraphModule) -> dict[str, list[Node]]:
    """Convolutions and linear layers by the name of their weight."""
    found: dict[str, list[Node]] = {}
    for node in graph.graph.nodes:
        name = weight_name(node)
        if name is not None:
            found.setdefault(name, []).append(node)
    return found


def tensor(graph: GraphModule, name: str) -> Tensor:
    """The parameter or buffer *name* of *graph*."""
    place, _, last = name.rpartition(".")
    found: Tensor = getattr(graph.get_submodule(place), last)
    return found


def set_tensor(graph: GraphModule, name: str, value: Tensor) -> None:
    """Change a parameter or buffer in place."""
    with torch.no_grad():
        tensor(graph, name).copy_(value)


def bias_name(node: Node) -> str | None:
    """The parameter that is the bias of a layer; None: it has none."""
    bias = node.args[2] if len(node.args) > 2 else None
    return str(bias.target) if isinstance(bias, Node) and bias.op == "get_attr" else None


def with_weights(graph: GraphModule, weights: Mapping[str, Integers], *, fold: bool) -> GraphModule:
    """A copy of *graph* whose *weights* are integers: constants (*fold*), or rounded from the float ones."""
    made = copy.deepcopy(graph)
    for number, (name, nodes) in enumerate(layers(made).items()):
        integers = weights.get(name)
        if integers is None:
            continue
        shape = (integers.codes.shape[0], -1) if integers.block > 0 else (-1,)
        if integers.block >= 0:
            _register(made, f"_scale_w{number}", integers.scale.reshape(shape))
            _register(made, f"_zero_point_w{number}", integers.zero.reshape(shape))
        if fold:
            _register(made, f"_frozen_param{number}", integers.codes)
        else:
            exact = tensor(made, name)
            set_tensor(made, name, nearest_that_rounds(exact, integers))
        for node in nodes:
            _insert(made, node, integers, number, fold=fold)
    made.graph.eliminate_dead_code()
    made.recompile()
    if fold:
        _without_unused(made)
    return made


def nearest_that_rounds(weight: Tensor, integers: Integers) -> Tensor:
    """The value nearest to *weight* that is rounded to its code; the weight itself if that is its code."""
    step = integers.scale[:, None]
    centre = (rows(integers.codes, integers.block).float() - integers.zero[:, None]) * step
    value = rows(weight.detach(), integers.block)
    code = (value * (1.0 / step)).round() + integers.zero[:, None]
    same = code.clamp(integers.low, integers.high) == rows(integers.codes, integers.block)
    moved = torch.minimum(torch.maximum(value, centre - 0.49 * step), centre + 0.49 * step)
    return torch.where(same, value, moved).reshape(weight.shape)


def _insert(graph: GraphModule, node: Node, integers: Integers, number: int, *, fold: bool) -> None:
    nodes = graph.graph
    source: Any = node.args[1]
    with nodes.inserting_before(node):
        if integers.block < 0:
            scales: tuple[Any, ...] = (float(integers.scale[0]), int(integers.zero[0]))
        else:
            scales = (nodes.get_attr(f"_scale_w{number}"), nodes.get_attr(f"_zero_point_w{number}"))
        limits = (integers.low, integers.high, torch.int8)
        kind, tail = _operator(integers, scales, limits)
        if fold:
            code = nodes.get_attr(f"_frozen_param{number}")
        else:
            code = nodes.call_function(getattr(ops, f"quantize_{kind}").default, (source, *tail))
        back: Any = getattr(ops, f"dequantize_{kind}").default
        value = nodes.call_function(back, (code, *tail, *((torch.float32,) if integers.block > 0 else ())))
    for added, like in ((code, integers.codes), (value, tensor(graph, str(source.target)).detach())):
        added.meta["val"] = like
    node.replace_input_with(source, value)


def _operator(integers: Integers, scales: tuple[Any, ...], limits: tuple[Any, ...]) -> tuple[str, Any]:
    """The operator's name and what it takes besides the tensor."""
    if integers.block < 0:
        return "per_tensor", (*scales, *limits)
    if integers.block == 0:
        return "per_channel", (*scales, 0, *limits)
    return "per_channel_group", (*scales, *limits, integers.block)


def _register(graph: GraphModule, name: str, value: Tensor) -> None:
    graph.register_buffer(name, value.detach().clone().contiguous())


def _without_unused(graph: GraphModule) -> None:
    """Remove the tensors that no node reads any more."""
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in (*graph.named_parameters(), *graph.named_buffers()):
        if name not in used:
            place, _, last = name.rpartition(".")
            delattr(graph.get_submodule(place), last)


def integers_in(unfolded: GraphModule) -> dict[str, Integers]:
    """The integer weights of an *unfolded* graph, by parameter name."""
    found: dict[str, Integers] = {}
    for node in unfolded.graph.nodes:
        kind = str(node.target).removeprefix("quantized_decomposed.").removesuffix(".default")
        source = node.args[0] if node.args else None
        if not kind.startswith("quantize_per") or not isinstance(source, Node) or source.op != "get_attr":
            continue
        arguments: list[Any] = [
            tensor(unfolded, str(a.target)) if isinstance(a, Node) else a for a in node.args[1:]
        ]
        exact = tensor(unfolded, str(source.target)).detach()
        block = {"quantize_per_tensor": -1, "quantize_per_channel": 0}.get(kind, arguments[-1])
        first = 3 if block == 0 else 2
        found[str(source.target)] = Integers(
            codes=node.target(exact, *arguments),
            scale=torch.as_tensor(arguments[0], dtype=torch.float32).reshape(-1),
            zero=torch.as_tensor(arguments[1], dtype=torch.int64).reshape(-1),
            block=block,
            low=arguments[first],
            high=arguments[first + 1],
        )
    return found


def without_integers(unfolded: GraphModule) -> GraphModule:
    """A copy of an *unfolded* graph that computes in float with the rounded weights."""
    made = copy.deepcopy(unfolded)
    for name, integers in integers_in(made).items():
        set_tensor(made, name, integers.dequantised())
    for node in list(made.graph.nodes):
        if "dequantize_per" in str(node.target) and isinstance(node.args[0], Node):
            node.replace_all_uses_with(node.args[0].args[0])
    made.graph.eliminate_dead_code()
    made.recompile()
    _without_unused(made)
    return made


def with_float_layers(folded: GraphModule, weights: Collection[str], unfolded: GraphModule) -> GraphModule:
    """A copy of the *folded* graph whose layers with *weights* compute in float, with the rounded weights."""
    made = copy.deepcopy(folded)
    rounded = integers_in(unfolded)
    pairs = zip(
        [n for n in made.graph.nodes if n.target in LAYERS],
        [n for n in unfolded.graph.nodes if n.target in LAYERS],
        strict=True,
    )
    for number, (node, twin) in enumerate(pairs):
        name = layer_weight(twin)
        if name not in weights or name is None:
            continue
        _register(made, f"_float_w{number}", rounded[name].dequantised())
        with made.graph.inserting_before(node):
            value = made.graph.get_attr(f"_float_w{number}")
        value.meta["val"] = rounded[name].dequantised()
        node.update_arg(1, value)
        source = node.args[0]
        if isinstance(source, Node) and "dequantize_per" in str(source.target):
            node.update_arg(0, source.args[0].args[0])  # type: ignore[union-attr]
    made.graph.eliminate_dead_code()
    made.recompile()
    _without_unused(made)
    return made


def layer_weight(node: Node) -> str | None:
    """The parameter that the weight of a layer comes from, rounded or not; None for any other node."""
    if node.target not in LAYERS:
        return None
    value: Any = node.args[1]
    while isinstance(value, Node) and value.op == "call_function" and "quantize_per" in str(value.target):
        value = value.args[0]
    return str(value.target) if isinstance(value, Node) and value.op == "get_attr" else None
