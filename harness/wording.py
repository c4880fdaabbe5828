"""How a figure, its spread and its count are written for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.compare import Comparison
from harness.core import units
from harness.core.types import SUFFIXES, Cell
from harness.metrics import Metric, Row

#: Scores that are shares of the test samples: written in percent, differences in points.
SHARES = frozenset({"accuracy", "top1", "top5", "f1", "precision", "recall", "iou", "map"})

ABSENT = "–"


def label(cell: Cell) -> str:
    """``pruned_int8 as .tflite``."""
    return f"{cell.recipe} as {SUFFIXES[cell.format]}"


def counted(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {noun}" + ("s" if number != 1 else "")


def counts(numbers: Iterable[int], noun: str) -> str:
    """``6 blocks`` where all agree, else ``5 to 6 blocks``."""
    low, high = min(numbers := sorted(numbers)), max(numbers)
    return counted(low, noun) if low == high else f"{low} to {counted(high, noun)}"


def times(value: float) -> str:
    """A factor with three or so digits: ``0.98``, ``8.41``, ``10.4``."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def factor(comparison: Comparison) -> str:
    """How many times as fast the candidate is: ``8.41 × as fast (95 % interval 8.20–8.63)``."""
    assert comparison.ratio is not None
    text = f"{times(1 / comparison.ratio)} × as fast"
    if comparison.low is None or comparison.high is None:
        return f"{text} (no interval: {comparison.why})"
    return f"{text} (95 % interval {times(1 / comparison.high)}–{times(1 / comparison.low)})"


def score(value: float, metric: str | None, digits: int = 2) -> str:
    """``98.89 %`` for a share, else the number as it is."""
    return units.percent(value, digits) if is_share(metric) else f"{value:.4g}"


def score_difference(value: float, metric: str | None) -> str:
    """``0.5 points`` for a share, else the number as it is."""
    return f"{value * 100:g} points" if is_share(metric) else f"{value:g}"


def is_share(metric: str | None) -> bool:
    """Whether a score of this name is a share of the test samples."""
    return metric is not None and metric.lower() in SHARES


def figure(row: Row, name: str) -> str:
    """The value of one figure with its unit, or a dash."""
    value = row.metrics[name].value
    return ABSENT if value is None else _writer(row, name)(value)


def spread(row: Row, name: str) -> str:
    """The spread of one figure: ``12.1–12.5 µs``, ``± 0.22 %``; empty where there is none."""
    metric, write = row.metrics[name], _writer(row, name)
    if metric.value is None or metric.low is None or metric.high is None:
        return ""
    if metric.spread == "sd":
        return f"± {write((metric.high - metric.low) / 2)}"
    return joined(write(metric.low), write(metric.high))


def speed_up(comparison: Comparison | None) -> str:
    """How many times as fast the candidate is, with its 95 % interval: ``5.29 (5.22–5.36)``."""
    if comparison is None or comparison.ratio is None:
        return ABSENT
    text = times(1 / comparison.ratio)
    if comparison.low is None or comparison.high is None:
        return text
    return f"{text} ({times(1 / comparison.high)}–{times(1 / comparison.low)})"


def score_figure(row: Row) -> str:
    """The score with its spread: ``98.9 ± 0.2 %`` over seeds, ``98.9 (97.4–99.5 %)`` for one."""
    metric = row.score
    if metric.value is None:
        return ABSENT
    value, unit = score(metric.value, row.score_metric, 1), " %" if is_share(row.score_metric) else ""
    if metric.low is None or metric.high is None:
        return value
    if metric.spread == "sd":
        half = score((metric.high - metric.low) / 2, row.score_metric, 1)
        return f"{value.removesuffix(unit)} ± {half}"
    bounds = joined(score(metric.low, row.score_metric, 1), score(metric.high, row.score_metric, 1))
    return f"{value.removesuffix(unit)} ({bounds})"


def joined(low: str, high: str) -> str:
    """Two written values with one unit where they share it: ``12.1–12.5 µs``."""
    number, _, unit = low.partition(" ")
    return f"{number}–{high}" if unit and high.endswith(f" {unit}") else f"{low}–{high}"


def about(metric: Metric) -> str:
    """What stands behind a figure: its kind of spread, its count, or why it is missing."""
    if metric.value is None:
        return metric.reason or "not measured"
    kinds: Mapping[str, str] = {
        "ci95": "95 % interval",
        "range": "smallest to largest",
        "sd": "standard deviation",
        "exact": "exact",
    }
    kind = kinds[metric.spread] if metric.low is not None or metric.spread == "exact" else ""
    return "; ".join(part for part in (kind, f"n = {metric.n}" if metric.n else "", metric.reason) if part)


def notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean and how many observations stand behind them, for the rows shown."""
    lines = []
    if timed := [r.p50_ns for r in rows if r.p50_ns.value is not None]:
        blocks = counts([m.n for m in timed], "block")
        values = counts([m.samples for m in timed], "timed inference")
        lines.append(
            f"p50: median over {blocks} (one fresh process each) of the block's median, {values} per cell; "
            "interval: Student's t over blocks, 95 %. speed-up: against the uncompressed model in the same "
            "format, block by block."
        )
    if sensed := [r.peak_bytes for r in rows if r.peak_bytes.value is not None]:
        lines.append(
            f"Memory: highest of {counts([m.n for m in sensed], 'memory block')} (processes that are not "
            "timed); peak: the whole process; model: peak minus the runtime's baseline."
        )
    if scored := [r for r in rows if r.score.value is not None]:
        name = scored[0].score_metric or "score"
        seeds = counts([r.score.n for r in scored], "seed")
        kinds = {r.score.spread for r in scored}
        kind = "mean ± standard deviation over" if "sd" in kinds else "95 % Wilson interval,"
        samples = counts([r.score.samples for r in scored], "test sample")
        lines.append(f"{name[:1].upper() + name[1:]}: in the file's own runtime, {kind} {seeds}, {samples}.")
    return lines


def _writer(row: Row, name: str) -> Callable[[float], str]:
    if name.endswith("_ns"):
        return units.duration
    if name.endswith("_bytes"):
        return units.size
    if name in ("parameters", "nonzeros", "macs"):
        return units.count
    if name == "score":
        return lambda value: score(value, row.score_metric)
    suffix = {"parity_sqnr_db": " dB", "energy_j_per_inference": " J"}.get(name, "")
    return lambda value: f"{value:.3g}{suffix}"
