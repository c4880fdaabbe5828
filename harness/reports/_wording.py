"""How a figure, its spread and its count are written for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from harness import metrics, ranking
from harness.compare import Comparison
from harness.core import units
from harness.core.types import Block, Record
from harness.metrics import Metric, Row

ABSENT = "–"
BUSY_SHARE = 0.1  # of all CPU time: what others may take during a block before it is said
MOST_INCIDENTS = 12  # that a report names one by one
HAPPENED = {
    "retried": "was run again",
    "rebooted": "was run again after the device restarted",
    "reconnected": "lost its link, which came back",
    "lost": "lost its device, which did not come back then",
}
RESOLVED_S = 0.2  # CPU time is counted in ticks of 10 ms: shorter spans say too little


def figure(row: Row, name: str) -> str:
    """The value of one figure with its unit, or a dash."""
    value = _shown(row, name).value
    return ABSENT if value is None else _writer(row, name)(value)


def _shown(row: Row, name: str) -> Metric:
    """A figure as people read it: a cell that was not measured to its end has none from its blocks."""
    metric = row.metrics[name]
    whole = row.status == "measured" or name in metrics.OF_THE_FILE
    return metric if whole else replace(metric, value=None, low=None, high=None, reason=row.reason)


def spread(row: Row, name: str) -> str:
    """The spread of one figure: ``12.1–12.5 µs``, ``± 0.22 %``; empty where there is none."""
    metric, write = _shown(row, name), _writer(row, name)
    if metric.value is None or metric.low is None or metric.high is None:
        return ""
    if metric.spread == "sd":
        return f"± {write((metric.high - metric.low) / 2)}"
    return units.joined(write(metric.low), write(metric.high))


def speed_up(comparison: Comparison | None) -> str:
    """How many times as fast the candidate is, with its 95 % interval: ``5.29 (5.22–5.36)``."""
    if comparison is None or comparison.ratio is None:
        return ABSENT
    text = units.times(1 / comparison.ratio)
    if comparison.low is None or comparison.high is None:
        return text
    return f"{text} ({units.times(1 / comparison.high)}–{units.times(1 / comparison.low)})"


def score_figure(row: Row) -> str:
    """The score with its spread: ``98.9 ± 0.2 %`` over seeds, ``98.9 (97.4–99.5 %)`` for one."""
    metric = row.score
    if metric.value is None:
        return ABSENT
    name, unit = row.score_metric, " %" if ranking.is_share(row.score_metric) else ""
    value = ranking.score(metric.value, name, 1)
    if metric.low is None or metric.high is None:
        return value
    if metric.spread == "sd":
        half = ranking.score((metric.high - metric.low) / 2, name, 1)
        return f"{value.removesuffix(unit)} ± {half}"
    bounds = units.joined(ranking.score(metric.low, name, 1), ranking.score(metric.high, name, 1))
    return f"{value.removesuffix(unit)} ({bounds})"


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
    measured = [r for r in rows if r.status == "measured"]
    if timed := [r.p50_ns for r in measured if r.p50_ns.value is not None]:
        blocks = units.counts([m.n for m in timed], "block")
        values = units.counts([m.samples for m in timed], "timed inference")
        lines.append(
            f"p50: median over {blocks} (one fresh process each) of the block's median, {values} per cell; "
            "interval: Student's t over blocks, 95 %. speed-up: against the uncompressed model in the same "
            "format, block by block."
        )
    if sensed := [r.peak_bytes for r in measured if r.peak_bytes.value is not None]:
        blocks = units.counts([m.n for m in sensed], "memory block")
        lines.append(
            f"Memory: highest of {blocks} (processes that are not timed); "
            "peak: the whole process; model: peak minus the runtime's baseline."
        )
    if scored := [r for r in rows if r.score.value is not None]:
        name = scored[0].score_metric or "score"
        seeds = units.counts([r.score.n for r in scored], "seed")
        kinds = {r.score.spread for r in scored}
        kind = "mean ± standard deviation over" if "sd" in kinds else "95 % Wilson interval,"
        samples = units.counts([r.score.samples for r in scored], "test sample")
        lines.append(f"{name[:1].upper() + name[1:]}: in the file's own runtime, {kind} {seeds}, {samples}.")
    return lines


def cautions(records: Iterable[Record]) -> list[str]:
    """What a reader must know before the numbers: a busy device, a setting not taken, too many threads."""
    taken: dict[str, tuple[float, int]] = {}
    refused: dict[tuple[str, str, str, str], int] = {}
    notes: dict[tuple[str, str, str], None] = {}
    crowded: dict[tuple[str, int], set[int]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for record in records:
        device = record.cell.device
        if record.runtime and record.runtime.note:
            notes[device, record.runtime.name, record.runtime.note] = None
        cores = cores_of(record)
        if record.blocks and 0 < cores < record.cell.threads:
            crowded.setdefault((device, cores), set()).add(record.cell.threads)
        for block in record.blocks:
            share = taken_by_others(block, cores)
            if share is not None and share > BUSY_SHARE:
                taken[device] = max(taken.get(device, (0.0, 0)), (share, cores))
            why = block.facts.get("settings_not_taken") or {}
            reasons |= {(device, name): str(reason) for name, reason in why.items()}
            for name, setting in block.settings.items():
                unread = setting.observed is None and name in why
                if unread or (setting.observed is not None and setting.observed != setting.requested):
                    key = (device, name, _plainly(setting.requested), _plainly(setting.observed))
                    refused[key] = refused.get(key, 0) + 1
    return [
        *(f"{device}, {runtime}: {note}." for device, runtime, note in notes),
        *(
            f"{device} was busy: other processes took up to {units.percent(share, 0)} of its "
            f"{units.counted(cores, 'core')} during a block. "
            "Times may be longer, and spread wider, than on an idle device."
            for device, (share, cores) in taken.items()
        ),
        *(
            f"{device} did not take a setting: {name} was asked as {requested} and read back as {observed} "
            f"in {units.counted(count, 'block')}{_because(reasons.get((device, name)))}."
            for (device, name, requested, observed), count in refused.items()
        ),
        *(
            f"{device} has {units.counted(cores, 'core')} for the agent: with "
            f"{' and '.join(map(str, sorted(threads)))} threads, some wait while others run, "
            "and times are longer and less steady."
            for (device, cores), threads in crowded.items()
        ),
    ]


def incidents(records: Iterable[Record]) -> list[str]:
    """What went wrong while cells were measured, mended or not; their blocks are whole."""
    lines: dict[str, None] = {}
    for record in records:
        cell = record.cell
        place = f"{cell.device}, {ranking.label(cell)}, {units.counted(cell.threads, 'thread')}"
        for incident in record.incidents:
            kind, _, number = incident.block.partition(" ")
            lines[f"{place}: {kind} block {number} {HAPPENED[incident.kind]}: {incident.text}"] = None
    shown = list(lines)[:MOST_INCIDENTS]
    left = len(lines) - len(shown)
    return shown + ([f"{left} more such incidents are in the records."] if left else [])


def cores_of(record: Record) -> int:
    """How many CPUs the agent may use; 0 if that is not known."""
    return int(record.device.get("cpus_allowed") or record.device.get("cores") or 0)


def taken_by_others(block: Block, cores: int) -> float | None:
    """The share of all CPU time from before warm-up to after the loop that other processes used."""
    before, after = (block.facts.get(name) or {} for name in ("state_before", "state_after"))
    keys = ("clock_s", "cpu_s", "all_cpu_s")
    if not cores or any(state.get(key) is None for state in (before, after) for key in keys):
        return None
    wall, own, everyone = (after[key] - before[key] for key in keys)
    return float(max(0.0, everyone - own) / (wall * cores)) if wall >= RESOLVED_S else None


def _plainly(value: float | str | None) -> str:
    if value is None:
        return "nothing"
    return f"{value:g}" if isinstance(value, (int, float)) else value


def _because(reason: str | None) -> str:
    return f" ({reason.rstrip('.')})" if reason else ""


def _writer(row: Row, name: str) -> Callable[[float], str]:
    if name.endswith("_ns"):
        return units.duration
    if name.endswith("_bytes"):
        return units.size
    if name in ("parameters", "nonzeros", "macs"):
        return units.count
    if name == "score":
        return lambda value: ranking.score(value, row.score_metric)
    suffix = {"parity_sqnr_db": " dB", "energy_j_per_inference": " J"}.get(name, "")
    return lambda value: f"{value:.3g}{suffix}"
