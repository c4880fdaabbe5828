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


def min_sqnr_db(*, integer: bool) -> float:
    """
    What a device's outputs must reach against this host's outputs of the same file in the same runtime.

    Float: another CPU adds in another order, which leaves well over 80 dB; a wrong kernel is below 30.
    """
    return 20.0 if integer else 40.0


def write(path: Path, inputs: Sequence[Sample], outputs: Sequence[Sample]) -> None:
    """Write the first sets of *inputs*, then their *outputs*."""
    arrays = [array for sample in (*inputs[:SETS], *outputs[:SETS]) for array in sample]
    tensors.dump(path, [_tensor(array) for array in arrays])


def _tensor(array: NDArray[Any]) -> tensors.Tensor:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return tensors.Tensor(dtype=array.dtype.name, shape=tuple(array.shape), data=little.tobytes(order="C"))
