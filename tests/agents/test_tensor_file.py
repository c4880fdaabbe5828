"""A tensor file is the same to the host, to agent.py and to the native agents."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from harness import runners
from harness.core import tensors
from harness.core.tensors import ITEM_BYTES, Tensor

SHAPES = ((), (1,), (0, 3), (2, 3, 4))


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of round_trip.cpp."""
    target = tmp_path_factory.mktemp("round_trip") / "round_trip"
    source = Path(__file__).with_suffix("").parent / "round_trip.cpp"
    argv = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{runners.SOURCES}", str(source)]
    subprocess.run([*argv, "-o", str(target)], check=True)
    return target


def extremes(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that a wrong size, sign or byte order would change."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    if kind.kind == "f":
        info = np.finfo(kind)
        few = [
            0.0,
            -0.0,
            1.5,
            info.max,
            info.min,
            info.tiny,
            info.smallest_subnormal,
            np.inf,
            -np.inf,
            np.nan,
        ]
    elif kind.kind == "b":
        few = [True, False]
    else:
        limits = np.iinfo(kind)
        few = [limits.min, limits.max, 0, 1, limits.max // 3]
    return np.resize(np.array(few, dtype=kind), count).reshape(shape)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_dtype_survives_all_readers(
    dtype: str, round_trip: Path, agent_module: ModuleType, tmp_path: Path
) -> None:
    arrays = [extremes(dtype, shape) for shape in SHAPES]
    written = tmp_path / "written.ebt"
    tensors.dump(written, [Tensor(dtype=dtype, shape=a.shape, data=a.tobytes()) for a in arrays])
    again = tmp_path / "again.ebt"
    done = subprocess.run(
        [str(round_trip), str(written), str(again)], capture_output=True, text=True, check=True
    )
    assert again.read_bytes() == written.read_bytes()
    for array, line in zip(arrays, done.stdout.splitlines(), strict=True):
        kind = f"{dtype}[{', '.join(map(str, array.shape))}]"
        assert line.startswith(kind)
        values = [float(word) for word in line.removeprefix(kind).split()]
        np.testing.assert_array_equal(values, array.astype(float).ravel())
    for array, found in zip(arrays, agent_module.read_tensors(str(written)), strict=True):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()
    assert [t.data for t in tensors.load(again)] == [a.tobytes() for a in arrays]
