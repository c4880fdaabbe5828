"""Choose which operators of a graph become integer ones, so that all three runtimes can fuse them."""

from __future__ import annotations

from typing import Any

import torch
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import quantizer as pt2e
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

aten = torch.ops.aten
_CLIPS = (aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default)
_LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)


def int8(*, per_channel: bool) -> Any:
    """A quantizer for static int8: symmetric weights, affine activations."""
    config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=per_channel)
    return ClipAwareQuantizer().set_global(config)


class ClipAwareQuantizer(xnnpack_quantizer.XNNPACKQuantizer):  # type: ignore[misc]  # it is untyped
    """
    XNNPACK's quantizer, with a layer and the clip behind it (ReLU6) as one unit.

    Its parent quantises between the two, with the range from before the clip. That costs resolution,
    and ONNX Runtime then leaves the clips as operators of their own.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate layers with a clip, then everything else as the parent does."""
        for node in model.graph.nodes:
            layer = node.args[0] if node.target in _CLIPS else None
            if isinstance(layer, Node) and layer.target in _LAYERS and len(layer.users) == 1:
                _annotate(layer, node, self.global_config)
        return super().annotate(model)  # type: ignore[no-any-return]


def _annotate(layer: Node, clip: Node, config: Any) -> None:
    specs = {layer.args[0]: config.input_activation, layer.args[1]: config.weight}
    if len(layer.args) > 2 and isinstance(layer.args[2], Node):
        specs[layer.args[2]] = config.bias
    layer.meta[Q_ANNOTATION_KEY] = pt2e.QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
    clip.meta[Q_ANNOTATION_KEY] = pt2e.QuantizationAnnotation(
        output_qspec=config.output_activation, _annotated=True
    )
