"""
Derive every figure of a cell from the raw values of its record.

What each figure is:

- *p50_ns, p90_ns, p99_ns*: the median over latency blocks of each block's own percentile (linear
  interpolation between neighbours). Values of different blocks are never pooled. The interval is
  Student's t, 95 %, df = blocks - 1, over the logarithms of the block percentiles, taken back by exp: it
  is the interval of their geometric mean, the same model that harness.compare uses for ratios.
- *load_ns, first_inference_ns, decode_ns, cpu_over_wall*: median over blocks, with smallest and largest.
- *memory*: all figures come from the one memory block with the highest peak, so that they add up; the
  range is over all memory blocks. Resident means VmRSS + VmSwap at a mark; the peak is the largest
  max(VmHWM, VmRSS + VmSwap) of the marks after the baseline. Model memory is peak minus baseline.
- *score*: mean over seeds with the sample standard deviation; one seed has Wilson's interval instead.
- *sizes and counts*: exact.

A figure that cannot be derived is None and says why.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.core import stats
from harness.core.types import Block, Cell, MemoryMark, Record, Run, Runtime, Score, Status

if TYPE_CHECKING:
    import pandas as pd

#: What low and high of a metric are: a 95 % interval, the smallest and largest of n, mean -/+ sd, or none.
Spread = Literal["ci95", "range", "sd", "exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One derived figure: its value, its spread (low to high) and what stands behind it."""

    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    spread: Spread = "exact"
    n: int = 0  # independent observations: blocks, memory blocks or seeds
    samples: int = 0  # raw values behind them
    reason: str | None = None  # why value, or else its spread, is missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Every figure of one cell, or why there is none."""

    cell: Cell
    status: Status
    reason: str | None
    quick: bool
    emulated: bool
    runtime: Runtime | None
    sha256: str | None
    score_metric: str | None
    p50_ns: Metric
    p90_ns: Metric
    p99_ns: Metric
    load_ns: Metric
    first_inference_ns: Metric
    decode_ns: Metric
    cpu_over_wall: Metric
    baseline_bytes: Metric
    load_delta_bytes: Metric
    first_inference_delta_bytes: Metric
    peak_bytes: Metric
    steady_peak_bytes: Metric
    steady_anon_bytes: Metric
    steady_file_bytes: Metric
    model_memory_bytes: Metric
    file_bytes: Metric
    gzip_bytes: Metric
    container_bytes: Metric
    parameters: Metric
    nonzeros: Metric
    macs: Metric
    score: Metric
    parity_sqnr_db: Metric
    energy_j_per_inference: Metric

    @property
    def metrics(self) -> dict[str, Metric]:
        """The figures by name, in the order of this class."""
        return {name: getattr(self, name) for name in METRICS}


METRICS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(Row) if f.type == "Metric")
#: Figures that are counted and not measured: they have no spread.
EXACT = frozenset(
    {"file_bytes", "gzip_bytes", "container_bytes", "parameters", "nonzeros", "macs", "parity_sqnr_db"}
)
#: Figures that are known once the file is built; all others come from blocks on the device.
OF_THE_FILE = EXACT | {"score"}


def rows(run: Run) -> tuple[Row, ...]:
    """One row per cell that was asked for, in the order of the plan; none is left out."""
    by_cell = {record.cell: record for record in run.records}
    planned = dict.fromkeys((*run.info.cells, *by_cell))
    return tuple(row(by_cell[cell]) if cell in by_cell else _unstarted(run, cell) for cell in planned)


def coverage(all_rows: Sequence[Row]) -> str:
    """The last line of every rendering: ``measured 11 of 12 cells``."""
    measured = sum(r.status == "measured" for r in all_rows)
    return f"measured {measured} of {len(all_rows)} cells"


def row(record: Record) -> Row:
    """All figures of *record*."""
    absent = record.reason or "no latency block was run"
    latency = [b for b in record.blocks if b.kind == "latency"]
    timed = [b for b in latency if b.values_ns]
    return Row(
        cell=record.cell,
        status=record.status,
        reason=record.reason,
        quick=record.plan.quick,
        emulated=record.device.get("emulated") is True,
        runtime=record.runtime,
        sha256=record.artifact.sha256 if record.artifact else None,
        score_metric=record.artifact.score.metric if record.artifact and record.artifact.score else None,
        p50_ns=_percentile(timed, 50, absent),
        p90_ns=_percentile(timed, 90, absent),
        p99_ns=_percentile(timed, 99, absent),
        load_ns=_median(latency, lambda b: b.load_ns, "ns", absent),
        first_inference_ns=_median(latency, lambda b: b.first_inference_ns, "ns", absent),
        decode_ns=_decode(record, absent),
        cpu_over_wall=_cpu_over_wall(timed, absent),
        **_memory(record),
        **_artifact(record),
        energy_j_per_inference=Metric(
            value=record.energy_j_per_inference,
            unit="J",
            reason=None if record.energy_j_per_inference is not None else record.energy_reason,
        ),
    )


