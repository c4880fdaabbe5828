"""Comparisons: hand-computed values, honest intervals, and a refusal of unlike things."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from harness.compare import Comparison, compare
from harness.core import stats
from harness.core.errors import UsageError
from harness.core.types import Record
from tests import records

# Six pairs whose log-ratios are exactly these, up to the rounding of medians to whole nanoseconds.
LOGS = (-0.10, -0.12, -0.08, -0.11, -0.09, -0.10)
DRIFT = (1.0, 1.3, 0.8, 1.1, 0.7, 1.5)
T_975_DF5 = 2.5705818366147395


def pair(logs: tuple[float, ...], drift: tuple[float, ...] = DRIFT) -> tuple[Record, Record]:
    """Base and candidate of one run that share a drift from block to block."""
    base = [round(50_000_000 * d) for d in drift[: len(logs)]]
    other = [round(b * math.exp(log)) for b, log in zip(base, logs, strict=True)]
    return records.medians(*base), records.medians(*other, of=records.cell("int8"))


def arms(base: tuple[int, ...], other: tuple[int, ...]) -> Comparison:
    """Unpaired: the same two cells, from two runs."""
    return compare(records.medians(*base), replace(records.medians(*other), run="another"))


def test_ratio_interval_and_p_of_six_pairs_by_hand() -> None:
    """Mean -0.1, s = sqrt(0.001 / 5) = 0.0141421, half = 2.57058 s / sqrt(6) = 0.0148413, p = 2 / 64."""
    found = compare(*pair(LOGS))
    half = T_975_DF5 * math.sqrt(0.001 / 5) / math.sqrt(6)
    assert found.ratio == pytest.approx(math.exp(-0.1), rel=1e-6)
    assert found.low == pytest.approx(math.exp(-0.1 - half), rel=1e-6)
    assert found.high == pytest.approx(math.exp(-0.1 + half), rel=1e-6)
    assert found.p == pytest.approx(2 / 64)
    assert (found.pairs, found.blocks, found.verdict) == (6, (6, 6), "better")


def test_pairing_removes_a_drift_that_both_cells_share() -> None:
    """The same medians from two runs are not paired: the drift of 2 x hides a 10 % change."""
    base, other = pair(LOGS)
    found = compare(base, replace(other, run="another"))
    assert (found.pairs, found.verdict) == (0, "unclear")
    assert found.low is not None and found.high is not None
    assert found.low < 0.8 and found.high > 1.1


def test_pairs_are_matched_by_block_index_and_not_by_position() -> None:
    base, other = pair(LOGS)
    shuffled = replace(other, blocks=tuple(reversed(other.blocks)))
    assert compare(base, other) == compare(base, shuffled)


def test_a_lost_block_loses_its_pair_only() -> None:
    base, other = pair(LOGS)
    found = compare(base, replace(other, blocks=other.blocks[1:]))
    assert (found.pairs, found.blocks, found.verdict) == (5, (6, 5), "better")
    assert found.ratio == pytest.approx(math.exp(np.mean(LOGS[1:])), rel=1e-6)
    assert found.p == pytest.approx(2 / 32)


def test_a_single_shared_round_is_no_pairing() -> None:
    """Two blocks each, one index in common: there are two groups to compare, but no pairs."""
    base, other = pair(LOGS)
    found = compare(replace(base, blocks=base.blocks[:2]), replace(other, blocks=other.blocks[1:3]))
    assert (found.pairs, found.blocks) == (0, (2, 2))
    assert found.low is not None


def test_swapping_the_arms_inverts_ratio_interval_and_verdict() -> None:
    base, other = pair(LOGS)
    there, back = compare(base, other), compare(other, base)
    assert there.ratio and there.low and there.high and back.ratio and back.low and back.high
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)
    assert (there.verdict, back.verdict) == ("better", "worse")


def test_welch_interval_of_two_runs_by_hand() -> None:
    """Logs 1, 2, 3 and 2, 4, 6 (centi): se² = 1/3 + 4/3, df = (5/3)² / ((1/9)/2 + (16/9)/2) = 2.94."""
    base = tuple(round(1e9 * math.exp(x / 100)) for x in (1, 2, 3))
    other = tuple(round(1e9 * math.exp(x / 100)) for x in (2, 4, 6))
    found = arms(base, other)
    t_df = 3.219  # Student's t, 0.975, df = 2.9412
    assert found.ratio == pytest.approx(math.exp(0.02), rel=1e-6)
    assert found.high is not None
    half = (math.log(found.high) - 0.02) * 100
    assert half == pytest.approx(t_df * math.sqrt(5 / 3), rel=1e-3)


def test_unpaired_p_counts_every_regrouping() -> None:
    """Three against three fully apart: 2 of the 20 regroupings are as extreme."""
    found = arms((100_000, 101_000, 102_000), (120_000, 121_000, 122_000))
    assert found.p == pytest.approx(2 / 20)
    assert found.verdict == "worse"


@pytest.mark.parametrize(
    ("logs", "verdict"),
    [
        ((0.10, 0.11, 0.09, 0.10, 0.12, 0.08), "worse"),
        ((0.001, -0.001, 0.002, -0.002, 0.0, 0.001), "same"),
        ((0.03, 0.02, 0.04, 0.03, 0.01, 0.05), "unclear"),  # real, but about as large as the tolerance
        ((0.2, -0.2, 0.15, -0.1, 0.05, -0.1), "unclear"),  # too noisy to say
    ],
)
def test_the_verdict_follows_the_interval_and_the_tolerance(logs: tuple[float, ...], verdict: str) -> None:
    found = compare(*pair(logs))
    assert verdict == found.verdict
    assert found.why


def test_a_significant_but_small_change_is_not_worse() -> None:
    """1 % slower in every block, p at its minimum: inside a tolerance of 3 % it is the same."""
    logs = (0.010, 0.011, 0.009, 0.010, 0.0105, 0.0095)
    found = compare(*pair(logs))
    assert found.verdict == "same"
    assert found.p == pytest.approx(2 / 64)
    assert compare(*pair(logs), tolerance=0.002).verdict == "worse"


def test_one_block_is_unclear_however_large_the_difference() -> None:
    found = arms((100_000,), (900_000,))
    assert (found.verdict, found.low, found.p) == ("unclear", None, None)
    assert found.ratio == pytest.approx(9)
    assert "one block" in found.why


def test_no_block_at_all_is_unclear() -> None:
    empty = records.record([], of=records.cell("int8"))
    found = compare(records.medians(100_000, 110_000), empty)
    assert (found.verdict, found.ratio) == ("unclear", None)
    assert "no latency block" in found.why


def test_ratios_that_never_vary_are_unclear_and_not_certain() -> None:
    """A clock that ticks in steps gives a spread of zero, which is not knowledge."""
    found = compare(
        records.medians(4000, 4000, 4000), records.medians(5000, 5000, 5000, of=records.cell("int8"))
    )
    assert (found.verdict, found.low, found.high) == ("unclear", None, None)
    assert "same ratio" in found.why


def test_a_median_of_zero_is_unclear_and_not_a_crash() -> None:
    zero = records.record([records.latency_block([0, 0, 0], index=i) for i in range(3)])
    found = compare(zero, records.medians(1000, 1100, 1200, of=records.cell("int8")))
    assert found.verdict == "unclear"
    assert "clock is too coarse" in found.why


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (
            {"device": {**records.DEVICE_FACTS, "kernel": "6.9"}},
            "the device's kernel is 6.1.0-18-amd64 and 6.9",
        ),
        ({"device": {"kernel": "6.1.0-18-amd64"}}, "the device's arch is x86_64 and None"),
        ({"cell": records.cell("int8", threads=2)}, "the thread count is 1 and 2"),
        ({"cell": records.cell("int8", model="other")}, "the model is digits_cnn and other"),
        ({"cell": records.cell("int8", device="pi5")}, "the device is local and pi5"),
        ({"status": "interrupted", "reason": "stopped"}, "was not measured (interrupted)"),
        ({"plan": replace(records.medians(1).plan, quick=True)}, "the quick mark is False and True"),
    ],
)
def test_unlike_things_are_refused_and_the_fact_is_named(change: dict[str, object], fact: str) -> None:
    base, other = pair(LOGS)
    with pytest.raises(UsageError) as error:
        compare(base, replace(other, **change))  # type: ignore[arg-type]
    assert fact in str(error.value)


def test_another_input_size_is_refused_but_another_layout_is_not() -> None:
    base, other = pair(LOGS)
    assert base.artifact and other.artifact
    spec = base.artifact.inputs[0]
    nhwc = replace(other.artifact, inputs=(replace(spec, shape=(1, 28, 28, 1)),))
    assert compare(base, replace(other, artifact=nhwc)).verdict == "better"
    larger = replace(other.artifact, inputs=(replace(spec, shape=(1, 1, 32, 32)),))
    with pytest.raises(UsageError, match="input size"):
        compare(base, replace(other, artifact=larger))


def test_other_words_for_an_absent_fact_do_not_forbid_a_comparison() -> None:
    base, other = pair(LOGS)
    reworded = replace(other, device={**other.device, "reasons": {"governors": "there is no cpufreq"}})
    assert compare(base, reworded).verdict == "better"


@pytest.mark.parametrize("tolerance", [-0.01, math.nan, math.inf])
def test_a_tolerance_that_is_no_share_is_a_usage_error(tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        compare(*pair(LOGS), tolerance=tolerance)


def test_the_sign_flip_p_is_exact() -> None:
    """By enumeration: of the 16 signings of 1, 2, 3, -1 the |sum| is at least 5 in 6."""
    values = [1.0, 2.0, 3.0, -1.0]
    sums = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
    ]
    expected = sum(abs(s) >= sum(values) for s in sums) / 16
    assert expected == pytest.approx(6 / 16)
    assert stats.sign_flip_p(values) == pytest.approx(expected)
    assert stats.sign_flip_p([-v for v in values]) == pytest.approx(expected)
    assert stats.sign_flip_p([3.0]) == 1.0


@pytest.mark.parametrize(("blocks", "outliers"), [(3, 0.0), (6, 0.0), (8, 0.0), (6, 0.1)])
def test_a_95_percent_interval_covers_the_truth_95_times_in_100(blocks: int, outliers: float) -> None:
    """
    2,000 seeded trials: 95 % +/- 3 binomial standard errors (1.5 points), from below also with outliers.

    Normal quantiles instead of t cover 89 % at 6 blocks, and df = n instead of n - 1 covers 91.4 % at 3,
    so either mistake fails.
    """
    rng = np.random.default_rng(20260302)
    hits, trials = 0, 2000
    for _ in range(trials):
        noise = rng.normal(0, 0.02, blocks) * np.where(rng.random(blocks) < outliers, 5, 1)
        interval = stats.mean_interval(list(0.05 + noise))
        assert interval is not None
        hits += interval[0] <= 0.05 <= interval[1]
    assert hits / trials >= 0.935
    assert hits / trials <= (0.965 if not outliers else 0.99)


def test_an_unchanged_model_is_rarely_called_worse() -> None:
    """
    300 seeded A/A comparisons per noise of a block (1 %, 2 %) at 6 blocks.

    The half-width is 2.57 x noise x sqrt(2) / sqrt(6): 1.5 % and 3.0 %. At 1 % most fit inside the
    tolerance of 3 %; at 2 % few can, which must come out as unclear and not as an alarm.
    """
    assert _aa_verdicts(0.01)["same"] > 200
    noisy = _aa_verdicts(0.02)
    assert noisy["unclear"] > noisy["same"]
    assert noisy["better"] + noisy["worse"] <= 3


def _aa_verdicts(noise: float) -> Counter[str]:
    rng = np.random.default_rng(5)
    verdicts: Counter[str] = Counter()
    for _ in range(300):
        base, other = (1e6 * np.exp(rng.normal(0, noise, 6)) for _ in range(2))
        found = compare(
            records.medians(*map(int, base), samples=2),
            records.medians(*map(int, other), samples=2, of=records.cell("int8")),
        )
        verdicts[found.verdict] += 1
    return verdicts
