"""Which weights become zero: from scores to masks, by ratio, threshold, N:M or blocks. True means zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Scores = Mapping[str, Tensor]


def cubic(step: int, steps: int, final: float, start: float = 0.0) -> float:
    """Sparsity after *step* of *steps*: s_f + (s_i - s_f) (1 - t/n)^3 (Zhu & Gupta, arXiv:1710.01878)."""
    return final + (start - final) * (1 - step / steps) ** 3


def by_threshold(scores: Tensor, threshold: float) -> Tensor:
    """Zero where the score is below *threshold* (Han 2015, arXiv:1506.02626)."""
    return scores < threshold


def by_ratio(scores: Scores, ratio: float, *, together: bool) -> dict[str, Tensor]:
    """
    Zero the share *ratio* with the lowest scores: of each tensor, or of all of them *together*.

    Of equal scores the first go first. Every tensor keeps its best weight, so that no layer dies.
    """
    if not together:
        return {
            name: _lowest(tensor.flatten(), ratio).reshape(tensor.shape) for name, tensor in scores.items()
        }
    names = list(scores)
    flat = torch.cat([scores[name].flatten() for name in names])
    masks = torch.split(_lowest(flat, ratio), [scores[name].numel() for name in names])
    found = {}
    for name, mask in zip(names, masks, strict=True):
        kept = mask.clone()
        if bool(kept.all()):
            kept[scores[name].flatten().argmax()] = False
        found[name] = kept.reshape(scores[name].shape)
    return found


def _lowest(flat: Tensor, ratio: float) -> Tensor:
    """A mask of the round(ratio * n) lowest of *flat*, but never of all."""
    count = min(round(ratio * flat.numel()), flat.numel() - 1)
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[torch.argsort(flat, stable=True)[:count]] = True
    return mask


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """
    Keep the best *n* of every *m* neighbours along the inputs (dimension 1, a multiple of m).

    For a convolution neighbours are input channels at the same place of the kernel.
    """
    moved = scores.movedim(1, -1)
    groups = moved.reshape(-1, m)
    order = torch.argsort(groups, dim=1, descending=True, stable=True)
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(1, order[:, :n], False)
    return mask.reshape(moved.shape).movedim(-1, 1).contiguous()


def block_scores(scores: Tensor, rows: int, columns: int) -> Tensor:
    """The mean score of each block of [rows, columns] in the view [out, everything else]."""
    matrix = scores.flatten(1)
    pad = (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows)
    padded = functional.pad(matrix, pad)
    counts = functional.pad(torch.ones_like(matrix), pad)
    return _sums(padded, rows, columns) / _sums(counts, rows, columns)


def _sums(matrix: Tensor, rows: int, columns: int) -> Tensor:
    high, wide = matrix.shape[0] // rows, matrix.shape[1] // columns
    return matrix.reshape(high, rows, wide, columns).sum((1, 3))


def spread(blocks: Tensor, shape: torch.Size, rows: int, columns: int) -> Tensor:
    """A mask of blocks as the mask of the weights, of *shape*."""
    full = blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return full[: shape[0], : shape[1:].numel()].reshape(shape).contiguous()


def soft_threshold(weight: Tensor, by: float) -> Tensor:
    """The proximal operator of by * |w|_1: every weight moves *by* towards zero and stops there."""
    return weight.sign() * (weight.abs() - by).clamp(min=0)


def group_soft_threshold(weight: Tensor, by: float) -> Tensor:
    """The proximal operator of by * sqrt(n) * sum |row|_2: rows (of n weights) shrink as a whole."""
    rows = weight.flatten(1)
    norms = rows.norm(dim=1, keepdim=True)
    limit = by * rows.shape[1] ** 0.5
    share: Tensor = (1 - limit / norms.clamp(min=1e-12)).clamp(min=0)
    return (rows * share).reshape(weight.shape)
