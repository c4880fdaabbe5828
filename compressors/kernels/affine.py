"""Uniform integers: from a range to scale and zero point, and weights to whole numbers and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: The smallest scale of a channel that has weights: below it a bias would not fit 32 bits.
SMALLEST = 2.0**-16
#: The scale of a channel that is all zero, whose own would be 0.
OF_ZEROS = 2.0**-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The whole numbers that values are rounded to, and how their step is chosen."""

    bits: int = 8
    symmetric: bool = True  # zero point 0
    restricted: bool = True  # [-127, 127] and not [-128, 127]
    power_of_two: bool = False  # fixed point: the scale is 2^-f

    @property
    def low(self) -> int:
        """The smallest whole number."""
        return int(-(2 ** (self.bits - 1)) + self.restricted)

    @property
    def high(self) -> int:
        """The largest whole number."""
        return int(2 ** (self.bits - 1)) - 1


def scales(low: Tensor, high: Tensor, grid: Grid, smallest: float = SMALLEST) -> tuple[Tensor, Tensor]:
    """
    Scale and zero point so that [low, high] and 0 fit *grid*; element by element.

    Symmetric: S = max|x| / (2^(b-1) - 1), Z = 0. Else S = (high - low) / (qmax - qmin),
    Z = round(qmin - low / S) (Jacob 2018, arXiv:1712.05877). Fixed point takes the next power of two above.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    widest = torch.maximum(-low, high)
    step = widest / grid.high if grid.symmetric else (high - low) / (grid.high - grid.low)
    step = torch.where(widest == 0, OF_ZEROS, step.clamp(min=smallest))
    if grid.power_of_two:
        step = torch.exp2(torch.ceil(torch.log2(step)))
    zero = torch.zeros_like(step)
    if not grid.symmetric:
        zero = (grid.low - low / step).round().clamp(grid.low, grid.high)
    return step, zero.to(torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """
    A weight as whole numbers: weight = scale (code - zero point), one scale for each row of ``rows``.

    *block* is the number of inputs that share a scale: 0 all of an output's, -1 the whole tensor.
    """

    codes: Tensor  # int8, in the shape of the weight
    scale: Tensor  # [rows]
    zero: Tensor  # int64, [rows]
    block: int
    low: int
    high: int

    def dequantised(self) -> Tensor:
        """The weight that is computed with."""
        values = rows(self.codes, self.block).float() - self.zero[:, None]
        return (values * self.scale[:, None]).reshape(self.codes.shape)

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return (self.high - self.low).bit_length()


def rows(weight: Tensor, block: int) -> Tensor:
    """*weight* as a matrix whose rows have one scale each."""
    if block < 0:
        return weight.reshape(1, -1)
    return weight.flatten(1) if block == 0 else weight.reshape(-1, block)


def rounded(weight: Tensor, step: Tensor, zero: Tensor, grid: Grid, block: int) -> Integers:
    """*weight* rounded to the nearest: q = clamp(round(x / S) + Z, qmin, qmax)."""
    step = _short(step) if block > 0 else step
    matrix = rows(weight.detach(), block)
    codes = ((matrix * (1.0 / step[:, None])).round() + zero[:, None]).clamp(grid.low, grid.high)
    return Integers(
        codes=codes.to(torch.int8).reshape(weight.shape),
        scale=step,
        zero=zero,
        block=block,
        low=grid.low,
        high=grid.high,
    )


def _short(step: Tensor) -> Tensor:
    """The next scale above that bf16 and fp16 hold: runtimes store the scales of blocks in these."""
    step = step.clamp(min=2.0**-14)
    near = step.bfloat16().float()
    above: Tensor = torch.where(near < step, (near * (1 + 2.0**-7)).bfloat16().float(), near)
    return above


def of_weight(weight: Tensor, grid: Grid, *, block: int = 0, by: str = "min_max") -> Integers:
    """
    *weight* on *grid*; *by* says how the range of a row is chosen.

    ``min_max`` takes all of it, ``mse`` the share of it with the smallest squared error, of 33 shares.
    """
    matrix = rows(weight.detach(), block)
    low, high = matrix.amin(1), matrix.amax(1)
    best = rounded(weight, *scales(low, high, grid), grid, block)
    if by == "min_max":
        return best
    least = _errors(weight, best)
    step, zero = best.scale, best.zero
    for share in torch.linspace(0.975, 0.2, 32).tolist():
        tried = rounded(weight, *scales(low * share, high * share, grid), grid, block)
        errors = _errors(weight, tried)
        better = errors < least
        least = torch.where(better, errors, least)
        step, zero = torch.where(better, tried.scale, step), torch.where(better, tried.zero, zero)
    return rounded(weight, step, zero, grid, block)


def _errors(weight: Tensor, integers: Integers) -> Tensor:
    """The squared error of each row."""
    difference = weight.detach() - integers.dequantised()
    return rows(difference, integers.block).double().square().sum(1)
