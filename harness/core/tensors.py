"""
The tensor file (``.ebt``): named nothing, typed, shaped arrays that a C++ or Python agent can read.

Layout: ``EBT1 <count>\\n``, then one line per tensor ``<dtype> <d0>,<d1>,...\\n`` (a scalar has an empty
second word), then the tensors' values, C order, little-endian, one after the other without padding.
Only the standard library is used; see device_agents/PROTOCOL.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UsageError

ITEM_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One array: *data* holds its values in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def dump(path: Path, tensors: Sequence[Tensor]) -> None:
    """Write *tensors* to *path*; UsageError if a dtype is not one of ITEM_BYTES or a size is off."""
    lines = [f"EBT1 {len(tensors)}"]
    for tensor in tensors:
        if tensor.dtype not in ITEM_BYTES:
            raise UsageError(
                f"{path}: dtype {tensor.dtype!r} cannot be stored.", hint=f"Known: {', '.join(ITEM_BYTES)}."
            )
        if len(tensor.data) != ITEM_BYTES[tensor.dtype] * math.prod(tensor.shape):
            raise UsageError(
                f"{path}: {len(tensor.data)} bytes do not fill {tensor.dtype}{list(tensor.shape)}."
            )
        lines.append(f"{tensor.dtype} {','.join(map(str, tensor.shape))}")
    path.write_bytes(("\n".join(lines) + "\n").encode("ascii") + b"".join(t.data for t in tensors))


def load(path: Path) -> list[Tensor]:
    """Read the tensors of *path*; UsageError if the file is not a whole tensor file."""
    raw = path.read_bytes()
    try:
        head, _, rest = raw.partition(b"\n")
        magic, count = head.decode("ascii").split(" ")
        if magic != "EBT1":
            raise ValueError(f"starts with {magic!r}")
        tensors = []
        specs = []
        for _ in range(int(count)):
            line, _, rest = rest.partition(b"\n")
            dtype, _, dims = line.decode("ascii").partition(" ")
            specs.append((dtype, tuple(int(d) for d in dims.split(",") if d)))
        for dtype, shape in specs:
            size = ITEM_BYTES[dtype] * math.prod(shape)
            if len(rest) < size:
                raise ValueError("ends too early")
            tensors.append(Tensor(dtype=dtype, shape=shape, data=rest[:size]))
            rest = rest[size:]
        if rest:
            raise ValueError(f"{len(rest)} bytes too many")
    except (ValueError, KeyError) as error:
        raise UsageError(f"{path} is not a tensor file: {error}.") from error
    return tensors
