"""Choose which operators of a graph become integer ones, so that all three runtimes can fuse them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import quantizer as pt2e
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from compressors.integer_graph import LAYERS, weight_name

aten = torch.ops.aten
_CLIPS = (aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default)


class ClipAwareQuantizer(xnnpack_quantizer.XNNPACKQuantizer):  # type: ignore[misc]  # it is untyped
    """
    XNNPACK's quantizer, with a layer and the clip behind it (ReLU6) as one unit.

    Its parent quantises between the two, with the range from before the clip. That costs resolution,
    and ONNX Runtime then leaves the clips as operators of their own.

    *activation* is the spec of activations, *weight* that of weights (None: weights are somebody else's
    work), *left* the weights of layers that stay float, *inputs* the spec of the model's inputs.
    """

    def __init__(
        self,
        activation: Any,
        *,
        weight: Any = None,
        left: Collection[str] = (),
        inputs: Any = None,
        is_qat: bool = False,
    ) -> None:
        super().__init__()
        self.left, self.inputs = left, inputs
        output = None if activation.is_dynamic else activation
        self.set_global(pt2e.QuantizationConfig(activation, output, weight, None, is_qat))

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate layers with a clip, then everything else as the parent does."""
        dynamic = self.global_config.input_activation.is_dynamic
        for node in model.graph.nodes:
            name = weight_name(node)
            if node.target in LAYERS and (name is None or name in self.left):
                node.meta[Q_ANNOTATION_KEY] = pt2e.QuantizationAnnotation(_annotated=True)
            elif node.target in LAYERS and dynamic:
                _annotate(node, None, self.global_config)
            elif node.target in _CLIPS and not dynamic:
                self._annotate_clip(node)
        if not dynamic:
            super().annotate(model)
        if self.inputs is not None:
            _fix_inputs(model, self.inputs)
        return model

    def _annotate_clip(self, clip: Node) -> None:
        layer = clip.args[0]
        if not isinstance(layer, Node) or layer.target not in LAYERS or len(layer.users) > 1:
            return
        if weight_name(layer) not in {None, *self.left}:
            _annotate(layer, clip, self.global_config)


def _annotate(layer: Node, clip: Node | None, config: Any) -> None:
    specs = {layer.args[0]: config.input_activation}
    if config.weight is not None:
        specs[layer.args[1]] = config.weight
    layer.meta[Q_ANNOTATION_KEY] = pt2e.QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
    if clip is not None:
        clip.meta[Q_ANNOTATION_KEY] = pt2e.QuantizationAnnotation(
            output_qspec=config.output_activation, _annotated=True
        )


def _fix_inputs(model: GraphModule, spec: Any) -> None:
    """Give every operator that reads an input of the model the spec of that input."""
    for node in model.graph.nodes:
        if node.op != "placeholder":
            continue
        for user in node.users:
            annotation = user.meta.get(Q_ANNOTATION_KEY)
            if annotation is not None and node in annotation.input_qspec_map:
                annotation.input_qspec_map[node] = spec
