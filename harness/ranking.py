"""
Say which cell is the best of a device, in sentences that need no knowledge of statistics.

Cells are ranked inside one group: one device, one model, one thread count. A cell that was not measured, or
has no latency, is not ranked. An emulated device is not ranked at all: its times are the emulator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness import metrics
from harness.compare import Comparison, compare, differences
from harness.core import stats, units
from harness.core.types import RUNTIMES, SUFFIXES, Cell, Recipe, Record, Run
from harness.metrics import Row

#: How much worse than the best score "nearly as good" may be: half a point of accuracy.
SCORE_LOSS = 0.005

#: Scores that are shares of the test samples: written in percent, differences in points.
SHARES = frozenset({"accuracy", "top1", "top5", "f1", "precision", "recall", "iou", "map"})

_NO_STEPS = Recipe(name="fp32").digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The order of one group and what follows from it."""

    device: str
    model: str
    threads: int
    ranked: tuple[Row, ...] = ()  # fastest first
    unranked: tuple[Row, ...] = ()
    front: tuple[Row, ...] = ()  # nobody is faster with an equal or better score; fastest first
    accurate: Row | None = None  # the fastest within score_loss of the best score
    score_loss: float = SCORE_LOSS
    original: Mapping[Cell, Row] = field(default_factory=dict)  # the uncompressed model in the same format
    over_original: Mapping[Cell, Comparison] = field(default_factory=dict)  # base: the original
    under_fastest: Mapping[Cell, Comparison] = field(default_factory=dict)  # candidate: the fastest
    sentences: tuple[str, ...] = ()

    @property
    def fastest(self) -> Row | None:
        """The row with the smallest p50."""
        return self.ranked[0] if self.ranked else None


def rank(run: Run, *, score_loss: float = SCORE_LOSS) -> tuple[Ranking, ...]:
    """One ranking per device, model and thread count, in the order of the plan."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in metrics.rows(run):
        groups.setdefault((row.cell.device, row.cell.model, row.cell.threads), []).append(row)
    records = {record.cell: record for record in run.records}
    return tuple(_rank(key, rows, records, score_loss) for key, rows in groups.items())


def pareto_front(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows that no other row beats: faster at no less score, or a better score at no more time."""
    scored = [r for r in rows if r.p50_ns.value is not None and r.score.value is not None]
    front = [r for r in scored if not any(_dominates(other, r) for other in scored)]
    return tuple(sorted(front, key=_time))


def is_original(record: Record) -> bool:
    """Whether the recipe has no steps: the model as it was trained."""
    return record.artifact is not None and record.artifact.recipe_digest == _NO_STEPS


def _rank(
    key: tuple[str, str, int], rows: Sequence[Row], records: Mapping[Cell, Record], score_loss: float
) -> Ranking:
    device, model, threads = key
    place = f"{model} on {device} with {units.counted(threads, 'thread')}"
    if any(r.emulated for r in rows):
        why = f"{device} is emulated: its times are the emulator's, so {place} is not ranked."
        return Ranking(device=device, model=model, threads=threads, unranked=tuple(rows), sentences=(why,))
    ranked = tuple(
        sorted((r for r in rows if r.status == "measured" and r.p50_ns.value is not None), key=_time)
    )
    if not ranked:
        why = f"None of the {len(rows)} cells of {place} was measured."
        return Ranking(device=device, model=model, threads=threads, unranked=tuple(rows), sentences=(why,))
    fastest, accurate = ranked[0], _accurate(ranked, score_loss)
    original = {r.cell: o for r in ranked if (o := _original_of(r, ranked, records))}
    over_original = _compare_all([(original[r.cell], r) for r in ranked if r.cell in original], records)
    under_fastest = _compare_all([(r, fastest) for r in ranked], records)
    compressed = any(records[r.cell].artifact and not is_original(records[r.cell]) for r in ranked)
    return Ranking(
        device=device,
        model=model,
        threads=threads,
        ranked=ranked,
        unranked=tuple(r for r in rows if r not in ranked),
        front=pareto_front(ranked),
        accurate=accurate,
        score_loss=score_loss,
        original=original,
        over_original={c.candidate: c for c in over_original},
        under_fastest={c.base: c for c in under_fastest},
        sentences=(
            _fastest_sentence(place, fastest),
            *(_original_sentences(fastest, original, over_original) if original and compressed else ()),
            *_runner_up_sentences(ranked, under_fastest, records),
            *_accurate_sentences(fastest, accurate, ranked, score_loss),
            *_doubt_sentences(accurate, ranked, records, score_loss),
            *(_size_sentences(accurate, original.get(accurate.cell)) if accurate else ()),
        ),
    )


