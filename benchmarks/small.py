"""
How small and how right: digits_cnn in every recipe and format, over several seeds.

Prints bytes, their ratio to the fp32 file of the same format, the test accuracy that each file has in
its own runtime (mean ± standard deviation over seeds), and what it loses against fp32, paired by seed.
Exits with 1 unless pruned_int8 is at most 1/10 of fp32 at no more than 0.5 points less, in all formats.

    python -m benchmarks.small [--seeds 5] [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from compressors.build import BuildRequest, lookup
from harness.building import build_all
from harness.config import load_recipe
from harness.core.types import RUNTIMES, Artifact, FormatName, Progress, Recipe

MODEL = "digits_cnn"
RECIPES = ("fp32", "int8", "pruned", "pruned_int8")
FORMATS: tuple[FormatName, ...] = ("executorch", "onnx", "tflite")
MOST_BYTES, MOST_LOSS = 0.1, 0.5  # share of fp32's bytes, points of accuracy


def main() -> int:
    """Build what the cache lacks, print the table, judge pruned_int8."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/edgebench/small").expanduser())
    options = parser.parse_args()
    recipes = [load_recipe(name) for name in RECIPES]
    seeds = range(options.seeds)
    started = time.monotonic()
    build_all(
        models=[MODEL], recipes=recipes, formats=FORMATS, seeds=list(seeds), cache=options.cache, report=_show
    )
    print(f"Built in {time.monotonic() - started:.0f} s (what the cache had already is not built again).\n")
    files = {
        (recipe.name, format): [_file(recipe, format, seed, options.cache) for seed in seeds]
        for recipe in recipes
        for format in FORMATS
    }
    print(_table(files, len(seeds)))
    return 0 if all(_judge(files, format) for format in FORMATS) else 1


def _show(event: Progress) -> None:
    if event.stage == "build":
        print(f"  {event.done}/{event.total} {event.note}", file=sys.stderr)


def _file(recipe: Recipe, format: FormatName, seed: int, cache: Path) -> Artifact:
    request = BuildRequest(model=MODEL, recipe=recipe, formats=FORMATS, seed=seed)
    found = lookup(request, cache)
    result = found[format] if found else None
    if not isinstance(result, Artifact):
        raise SystemExit(
            f"{recipe.name} as {format}, seed {seed}: {result.reason if result else 'not built'}"
        )
    return result


Files = dict[tuple[str, FormatName], list[Artifact]]


def _table(files: Files, seeds: int) -> str:
    samples = next(iter(files.values()))[0].score
    lines = [
        f"{MODEL}, {seeds} seeds, {samples.samples if samples else 0} test samples; ± is 1 sd",
        f"{'recipe':<12} {'runtime':<12} {'parameters':>10} {'bytes':>8} {'of fp32':>8}"
        f" {'accuracy %':>15} {'lost, points':>15}",
    ]
    for (recipe, format), made in files.items():
        base = files["fp32", format]
        ratio = _mean([a.bytes for a in made]) / _mean([a.bytes for a in base])
        lines.append(
            f"{recipe:<12} {RUNTIMES[format]:<12} {_mean([a.parameters or 0 for a in made]):>10.0f}"
            f" {_mean([a.bytes for a in made]):>8.0f} {f'1/{1 / ratio:.1f}':>8}"
            f" {_spread(_accuracy(made)):>15} {_spread(_lost(base, made)):>15}"
        )
    return "\n".join(lines)


def _judge(files: Files, format: FormatName) -> bool:
    base, made = files["fp32", format], files["pruned_int8", format]
    ratio = _mean([a.bytes for a in made]) / _mean([a.bytes for a in base])
    lost = _mean(_lost(base, made))
    right = ratio <= MOST_BYTES and lost <= MOST_LOSS
    print(
        f"{'yes' if right else 'NO '}  pruned_int8 in {RUNTIMES[format]}: 1/{1 / ratio:.1f} of the bytes"
        f" (at most 1/{1 / MOST_BYTES:.0f}), {lost:.2f} points lost (at most {MOST_LOSS})"
    )
    return right


def _accuracy(made: Sequence[Artifact]) -> list[float]:
    return [100 * a.score.values[0] for a in made if a.score]


def _lost(base: Sequence[Artifact], made: Sequence[Artifact]) -> list[float]:
    return [b - m for b, m in zip(_accuracy(base), _accuracy(made), strict=True)]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{_mean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    sys.exit(main())
