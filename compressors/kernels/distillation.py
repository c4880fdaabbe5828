"""What a student is compared by: softened answers and maps of where a layer looks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """q_i = exp(z_i / T) / sum_j exp(z_j / T) over the last dimension (Hinton 2015, arXiv:1503.02531)."""
    return functional.softmax(logits / temperature, -1)


def mixed(hard: Tensor, soft: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) hard + alpha soft; *soft* has its factor T^2 already, so that gradients keep their size."""
    return (1 - alpha) * hard + alpha * soft


def attention_map(features: Tensor) -> Tensor:
    """
    Where a layer looks, [n, places] of length 1: mean of squares over channels (arXiv:1612.03928).

    Channels are dimension 1 of [n, c, h, w], and the last one of [n, tokens, c].
    """
    squares = features.square()
    places = squares.mean(-1) if features.ndim == 3 else squares.mean(1).flatten(1)
    return functional.normalize(places, dim=1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the two maps, mean over samples: 0 where they agree, at most 2."""
    return (attention_map(student) - attention_map(teacher)).square().sum(1).mean()


def same_places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both [n, c, h, w] averaged down to the smaller height and width of the two; others as they are."""
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return functional.adaptive_avg_pool2d(student, size), functional.adaptive_avg_pool2d(teacher, size)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference as a share of the variance of *wanted*: 0 exact, 1 no better than its mean."""
    spread = wanted.var(unbiased=False).clamp_min(torch.finfo(wanted.dtype).tiny ** 0.5)
    return functional.mse_loss(found, wanted) / spread
