"""Learn which weights are rounded up and which down (AdaRound, Nagel 2020, arXiv:2004.10568)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from compressors.kernels.affine import Integers, rows

#: The sigmoid is stretched beyond [0, 1], so that its ends are reached.
_LOW, _HIGH = -0.1, 1.1


def learned(
    weight: Tensor,
    nearest: Integers,
    output: Callable[[Tensor], Tensor],
    *,
    steps: int,
    rate: float = 0.02,
    push: float = 0.01,
) -> Integers:
    """
    The rounding of *weight* whose *output* is nearest to that of the weight itself.

    *output* computes the layer from a weight. Zeros stay zero. If the learned rounding is no better
    than *nearest*, that is what comes back.
    """
    step, zero = nearest.scale[:, None], nearest.zero[:, None].float()
    scaled = rows(weight.detach(), nearest.block) / step
    floor = scaled.floor()
    rest = scaled - floor
    free = (scaled != 0) & (floor + zero >= nearest.low) & (floor + 1 + zero <= nearest.high)
    start = ((rest - _LOW) / (_HIGH - _LOW)).clamp(1e-4, 1 - 1e-4)
    logits = torch.logit(start).requires_grad_(True)
    with torch.no_grad():
        wanted = output(weight.detach())
        power = wanted.square().mean().clamp(min=1e-12)
    optimiser = torch.optim.Adam([logits], lr=rate)

    def weight_of(up: Tensor) -> Tensor:
        codes = torch.where(free, floor + up, scaled.round())
        codes = (codes + zero).clamp(nearest.low, nearest.high) - zero
        return (codes * step).reshape(weight.shape)

    for number in range(steps):
        up = (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        loss = (output(weight_of(up)) - wanted).square().mean() / power
        if number >= steps // 5:  # the first steps only fit
            beta = 2 + 18 * (1 - (number - steps // 5) / max(steps - steps // 5, 1))
            loss = loss + push * (1 - (2 * up - 1).abs().clamp(min=1e-6).pow(beta)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        optimiser.step()
    with torch.no_grad():
        up = (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1).round()
        codes = torch.where(free, floor + up, scaled.round()) + zero
        codes = codes.clamp(nearest.low, nearest.high).to(torch.int8).reshape(weight.shape)
        found = dataclasses.replace(nearest, codes=codes)
        errors = [(output(i.dequantised()) - wanted).square().mean() for i in (found, nearest)]
    return found if errors[0] < errors[1] else nearest
