"""The check file of an artifact: inputs and the outputs that the file must give for them on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core import tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], ...]

NAME = "check.ebt"
SETS = 8


#: For a file whose kernels are not known.
UNKNOWN_MIN_DB = 15.0


def min_sqnr_db(bound_db: float) -> float:
    """
    What a device's outputs must reach against this host's outputs of the same file in the same runtime.

    *bound_db* is what the file had to reach against its model. Another CPU sums in another order and
    may round the last bit of an integer elsewhere, as another runtime does; with only a few sets the
    figure scatters, so two thirds of the bound are asked for: 40 dB for float files, 20 dB and less for
    integer ones. A wrong kernel or a damaged weight file scatters around 0 dB.
    """
    return round(bound_db * 2 / 3, 1)


def write(path: Path, inputs: Sequence[Sample], outputs: Sequence[Sample]) -> None:
    """Write the first sets of *inputs*, then their *outputs*."""
    arrays = [array for sample in (*inputs[:SETS], *outputs[:SETS]) for array in sample]
    tensors.dump(path, [_tensor(array) for array in arrays])


def _tensor(array: NDArray[Any]) -> tensors.Tensor:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return tensors.Tensor(dtype=array.dtype.name, shape=tuple(array.shape), data=little.tobytes(order="C"))