def _compare_all(pairs: Sequence[tuple[Row, Row]], records: Mapping[Cell, Record]) -> list[Comparison]:
    """Compare base and candidate of each pair of like things (a --resume may follow a device's update)."""
    found = []
    for base, candidate in pairs:
        left, right = records[base.cell], records[candidate.cell]
        if base is not candidate and not any(differences(left, right)):
            found.append(compare(left, right))
    return found


def _original_of(row: Row, rows: Sequence[Row], records: Mapping[Cell, Record]) -> Row | None:
    for other in rows:
        same_place = (other.cell.format, other.cell.backend) == (row.cell.format, row.cell.backend)
        if same_place and is_original(records[other.cell]):
            return other
    return None


def _accurate(ranked: Sequence[Row], score_loss: float) -> Row | None:
    scored = [r for r in ranked if r.score.value is not None]
    if not scored:
        return None
    floor = max(map(_score, scored)) - score_loss
    # A difference of exactly the loss counts as within it, whatever the last bit of a float says.
    return next(r for r in scored if _score(r) >= floor - 1e-9)


def _time(row: Row) -> float:
    assert row.p50_ns.value is not None
    return row.p50_ns.value


def _score(row: Row) -> float:
    assert row.score.value is not None
    return row.score.value


def _dominates(left: Row, right: Row) -> bool:
    at_least = _time(left) <= _time(right) and _score(left) >= _score(right)
    return at_least and (_time(left), _score(left)) != (_time(right), _score(right))


# --- sentences ---------------------------------------------------------------------------------------


def label(cell: Cell) -> str:
    """``pruned_int8 as .tflite``."""
    return f"{cell.recipe} as {SUFFIXES[cell.format]}"


def factor(comparison: Comparison) -> str:
    """How many times as fast the candidate is: ``8.41 × as fast (95 % interval 8.20–8.63)``."""
    assert comparison.ratio is not None
    text = f"{units.times(1 / comparison.ratio)} × as fast"
    if comparison.low is None or comparison.high is None:
        return f"{text} (no interval: {comparison.why})"
    return f"{text} (95 % interval {units.times(1 / comparison.high)}–{units.times(1 / comparison.low)})"


def score(value: float, metric: str | None, digits: int = 2) -> str:
    """``98.89 %`` for a share, else the number as it is."""
    return units.percent(value, digits) if is_share(metric) else f"{value:.4g}"


def score_difference(value: float, metric: str | None) -> str:
    """``0.5 points`` for a share, else the number as it is."""
    return f"{value * 100:g} points" if is_share(metric) else f"{value:g}"


def is_share(metric: str | None) -> bool:
    """Whether a score of this name is a share of the test samples."""
    return metric is not None and metric.lower() in SHARES


def _fastest_sentence(place: str, fastest: Row) -> str:
    p50 = fastest.p50_ns
    interval = ""
    if p50.low is not None and p50.high is not None:
        interval = f"95 % interval {units.joined(units.duration(p50.low), units.duration(p50.high))}, "
    return (
        f"The fastest form of {place} is {label(fastest.cell)} in {RUNTIMES[fastest.cell.format]}: "
        f"{units.duration(_time(fastest))} per inference "
        f"({interval}{units.counted(p50.n, 'block')})."
    )


def _original_sentences(
    fastest: Row, original: Mapping[Cell, Row], over_original: Sequence[Comparison]
) -> list[str]:
    if fastest.cell not in original:
        return [f"The uncompressed model was not measured as {SUFFIXES[fastest.cell.format]}."]
    if original[fastest.cell] is fastest:
        return ["It is the uncompressed model: no compressed form that was measured is faster."]
    against = next((c for c in over_original if c.candidate == fastest.cell), None)
    if against is None or against.ratio is None:
        return []
    text = f"It is {factor(against)} as the uncompressed model in the same format"
    if against.verdict == "better":
        return [f"{text}."]
    if against.verdict == "same":
        return [f"{text}, which is practically the same (within {_percent(against)})."]
    return [f"{text}; {_what_is_open(against)}."]


def _runner_up_sentences(
    ranked: Sequence[Row], under_fastest: Sequence[Comparison], records: Mapping[Cell, Record]
) -> list[str]:
    if len(ranked) < 2:
        return []
    fastest, second = ranked[0].cell, ranked[1].cell
    against = next((c for c in under_fastest if c.base == second), None)
    if against is None or against.ratio is None:
        why = against.why if against else next(differences(records[second], records[fastest]))
        return [f"The runner-up is {label(second)}; the two have no ratio: {why}."]
    text = f"The runner-up is {label(against.base)}: the fastest is {factor(against)}"
    if against.verdict == "better":
        return [f"{text}, a real difference."]
    if against.verdict == "same":
        same = f"practically the same (within {_percent(against)})"
        return [f"{text}, which is {same}: either is a good choice."]
    return [f"{text}; {_what_is_open(against)}."]


