"""Derived figures: right values, right spread, and a reason wherever there is none."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from harness import metrics
from harness.core.types import Record, Score
from tests import records

MIB = records.MIB


def test_p50_is_the_median_of_block_medians_and_never_pools_values() -> None:
    """Pooled, the long block would outvote the others: the median of all values is 300."""
    blocks = [
        records.latency_block([100] * 5, index=0),
        records.latency_block([110] * 5, index=1),
        records.latency_block([300] * 1000, index=2),
    ]
    p50 = metrics.row(records.record(blocks)).p50_ns
    assert (p50.value, p50.n, p50.samples, p50.spread) == (110, 3, 1010, "ci95")


def test_the_interval_of_p50_is_student_t_on_log_medians() -> None:
    medians = (100_000, 103_000, 98_000, 101_000, 107_000, 99_000)
    p50 = metrics.row(records.medians(*medians)).p50_ns
    logs = np.log(medians)
    half = stats.t.ppf(0.975, df=5) * logs.std(ddof=1) / math.sqrt(6)
    assert p50.low == pytest.approx(math.exp(logs.mean() - half), rel=1e-12)
    assert p50.high == pytest.approx(math.exp(logs.mean() + half), rel=1e-12)


def test_one_block_has_a_p50_but_no_interval_and_says_why() -> None:
    p50 = metrics.row(records.medians(100_000)).p50_ns
    assert (p50.value, p50.low, p50.high, p50.n) == (100_000, None, None, 1)
    assert "one block" in (p50.reason or "")


def test_blocks_that_read_the_same_have_no_interval_of_width_zero() -> None:
    p50 = metrics.row(records.medians(5000, 5000, 5000)).p50_ns
    assert (p50.value, p50.low, p50.high) == (5000, None, None)
    assert "clock is too coarse" in (p50.reason or "")


@pytest.mark.parametrize(("count", "p90", "p99"), [(9, False, False), (10, True, False), (100, True, True)])
def test_a_percentile_needs_a_value_beyond_it_in_every_block(count: int, p90: bool, p99: bool) -> None:
    blocks = [
        records.latency_block(range(1000, 2000), index=0),
        records.latency_block(range(1000, 1000 + count), index=1),
    ]
    row = metrics.row(records.record(blocks))
    assert (p90, p99) == (row.p90_ns.value is not None, row.p99_ns.value is not None)
    if not p99:
        assert f"block 1 has {count} values; p99 needs 100" == row.p99_ns.reason


def test_percentiles_interpolate_between_neighbours() -> None:
    row = metrics.row(records.record([records.latency_block(range(1, 102))]))
    assert (row.p50_ns.value, row.p90_ns.value, row.p99_ns.value) == (51, 91, 100)
    even = metrics.row(records.record([records.latency_block([10, 20])]))
    assert even.p50_ns.value == 15


def test_load_and_first_inference_are_the_median_with_smallest_and_largest() -> None:
    blocks = [
        records.latency_block([100], index=i, load_ns=load, first_inference_ns=load * 10)
        for i, load in enumerate((5, 1, 30))
    ]
    row = metrics.row(records.record([*blocks, records.memory_block(load_ns=10**9)]))
    assert (
        row.load_ns.value,
        row.load_ns.low,
        row.load_ns.high,
        row.load_ns.spread,
        row.load_ns.n,
    ) == (5, 1, 30, "range", 3)
    assert (
        row.first_inference_ns.value,
        row.first_inference_ns.low,
        row.first_inference_ns.high,
    ) == (50, 10, 300)


def test_cpu_over_wall_shows_how_many_threads_worked() -> None:
    blocks = [records.latency_block([100], index=i, cpu_ns=190 + i, wall_ns=100) for i in range(3)]
    figure = metrics.row(records.record(blocks)).cpu_over_wall
    assert (figure.value, figure.low, figure.high) == (1.91, 1.90, 1.92)
    unknown = metrics.row(records.record([records.latency_block([100], cpu_ns=0)])).cpu_over_wall
    assert unknown.value is None
    assert "no CPU time" in (unknown.reason or "")


def test_memory_figures_come_from_the_worst_block_and_add_up() -> None:
    blocks = [
        records.memory_block(index=0, baseline=40 * MIB, model=12 * MIB),
        records.memory_block(index=1, baseline=44 * MIB, model=9 * MIB),
    ]
    row = metrics.row(records.record(blocks))
    assert (
        row.peak_bytes.value,
        row.peak_bytes.low,
        row.peak_bytes.high,
        row.peak_bytes.n,
    ) == (53 * MIB, 52 * MIB, 53 * MIB, 2)
    assert (row.baseline_bytes.value, row.model_memory_bytes.value) == (44 * MIB, 9 * MIB)
    assert (row.model_memory_bytes.low, row.model_memory_bytes.high) == (9 * MIB, 12 * MIB)
    assert row.load_delta_bytes.value == 9 * MIB // 2
    assert row.first_inference_delta_bytes.value == 9 * MIB * 3 // 4 - 9 * MIB // 2


def test_swapped_pages_count_towards_the_peak() -> None:
    """With zram the resident set shrinks while the process has grown."""
    block = records.memory_block(baseline=40 * MIB, model=8 * MIB)
    marks = [replace(m, swap_bytes=50 * MIB) if m.name == "steady" else m for m in block.marks]
    row = metrics.row(records.record([replace(block, marks=tuple(marks))]))
    assert (46 + 50) * MIB == row.peak_bytes.value == row.steady_peak_bytes.value


def test_a_load_that_peaks_higher_than_running_is_the_peak() -> None:
    block = records.memory_block(baseline=40 * MIB, model=8 * MIB)
    marks = [replace(m, peak_rss_bytes=90 * MIB) if m.name == "loaded" else m for m in block.marks]
    row = metrics.row(records.record([replace(block, marks=tuple(marks))]))
    assert (
        row.peak_bytes.value,
        row.steady_peak_bytes.value,
        row.model_memory_bytes.value,
    ) == (90 * MIB, 48 * MIB, 50 * MIB)


def test_a_peak_of_the_bare_runtime_is_not_the_models() -> None:
    block = records.memory_block(baseline=40 * MIB, model=8 * MIB)
    marks = [replace(m, peak_rss_bytes=90 * MIB) if m.name == "baseline" else m for m in block.marks]
    assert (
        metrics.row(records.record([replace(block, marks=tuple(marks))])).model_memory_bytes.value == 8 * MIB
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("lost", "memory block 3 lacks the mark 'steady'"),
        ("zero", "memory block 3 reads a peak of 0 bytes"),
        ("none", "no memory block was run"),
    ],
)
def test_memory_that_cannot_be_true_is_null_with_a_reason(damage: str, reason: str) -> None:
    block = records.memory_block(index=3)
    if damage == "lost":
        block = replace(block, marks=block.marks[:-1])
    if damage == "zero":
        zero = replace(block.marks[-1], peak_rss_bytes=0, rss_bytes=0, swap_bytes=0)
        block = replace(block, marks=(*block.marks[:-1], zero))
    row = metrics.row(records.record([] if damage == "none" else [records.memory_block(), block]))
    assert (None, reason) == (row.peak_bytes.value, row.peak_bytes.reason)
    assert (None, reason) == (row.model_memory_bytes.value, row.model_memory_bytes.reason)


def test_a_score_over_seeds_is_mean_and_sample_standard_deviation() -> None:
    made = records.artifact(scores=(0.98, 0.99, 1.00))
    score = metrics.row(records.record(made=made)).score
    assert (score.n, score.samples, score.spread) == (3, 450, "sd")
    assert score.value == pytest.approx(0.99)
    assert score.low == pytest.approx(0.98)
    assert score.high == pytest.approx(1.00)


def test_a_score_of_one_seed_has_wilsons_interval() -> None:
    """Wilson by hand for 441 of 450: centre (p + z²/2n)/(1 + z²/n), half z/(1 + z²/n) sqrt(pq/n + z²/4n²)."""
    score = metrics.row(records.record(made=records.artifact(scores=(441 / 450,)))).score
    p, n, z = 441 / 450, 450, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (score.n, score.spread) == (1, "ci95")
    assert score.low == pytest.approx(centre - half, rel=1e-9)
    assert score.high == pytest.approx(centre + half, rel=1e-9)


def test_a_share_that_went_through_a_float32_still_has_its_interval() -> None:
    made = records.artifact(scores=(float(np.float32(449 / 450)),))
    score = metrics.row(records.record(made=made)).score
    exact = metrics.row(records.record(made=records.artifact(scores=(449 / 450,)))).score
    assert (score.low, score.high) == (exact.low, exact.high)
    assert score.low is not None


def test_a_single_score_that_is_no_share_has_no_interval_and_says_so() -> None:
    made = records.artifact(score=Score(metric="psnr_db", values=(31.5,), seeds=(0,), samples=100))
    score = metrics.row(records.record(made=made)).score
    assert (score.value, score.low, score.high) == (31.5, None, None)
    assert "psnr_db is not a share of the 100 samples" in (score.reason or "")


def test_a_file_made_elsewhere_says_why_its_model_is_not_counted() -> None:
    made = records.artifact(parameters=None, macs=None, score=None, score_reason="no test data was given")
    row = metrics.row(records.record(made=made))
    assert row.parameters.value is None
    assert "made elsewhere" in (row.parameters.reason or "")
    assert row.score.reason == "no test data was given"
    assert row.file_bytes.value == made.bytes


def test_every_figure_of_a_failed_cell_carries_the_cells_reason() -> None:
    row = metrics.row(records.failed(records.cell(), "unsupported_op", "aten.erfinv has no lowering"))
    for name, figure in row.metrics.items():
        assert (name, None) == (name, figure.value)
        assert (name, "aten.erfinv has no lowering") == (name, figure.reason)


def test_every_null_of_any_row_has_a_reason() -> None:
    odd: list[Record] = [
        records.record(),
        records.medians(10_000, samples=4),
        records.record([records.latency_block([], cpu_ns=0)]),
        records.record(
            [records.memory_block()], made=records.artifact(parity=None, parity_reason="own file")
        ),
    ]
    for row in metrics.rows(records.run(odd, cells=[])):
        for name, figure in row.metrics.items():
            assert figure.value is not None or figure.reason, name


def test_no_planned_cell_is_left_out_and_the_plan_gives_the_order() -> None:
    planned = [records.cell("int8", f) for f in records.FORMATS]
    run = records.run([records.medians(10_000, 10_100, of=planned[2])], cells=planned)
    rows = metrics.rows(run)
    assert planned == [r.cell for r in rows]
    assert [r.status for r in rows] == ["interrupted", "interrupted", "measured"]
    assert "--resume demo" in (rows[0].reason or "")
    assert metrics.coverage(rows) == "measured 1 of 3 cells"


def test_a_quick_look_and_an_emulated_device_are_marked() -> None:
    plain = records.medians(10_000)
    marked = replace(plain, plan=replace(plain.plan, quick=True), device={"emulated": True})
    assert (metrics.row(plain).quick, metrics.row(plain).emulated) == (False, False)
    assert (metrics.row(marked).quick, metrics.row(marked).emulated) == (True, True)


def test_the_frame_has_a_line_per_cell_and_whole_numbers_stay_whole() -> None:
    rows = metrics.rows(
        records.run(
            [records.medians(10_000, 10_100), records.failed(records.cell("int8"), "timeout", "slow")]
        )
    )
    frame = metrics.frame(rows)
    assert list(frame["status"]) == ["measured", "timeout"]
    assert frame["file_bytes"].dtype == "Int64"
    assert frame.loc[0, "p50_ns_n"] == 2
    assert frame.loc[1, "p50_ns_reason"] == "slow"
    assert not [c for c in frame.columns if c.startswith("file_bytes_") and c != "file_bytes_reason"]
