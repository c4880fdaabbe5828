"""What an exporter starts from: the graph as it is, or a float one whose weights are packed afterwards."""

from __future__ import annotations

import torch
from torch import nn

from compressors import integer_graph
from compressors.kernels.affine import Integers
from compressors.state import State
from harness.core.errors import CellError


def source(state: State, *, packed: bool) -> tuple[nn.Module, dict[str, Integers]]:
    """
    The model to export and the integer weights to put into the file.

    *packed*: the float twin of a quantised graph, and its weights; else what the state computes with.
    """
    if state.quantised is None or not packed:
        return state.reference, {}
    unfolded = state.quantised.unfolded
    return integer_graph.without_integers(unfolded), integer_graph.integers_in(unfolded)


def require_kernels(state: State, runtime: str, lacks: dict[str, str]) -> None:
    """Refuse a scheme that *runtime* has no kernels for; *lacks* says by scheme what it lacks."""
    scheme = state.quantised.scheme if state.quantised is not None else ""
    if scheme in lacks:
        raise CellError("unsupported_op", f"{runtime} has no kernels for {lacks[scheme]}.")


def require_symmetric(state: State, runtime: str) -> None:
    """Refuse weights with a zero point where *runtime* computes them wrongly or not at all."""
    if state.quantised is None or state.quantised.scheme == "weight_only":
        return
    unfolded = state.quantised.unfolded
    layers = {integer_graph.layer_weight(node) for node in unfolded.graph.nodes}
    for name, integers in integer_graph.integers_in(unfolded).items():
        if name in layers and bool(integers.zero.any()):
            raise CellError(
                "unsupported_op",
                f"{runtime} has no kernels for weights with a zero point ({name}).",
                hint="quantise has symmetric: true.",
            )


def half(state: State) -> torch.dtype | None:
    """The 16-bit type that all weights of a float state are stored in; None: they are not."""
    if state.quantised is not None:
        return None
    tensors = [t for _, t in state.module.named_parameters() if t.dtype == torch.float32]
    if not tensors or any(state.bits.get(n) != 16 for n, _ in state.module.named_parameters()):
        return None
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(t.detach().to(dtype).float(), t.detach()) for t in tensors):
            return dtype
    return None
