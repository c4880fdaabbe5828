"""What the plots of the HTML report draw: plain data, derived here so that it can be tested."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import metrics, ranking
from harness.core import units
from harness.core.types import RUNTIMES, SUFFIXES, Cell, Record
from harness.metrics import Metric, Row
from harness.ranking import Ranking
from harness.reports import _wording

#: The distribution curve of a cell: this many evenly spaced quantiles of all its values, without the ends.
CURVE_POINTS = 199
_CURVE = [k / (CURVE_POINTS + 1) for k in range(1, CURVE_POINTS + 1)]
_BOX = (0.05, 0.25, 0.5, 0.75, 0.95)


def plots(groups: Sequence[Ranking], records: Mapping[Cell, Record]) -> dict[str, Any]:
    """Everything that is drawn of one model on one device: *groups* differ in thread count only."""
    rows = [r for group in groups for r in (*group.ranked, *group.unranked)]
    several = len(groups) > 1
    names = sorted({r.score_metric for r in rows if r.score_metric})
    return {
        "cells": [_cell(r, records.get(r.cell), groups, several) for r in rows],
        "recipes": list(dict.fromkeys(r.cell.recipe for r in rows)),
        "score": names[0] if names else None,
        "share": bool(names) and ranking.is_share(names[0]),
        "rounds": rounds([records[r.cell] for r in rows if r.cell in records]),
        "curve_points": CURVE_POINTS,
    }


def _cell(row: Row, record: Record | None, groups: Sequence[Ranking], several: bool) -> dict[str, Any]:
    threads = f" · {units.counted(row.cell.threads, 'thread')}" if several else ""
    timed = row.status == "measured" and row.p50_ns.value is not None and record is not None
    return {
        "id": row.cell.id,
        "recipe": row.cell.recipe,
        "format": row.cell.format,
        "suffix": SUFFIXES[row.cell.format],
        "runtime": RUNTIMES[row.cell.format],
        "threads": row.cell.threads,
        "label": f"{row.cell.recipe} {SUFFIXES[row.cell.format]}{threads}",
        "short_label": f"{row.cell.recipe} {SUFFIXES[row.cell.format]}" + f" t{row.cell.threads}" * several,
        "file_label": f"{row.cell.recipe} {SUFFIXES[row.cell.format]}",
        "timed": timed,
        "front": any(row is r for group in groups for r in group.front),
        "fastest": any(row is group.fastest for group in groups),
        "p50_ns": _figure(row, "p50_ns"),
        "score": _figure(row, "score"),
        "file_bytes": _figure(row, "file_bytes"),
        "gzip_bytes": _figure(row, "gzip_bytes"),
        "baseline_bytes": _figure(row, "baseline_bytes"),
        "model_memory_bytes": _figure(row, "model_memory_bytes"),
        "peak_bytes": _figure(row, "peak_bytes"),
        **(_distribution(record) if timed and record is not None else {}),
    }


def _figure(row: Row, name: str) -> dict[str, Any]:
    metric: Metric = row.metrics[name]
    return {
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "text": _wording.figure(row, name),
        "spread": _wording.spread(row, name),
    }


def _distribution(record: Record) -> dict[str, Any]:
    """The box and the curve of all values of the cell, and one point per block."""
    values = [v for block in record.blocks for v in block.values_ns]
    medians = metrics.block_medians(record)
    middle = statistics.median(medians.values())
    return {
        "count": len(values),
        "box": metrics.quantiles(values, _BOX),
        "curve": [round(q, 1) for q in metrics.quantiles(values, _CURVE)],
        "blocks": [
            {
                "index": b.index,
                "started_utc": b.started_utc,
                "median_ns": medians[b.index],
                "shift_percent": (medians[b.index] / middle - 1) * 100 if middle > 0 else 0.0,
                "text": units.duration(medians[b.index]),
                "count": len(b.values_ns),
            }
            for b in sorted(record.blocks, key=lambda b: b.started_utc)
            if b.values_ns
        ],
    }


def rounds(records: Iterable[Record]) -> list[dict[str, Any]]:
    """
    How far each round of blocks lies from the run's middle, in percent: what all cells share is the device.

    A round's figure is the median over cells of (block median / median of that cell's block medians - 1).
    """
    shifts: dict[int, list[float]] = {}
    starts: dict[int, list[str]] = {}
    for record in records:
        medians = metrics.block_medians(record)
        middle = statistics.median(medians.values()) if medians else 0.0
        if record.status != "measured" or middle <= 0:
            continue
        for block in record.blocks:
            if block.values_ns:
                shifts.setdefault(block.index, []).append((medians[block.index] / middle - 1) * 100)
                starts.setdefault(block.index, []).append(block.started_utc)
    return [
        {
            "index": index,
            "started_utc": statistics.median_low(starts[index]),
            "shift_percent": statistics.median(shifts[index]),
            "cells": len(shifts[index]),
        }
        for index in sorted(shifts)
    ]


def described(groups: Sequence[Ranking]) -> dict[str, str]:
    """What each plot shows, for whom cannot see it; the table has the numbers."""
    ranked = sorted((r for g in groups for r in g.ranked), key=lambda r: r.p50_ns.value or 0)
    if not ranked:
        return {}
    span = (
        f"from {_wording.figure(ranked[0], 'p50_ns')} ({ranking.label(ranked[0].cell)}) "
        f"to {_wording.figure(ranked[-1], 'p50_ns')} ({ranking.label(ranked[-1].cell)})"
    )
    front = ", ".join(ranking.label(r.cell) for g in groups for r in g.front)
    return {
        "latency": f"Latency of {units.counted(len(ranked), 'cell')}, medians {span}.",
        "pareto": f"Score against latency. On the Pareto front: {front or 'no cell, for want of scores'}.",
        "size": f"File sizes {_range(ranked, 'file_bytes')}.",
        "memory": f"Peak memory {_range(ranked, 'peak_bytes')}, model memory "
        f"{_range(ranked, 'model_memory_bytes')}.",
        "drift": f"Median latency of every block against time, for {units.counted(len(ranked), 'cell')}.",
    }


def _range(rows: Sequence[Row], name: str) -> str:
    known = [r for r in rows if r.metrics[name].value is not None]
    if not known:
        return "not measured"
    ordered = sorted(known, key=lambda r: r.metrics[name].value or 0)
    low, high = ordered[0], ordered[-1]
    return (
        f"from {_wording.figure(low, name)} ({ranking.label(low.cell)}) "
        f"to {_wording.figure(high, name)} ({ranking.label(high.cell)})"
    )
