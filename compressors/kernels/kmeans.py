"""k-means of single numbers: sorted once, then every round costs k binary searches."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Init = Literal["linear", "density", "random", "kmeans++"]


def kmeans(
    values: Tensor,
    clusters: int,
    *,
    init: Init = "linear",
    seed: int = 0,
    weights: Tensor | None = None,
    rounds: int = 300,
) -> tuple[Tensor, Tensor]:
    """
    Centroids [k], ascending, and the number of the centroid of each of *values* (int64, their shape).

    Minimises sum weights * (values - centroid)^2 by Lloyd's rounds until nothing moves, at most *rounds*.
    *weights* (their shape, positive; none: all alike) says how much each value matters. Fewer distinct values
    than *clusters* give one centroid each. A centroid without members goes to the value that is worst off.
    """
    flat = values.detach().flatten().double()
    order = torch.argsort(flat, stable=True)
    points = flat[order]
    mass = torch.ones_like(points) if weights is None else weights.detach().flatten().double()[order]
    distinct = _distinct(points)
    if len(distinct) <= clusters:
        found = distinct
    else:
        generator = torch.Generator().manual_seed(seed)
        found = _distinct(start(points, mass, clusters, init, generator))
        found = _lloyd(points, mass, _filled(points, mass, found, clusters), clusters, rounds)
    centroids = found.to(values.dtype)
    return centroids, assign(values, centroids)


def start(points: Tensor, mass: Tensor, clusters: int, init: Init, generator: torch.Generator) -> Tensor:
    """
    First centroids for sorted *points*: evenly over the range (Han 2016: best for pruned weights, as large
    ones keep centroids of their own), evenly over the members, members at random, or each next one with a
    chance that grows with the squared distance to those that are there (Arthur & Vassilvitskii 2007).
    """
    if init == "linear":
        return torch.linspace(float(points[0]), float(points[-1]), clusters, dtype=points.dtype)
    if init == "density":
        shares = (torch.arange(clusters, dtype=points.dtype) + 0.5) / clusters * mass.sum()
        return points[torch.searchsorted(mass.cumsum(0), shares).clamp(max=len(points) - 1)]
    if init == "random":
        distinct = _distinct(points)
        return distinct[torch.randperm(len(distinct), generator=generator)[:clusters]].sort().values
    chosen = [_draw(mass, generator)]
    distances = (points - points[chosen[0]]).square()
    while len(chosen) < clusters:
        chosen.append(_draw(distances * mass, generator))
        distances = torch.minimum(distances, (points - points[chosen[-1]]).square())
    return points[torch.tensor(chosen)].sort().values


def _distinct(ascending: Tensor) -> Tensor:
    """Each of the *ascending* values once."""
    new = torch.ones(len(ascending), dtype=torch.bool)
    new[1:] = ascending.diff() > 0
    return ascending[new]


def _draw(chances: Tensor, generator: torch.Generator) -> int:
    """An index with a probability in proportion to *chances* (any number of them, unlike multinomial)."""
    sums = chances.cumsum(0)
    at = torch.rand(1, generator=generator, dtype=sums.dtype) * sums[-1]
    return min(int(torch.searchsorted(sums, at, right=True)), len(chances) - 1)


def _lloyd(points: Tensor, mass: Tensor, centroids: Tensor, clusters: int, rounds: int) -> Tensor:
    zero = points.new_zeros(1)
    masses = torch.cat([zero, mass.cumsum(0)])
    moments = torch.cat([zero, (points * mass).cumsum(0)])
    for _ in range(rounds):
        edges = torch.searchsorted(points, (centroids[1:] + centroids[:-1]) / 2)
        cuts = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(points))])
        members = masses[cuts].diff()
        moved = (moments[cuts].diff() / members)[members > 0]
        moved = _filled(points, mass, _distinct(moved), clusters)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _filled(points: Tensor, mass: Tensor, centroids: Tensor, clusters: int) -> Tensor:
    """*centroids* with new ones, until there are *clusters*, at the values that are worst off."""
    while len(centroids) < clusters:
        errors = (points - centroids[assign(points, centroids)]).square() * mass
        worst = int(errors.argmax())
        if float(errors[worst]) == 0:
            break
        centroids = torch.cat([centroids, points[worst : worst + 1]]).sort().values
    return centroids


def assign(values: Tensor, centroids: Tensor) -> Tensor:
    """The number of the nearest of the ascending *centroids* for each of *values* (int64, their shape)."""
    found: Tensor = torch.searchsorted((centroids[1:] + centroids[:-1]) / 2, values.detach().contiguous())
    return found


def rate(count: int, bits: int, clusters: int) -> float:
    """
    How many times smaller *count* weights of *bits* bits are as numbers of *clusters* shared values.

    r = n b / (n log2 k + k b) (Han 2016, arXiv:1510.00149, eq. 1).
    """
    return count * bits / (count * math.log2(clusters) + clusters * bits)
