"""
What a teacher is worth: a student of digits_cnn with and without its answers, over several seeds.

The student (small_model: 7,298 parameters, 1/12.8 of its teacher) is trained in the same way twice: same
first weights, same batches, same rate; once on labels alone and once on 0.1 labels + 0.9 teacher's
answers at temperature 8.

* few images: both students see the first PER_CLASS images of each class, bent anew in each of 75 epochs.
  This is judged. The setting was chosen on the validation split with other seeds than are used here;
  all figures are of the test split.
* all images, 12 epochs: where labels are plenty a teacher is worth less. This is told and not judged.
* all images, 60 epochs: what is left of the teacher at a tenth of its size. This is judged.

Exits with 1 unless the 95 % interval of the paired gain with few images is above 0, and the long trained
student has at most 1/10 of the parameters and loses at most 1.5 points.

    python -m benchmarks.distillation [--seeds 5] [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
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

from harness.core.types import Progress, Recipe, Step

MODEL, STUDENT = "digits_cnn", "small_model"
PER_CLASS = 20
LABELS: dict[str, Any] = {"student": STUDENT, "channels_last": True, "alpha": 0}
TEACHER: dict[str, Any] = {**LABELS, "alpha": 0.9, "temperature": 8}
FEW, SOME, LONG = {"epochs": 75, "lr": 0.01}, {"epochs": 12, "lr": 0.02}, {"epochs": 60, "lr": 0.01}
#: Options of the student by what is printed; whether it sees few images.
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "few images, labels": ({**LABELS, **FEW}, True),
    "few images, teacher": ({**TEACHER, **FEW}, True),
    "12 epochs, labels": ({**LABELS, **SOME}, False),
    "12 epochs, teacher": ({**TEACHER, **SOME}, False),
    "60 epochs, teacher": ({**TEACHER, **LONG}, False),
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
    print(f"Trained in {time.monotonic() - started:.0f} s (teachers that the cache had are not).\n")
    return 0 if _told(results) else 1


def _seed(seed: int, cache: Path) -> Result:
    """Train one teacher, or take it from the cache, and all of its students."""
    from compressors import steps, task
    from compressors.build import BuildRequest
    from compressors.state import Context

    whole = task.load(MODEL)
    request = BuildRequest(model=MODEL, recipe=Recipe(name="fp32"), formats=("onnx",), seed=seed)
    teacher, (trained,) = steps.run(request, whole, cache, _ignore)
    assert trained.score is not None
    students: dict[str, float] = {}
    for way, (options, is_few) in WAYS.items():
        step = Step(name="distil", options=options)
        (checked,) = steps.check_recipe(Recipe(name=way, steps=(step,)))
        context = Context(
            task=dataclasses.replace(whole, train_loader=_few) if is_few else whole,
            seed=seed,
            report=_ignore,
            original=teacher.module,
            before=("train",),
        )
        _, taught = steps.apply_step(step, checked, teacher, context, trained)
        assert taught.score is not None
        students[way] = 100 * taught.score
        print(f"  seed {seed}, {way}: {students[way]:.2f} % after {taught.wall_s:.0f} s", file=sys.stderr)
    return Result(
        teacher=100 * trained.score, students=students, parameters=(trained.parameters, taught.parameters)
    )


def _few(seed: int) -> Any:
    """The first PER_CLASS training images of each class, bent as the task does it."""
    import torch

    from compressors.tasks import digits_cnn

    (images, labels), *_ = digits_cnn.calibration_loader()
    kept = torch.cat([(labels == c).nonzero().flatten()[:PER_CLASS] for c in range(10)])
    return digits_cnn.Augmented(images[kept], labels[kept], seed)


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
    few_labels, few_teacher, labels, taught, long = WAYS
    print()
    low = 0.0
    for name, one, two in (("12 epochs", labels, taught), ("few images", few_labels, few_teacher)):
        gains = [r.students[two] - r.students[one] for r in results]
        low, high = interval(gains)
        print(
            f"{name}: the teacher is worth {statistics.fmean(gains):+.2f} points, 95 % interval {low:+.2f} to"
            f" {high:+.2f}; by seed {', '.join(f'{g:+.2f}' for g in gains)}"
        )
    missing = statistics.fmean(r.teacher - r.students[long] for r in results)
    judged = {
        "with few images the teacher is worth more than nothing": low > 0,
        f"1/{big / small:.1f} of the parameters, {missing:.2f} points lost (at most {MOST_LOSS})": (
            small <= MOST_SHARE * big and missing <= MOST_LOSS
        ),
    }
    print()
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