def block_medians(record: Record) -> dict[int, float]:
    """Block index -> median of that latency block in ns: the replicates of every comparison."""
    return {b.index: quantiles(b.values_ns, (0.5,))[0] for b in record.blocks if b.values_ns}


def quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """The quantiles of *values* at *shares* (0 to 1), linear between neighbours."""
    import numpy as np

    return [float(q) for q in np.quantile(np.asarray(values), shares)]


def frame(all_rows: Sequence[Row]) -> pd.DataFrame:
    """One line per cell, one column per value, bound, count and reason of every figure."""
    import pandas as pd

    return pd.DataFrame([_flat(r) for r in all_rows], columns=_columns()).convert_dtypes()


def _unstarted(run: Run, cell: Cell) -> Row:
    reason = f"the run stopped before this cell; --resume {run.info.name} goes on"
    return row(
        Record(
            schema=run.info.schema,
            run=run.info.name,
            cell=cell,
            status="interrupted",
            reason=reason,
            created_utc=run.info.created_utc,
            plan=run.info.plan,
            artifact=None,
            device={},
            host=run.info.host,
            runtime=None,
            energy_reason=reason,
        )
    )


# --- latency -----------------------------------------------------------------------------------------


def _percentile(timed: Sequence[Block], percent: int, absent: str) -> Metric:
    """A percentile needs at least one value beyond it in every block: 100 values for p99."""
    samples = sum(len(b.values_ns) for b in timed)
    if not timed:
        return Metric(value=None, unit="ns", spread="ci95", reason=absent)
    needed = round(100 / (100 - percent))
    short = min(timed, key=lambda b: len(b.values_ns))
    if len(short.values_ns) < needed:
        return Metric(
            value=None,
            unit="ns",
            spread="ci95",
            n=len(timed),
            samples=samples,
            reason=f"block {short.index} has {len(short.values_ns)} values; p{percent} needs {needed}",
        )
    per_block = [quantiles(b.values_ns, (percent / 100,))[0] for b in timed]
    low, high = stats.geometric_interval(per_block) or (None, None)
    return Metric(
        value=statistics.median(per_block),
        unit="ns",
        low=low,
        high=high,
        spread="ci95",
        n=len(timed),
        samples=samples,
        reason=None if low is not None else _no_interval(per_block),
    )


def _no_interval(per_block: Sequence[float]) -> str:
    if len(per_block) == 1:
        return "no interval: one block says nothing about the spread between blocks"
    return f"no interval: all {len(per_block)} blocks read the same, the clock is too coarse"


def _median(blocks: Iterable[Block], value_of: Callable[[Block], float], unit: str, absent: str) -> Metric:
    values = [value_of(b) for b in blocks]
    if not values:
        return Metric(value=None, unit=unit, spread="range", reason=absent)
    return Metric(
        value=statistics.median(values),
        unit=unit,
        low=min(values),
        high=max(values),
        spread="range",
        n=len(values),
        samples=len(values),
    )


def _decode(record: Record, absent: str) -> Metric:
    """How long the device unpacked the file before each block."""
    absent = record.artifact.not_packed if record.artifact and not record.artifact.container else absent
    packed = [b for b in record.blocks if "container" in b.facts]
    return _median(packed, lambda b: b.facts["container"]["decode_ns"], "ns", absent)


def _cpu_over_wall(timed: Sequence[Block], absent: str) -> Metric:
    clocked = [b for b in timed if b.wall_ns > 0 and b.cpu_ns > 0]
    if timed and not clocked:
        absent = "the agent sent no CPU time"
    return _median(clocked, lambda b: b.cpu_ns / b.wall_ns, "1", absent)


# --- memory ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _MemoryFigures:
    baseline_bytes: int
    load_delta_bytes: int
    first_inference_delta_bytes: int
    peak_bytes: int
    steady_peak_bytes: int
    steady_anon_bytes: int
    steady_file_bytes: int
    model_memory_bytes: int


_MARKS = ("baseline", "loaded", "first_inference", "steady")


def _memory(record: Record) -> dict[str, Metric]:
    names = [f.name for f in dataclasses.fields(_MemoryFigures)]
    blocks = [b for b in record.blocks if b.kind == "memory"]
    reason = _unusable(blocks) if blocks else record.reason or "no memory block was run"
    if reason:
        return {n: Metric(value=None, unit="B", spread="range", n=len(blocks), reason=reason) for n in names}
    per_block = [_block_memory({m.name: m for m in b.marks}) for b in blocks]
    worst = max(per_block, key=lambda figures: figures.peak_bytes)
    return {
        n: Metric(
            value=getattr(worst, n),
            unit="B",
            low=min(getattr(f, n) for f in per_block),
            high=max(getattr(f, n) for f in per_block),
            spread="range",
            n=len(blocks),
            samples=len(blocks),
        )
        for n in names
    }


