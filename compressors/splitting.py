"""How one layer is split into low-rank ones: its ranks, what they cost, and the layers that replace it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressors.kernels import factors


class Factors(nn.Sequential):
    """The layers that one was split into; a model that reads the layer's weight or bias still finds them."""

    @property
    def weight(self) -> Tensor:
        """The product of the factors, in the shape of the layer's own weight."""
        parts: Any = [part.weight for part in self]
        if len(parts) == 3:
            return torch.einsum("or,rs...,si->oi...", parts[2].flatten(1), parts[1], parts[0].flatten(1))
        if parts[0].ndim == 4:
            return torch.einsum("riha,orbw->oihw", parts[0], parts[1])
        return torch.einsum("or,ri...->oi...", parts[1].flatten(1), parts[0])

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias."""
        last: Any = self[len(self) - 1]
        found: Tensor | None = last.bias
        return found


@dataclass(frozen=True, slots=True)
class Split:
    """A layer that can be split in two by SVD."""

    layer: Any

    @property
    def matrix(self) -> Tensor:
        """What is decomposed: [out, in] of a linear layer, [in * h, w * out] of a convolution."""
        weight: Tensor = self.layer.weight.detach()
        if isinstance(self.layer, nn.Conv2d):
            return factors.spatial_matrix(weight)
        return weight.flatten(1)

    @property
    def whole(self) -> int:
        """Weights of the layer as it is."""
        return int(self.layer.weight.numel())

    @property
    def full(self) -> tuple[int, ...]:
        """The full rank."""
        return (min(self.matrix.shape),)

    @property
    def full_text(self) -> str:
        """The full rank for people."""
        return str(self.full[0])

    def rank(self, ranks: list[int]) -> int:
        """The rank from one number per decomposed dimension."""
        return ranks[0]

    def values(self) -> Tensor:
        """Singular values, largest first."""
        found: Tensor = torch.linalg.svdvals(self.matrix.double())
        return found

    def spectra(self) -> list[Tensor]:
        """Singular values per decomposed dimension."""
        return [self.values()]

    def parameters(self, rank: int) -> int:
        """Weights of the layers that replace it."""
        return rank * sum(self.matrix.shape)

    def replacement(self, rank: int) -> Factors:
        """Two layers that compute the nearest of that rank."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            a, b = factors.svd(layer.weight.detach(), rank)
            pair = (
                nn.Linear(layer.in_features, rank, bias=False),
                nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
            )
            return _filled(pair, (b, a), layer)
        if isinstance(layer, nn.Conv1d):
            a, b = factors.svd(self.matrix, rank)
            first = _conv(layer, layer.in_channels, rank, bias=False)
            second: nn.Module = nn.Conv1d(rank, layer.out_channels, 1, bias=layer.bias is not None)
            return _filled((first, second), (b.reshape(rank, *layer.weight.shape[1:]), a[:, :, None]), layer)
        one, two = factors.spatial_kernels(layer.weight.detach(), rank)
        first = _conv(layer, layer.in_channels, rank, bias=False, axes=(0,))
        second = _conv(layer, rank, layer.out_channels, bias=layer.bias is not None, axes=(1,))
        return _filled((first, second), (one, two), layer)


@dataclass(frozen=True, slots=True)
class Tucker(Split):
    """A convolution that can be split in three by Tucker-2."""

    @property
    def full(self) -> tuple[int, ...]:
        """Output and input channels, or fewer where the other dimensions allow no more."""
        out, inputs = self.layer.weight.shape[:2]
        rest = self.layer.weight[0, 0].numel()
        return min(out, inputs * rest), min(inputs, out * rest)

    @property
    def full_text(self) -> str:
        """The full ranks for people."""
        return str(self.full)

    def rank(self, ranks: list[int]) -> Any:
        """(r_out, r_in)."""
        return tuple(ranks)

    def spectra(self) -> list[Tensor]:
        """Singular values of the kernel unfolded along outputs and along inputs."""
        weight = self.layer.weight.detach().double()
        return [torch.linalg.svdvals(m.flatten(1)) for m in (weight, weight.transpose(0, 1))]

    def parameters(self, rank: Any) -> int:
        """Weights of the three layers."""
        out, inputs = self.layer.weight.shape[:2]
        return int(inputs * rank[1] + rank[0] * rank[1] * self.layer.weight[0, 0].numel() + out * rank[0])

    def replacement(self, rank: Any) -> Factors:
        """1x1, k x k and 1x1 convolutions."""
        layer = self.layer
        kind = type(layer)
        parts = (
            kind(layer.in_channels, rank[1], 1, bias=False),
            _conv(layer, rank[1], rank[0], bias=False),
            kind(rank[0], layer.out_channels, 1, bias=layer.bias is not None),
        )
        return _filled(parts, factors.tucker2(layer.weight.detach(), rank), layer)


def of(layer: nn.Module, conv: str) -> Split | None:
    """How *layer* can be split, *conv* as in the options of low_rank; None: it cannot."""
    if isinstance(layer, nn.Linear):
        return Split(layer) if type(layer) is nn.Linear else None  # another class may want its own weight
    if type(layer) not in (nn.Conv1d, nn.Conv2d) or conv == "none":
        return None
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    if layer.groups > 1:
        return None
    return Tucker(layer) if conv == "tucker" else Split(layer)


def _conv(
    like: Any, inputs: int, outputs: int, *, bias: bool, axes: tuple[int, ...] | None = None
) -> nn.Module:
    """A convolution as *like*, but with other channels; along *axes* only, if they are given."""

    def along(values: Any, rest: int) -> Any:
        if isinstance(values, str) or axes is None:
            return values
        return tuple(value if axis in axes else rest for axis, value in enumerate(values))

    made: nn.Module = type(like)(
        inputs,
        outputs,
        along(like.kernel_size, 1),
        stride=along(like.stride, 1),
        padding=along(like.padding, 0),
        dilation=along(like.dilation, 1),
        bias=bias,
        padding_mode=like.padding_mode,
    )
    return made


def _filled(parts: tuple[Any, ...], weights: tuple[Tensor, ...], like: Any) -> Factors:
    """*parts* in a row with *weights*, the last one with the bias of *like*."""
    with torch.no_grad():
        for part, weight in zip(parts, weights, strict=True):
            part.weight.copy_(weight)
        if like.bias is not None:
            parts[-1].bias.copy_(like.bias)
    return Factors(*parts)
