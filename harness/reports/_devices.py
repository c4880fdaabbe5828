"""Several devices side by side: the fastest form of each format on each of them."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core import units
from harness.core.types import FORMATS, RUNTIMES, SUFFIXES, FormatName
from harness.metrics import Row
from harness.ranking import Ranking
from harness.reports import _wording

TITLES = (
    "device",
    "model",
    "threads",
    *(f"{SUFFIXES[name]} ({RUNTIMES[name]})" for name in FORMATS),
    "fastest",
)


def lines(groups: Sequence[Ranking]) -> list[tuple[str, ...]]:
    """
    One line per device, model and thread count, as TITLES; none when there is one device only.

    Times of different devices are not compared, and an emulated device has none here.
    """
    if len({group.device for group in groups}) < 2:
        return []
    return [_line(group) for group in groups]


def _line(group: Ranking) -> tuple[str, ...]:
    best: dict[FormatName, Row] = {}
    for row in group.ranked:  # fastest first
        best.setdefault(row.cell.format, row)
    cells = [_cell(best[name]) if name in best else _wording.ABSENT for name in FORMATS]
    rows = [*group.ranked, *group.unranked]
    nobody = "not ranked: emulated" if any(row.emulated for row in rows) else _wording.ABSENT
    fastest = SUFFIXES[group.fastest.cell.format] if group.fastest else nobody
    return (group.device, group.model, units.count(group.threads), *cells, fastest)


def _cell(row: Row) -> str:
    return f"{_wording.figure(row, 'p50_ns')} {row.cell.recipe}"
