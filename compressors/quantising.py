"""From a float model to a graph with integers: which layers, on which grid, with which corrections."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from compressors import integer_graph, layers, quiet
from compressors.kernels import affine, rounding
from compressors.kernels.affine import Grid, Integers
from compressors.observers import Activations
from compressors.quantiser import ClipAwareQuantizer
from compressors.state import Quantised
from harness.core.errors import CellError, NotApplicable, UsageError

Samples = list[tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the weight of one layer becomes integers."""

    grid: Grid
    block: int = 0  # inputs that share a scale; 0: all of an output's, -1: the whole tensor
    by: str = "min_max"
    learned: bool = False  # rounding

    def integers(self, weight: Tensor) -> Integers:
        """*weight* rounded to the nearest."""
        return affine.of_weight(weight, self.grid, block=self.block, by=self.by)


def chosen(
    module: nn.Module, graph: GraphModule, rules: Iterable[Any], plan: Callable[[str, Any], Plan | None]
) -> dict[str, Plan]:
    """
    The plan of every layer of *graph* by the name of its weight; a layer without one stays float.

    *rules* have ``match`` (names, globs, ``re:``, types); the last one that means a layer holds for it.
    """
    every = layers.weighted(module)
    names = layers.parameters_of(module, every)
    rule_of: dict[str, Any] = {}
    for rule in rules:
        for name in layers.named(every, rule.match, "layers.match"):
            rule_of[name] = rule
    found: dict[str, Plan] = {}
    for weight in integer_graph.layers(graph):
        layer = names.get(weight, weight.rpartition(".")[0])
        made = plan(weight, rule_of.get(layer))
        if made is not None:
            found[weight] = made
    if not found:
        raise NotApplicable(
            "quantise does not apply: no convolution or linear layer is left that could become integers."
        )
    return found


class _Inputs(Interpreter):
    """Runs a graph and keeps what goes into each layer."""

    def __init__(self, graph: GraphModule, wanted: Mapping[str, list[Node]]) -> None:
        super().__init__(graph)
        self.names = {node: name for name, nodes in wanted.items() for node in nodes}
        self.seen: dict[str, list[Tensor]] = {}

    def run_node(self, n: Node) -> Any:
        if n in self.names:
            (args, _) = self.fetch_args_kwargs_from_env(n)
            self.seen.setdefault(self.names[n], []).append(args[0].detach())
        return super().run_node(n)


def inputs_of_layers(graph: GraphModule, samples: Samples) -> dict[str, Tensor]:
    """What goes into each layer for *samples*, joined along the batch, by the name of the weight."""
    runner = _Inputs(graph, integer_graph.layers(graph))
    with torch.no_grad():
        for sample in samples:
            runner.run(*sample)
    return {name: torch.cat(seen) for name, seen in runner.seen.items()}


