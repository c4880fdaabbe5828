"""What a state is made of: parameters, zeros, multiply-accumulates, bytes, and its layers against before."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn

from compressors import score
from compressors.state import State
from compressors.task import Task
from harness.core.types import LayerChange

#: Ratio for weights that did not change at all.
MOST_DB = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of a quantised graph as it is stored."""

    name: str
    exact: Tensor  # float, before rounding; for a tensor that is not quantised the tensor itself
    rounded: Tensor  # what is computed with
    codes: Tensor | None  # whole numbers from 0; None: stored as it is
    bits: int
    extra_bytes: int = 0  # scales and zero points


def parameters(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in module.parameters())


def nonzeros(state: State) -> tuple[int, int]:
    """Weights that are not zero, and all weights; of a quantised model what its graph computes with."""
    if state.quantised is None:
        found = [p.detach() for p in state.module.parameters()]
    else:
        found = [weight.rounded for weight in quantised_weights(state)]
    return sum(int(t.count_nonzero()) for t in found), sum(t.numel() for t in found)


def macs(module: nn.Module, task: Task) -> int:
    """Multiply-accumulates of one inference with the example inputs: convolutions and matrix products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into fused attention
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            score.forward(module, task.example_inputs(), task)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2


def size(state: State) -> tuple[int, int]:
    """
    Bytes of all weights and buffers of *state*, each at the bits that it needs, and the same after gzip -9.

    A tensor of a float model has its dtype's bits or those of ``State.bits``; one of a quantised graph
    those of its integer range, with scales as 32-bit numbers.
    """
    total, contents = 0.0, []
    for tensor, codes, bits, extra in _pieces(state):
        total += math.ceil(tensor.numel() * bits / 8) + extra
        contents.append(_packed(codes, bits) if codes is not None else _raw(tensor, bits))
    return int(total), len(gzip.compress(b"".join(contents), 9, mtime=0))


def _pieces(state: State) -> Iterator[tuple[Tensor, Tensor | None, int, int]]:
    if state.quantised is not None:
        for weight in quantised_weights(state):
            yield weight.rounded, weight.codes, weight.bits, weight.extra_bytes
        return
    seen: set[int] = set()
    for name, tensor in state.module.state_dict(keep_vars=True).items():
        if id(tensor) in seen:  # tied
            continue
        seen.add(id(tensor))
        bits = state.bits.get(name, tensor.element_size() * 8)
        values, codes = tensor.detach().unique(return_inverse=True) if bits < 16 else (None, None)
        fits = values is not None and len(values) <= 2**bits
        yield tensor.detach(), codes if fits else None, bits, (len(values) * 4 if fits else 0)  # type: ignore[arg-type]


def _raw(tensor: Tensor, bits: int) -> bytes:
    smaller = tensor.half() if bits <= 16 and tensor.dtype == torch.float32 else tensor
    return smaller.contiguous().numpy().tobytes()


def _packed(codes: Tensor, bits: int) -> bytes:
    """*codes* with *bits* bits each, one behind the other."""
    if bits > 8:
        return codes.to(torch.int32).numpy().tobytes()
    numbers = codes.flatten().to(torch.uint8).numpy()
    planes = numpy.unpackbits(numbers[:, None], axis=1)[:, 8 - bits :]
    return numpy.packbits(planes).tobytes()


def quantised_weights(state: State) -> list[Weight]:
    """The tensors of a quantised state's graph by the names that they had in the model."""
    assert state.quantised is not None
    graph = state.quantised.unfolded
    tensors = dict((*graph.named_parameters(), *graph.named_buffers()))
    found: dict[str, Weight] = {}
    scales: set[str] = set()
    for node in graph.graph.nodes:
        source = node.args[0] if node.args else None
        if "quantize_per" not in str(node.target) or "dequantize" in str(node.target):
            continue
        if not isinstance(source, torch.fx.Node) or source.op != "get_attr":
            continue
        arguments = [tensors[str(a.target)] if isinstance(a, torch.fx.Node) else a for a in node.args[1:]]
        scales |= {str(a.target) for a in node.args[1:] if isinstance(a, torch.fx.Node)}
        exact = tensors[str(source.target)].detach()
        integers = node.target(exact, *arguments)
        (back,) = (user for user in node.users if "dequantize" in str(user.target))
        first = 4 if str(node.target).endswith("per_channel.default") else 3  # behind the axis
        low, high = (int(v) for v in node.args[first : first + 2])
        per_channel = [a for a in arguments[:2] if isinstance(a, Tensor)]
        found[str(source.target)] = Weight(
            name=str(source.target),
            exact=exact,
            rounded=back.target(integers, *arguments, *back.args[len(node.args) :]),
            codes=integers.to(torch.int32) - low,
            bits=max(1, math.ceil(math.log2(high - low + 1))),
            extra_bytes=4 * per_channel[0].numel() + _zero_point_bytes(per_channel) if per_channel else 4,
        )
    for node in graph.graph.nodes:
        name = str(node.target)
        if node.op == "get_attr" and name not in found and name not in scales:
            tensor = tensors[name].detach()
            found[name] = Weight(
                name=name, exact=tensor, rounded=tensor, codes=None, bits=tensor.element_size() * 8
            )
    return list(found.values())


