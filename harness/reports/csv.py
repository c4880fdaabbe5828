"""One line per cell with every derived figure, its spread, its count and its reason, for spreadsheets."""

from __future__ import annotations

from harness import metrics
from harness.core.types import Run

SUFFIX = ".csv"


def render(run: Run) -> str:
    """
    The rows of the run as csv; the units are in the headers, a ratio or a share has none.

    A figure has up to seven columns: ``p50_ns``, ``p50_ns_low`` and ``_high`` (``_spread`` says of what
    kind), ``_n`` (blocks, memory blocks or seeds), ``_samples`` (raw values), ``_reason`` (why it is empty).
    """
    frame = metrics.frame(metrics.rows(run))
    frame.insert(0, "run", run.info.name)
    frame.insert(1, "run_created_utc", run.info.created_utc)
    return frame.to_csv(index=False, lineterminator="\n")