def output_of(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """What the layer *node* gives for *x* with another *weight* and no bias."""
    rest = [a for i, a in enumerate(node.args) if i > 2]
    function: Any = node.target
    found: Tensor = function(x, weight, None, *rest)
    return found


def integers_of(
    graph: GraphModule, plans: Mapping[str, Plan], samples: Samples, *, correct: bool, steps: int
) -> dict[str, Integers]:
    """Every planned weight as integers; *correct*: biases of *graph* are changed in place."""
    nodes = integer_graph.layers(graph)
    learned = any(plan.learned for plan in plans.values())
    inputs = inputs_of_layers(graph, samples) if learned or correct else {}
    found: dict[str, Integers] = {}
    for name, plan in plans.items():
        weight = integer_graph.tensor(graph, name).detach().clone()
        integers = plan.integers(weight)
        node = nodes[name][0]
        if plan.learned:
            output = functools.partial(output_of, node, inputs[name])
            integers = rounding.learned(weight, integers, output, steps=steps)
        found[name] = integers
        if correct and integer_graph.bias_name(node):
            _correct_bias(graph, node, inputs[name], weight, integers.dequantised())
    return found


@torch.no_grad()
def _correct_bias(graph: GraphModule, node: Node, x: Tensor, exact: Tensor, rounded: Tensor) -> None:
    """Add to the bias what rounding takes from the mean of each output (Nagel 2019, arXiv:1906.04721)."""
    name = integer_graph.bias_name(node)
    assert name is not None
    integer_graph.set_tensor(
        graph, name, integer_graph.tensor(graph, name) + mean_shift(node, x, exact, rounded)
    )


@torch.no_grad()
def mean_shift(node: Node, x: Tensor, exact: Tensor, rounded: Tensor) -> Tensor:
    """E[W x] - E[W_q x] of each output channel."""
    shift = output_of(node, x, exact - rounded)
    if "linear" in str(node.target):
        return shift.reshape(-1, shift.shape[-1]).mean(0)
    return shift.transpose(0, 1).flatten(1).mean(1)


def build(
    graph: GraphModule,
    weights: Mapping[str, Integers],
    activations: Activations | None,
    *,
    scheme: str,
    calibrate: Callable[[GraphModule], None],
    inputs: Any = None,
) -> Quantised:
    """
    The two forms of *graph* with integer *weights*.

    *activations* None: they stay float. *calibrate* runs samples through the graph with observers;
    *inputs* is the spec of the model's inputs, None: as other activations.
    """
    with quiet.exporters():
        if activations is not None and activations.dynamic:
            weights = {name: _labelled_as_int4(integers) for name, integers in weights.items()}
        if activations is not None:
            left = set(integer_graph.layers(graph)) - set(weights)
            graph = _with_activations(graph, activations, left, calibrate, inputs)
        forms = [integer_graph.with_weights(graph, weights, fold=fold) for fold in (True, False)]
    for form in forms:
        for part in form.modules():
            part.training = False  # eval() refuses exported graphs, and exporters warn of one in training
    if not any("quantize" in str(node.target) for node in forms[0].graph.nodes):
        raise CellError("build_failed", "no operator of the model has an int8 form.")
    return Quantised(folded=forms[0], unfolded=forms[1], scheme=scheme)


def _labelled_as_int4(integers: Integers) -> Integers:
    """XNNPACK takes a matrix to its 4-bit kernels if the range is said to be [-8, 7]."""
    codes = integers.codes
    fits = integers.bits == 4 and integers.block >= 0 and codes.ndim == 2 and codes.shape[1] % 2 == 0
    return dataclasses.replace(integers, low=-8, high=7) if fits else integers


def _with_activations(
    graph: GraphModule,
    activations: Activations,
    left: set[str],
    calibrate: Callable[[GraphModule], None],
    inputs: Any,
) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = ClipAwareQuantizer(activations.spec(), left=left, inputs=inputs)
    prepared = prepare_pt2e(copy.deepcopy(graph), quantizer)
    if not activations.dynamic:
        calibrate(prepared)
    return convert_pt2e(prepared, fold_quantize=False)  # type: ignore[no-any-return]  # torchao is untyped


@torch.no_grad()
def equalise(graph: GraphModule, rounds: int = 3) -> int:
    """
    Cross-layer equalisation in place: give both sides of a channel between two layers the same range.

    W1[i] / s and W2[:, i] * s with s = sqrt(r1 / r2) compute the same where what is between them is
    linear or ReLU (Nagel 2019, arXiv:1906.04721). Returns how many pairs there are.
    """
    pairs = list(_pairs(graph))
    for _ in range(rounds):
        for first, second in pairs:
            _equalise(graph, first, second)
    return len(pairs)


_THROUGH = ("relu.default", "relu_.default", "max_pool2d.default", "avg_pool2d.default", "dropout.default")
_FLAT = ("flatten.using_ints", "adaptive_avg_pool2d.default", "mean.dim", "view.default", "reshape.default")


def _pairs(graph: GraphModule) -> Iterable[tuple[Node, Node]]:
    """Two layers of which one alone reads the other, through operators that a scale passes unchanged."""
    nodes = integer_graph.layers(graph)
    single = {users[0]: name for name, users in nodes.items() if len(users) == 1}
    for first in single:
        node = first
        while len(node.users) == 1:
            (node,) = node.users
            if node in single:
                yield first, node
                break
            kind = str(node.target).removeprefix("aten.")
            if kind not in _THROUGH and not (kind in _FLAT and "conv" in str(first.target)):
                break


def _equalise(graph: GraphModule, first: Node, second: Node) -> None:
    one, two = (integer_graph.tensor(graph, str(n.args[1].target)) for n in (first, second))  # type: ignore[union-attr]
    channels = one.shape[0]
    depthwise = "conv" in str(second.target) and two.shape[1] == 1 and two.shape[0] == channels
    if not depthwise and (
        two.shape[1] % channels or ("conv" in str(second.target) and two.shape[1] != channels)
    ):
        return
    view = two.reshape(channels, -1) if depthwise else two.reshape(two.shape[0], channels, -1)
    ranges = view.abs().amax(1) if depthwise else view.abs().amax((0, 2))
    own = one.abs().flatten(1).amax(1)
    factor = torch.where((own > 0) & (ranges > 0), (own / ranges.clamp(min=1e-12)).sqrt(), 1.0)
    factor = factor.clamp(1e-3, 1e3)
    one.div_(factor.reshape(-1, *[1] * (one.ndim - 1)))
    if bias := integer_graph.bias_name(first):
        integer_graph.tensor(graph, bias).div_(factor)
    view.mul_(factor[:, None] if depthwise else factor[None, :, None])


def sensitivities(
    graph: GraphModule, plans: Mapping[str, Plan], bits: Iterable[int], samples: Samples
) -> dict[str, dict[int, float]]:
    """What the outputs lose when one layer alone has so many bits: noise power over signal power."""
    found: dict[str, dict[int, float]] = {}
    with torch.no_grad():
        exact = [_flat(graph(*sample)) for sample in samples]
        power = sum(float(y.square().sum()) for y in exact) or 1.0
        for name, plan in plans.items():
            weight = integer_graph.tensor(graph, name)
            kept = weight.detach().clone()
            for count in bits:
                grid = dataclasses.replace(plan.grid, bits=count)
                weight.copy_(dataclasses.replace(plan, grid=grid).integers(kept).dequantised())
                noise = sum(
                    float((_flat(graph(*s)) - y).square().sum()) for s, y in zip(samples, exact, strict=True)
                )
                found.setdefault(name, {})[count] = noise / power
            weight.copy_(kept)
    return found


def _flat(outputs: Any) -> Tensor:
    parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return torch.cat([part.flatten() for part in parts]).double()


def macs_of_layers(graph: GraphModule) -> dict[str, int]:
    """Multiply-accumulates of each layer for one sample, by the name of its weight."""
    found: dict[str, int] = {}
    for name, nodes in integer_graph.layers(graph).items():
        weight = integer_graph.tensor(graph, name)
        for node in nodes:
            value = node.meta.get("val")
            assert value is not None
            found[name] = found.get(name, 0) + value.numel() * weight[0].numel()
    return found


def assign(
    losses: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], budget: float
) -> dict[str, int]:
    """
    The bits of every layer with the least sum of *losses* of all whose cost is within the budget.

    The cost is the mean of the bits, each layer weighted with its size. Exact: of two ways to spend the
    same, only the better one is followed (at most 4000 ways are kept, which small models never reach).
    """
    total = sum(sizes[name] for name in losses)
    allowed = budget * total + 1e-9
    ways: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    names = list(losses)
    for name in names:
        more = [
            (cost + bits * sizes[name], loss + value, (*before, bits))
            for cost, loss, before in ways
            for bits, value in losses[name].items()
        ]
        ways = _best(more)
    within = [way for way in ways if way[0] <= allowed]
    if not within:
        least = sum(min(losses[name]) * sizes[name] for name in names) / total
        raise UsageError(
            f"mixed.budget: {budget:g} bits cannot be reached; the fewest bits everywhere are {least:g}.",
            hint="Raise the budget or add fewer bits to mixed.bits.",
        )
    return dict(zip(names, min(within, key=lambda way: (way[1], way[0]))[2], strict=True))


def _best(
    ways: list[tuple[float, float, tuple[int, ...]]], most: int = 4000
) -> list[tuple[float, float, tuple[int, ...]]]:
    """The ways that no cheaper one beats, cheapest first."""
    kept: list[tuple[float, float, tuple[int, ...]]] = []
    for way in sorted(ways):
        if not kept or way[1] < kept[-1][1]:
            kept.append(way)
    if len(kept) <= most:
        return kept
    return [kept[round(i * (len(kept) - 1) / (most - 1))] for i in range(most)]
