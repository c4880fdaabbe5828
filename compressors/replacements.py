"""Smaller blocks that take and give what a larger one does; their weights are new and have to be trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from compressors.kernels import distillation

#: Kinds of a block on images [n, c, h, w] and on vectors or tokens [n, ..., c].
IMAGES = ("bottleneck", "depthwise", "low_rank", "identity")
VECTORS = ("bottleneck", "low_rank", "identity")


class CannotReplace(Exception):
    """Why a block of a kind cannot stand there, as the rest of a sentence."""


class Replacement(nn.Module):
    """
    Layers in a row, with the input added to their output if *skip*, and a ReLU at the end if *positive*.

    Takes further arguments of the block that it replaces, and leaves them aside.
    """

    def __init__(self, *layers: nn.Module, skip: bool = False, positive: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.skip = skip
        self.last: nn.Module = nn.ReLU() if positive else nn.Identity()

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """A tensor shaped as the replaced block's."""
        y = self.body(x)
        result: Tensor = self.last(x + y if self.skip else y)
        return result


def of(
    block: nn.Module, given: Tensor, result: Tensor, kind: str, width: float, *, skip: bool, positive: bool
) -> Replacement:
    """
    A block of *kind* from *given* to *result* (what *block* takes and gives for the example inputs).

    *width* is the share of the narrower side's channels that is left in the middle. CannotReplace if such
    a block cannot give that shape.
    """
    if given.ndim != result.ndim or given.ndim not in (2, 3, 4):
        raise CannotReplace(f"takes {list(given.shape)} and gives {list(result.shape)}")
    if kind == "identity":
        if given.shape != result.shape:
            raise CannotReplace(f"takes {list(given.shape)} and gives {list(result.shape)}, no identity does")
        return Replacement(positive=positive)
    skip = skip and given.shape == result.shape
    layers = (
        _images(block, given, result, kind, width)
        if given.ndim == 4
        else _vectors(given, result, kind, width)
    )
    return Replacement(*layers, skip=skip, positive=positive)


def _vectors(given: Tensor, result: Tensor, kind: str, width: float) -> list[nn.Module]:
    if given.shape[1:-1] != result.shape[1:-1]:
        raise CannotReplace(f"takes {list(given.shape)} and gives {list(result.shape)}, other tokens")
    if kind not in VECTORS:
        raise CannotReplace(f"works on vectors, and a {kind} block on images")
    inputs, outputs = given.shape[-1], result.shape[-1]
    middle = max(1, round(width * min(inputs, outputs)))
    between = [nn.ReLU()] if kind == "bottleneck" else []
    return [nn.Linear(inputs, middle, bias=bool(between)), *between, nn.Linear(middle, outputs)]


def _images(block: nn.Module, given: Tensor, result: Tensor, kind: str, width: float) -> list[nn.Module]:
    inputs, outputs = given.shape[1], result.shape[1]
    middle = max(1, round(width * min(inputs, outputs)))
    places = _geometry(block, given, result)
    if kind == "depthwise":
        return [nn.Conv2d(inputs, inputs, groups=inputs, bias=False, **places), nn.Conv2d(inputs, outputs, 1)]
    if kind == "low_rank":
        return [nn.Conv2d(inputs, middle, bias=False, **places), nn.Conv2d(middle, outputs, 1)]
    return [
        nn.Conv2d(inputs, middle, 1),
        nn.ReLU(),
        nn.Conv2d(middle, middle, **places),
        nn.ReLU(),
        nn.Conv2d(middle, outputs, 1),
    ]


def _geometry(block: nn.Module, given: Tensor, result: Tensor) -> dict[str, Any]:
    """Kernel, stride and padding of the one layer that sees more than one place."""
    if isinstance(block, nn.Conv2d):
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        return {name: getattr(block, name) for name in names}
    kernels, strides, paddings = [], [], []
    for before, after in zip(given.shape[2:], result.shape[2:], strict=True):
        stride = max(1, round(before / after))
        kernel, padding = 3, 1
        if math.ceil(before / stride) != after:  # no padding: floor((before - kernel) / stride) + 1
            kernel, padding = before - (after - 1) * stride, 0
        if not stride <= kernel <= 7 or after > before:
            raise CannotReplace(f"takes {before} places and gives {after}, which one convolution does not")
        kernels.append(kernel)
        strides.append(stride)
        paddings.append(padding)
    return {"kernel_size": tuple(kernels), "stride": tuple(strides), "padding": tuple(paddings)}


def is_positive(result: Tensor) -> bool:
    """Whether a block gave nothing below 0, as after a ReLU."""
    return bool((result >= 0).all()) and bool((result > 0).any())


def is_near(given: Tensor, result: Tensor) -> bool:
    """Whether what a block gives is nearer to its input than to its own mean, as with a skip connection."""
    return given.shape == result.shape and bool(distillation.relative_error(given, result) < 1)


def start(replacement: Replacement) -> None:
    """Let a block with a skip begin as its input alone, so that a deep model still works before training."""
    layers = [m for m in replacement.body if isinstance(m, (nn.Linear, nn.Conv2d))]
    if replacement.skip and layers:
        with torch.no_grad():
            layers[-1].weight.mul_(0.1)
            if layers[-1].bias is not None:
                layers[-1].bias.zero_()
