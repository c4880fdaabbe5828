"""Markdown tables for issues, pull requests and job summaries."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness import metrics, ranking
from harness.core import units
from harness.core.types import RUNTIMES, SUFFIXES, Run
from harness.metrics import Row
from harness.ranking import Ranking
from harness.reports import _devices, _wording

SUFFIX = ".md"

_TITLES = (
    "recipe",
    "file",
    "runtime",
    "p50",
    "95 % interval",
    "p90",
    "p99",
    "speed-up",
    "load",
    "first inference",
    "CPU / wall",
    "peak memory",
    "model memory",
    "size",
    "gzip",
    "score",
    "blocks",
)


def render(run: Run) -> str:
    """A section per device, model and thread count: the answer, the table, what failed."""
    quick = " (**quick look**: few blocks, for orientation only)" if run.info.plan.quick else ""
    lines = [f"## Run {_text(run.info.name)}{quick}", "", _text(run.info.created_utc), ""]
    groups = ranking.rank(run)
    for group in groups:
        lines += _section(group)
    if side_by_side := _devices.lines(groups):
        lines += ["### The fastest of each format per device", ""]
        lines += [_line(_devices.TITLES), _line(["---"] * len(_devices.TITLES))]
        lines += [_line([_text(cell) for cell in line]) for line in side_by_side] + [""]
    all_rows = metrics.rows(run)
    lines += [f"- **{_text(caution)}**" for caution in _wording.cautions(run.records)]
    notes = [*_wording.incidents(run.records), *_wording.notes(all_rows)]
    lines += [f"- {_text(note)}" for note in notes]
    return "\n".join([*lines, "", f"**{metrics.coverage(all_rows)}**", ""])


def _section(group: Ranking) -> list[str]:
    rows = [*group.ranked, *group.unranked]
    place = f"{group.model} on {group.device} · {units.counted(group.threads, 'thread')}"
    failed = [r for r in rows if r.status != "measured"]
    return [
        f"### {_text(place)}",
        "",
        *(_text(sentence) + "  " for sentence in group.sentences),
        "",
        _line(_TITLES),
        _line(["---"] * 3 + ["---:"] * (len(_TITLES) - 3)),
        *(_line(_cells(group, r)) for r in rows),
        "",
        *(f"- {_text(ranking.label(r.cell))}: **{r.status}**: {_text(r.reason or '')}" for r in failed),
        *([""] if failed else []),
    ]


def _cells(group: Ranking, row: Row) -> list[str]:
    name = _text(row.cell.recipe)
    return [
        f"**{name}**" if row is group.fastest else name,
        SUFFIXES[row.cell.format],
        _text(_runtime(row)),
        f"**{row.status}**" if row.status != "measured" else _wording.figure(row, "p50_ns"),
        _wording.spread(row, "p50_ns") or _wording.ABSENT,
        _wording.figure(row, "p90_ns"),
        _wording.figure(row, "p99_ns"),
        _wording.speed_up(group.over_original.get(row.cell)),
        _wording.figure(row, "load_ns"),
        _wording.figure(row, "first_inference_ns"),
        _wording.figure(row, "cpu_over_wall"),
        _wording.figure(row, "peak_bytes"),
        _wording.figure(row, "model_memory_bytes"),
        _wording.figure(row, "file_bytes"),
        _wording.figure(row, "gzip_bytes"),
        _wording.score_figure(row),
        str(row.p50_ns.n),
    ]


def _runtime(row: Row) -> str:
    if row.runtime is None:
        return f"{RUNTIMES[row.cell.format]} ({row.cell.backend})"
    return f"{row.runtime.name} {row.runtime.version} ({row.cell.backend}, {row.runtime.engine})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """*text* as it is: nothing in it can become markup, a link, or another line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))
