"""
What a teacher is worth: a student of digits_cnn with and without its answers, over several seeds.

The student (small_model: 7,298 parameters, 1/12.8 of its teacher) is trained in the same way twice: same
first weights, same batches, 12 epochs, one-cycle rate up to 0.02; once on labels alone and once on
0.1 labels + 0.9 teacher's answers at temperature 8. The setting was chosen on the validation split with other
seeds, the rate as the better one for labels alone; what is printed is of the test split. A third student
learns from the teacher for 60 epochs: what is left of the teacher at a tenth of its size.

Exits with 1 unless the 95 % interval of the paired gain is above 0, and the long trained student has at
most 1/10 of the parameters and loses at most 1.5 points.

    python -m benchmarks.distillation [--seeds 5] [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.types import Progress, Recipe, Step, StepReport

MODEL, STUDENT = "digits_cnn", "small_model"
COMMON: dict[str, Any] = {"student": STUDENT, "channels_last": True}
SHORT: dict[str, Any] = {**COMMON, "epochs": 12, "lr": 0.02}
TEACHER: dict[str, Any] = {"teacher": "original", "alpha": 0.9, "temperature": 8}
WAYS: dict[str, dict[str, Any]] = {
    "labels alone, 12 epochs": {**SHORT, "alpha": 0},
    "teacher, 12 epochs": {**SHORT, **TEACHER},
    "teacher, 60 epochs": {**COMMON, **TEACHER, "epochs": 60, "lr": 0.01},
}
MOST_LOSS, MOST_SHARE = 1.5, 0.1  # points of accuracy, share of the parameters


@dataclass(frozen=True)
class Result:
    """One seed: accuracy in percent by way of training, and parameters."""

    teacher: float
    students: dict[str, float]
    parameters: tuple[int, int]  # teacher, student


def main() -> int:
    """Train, print the table, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/edgebench/distillation").expanduser())
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: an interval needs at least 2")
    started = time.monotonic()
    work = functools.partial(_seed, cache=options.cache)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        results = list(pool.map(work, range(options.seeds)))
    print(f"Trained in {time.monotonic() - started:.0f} s (what the cache had is not trained again).\n")
    return 0 if _told(results) else 1


def _seed(seed: int, cache: Path) -> Result:
    students: dict[str, float] = {}
    for way, options in WAYS.items():
        trained, taught = _reports(Step(name="distil", options=options), seed, cache)
        assert trained.score is not None
        assert taught.score is not None
        students[way] = 100 * taught.score
        print(
            f"  seed {seed}, {way}: {100 * taught.score:.2f} % after {taught.wall_s:.0f} s", file=sys.stderr
        )
    return Result(
        teacher=100 * trained.score, students=students, parameters=(trained.parameters, taught.parameters)
    )


def _reports(step: Step, seed: int, cache: Path) -> tuple[StepReport, StepReport]:
    """What training the teacher and the step gave."""
    from compressors import steps, task
    from compressors.build import BuildRequest

    recipe = Recipe(name="distillation", steps=(step,))
    request = BuildRequest(model=MODEL, recipe=recipe, formats=("onnx",), seed=seed)
    _, reports = steps.run(request, task.load(MODEL), cache, _ignore)
    return reports[0], reports[1]


def _ignore(event: Progress) -> None:
    """Nobody watches."""


def _told(results: Sequence[Result]) -> bool:
    """Print what was found; whether it is what is asked for."""
    big, small = results[0].parameters
    teacher = [r.teacher for r in results]
    print(f"{MODEL}, {len(results)} seeds, test split; accuracy in %, mean ± 1 sd\n")
    print(f"{'':<26} {'parameters':>10} {'accuracy':>16} {'lost, points':>16}")
    print(f"{'teacher':<26} {big:>10,} {_spread(teacher):>16}")
    for way in WAYS:
        found = [r.students[way] for r in results]
        lost = [t - s for t, s in zip(teacher, found, strict=True)]
        print(f"{way:<26} {small:>10,} {_spread(found):>16} {_spread(lost):>16}")
    labels, short, long = WAYS
    gains = [r.students[short] - r.students[labels] for r in results]
    low, high = interval(gains)
    print(f"\nGain of the teacher at 12 epochs by seed: {', '.join(f'{g:+.2f}' for g in gains)} points")
    lost = statistics.fmean(r.teacher - r.students[long] for r in results)
    gain = statistics.fmean(gains)
    judged = {
        f"the gain is {gain:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}": low > 0,
        f"1/{big / small:.1f} of the parameters, {lost:.2f} points lost (at most {MOST_LOSS})": (
            small <= MOST_SHARE * big and lost <= MOST_LOSS
        ),
    }
    for sentence, right in judged.items():
        print(f"{'yes' if right else 'NO '}  {sentence}")
    return all(judged.values())


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of paired *differences* (Student's t)."""
    from scipy import stats

    mean, count = statistics.fmean(differences), len(differences)
    half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return mean - half, mean + half


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    sys.exit(main())