def _zero_point_bytes(per_channel: list[Tensor]) -> int:
    return per_channel[1].numel() if len(per_channel) > 1 and bool(per_channel[1].any()) else 0


def sqnr_db(before: Tensor, after: Tensor) -> float | None:
    """10 log10(sum before^2 / sum (before - after)^2), at most 200; None if *before* is all zero."""
    signal = float(before.double().square().sum())
    noise = float((before.double() - after.double()).square().sum())
    if not math.isfinite(signal + noise) or signal == 0:
        return None
    return MOST_DB if noise == 0 else min(MOST_DB, round(10 * math.log10(signal / noise), 2))


def changes(before: State, after: State) -> tuple[LayerChange, ...]:
    """What became of each layer; a layer that is as it was is left out."""
    if after.quantised is not None and before.quantised is not after.quantised:
        return tuple(_quantised_changes(after))
    old, new = dict(before.module.named_modules()), dict(after.module.named_modules())
    found: list[LayerChange] = []
    for name, layer in old.items():
        if _own(layer) and name not in new:
            found.append(_change(name, layer, None))
        elif name in new and (_own(layer) or _own(new[name])) and _differs(layer, new[name]):
            found.append(_change(name, layer, new[name]))
    within = tuple(f"{c.name}." for c in found if "->" in c.kind)
    for name, layer in new.items():
        if name not in old and _own(layer) and not name.startswith(within):
            found.append(_change(name, None, layer))
    return tuple(found)


def _quantised_changes(after: State) -> Iterator[LayerChange]:
    layers = dict(after.module.named_modules())
    for weight in quantised_weights(after):
        if weight.codes is None:
            continue
        layer = layers.get(weight.name.rpartition(".")[0])
        yield LayerChange(
            name=weight.name.removesuffix(".weight"),
            kind=f"{type(layer).__name__} int{weight.bits}" if layer is not None else f"int{weight.bits}",
            shape_before=tuple(weight.exact.shape),
            shape_after=tuple(weight.exact.shape),
            parameters=weight.exact.numel(),
            nonzeros=int(weight.rounded.count_nonzero()),
            sqnr_db=sqnr_db(weight.exact, weight.rounded),
        )


def _own(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters of *layer* itself, without its children's."""
    return dict(layer.named_parameters(recurse=False))


def _differs(old: nn.Module, new: nn.Module) -> bool:
    a, b = _own(old), _own(new)
    return (
        type(old) is not type(new)
        or a.keys() != b.keys()
        or not all(map(torch.equal, a.values(), b.values()))
    )


def _weight(layer: nn.Module | None) -> Tensor | None:
    own = _own(layer) if layer is not None else {}
    return own.get("weight", max(own.values(), key=Tensor.numel, default=None))


def _change(name: str, old: nn.Module | None, new: nn.Module | None) -> LayerChange:
    before, after = _weight(old), _weight(new)
    kinds = [type(layer).__name__ for layer in (old, new) if layer is not None]
    if new is None:
        kinds.append("nothing")
    same_shape = before is not None and after is not None and before.shape == after.shape
    return LayerChange(
        name=name,
        kind=" -> ".join(dict.fromkeys(kinds)),
        shape_before=None if before is None else tuple(before.shape),
        shape_after=None if after is None else tuple(after.shape),
        parameters=parameters(new) if new is not None else 0,
        nonzeros=sum(int(p.count_nonzero()) for p in new.parameters()) if new is not None else 0,
        sqnr_db=sqnr_db(before, after) if same_shape else None,  # type: ignore[arg-type]
    )
