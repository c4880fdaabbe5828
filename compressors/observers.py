"""Observers of activations for PT2E: torch's own search, or a range from a histogram of what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, PlaceholderObserver
from torchao.quantization.pt2e.observer import ObserverBase
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationSpec

from compressors.kernels import histogram
from compressors.kernels.affine import Grid, scales

#: The smallest scale of an activation, as XNNPACK's quantizer has it.
SMALLEST = 2.0**-12


class RangeObserver(ObserverBase):  # type: ignore[misc]  # torchao is untyped
    """Collects a histogram and takes from it the range that a calibrator chooses."""

    def __init__(
        self, *, dtype: torch.dtype, grid: Grid, by: str, share: float, is_dynamic: bool = False, **_: Any
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic)
        self.grid, self.by, self.share = grid, by, share
        self.quant_min, self.quant_max = grid.low, grid.high
        self.qscheme = torch.per_tensor_symmetric if grid.symmetric else torch.per_tensor_affine
        self.eps = SMALLEST
        self.histogram = histogram.Histogram()

    def forward(self, x: Tensor) -> Tensor:
        """Count *x* and hand it on."""
        self.histogram.add(x)
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero point, one of each."""
        low, high = histogram.chosen(self.histogram, self.by, self.grid, self.share)
        step, zero = scales(torch.tensor([low]), torch.tensor([high]), self.grid, SMALLEST)
        return step, zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """How activations become integers."""

    bits: int = 8
    symmetric: bool = False
    power_of_two: bool = False
    calibrator: str = "histogram"
    percentile: float = 99.99
    dynamic: bool = False

    @property
    def grid(self) -> Grid:
        """The whole numbers."""
        return Grid(
            bits=self.bits, symmetric=self.symmetric, restricted=False, power_of_two=self.power_of_two
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type in memory."""
        return torch.int8 if self.bits <= 8 else torch.int16

    def spec(self) -> Any:
        """What PT2E needs to know."""
        grid = self.grid
        if self.dynamic:
            observer = PlaceholderObserver.with_args(eps=SMALLEST)
        elif self.calibrator == "histogram" and not self.power_of_two and self.bits <= 8:
            observer = HistogramObserver.with_args(eps=SMALLEST)
        else:
            own = "mse" if self.bits <= 8 else "min_max"  # 16 bits have room for all of the range
            by = own if self.calibrator == "histogram" else self.calibrator
            observer = RangeObserver.with_args(grid=grid, by=by, share=self.percentile / 100)
        return QuantizationSpec(
            dtype=self.dtype,
            quant_min=grid.low,
            quant_max=grid.high,
            qscheme=torch.per_tensor_symmetric if self.symmetric else torch.per_tensor_affine,
            is_dynamic=self.dynamic,
            observer_or_fake_quant_ctr=observer,
        )

    def bytes_in(self, scale: float, offset: int) -> Any:
        """The spec of an input that is a byte already: x = (byte - offset) / scale (T16)."""
        return FixedQParamsQuantizationSpec(
            dtype=torch.int8,
            scale=1.0 / scale,
            zero_point=offset - 128,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
        )