def _what_is_open(against: Comparison) -> str:
    """What its blocks do not settle, and by which numbers: the interval, and p of what they could show."""
    tested = ""
    if against.p is not None and against.pairs:
        least = f"the smallest that {against.pairs} pairs of blocks can give is {2 / 2**against.pairs:.2g}"
        tested = f" (exact sign-flip p = {against.p:.2g}; {least})"
    elif against.p is not None:
        tested = f" (p = {against.p:.2g}, from regrouping the blocks)"
    if against.low is None or against.high is None or against.low <= 1 <= against.high:
        return f"these blocks cannot tell the two apart{tested}"
    least_gain = 1 / against.high if against.high < 1 else against.low  # whoever of the two is the faster
    seem = "differ" if against.p is not None and against.p <= 0.05 else "seem to differ"
    count = f"more than the {_percent(against)} that count as real"
    return f"the two {seem}, but the interval begins at {least_gain:.3f}: whether by {count} is open{tested}"


def _percent(comparison: Comparison) -> str:
    return f"{comparison.tolerance * 100:g} %"


def _accurate_sentences(
    fastest: Row, accurate: Row | None, ranked: Sequence[Row], score_loss: float
) -> list[str]:
    if accurate is None:
        return [f"Accuracy was not weighed against speed: {fastest.score.reason or 'no score'}."]
    best = max((r for r in ranked if r.score.value is not None), key=_score)
    metric = accurate.score_metric
    text = f"Within {score_difference(score_loss, metric)} of the best {metric} "
    text += f"({score(_score(best), metric)}, {label(best.cell)}) the fastest is "
    if accurate is fastest:
        text += f"the same: {score(_score(accurate), metric)}"
    else:
        text += (
            f"{label(accurate.cell)}: {units.duration(_time(accurate))}, {score(_score(accurate), metric)}"
        )
    seeds, samples = accurate.score.n, accurate.score.samples
    text += f" ({units.counted(seeds, 'seed')}, {units.counted(samples, 'test sample')})."
    return [text]


def _doubt_sentences(
    accurate: Row | None, ranked: Sequence[Row], records: Mapping[Cell, Record], score_loss: float
) -> list[str]:
    """Whether seeds and samples can tell a loss of that size at all; in pairs of one seed if several."""
    best = max((r for r in ranked if r.score.value is not None), key=_score, default=None)
    if accurate is None or best is None or _score(accurate) == _score(best):
        return []
    metric, (left, right) = accurate.score_metric, (_by_seed(records[r.cell]) for r in (best, accurate))
    limit = score_difference(score_loss, metric)
    losses = [left[seed] - right[seed] for seed in left.keys() & right.keys()]
    if len(losses) > 1:
        interval = stats.mean_interval(losses)
        if interval is None:
            return []
        mean, low, high = (
            score_difference(round(value, 4), metric).removesuffix(" points")
            for value in (sum(losses) / len(losses), *interval)
        )
        doubt = f", which does not settle {limit}" if interval[1] > score_loss else ""
        points = " points" if is_share(metric) else ""
        return [
            f"Over {len(losses)} seeds its loss is {mean}{points} (95 % interval {low} to {high}){doubt}."
        ]
    low_end, high_end = accurate.score.low, accurate.score.high
    if low_end is None or high_end is None or (high_end - low_end) / 2 <= score_loss:
        return []
    bounds = units.joined(score(low_end, metric, 1), score(high_end, metric, 1))
    return [
        f"But {units.counted(accurate.score.samples, 'sample')} and one seed know that {metric} as {bounds} "
        f"only (95 % interval): too little to settle {limit}; more --seeds help."
    ]


def _by_seed(record: Record) -> dict[int, float]:
    found = record.artifact.score if record.artifact else None
    return dict(zip(found.seeds, found.values, strict=True)) if found else {}


def _size_sentences(row: Row, original: Row | None) -> list[str]:
    if original is None or original is row:
        return []
    if not row.file_bytes.value or not original.file_bytes.value:
        return []
    share = original.file_bytes.value / row.file_bytes.value
    if 0.995 < share < 1.005:
        return [f"Its file is as large as the uncompressed one: {units.size(row.file_bytes.value)}."]
    sizes = f"{units.size(row.file_bytes.value)} instead of {units.size(original.file_bytes.value)}"
    return [f"Its file is {sizes}: {units.times(share if share > 1 else 1 / share)} × {_than(share)}."]


def _than(share: float) -> str:
    return "smaller" if share > 1 else "larger"
