"""Tables for the terminal, one per device, model and thread count, fastest first."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import metrics, ranking
from harness.core import units
from harness.core.types import RUNTIMES, SUFFIXES, Run
from harness.metrics import Row
from harness.ranking import Ranking
from harness.reports import _devices, _wording

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SUFFIX = ".txt"
WIDTH = 120


def render(run: Run, *, width: int = WIDTH, color: bool = False) -> str:
    """Tables of at most *width* columns; what does not fit is left out by rank and said to be."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
    )
    quick = " · QUICK LOOK: few blocks, for orientation only" if run.info.plan.quick else ""
    _say(console, f"run {run.info.name} · {run.info.created_utc}{quick}", "bold")
    left_out: dict[str, None] = {}
    groups = ranking.rank(run)
    for group in groups:
        left_out |= dict.fromkeys(_print_group(console, group))
    _print_devices(console, groups)
    console.print()
    all_rows = metrics.rows(run)
    for caution in _wording.cautions(run.records):
        _say(console, caution, "yellow")
    for note in [*_wording.incidents(run.records), *_wording.notes(all_rows)]:
        _say(console, note, "dim")
    if left_out:
        _say(
            console, f"Left out for want of width: {', '.join(left_out)} (see the csv or html report).", "dim"
        )
    _say(console, metrics.coverage(all_rows), "bold")
    return out.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    title: str
    cell: Callable[[Ranking, Row], str]
    rank: int = 0  # the highest is left out first; 0 stays
    right: bool = True


def _print_group(console: Console, group: Ranking) -> list[str]:
    """Print one table and what it means; the titles of the columns that did not fit."""
    rows = [*group.ranked, *group.unranked]
    place = f"{group.model} on {group.device} · {units.counted(group.threads, 'thread')}"
    columns = [c for c in _COLUMNS if c.rank == 0 or any(c.cell(group, r) != _wording.ABSENT for r in rows)]
    table, left_out = _fit(console, group, rows, columns)
    console.print()
    _say(console, place, "bold")
    console.print(table)
    for row in (r for r in rows if r.status != "measured"):
        _say(console, f"  {ranking.label(row.cell)}: {row.status}: {row.reason}", "red")
    for sentence in group.sentences:
        _say(console, sentence)
    return left_out


def _print_devices(console: Console, groups: Sequence[Ranking]) -> None:
    """The fastest of each format per device, where there are several."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if lines := _devices.lines(groups):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for title in _devices.TITLES:
            table.add_column(title, overflow="fold")
        for line in lines:
            table.add_row(*(Text(_plain(cell)) for cell in line))
        console.print()
        _say(console, "the fastest of each format per device", "bold")
        console.print(table)


def _fit(
    console: Console, group: Ranking, rows: Sequence[Row], columns: list[_Column]
) -> tuple[Table, list[str]]:
    from rich.measure import Measurement

    left_out: list[str] = []
    boundless = console.options.update(max_width=10_000)
    while True:
        table = _table(group, rows, columns)
        widest = max((c.rank for c in columns), default=0)
        if widest == 0 or Measurement.get(console, boundless, table).maximum <= console.width:
            return table, left_out
        index = next(i for i, c in enumerate(columns) if c.rank == widest)
        left_out.insert(0, columns.pop(index).title)


def _table(group: Ranking, rows: Sequence[Row], columns: Sequence[_Column]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        style = "green" if row is group.fastest else "red" if row.status != "measured" else ""
        table.add_row(*(Text(_plain(c.cell(group, row))) for c in columns), style=style)
    return table


def _say(console: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(_plain(text), style=style))


def _plain(text: str) -> str:
    """Control characters could move the cursor or fake another line."""
    return "".join(c if c.isprintable() else " " for c in text)


def _figure(name: str) -> Callable[[Ranking, Row], str]:
    return lambda _group, row: _wording.figure(row, name)


def _p50(_group: Ranking, row: Row) -> str:
    return _wording.figure(row, "p50_ns") if row.status == "measured" else row.status


_COLUMNS = (
    _Column(title="recipe", cell=lambda _group, row: row.cell.recipe, right=False),
    _Column(title="file", cell=lambda _group, row: SUFFIXES[row.cell.format], right=False),
    _Column(
        title="runtime",
        cell=lambda _group, row: f"{RUNTIMES[row.cell.format]}/{row.cell.backend}",
        rank=6,
        right=False,
    ),
    _Column(title="p50", cell=_p50),
    _Column(
        title="interval", cell=lambda _group, row: _wording.spread(row, "p50_ns") or _wording.ABSENT, rank=1
    ),
    _Column(title="p99", cell=_figure("p99_ns"), rank=4),
    _Column(
        title="speed-up", cell=lambda group, row: _wording.speed_up(group.over_original.get(row.cell)), rank=3
    ),
    _Column(title="load", cell=_figure("load_ns"), rank=8),
    _Column(title="first", cell=_figure("first_inference_ns"), rank=7),
    _Column(title="cpu/wall", cell=_figure("cpu_over_wall"), rank=9),
    _Column(title="peak mem", cell=_figure("peak_bytes"), rank=5),
    _Column(title="model mem", cell=_figure("model_memory_bytes"), rank=2),
    _Column(title="size", cell=_figure("file_bytes")),
    _Column(title="score", cell=lambda _group, row: _wording.score_figure(row), rank=1),
)
