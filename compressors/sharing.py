"""Layers that share weights: groups of layers that can be one, and convolutions made of few kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Rounds of the search for prototypes; it settles long before.
ROUNDS = 50
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class PrototypeConv(nn.Module):
    """A convolution whose kernels are prototypes, each use with a factor of its own."""

    def __init__(self, conv: nn.Module, prototypes: nn.Parameter, factors: Tensor, numbers: Tensor) -> None:
        super().__init__()
        assert isinstance(conv, CONVS)
        self.prototypes = prototypes  # [k, *kernel]; one object for all layers of a dictionary
        self.factors = nn.Parameter(factors)  # [out, in / groups]
        self.bias = conv.bias
        small = torch.int8 if len(prototypes) <= 128 else torch.int16  # no uint8: not in TFLite's exporter
        self.register_buffer("numbers", numbers.to(small))
        self.stride, self.padding, self.dilation, self.groups = (
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
        )

    @property
    def weight(self) -> Tensor:
        """The kernels put together, as the convolution had them."""
        numbers = self.get_buffer("numbers").long()
        kernels = self.prototypes[numbers.flatten()].reshape(*numbers.shape, *self.prototypes.shape[1:])
        return self.factors.reshape(*self.factors.shape, *[1] * (self.prototypes.ndim - 1)) * kernels

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution with these kernels."""
        weight = self.weight
        run: Any = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[weight.ndim]
        found: Tensor = run(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return found

    def extra_repr(self) -> str:
        """What str() shows: it tells two of them apart."""
        return f"{list(self.factors.shape)} kernels of {len(self.prototypes)} prototypes"


def alike(layers: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of layers of one type, shape and setting, two or more in a group, in the order of *layers*."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, layer in layers.items():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        key = (type(layer), str(layer), tuple(weight.shape))
        groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def prototypes(kernels: Tensor, count: int, seed: int, *, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """
    For *kernels* [n, m]: prototypes [k, m], the number of each kernel's [n], and its factor [n].

    Minimises sum |kernel - factor * prototype|^2 in rounds, as k-means does; prototypes start at kernels that
    are far from each other. Without *scaled* every factor is 1. Prototypes that nobody uses go.
    """
    generator = torch.Generator().manual_seed(seed)
    points = kernels.double()
    found = _spread_out(points, min(count, len(points)), generator, scaled=scaled)
    numbers, factors = _nearest(points, found, scaled=scaled)
    for _ in range(ROUNDS):
        mass = torch.zeros(len(found), dtype=points.dtype).index_add_(0, numbers, factors.square())
        sums = torch.zeros_like(found).index_add_(0, numbers, factors[:, None] * points)
        used = mass > 0
        found = torch.where(used[:, None], sums / mass.clamp(min=1e-30)[:, None], found)
        before = numbers
        numbers, factors = _nearest(points, found, scaled=scaled)
        if torch.equal(before, numbers):
            break
    used_numbers, numbers = torch.unique(numbers, return_inverse=True)
    return found[used_numbers].to(kernels.dtype), numbers, factors.to(kernels.dtype)


def _nearest(points: Tensor, found: Tensor, *, scaled: bool) -> tuple[Tensor, Tensor]:
    products = points @ found.T
    norms = found.square().sum(1).clamp(min=1e-30)
    if scaled:
        numbers = (products.square() / norms).argmax(1)
        factors = products.gather(1, numbers[:, None])[:, 0] / norms[numbers]
        return numbers, factors
    return (norms - 2 * products).argmin(1), torch.ones(len(points), dtype=points.dtype)


def _spread_out(points: Tensor, count: int, generator: torch.Generator, *, scaled: bool) -> Tensor:
    """*count* of *points*, each with a chance that grows with what the ones before leave of it."""
    chosen = [int(points.square().sum(1).argmax())]
    while len(chosen) < count:
        found = points[chosen]
        numbers, factors = _nearest(points, found, scaled=scaled)
        left = (points - factors[:, None] * found[numbers]).square().sum(1)
        left[chosen] = 0
        if float(left.sum()) <= 0:
            break
        sums = left.cumsum(0)
        at = torch.rand(1, generator=generator, dtype=sums.dtype) * sums[-1]
        chosen.append(min(int(torch.searchsorted(sums, at, right=True)), len(points) - 1))
    return points[chosen].clone()
