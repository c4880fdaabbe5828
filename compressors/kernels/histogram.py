"""Ranges of activations: a histogram that grows, and what min-max, percentile, entropy and MSE make of it."""

from __future__ import annotations

import torch
from torch import Tensor

from compressors.kernels.affine import Grid, scales

BINS = 8192
#: Levels of the magnitude histogram that the entropy method looks at.
_ENTROPY_BINS = 2048


class Histogram:
    """
    How often values occurred, in equal bins over [-limit, limit].

    The limit doubles when a value does not fit and pairs of bins are joined then, so no count is ever
    guessed: the result does not depend on the order of the batches.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 0.0
        self.low = 0.0
        self.high = 0.0

    def add(self, values: Tensor) -> None:
        """Count *values*, of any shape."""
        flat = values.detach().flatten().double()
        if not flat.numel():
            return
        low, high = float(flat.min()), float(flat.max())
        first = self.limit == 0
        self.low, self.high = (low, high) if first else (min(self.low, low), max(self.high, high))
        widest = max(abs(low), abs(high))
        if first:  # a power of two, so that the bins of two histograms always match
            self.limit = 2.0 ** torch.tensor(max(widest, 1e-30)).log2().ceil().item()
        while widest > self.limit:
            half = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 4 : BINS // 4 * 3] = half
            self.limit *= 2
        self.counts += torch.histc(flat, BINS, -self.limit, self.limit)

    @property
    def edges(self) -> Tensor:
        """Where the bins begin and end."""
        return torch.linspace(-self.limit, self.limit, BINS + 1, dtype=torch.float64)

    def quantile(self, share: float) -> float:
        """The value below which *share* of all values are, linear within a bin."""
        total = self.counts.cumsum(0)
        wanted = share * float(total[-1])
        place = min(int(torch.searchsorted(total, wanted)), BINS - 1)
        before = float(total[place - 1]) if place else 0.0
        inside = (wanted - before) / max(float(self.counts[place]), 1e-12)
        edges = self.edges
        value = float(edges[place]) + min(max(inside, 0.0), 1.0) * (2 * self.limit / BINS)
        return min(max(value, self.low), self.high)


def chosen(histogram: Histogram, by: str, grid: Grid, share: float = 0.9999) -> tuple[float, float]:
    """The range that the calibrator *by* gives; *share* is what ``percentile`` keeps of all values."""
    if by == "min_max" or histogram.low == histogram.high:
        return histogram.low, histogram.high
    if by == "percentile":
        rest = (1 - share) / 2
        if histogram.low >= 0:  # behind a ReLU all that is cut off is at the top
            return histogram.low, histogram.quantile(share)
        return histogram.quantile(rest), histogram.quantile(1 - rest)
    if by == "entropy":
        return _clipped(histogram, entropy_limit(histogram, 2 ** (grid.bits - 1)))
    return _least_error(histogram, grid)


def _clipped(histogram: Histogram, limit: float) -> tuple[float, float]:
    return max(histogram.low, -limit), min(histogram.high, limit)


def entropy_limit(histogram: Histogram, levels: int) -> float:
    """
    The |x| to clip at: the one with the least KL(values || values on *levels* levels).

    As in TensorRT's calibration: for each limit the tail is added to the last bin of the reference, and
    the candidate spreads the count of each level over its bins that are not empty.
    """
    magnitude = histogram.counts[BINS // 2 :] + histogram.counts[: BINS // 2].flip(0)
    counts = magnitude.reshape(_ENTROPY_BINS, -1).sum(1)
    filled = counts.nonzero()
    last = int(filled[-1]) + 1
    best, least = last, float("inf")
    for end in range(min(levels, last), last + 1):
        reference = counts[:end].clone()
        reference[-1] += counts[end:].sum()
        distance = divergence(reference, on_levels(counts[:end], levels))
        if distance < least:
            best, least = end, distance
    return best * histogram.limit / _ENTROPY_BINS


def on_levels(counts: Tensor, levels: int) -> Tensor:
    """*counts* as they look after rounding to *levels* levels: even over the bins of a level in use."""
    numbers = (
        (torch.arange(len(counts)) * levels).div(len(counts), rounding_mode="floor").clamp(max=levels - 1)
    )
    sums = torch.zeros(levels, dtype=counts.dtype).index_add_(0, numbers, counts)
    used = torch.zeros(levels, dtype=counts.dtype).index_add_(0, numbers, (counts > 0).to(counts.dtype))
    return torch.where(counts > 0, (sums / used.clamp(min=1))[numbers], 0.0)


def divergence(reference: Tensor, candidate: Tensor) -> float:
    """KL(P || Q) in nats of two histograms; a bin that only P has counts as a millionth in Q."""
    p = reference / reference.sum()
    q = candidate / candidate.sum().clamp(min=1e-300)
    mask = p > 0
    return float((p[mask] * (p[mask] / q[mask].clamp(min=1e-6)).log()).sum())


def _least_error(histogram: Histogram, grid: Grid) -> tuple[float, float]:
    """The range, of 64 shares of the whole one, with the least squared error of rounding and clipping."""
    edges = histogram.edges
    centres = ((edges[:-1] + edges[1:]) / 2)[histogram.counts > 0]
    counts = histogram.counts[histogram.counts > 0]
    best, least = (histogram.low, histogram.high), float("inf")
    for share in torch.linspace(1.0, 1 / 64, 64).tolist():
        low, high = histogram.low * share, histogram.high * share
        step, zero = scales(torch.tensor(low).double(), torch.tensor(high).double(), grid, 1e-30)
        codes = ((centres / step).round() + zero).clamp(grid.low, grid.high)
        error = float((((codes - zero) * step - centres).square() * counts).sum())
        if error < least:
            best, least = (low, high), error
    return best
