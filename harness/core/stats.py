"""
Intervals and tests over a handful of independent values: what scipy has, with its edge cases decided.

A function answers None where the question has no answer (one value, or values that do not vary at all,
which says that the clock is too coarse and not that the spread is zero).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Values whose range is below this are taken as constant; the values are logarithms or of order one.
CONSTANT = 1e-12

#: Up to this many values every sign combination or regrouping is counted; above, a seeded sample of them.
EXACT_UP_TO = 16
_RESAMPLES = 2**EXACT_UP_TO

Interval = tuple[float, float]


def is_constant(values: Sequence[float]) -> bool:
    """Whether *values* do not vary, so that their spread cannot be estimated."""
    return max(values) - min(values) < CONSTANT


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student-t interval of the mean, df = n - 1: mean -/+ t * s / sqrt(n)."""
    if len(values) < 2 or is_constant(values):
        return None
    from scipy import stats

    interval = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


def geometric_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student-t interval of the geometric mean: exp of the interval of the mean of the logarithms."""
    if any(value <= 0 for value in values):
        return None
    interval = mean_interval([math.log(value) for value in values], confidence)
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def difference_interval(
    base: Sequence[float], other: Sequence[float], confidence: float = 0.95
) -> Interval | None:
    """Welch's interval of mean(other) - mean(base) of two independent groups."""
    if min(len(base), len(other)) < 2 or (is_constant(base) and is_constant(other)):
        return None
    from scipy import stats

    interval = stats.ttest_ind(other, base, equal_var=False).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


def sign_flip_p(differences: Sequence[float]) -> float:
    """
    Two-sided p that the differences are symmetric about zero, from their mean under every choice of signs.

    Exact up to EXACT_UP_TO differences: then the smallest p there can be is 2 / 2**n.
    """
    if len(differences) < 2:
        return 1.0  # both signs of one value are equally extreme
    import numpy as np
    from scipy import stats

    result = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def regrouping_p(base: Sequence[float], other: Sequence[float]) -> float:
    """
    Two-sided p that both groups come from one distribution, from the difference of means.

    Every regrouping is counted while there are at most 2**EXACT_UP_TO of them, else a seeded sample.
    """
    import numpy as np
    from scipy import stats

    def difference(a: object, b: object, axis: int = 0) -> object:
        return np.mean(a, axis=axis) - np.mean(b, axis=axis)  # type: ignore[call-overload]

    result = stats.permutation_test(
        (np.asarray(other, dtype=float), np.asarray(base, dtype=float)),
        difference,
        permutation_type="independent",
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def share_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share: right also near 0 and 1, where accuracies live."""
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
