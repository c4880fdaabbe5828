"""One self-contained page with tables and interactive plots, which opens offline and asks nobody."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import metrics, ranking
from harness.core import plugins, units
from harness.core.types import RUNTIMES, SUFFIXES, Cell, Record, Run
from harness.metrics import Row
from harness.ranking import Ranking
from harness.reports import _devices, _wording
from harness.reports._page import facts, figures

if TYPE_CHECKING:
    import jinja2

SUFFIX = ".html"

_PAGE = Path(__file__).with_name("_page")

#: Columns of the table after those that name the cell: name, title, and what it says when pointed at.
COLUMNS = (
    ("p50_ns", "p50 latency", "Median time of one inference, with its 95 % interval over blocks"),
    ("speed_up", "Speed-up", "Times as fast as the uncompressed model in the same format, 95 % interval"),
    ("score", "Score", "The task's metric on the test split, in the file's own runtime"),
    ("file_bytes", "File size", "Of the model file; below: after gzip -9"),
    ("model_memory_bytes", "Model memory", "Peak memory above the bare runtime's; range over memory blocks"),
    ("peak_bytes", "Peak memory", "Of the whole process; smallest to largest of the memory blocks"),
    ("first_inference_ns", "First inference", "The first inference after loading; smallest to largest"),
    ("load_ns", "Load", "From the file's path to a model ready to run; smallest to largest"),
    ("p90_ns", "p90", "9 of 10 inferences are at least as fast; median over blocks, 95 % interval"),
    ("p99_ns", "p99", "99 of 100 inferences are at least as fast; median over blocks, 95 % interval"),
    ("cpu_over_wall", "CPU / wall", "Process CPU time over wall time: how many threads worked"),
)


def render(run: Run) -> str:
    """The page as HTML; MissingPackage if plotly, which it carries inside, is not installed."""
    all_rows = metrics.rows(run)
    records = {record.cell: record for record in run.records}
    measured = sum(r.status == "measured" for r in all_rows)
    groups = ranking.rank(run)
    return _template().render(
        run=run.info,
        quick=run.info.plan.quick,
        measured=measured,
        total=len(all_rows),
        coverage=metrics.coverage(all_rows),
        devices=_device_sections(groups, records),
        side_by_side=_devices.lines(groups),
        side_by_side_titles=_devices.TITLES,
        columns=COLUMNS,
        notes=_wording.notes(all_rows),
        cautions=_wording.cautions(run.records),
        plan=facts.plan(run.info.plan),
        request=facts.request(run.info.request),
        host=facts.pairs(run.info.host),
        versions=facts.versions(run.records),
        settings=facts.settings(run.records),
        steps=facts.steps(run.records),
        proofs=facts.proofs(run.records),
        curve_points=figures.CURVE_POINTS,
        plotly=_plotly(),
    )


def _device_sections(groups: Sequence[Ranking], records: Mapping[Cell, Record]) -> list[dict[str, Any]]:
    """Device -> its facts and models; a model has a ranking per thread count, one table, one set of plots."""
    by_device: dict[str, dict[str, list[Ranking]]] = {}
    for group in groups:
        by_device.setdefault(group.device, {}).setdefault(group.model, []).append(group)
    return [
        {
            "name": device,
            "facts": _device_facts(device, records),
            "conditions": facts.conditions(r for cell, r in records.items() if cell.device == device),
            "incidents": _wording.incidents(r for cell, r in records.items() if cell.device == device),
            "models": [_model(model, of_model, records) for model, of_model in models.items()],
        }
        for device, models in by_device.items()
    ]


def _device_facts(device: str, records: Mapping[Cell, Record]) -> dict[str, Any]:
    known = next((r.device for cell, r in records.items() if cell.device == device and r.device), {})
    return {
        "headline": facts.headline(known),
        "all": facts.pairs(known),
        "emulated": known.get("emulated") is True,
    }


def _model(model: str, groups: Sequence[Ranking], records: Mapping[Cell, Record]) -> dict[str, Any]:
    rows = [r for group in groups for r in (*group.ranked, *group.unranked)]
    slowest = max((r.p50_ns.value or 0 for group in groups for r in group.ranked), default=0)
    lines = [_line(r, group, slowest) for group in groups for r in (*group.ranked, *group.unranked)]
    return {
        "name": model,
        "threads": [group.threads for group in groups],
        "answers": [_answer(group) for group in groups],
        "lines": lines,
        "failed": [line for line in lines if line["status"] != "measured"],
        "formats": list(dict.fromkeys(r.cell.format for r in rows)),
        "score": next((r.score_metric for r in rows if r.score_metric), None),
        "plots": figures.plots(groups, records),
        "described": figures.described(groups),
    }


def _answer(group: Ranking) -> dict[str, Any]:
    """The cards above the table: the fastest, and the fastest that is nearly as good as the best."""
    cards = []
    if group.fastest:
        same = group.accurate is group.fastest
        title = f"Fastest, and measured within {_loss(group)}" if same else "Fastest"
        cards.append(_card(title, group.fastest, group))
    if group.accurate and group.accurate is not group.fastest:
        cards.append(_card(f"Fastest measured within {_loss(group)}", group.accurate, group))
    return {"threads": group.threads, "cards": cards, "sentences": group.sentences}


def _loss(group: Ranking) -> str:
    metric = group.accurate.score_metric if group.accurate else None
    return f"{ranking.score_difference(group.score_loss, metric)} of the best {metric}"


def _card(title: str, row: Row, group: Ranking) -> dict[str, Any]:
    return {
        "title": title,
        "recipe": row.cell.recipe,
        "suffix": SUFFIXES[row.cell.format],
        "format": row.cell.format,
        "runtime": RUNTIMES[row.cell.format],
        "p50": _wording.figure(row, "p50_ns"),
        "interval": _wording.spread(row, "p50_ns"),
        "speed_up": _wording.speed_up(group.over_original.get(row.cell)),
        "size": _wording.figure(row, "file_bytes"),
        "score": _wording.score_figure(row),
        "score_metric": row.score_metric or "score",
    }


def _line(row: Row, group: Ranking, slowest: float) -> dict[str, Any]:
    """One row of the table."""
    return {
        "id": row.cell.id,
        "cell": row.cell,
        "suffix": SUFFIXES[row.cell.format],
        "runtime": RUNTIMES[row.cell.format],
        "label": ranking.label(row.cell),
        "status": row.status,
        "reason": row.reason,
        "fastest": row is group.fastest,
        "front": any(row is r for r in group.front),
        "share": (row.p50_ns.value or 0) / slowest if slowest else 0,
        "figures": [_figure(row, name, group) for name, _title, _help in COLUMNS],
    }


def _figure(row: Row, name: str, group: Ranking) -> dict[str, Any]:
    """One figure: what is read, what is sorted by, what stands behind it."""
    if name == "speed_up":
        return _speed_up(row, group)
    metric = row.metrics[name]
    text, small = _wording.figure(row, name), _wording.spread(row, name)
    if small == f"{text}–{text}":
        small = ""
    if name == "file_bytes":
        gzip = _wording.figure(row, "gzip_bytes")
        small = f"{gzip} gzip" if row.gzip_bytes.value is not None else ""
        if row.container_bytes.value is not None:
            small = f"{_wording.figure(row, 'container_bytes')} as download"
    return {
        "name": name,
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "n": metric.n,
        "text": text,
        "small": small,
        "about": _wording.about(metric),
    }


def _speed_up(row: Row, group: Ranking) -> dict[str, Any]:
    against = group.over_original.get(row.cell)
    original = group.original.get(row.cell)
    figure: dict[str, Any] = {
        "name": "speed_up",
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "small": "",
    }
    if against is None or against.ratio is None:
        if original is row:
            about = "this is the uncompressed model"
            return figure | {"text": "1 ×", "small": "reference", "value": 1.0, "about": about}
        return figure | {"text": _wording.ABSENT, "about": "no uncompressed model to compare with"}
    text, _, bounds = _wording.speed_up(against).partition(" ")
    return figure | {
        "value": 1 / against.ratio,
        "low": 1 / against.high if against.high else None,
        "high": 1 / against.low if against.low else None,
        "n": against.pairs or min(against.blocks),
        "text": f"{text} ×",
        "small": bounds.strip("()"),
        "about": f"{against.verdict}: {against.why}; {units.counted(against.pairs, 'pair')} of blocks",
    }


def _plotly() -> str:
    """plotly.js from the installed package, so that the page needs no network."""
    try:
        offline = importlib.import_module("plotly.offline")
    except ModuleNotFoundError as error:
        raise plugins.missing_package("plotly", needed_by="the HTML report") from error
    script: str = offline.get_plotlyjs()
    return script


@functools.cache
def _template() -> jinja2.Template:
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, file in (("style", "page.css"), ("plots", "plots.js"), ("page", "page.js")):
        environment.globals[name] = markupsafe.Markup((_PAGE / file).read_text(encoding="utf-8"))
    environment.filters["inline_script"] = _inline_script
    environment.filters["readable"] = facts.readable
    environment.filters["text"] = facts.text
    environment.filters["count"] = units.count
    environment.filters["size"] = units.size
    environment.filters["percent"] = units.percent
    return environment.get_template("page.html.j2")


def _inline_script(source: str) -> str:
    """A library inside <script>: nothing in it may end the element."""
    import markupsafe

    return markupsafe.Markup(source.replace("</script", "<\\/script").replace("<!--", "<\\!--"))
