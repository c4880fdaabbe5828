"""
Deep Compression of LeNet-300-100 and LeNet-5, against the figures of the paper (Han 2016, arXiv:1510.00149).

    python benchmarks/deep_compression.py [--seeds 5] [--jobs 2] [--format onnx] [--cache FOLDER]

Digits at 28x28, or MNIST where its files are in ~/.cache/edgebench/mnist. Of each seed: the accuracy of the
trained model and of the exported file in its own runtime, on the test split that nothing was chosen on; the
bytes of the whole container (model file with its graph, packed, header and checksum included) against 4 bytes
for each parameter; the same file after gzip -9 and xz; the weights alone packed; the time to unpack.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressors import build, container
from harness import config
from harness.core.places import cache_dir
from harness.core.types import Failure, FormatName, Progress

#: What must be reached: times smaller, from the task's model to the container.
TARGETS = {"lenet_300_100": 40.0, "lenet5": 38.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One seed of one model."""

    before: float  # accuracy
    after: float
    smaller: float  # 4 bytes per parameter over container bytes
    gzip: float
    xz: float
    container_bytes: int
    nonzeros: int
    decode_s: float


def main() -> int:
    """Print the table; 1 if a model is not as small as it must be, or lost accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="models that are built at once")
    parser.add_argument("--format", choices=("onnx", "tflite", "executorch"), default="onnx")
    parser.add_argument("--cache", type=Path, default=cache_dir())
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        _row(args.only[0], int(args.only[1]), args.format, args.cache)
        return 0
    started = time.monotonic()
    _build_all([(model, seed) for model in TARGETS for seed in range(args.seeds)], args)
    good = True
    for model, target in TARGETS.items():
        rows = [_row(model, seed, args.format, args.cache) for seed in range(args.seeds)]
        good &= _print(model, rows, target)
    print(f"{time.monotonic() - started:.0f} s")
    return 0 if good else 1


def _build_all(cells: Sequence[tuple[str, int]], args: argparse.Namespace) -> None:
    """Fill the cache, *jobs* processes at a time: a process trains with one thread."""
    waiting, running = list(cells), list[subprocess.Popen[bytes]]()
    common = ["--format", args.format, "--cache", str(args.cache)]
    while waiting or running:
        while waiting and len(running) < args.jobs:
            model, seed = waiting.pop(0)
            print(f"build {model}, seed {seed}", file=sys.stderr)
            running.append(subprocess.Popen([sys.executable, __file__, *common, "--only", model, str(seed)]))
        done = running.pop(0)
        if done.wait():
            raise SystemExit(done.returncode)  # the process has said why


def _row(model: str, seed: int, name: FormatName, cache: Path) -> Row:
    recipe = config.load_recipe(f"deep_compression_{model}")
    request = build.BuildRequest(model=model, recipe=recipe, formats=(name,), seed=seed)
    artifact = build.build(request, cache, _silent)[name]
    if isinstance(artifact, Failure):
        raise SystemExit(f"{model}, seed {seed}: {artifact.status}: {artifact.reason}")
    assert artifact.container is not None, artifact.container_reason
    assert artifact.score is not None
    assert artifact.steps[0].score is not None
    packed = Path(artifact.container.path).read_bytes()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        container.unpack(packed)
        times.append(time.perf_counter() - begin)
    exact_bytes = 4 * artifact.steps[0].parameters
    return Row(
        before=artifact.steps[0].score,
        after=artifact.score.values[0],
        smaller=exact_bytes / artifact.container.bytes,
        gzip=exact_bytes / artifact.gzip_bytes,
        xz=exact_bytes / artifact.container.xz_bytes,
        container_bytes=artifact.container.bytes,
        nonzeros=artifact.steps[-1].nonzeros,
        decode_s=min(times),
    )


def _silent(event: Progress) -> None:
    """Progress is not shown: several builds run at once."""


def _print(model: str, rows: Sequence[Row], target: float) -> bool:
    print(f"\n{model}: the whole container against fp32 weights, target {target:g}x without loss")
    print("seed  accuracy before -> after   non-zero   container    smaller   gzip -9      xz    unpacked in")
    for seed, row in enumerate(rows):
        print(
            f"{seed:4}  {row.before:15.4f} -> {row.after:.4f}   {row.nonzeros:8,}  {row.container_bytes:8,} B"
            f"  {row.smaller:8.1f}x {row.gzip:8.1f}x {row.xz:7.1f}x  {row.decode_s * 1e3:8.1f} ms"
        )
    before, after, smaller = ([getattr(row, n) for row in rows] for n in ("before", "after", "smaller"))
    drops = [b - a for b, a in zip(before, after, strict=True)]
    print(
        f"mean  accuracy {_spread(before)} -> {_spread(after)}; lost {_spread(drops)}; {_spread(smaller, 1)}x"
    )
    small, kept = bool(min(smaller) >= target), statistics.mean(drops) <= 0
    print(
        f"      {'reached' if small else 'NOT REACHED'}: at least {min(smaller):.1f}x in every seed;"
        f" {'no' if kept else 'SOME'} accuracy lost in the mean"
    )
    return small and kept


def _spread(values: Sequence[float], digits: int = 4) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
