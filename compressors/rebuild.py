"""Rebuild a module whose layers a pass has resized, from a fresh model and the stored tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def resized(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """
    *module*, changed in place: its layers get the sizes of *tensors*, then their values.

    Raises RuntimeError or KeyError if *tensors* is not a state of this module with other sizes.
    """
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        for store in (layer._parameters, layer._buffers):
            for key, tensor in store.items():
                if tensor is None or key in layer._non_persistent_buffers_set:
                    continue
                wanted = tensors[prefix + key]
                if wanted.shape != tensor.shape:
                    fresh = tensor.new_empty(wanted.shape)
                    store[key] = nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh
        _match_sizes(layer)
    module.load_state_dict(dict(tensors), strict=True)
    return module


def _match_sizes(layer: nn.Module) -> None:
    """Set the size attributes of *layer* to what its weight says."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, _ConvTransposeNd):
        layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, _ConvNd):
        if layer.groups > 1 and layer.groups == layer.in_channels:  # depthwise: a group per channel
            layer.groups = weight.shape[0] * layer.groups // layer.out_channels
        layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, _BatchNorm):
        layer.num_features = weight.shape[0]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = weight.shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = weight.shape[0]