def _unusable(blocks: Sequence[Block]) -> str | None:
    for block in blocks:
        marks = {m.name: m for m in block.marks}
        if missing := [name for name in _MARKS if name not in marks]:
            return f"memory block {block.index} lacks the mark {missing[0]!r}"
        if any(_top(marks[name]) <= 0 for name in _MARKS):
            return f"memory block {block.index} reads a peak of 0 bytes"
    return None


def _resident(mark: MemoryMark) -> int:
    return mark.rss_bytes + mark.swap_bytes


def _top(mark: MemoryMark) -> int:
    return max(mark.peak_rss_bytes, _resident(mark))


def _block_memory(marks: Mapping[str, MemoryMark]) -> _MemoryFigures:
    baseline, loaded, first, steady = (marks[name] for name in _MARKS)
    peak = max(_top(mark) for mark in (loaded, first, steady))
    return _MemoryFigures(
        baseline_bytes=_resident(baseline),
        load_delta_bytes=_resident(loaded) - _resident(baseline),
        first_inference_delta_bytes=_resident(first) - _resident(loaded),
        peak_bytes=peak,
        steady_peak_bytes=_top(steady),
        steady_anon_bytes=steady.anon_bytes,
        steady_file_bytes=steady.file_bytes,
        model_memory_bytes=peak - _resident(baseline),
    )


# --- the file ----------------------------------------------------------------------------------------


def _artifact(record: Record) -> dict[str, Metric]:
    made = record.artifact
    absent = record.reason or "there is no file"
    uncounted = absent if made is None else "not known for a file that was made elsewhere"
    parity, packed = (made.parity, made.container) if made else (None, None)
    return {
        "file_bytes": _exact(made.bytes if made else None, "B", absent),
        "gzip_bytes": _exact(made.gzip_bytes if made else None, "B", absent),
        "container_bytes": _exact(packed.bytes if packed else None, "B", made.not_packed if made else absent),
        "parameters": _exact(made.parameters if made else None, "1", uncounted),
        "nonzeros": _exact(made.nonzeros if made else None, "1", uncounted),
        "macs": _exact(made.macs if made else None, "1", uncounted),
        "score": _score(made.score, made.score_reason or uncounted)
        if made
        else Metric(value=None, unit="1", spread="sd", reason=absent),
        "parity_sqnr_db": _exact(
            parity.sqnr_db if parity else None, "dB", (made.parity_reason or uncounted) if made else absent
        ),
    }


def _exact(value: float | None, unit: str, reason: str) -> Metric:
    return Metric(value=value, unit=unit, n=int(value is not None), reason=reason if value is None else None)


def _score(score: Score | None, absent: str) -> Metric:
    if score is None or not score.values:
        return Metric(value=None, unit="1", spread="sd", reason=absent)
    mean, n = statistics.fmean(score.values), len(score.values)
    if n > 1:
        sd = statistics.stdev(score.values)
        return Metric(
            value=mean, unit="1", low=mean - sd, high=mean + sd, spread="sd", n=n, samples=score.samples
        )
    hits = mean * score.samples  # whole, but for the rounding of a float32
    if not (0 <= mean <= 1 and score.samples > 0 and abs(hits - round(hits)) < 0.01):
        reason = f"no interval: one seed, and {score.metric} is not a share of the {score.samples} samples"
        return Metric(value=mean, unit="1", spread="ci95", n=1, samples=score.samples, reason=reason)
    low, high = stats.share_interval(round(hits), score.samples)
    return Metric(value=mean, unit="1", low=low, high=high, spread="ci95", n=1, samples=score.samples)


# --- one flat line per cell --------------------------------------------------------------------------

_PARTS = {"": "value", "_reason": "reason"}
_SPREAD_PARTS = {"_low": "low", "_high": "high", "_spread": "spread", "_n": "n", "_samples": "samples"}


def _parts(name: str) -> dict[str, str]:
    """Column suffix -> field of Metric; what is exact has no spread."""
    return _PARTS if name in EXACT else {"": "value", **_SPREAD_PARTS, "_reason": "reason"}


def _columns() -> list[str]:
    identity = [f.name for f in dataclasses.fields(Cell)]
    about = ["status", "reason", "quick", "emulated", "runtime", "runtime_version", "engine", "sha256"]
    return [*identity, *about, "score_metric", *(name + part for name in METRICS for part in _parts(name))]


def _flat(r: Row) -> dict[str, object]:
    flat: dict[str, object] = {f.name: getattr(r.cell, f.name) for f in dataclasses.fields(Cell)}
    flat |= {"status": r.status, "reason": r.reason, "quick": r.quick, "emulated": r.emulated}
    flat |= {"sha256": r.sha256, "score_metric": r.score_metric}
    if r.runtime:
        flat |= {"runtime": r.runtime.name, "engine": r.runtime.engine}
        flat["runtime_version"] = r.runtime.version
    for name, m in r.metrics.items():
        flat |= {name + suffix: getattr(m, field) for suffix, field in _parts(name).items()}
    return flat
