"""Run one model file on inputs that fit it, in a process of its own; started by compressors.opened."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy

from compressors import cache, check, exporting
from harness.core import codec, plugins
from harness.core.errors import UsageError
from harness.core.tensors import ITEM_BYTES
from harness.core.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], ...]


def main(argument: str) -> None:
    """Write the check file and ``probe.json`` (what was found, or why not) into the folder of the request."""
    request = json.loads(argument)
    folder = Path(request["folder"])
    given = None if request["inputs"] is None else Path(request["inputs"])
    module = plugins.load("compressors.formats", request["format"])
    try:
        found = probe(Path(request["path"]), module, given, request["seed"], folder)
    except UsageError as error:
        found = {"error": error.message, "hint": error.hint}
    except ModuleNotFoundError as error:
        found = {"missing": (error.name or "").split(".")[0]}
    except OSError as error:
        _give_up(error)
    try:
        (folder / "probe.json").write_text(json.dumps(found), encoding="utf-8")
    except OSError as error:
        _give_up(error)


def _give_up(error: OSError) -> NoReturn:
    """End with the exit code that says that the folder of the request cannot be written."""
    if not cache.is_full(error):
        raise error
    sys.stderr.write(f"{error.strerror}\n")
    sys.exit(os.EX_CANTCREAT)


def probe(path: Path, module: ModuleType, given: Path | None, seed: int, folder: Path) -> dict[str, Any]:
    """The signature of the file and the number of its check sets, which are written into *folder*."""
    inputs, outputs = _signature(path, module)
    samples = generated(inputs, seed) if given is None else [from_file(given, inputs)]
    results = _run(path, module, samples, inputs, given)
    if not all(_finite(array) for sample in results for array in sample):
        raise UsageError(
            f"{path}: in {module.RUNTIME} the model's outputs for"
            f" {'generated inputs' if given is None else given} are not finite.",
            hint=f"Give {'' if given is None else 'other '}inputs that it is made for: --inputs FILE.npz.",
        )
    check.write(folder / check.NAME, samples, results)
    return {
        "inputs": [codec.to_json(_shaped(s, a)) for s, a in zip(inputs, samples[0], strict=True)],
        "outputs": [codec.to_json(_shaped(s, a)) for s, a in zip(outputs, results[0], strict=True)],
        "sets": len(samples),
    }


def _signature(path: Path, module: ModuleType) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    try:
        module.require_whole(path)
        inputs, outputs = module.signature(path)
    except ModuleNotFoundError:
        raise
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{path} cannot be loaded by {module.RUNTIME}: {exporting.first_sentence(error)}.",
            hint="It may be damaged, truncated or made for a newer version.",
        ) from error
    for spec in (*inputs, *outputs):
        if spec.dtype not in ITEM_BYTES:
            raise UsageError(
                f"{path}: {spec.name!r} is {spec.dtype}, which cannot be benchmarked.",
                hint=f"Known: {', '.join(ITEM_BYTES)}.",
            )
    if not inputs:
        raise UsageError(f"{path}: the model has no inputs.")
    return inputs, outputs


def _run(
    path: Path,
    module: ModuleType,
    samples: list[Sample],
    inputs: tuple[TensorSpec, ...],
    given: Path | None,
) -> list[Sample]:
    try:
        return list(module.outputs(path, samples))
    except Exception as error:
        if given is not None:
            for spec, array in zip(inputs, samples[0], strict=True):
                if array.shape != spec.shape:
                    raise UsageError(
                        f"{given}: {spec.name!r} has the shape {list(array.shape)},"
                        f" but the model takes {list(spec.shape)}."
                    ) from error
        raise UsageError(
            f"{path}: {module.RUNTIME} cannot run it on"
            f" {'generated inputs' if given is None else given}: {exporting.first_sentence(error)}.",
            hint="Give inputs that it is made for: --inputs FILE.npz." if given is None else "",
        ) from error


def generated(inputs: tuple[TensorSpec, ...], seed: int) -> list[Sample]:
    """Seeded input sets: floats in [0, 1), bytes over their range, other integers small, masks all one."""
    random = numpy.random.default_rng(seed)
    return [tuple(_array(spec, random) for spec in inputs) for _ in range(check.SETS)]


def _array(spec: TensorSpec, random: numpy.random.Generator) -> NDArray[Any]:
    dtype = numpy.dtype(spec.dtype)
    if "mask" in spec.name.lower() or dtype.kind == "b":
        return numpy.ones(spec.shape, dtype)
    if dtype.kind == "f":
        return random.random(spec.shape).astype(dtype)
    if dtype.itemsize == 1:  # an image or a quantised tensor
        limits = numpy.iinfo(dtype)
        return random.integers(limits.min, limits.max, spec.shape, dtype, endpoint=True)
    # An index into a table of unknown size, e.g. of tokens: the first few entries are always there.
    return random.integers(0, 2 if "type" in spec.name.lower() else 10, spec.shape).astype(dtype)


def from_file(path: Path, inputs: tuple[TensorSpec, ...]) -> Sample:
    """One input set from a ``.npz`` with the model's names and dtypes; savez(path, a, b) goes by position."""
    try:
        with numpy.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in getattr(stored, "files", [])}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        raise UsageError(
            f"{path} is not a .npz file of plain arrays{why}.", hint="Write it with numpy.savez."
        ) from error
    names = [spec.name for spec in inputs]
    if sorted(arrays) != sorted(names) and list(arrays) == [f"arr_{i}" for i in range(len(names))]:
        arrays = dict(zip(names, arrays.values(), strict=True))
    if sorted(arrays) != sorted(names):
        raise UsageError(
            f"{path} holds {', '.join(map(repr, sorted(arrays))) or 'no arrays'},"
            f" but the model's inputs are {', '.join(map(repr, names))}."
        )
    for spec in inputs:
        array = arrays[spec.name]
        if array.dtype.name != spec.dtype:
            raise UsageError(
                f"{path}: {spec.name!r} is {array.dtype.name}, but the model takes {spec.dtype}.",
                hint=f"Convert it: array.astype('{spec.dtype}').",
            )
        if array.ndim != len(spec.shape):
            raise UsageError(
                f"{path}: {spec.name!r} has the shape {list(array.shape)},"
                f" but the model takes {list(spec.shape)}."
            )
        if not _finite(array):
            raise UsageError(
                f"{path}: {spec.name!r} holds values that are not finite (NaN or infinity).",
                hint="Give inputs that the model is made for.",
            )
    return tuple(numpy.ascontiguousarray(arrays[name]).reshape(arrays[name].shape) for name in names)


def _shaped(spec: TensorSpec, array: NDArray[Any]) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=tuple(array.shape))


def _finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(numpy.isfinite(array).all())


if __name__ == "__main__":
    main(sys.argv[1])
