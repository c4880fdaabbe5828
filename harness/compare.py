"""
Say whether one cell is faster than another: ratio, interval, verdict and the sentence why.

The replicate is the block. With m(i) the median of block i, blocks of one run are interleaved in rounds,
so both cells' block i saw the same state of the device: the pairs give d(i) = ln(candidate m(i) / base
m(i)); the ratio is exp(mean d), its interval is Student's t over the d(i) (df = pairs - 1), and p is the
exact sign-flip test. Blocks of different runs are not paired: Welch's interval of the difference of the
mean log medians, and p from regrouping.

Verdict with tolerance e, the interval being [low, high]: *worse* if low > 1 + e, *better* if
high < 1 / (1 + e), *same* if the whole interval lies between, else *unclear*. Swapping the two cells turns
the verdict round. A gate that fails somebody's night asks for a second, fresh run before it says worse.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from harness import metrics
from harness.core import fingerprint, stats
from harness.core.errors import UsageError
from harness.core.types import Cell, Record

Verdict = Literal["better", "same", "worse", "unclear"]

#: What counts as a real change, by default: 3 %.
TOLERANCE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The p50 latency of *candidate* over that of *base*; below 1 the candidate is faster."""

    base: Cell
    candidate: Cell
    ratio: float | None
    low: float | None  # 95 % interval of ratio
    high: float | None
    p: float | None  # two-sided; not adjusted for how many comparisons are made
    pairs: int  # paired blocks; 0: the cells were not measured in the same rounds
    blocks: tuple[int, int]  # latency blocks of base and candidate
    tolerance: float
    verdict: Verdict
    why: str


def compare(base: Record, candidate: Record, *, tolerance: float = TOLERANCE) -> Comparison:
    """
    Compare the p50 latency of two measured cells that differ in recipe, format or backend only.

    Raises UsageError that names the fact if they differ in anything else: then the ratio would not mean
    what it says.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError(f"The tolerance must be a number from 0 up, found {tolerance}.")
    if difference := next(differences(base, candidate), None):
        raise UsageError(
            f"{_name(base)} and {_name(candidate)} cannot be compared: {difference}.",
            hint="Measure both on the same device with the same settings.",
        )
    before, after = metrics.block_medians(base), metrics.block_medians(candidate)
    paired = sorted(before.keys() & after.keys()) if base.run == candidate.run else []
    estimate = (
        _paired([math.log(after[i] / before[i]) for i in paired])
        if len(paired) >= 2 and min(*before.values(), *after.values()) > 0
        else _unpaired(list(before.values()), list(after.values()))
    )
    verdict = _verdict(estimate, tolerance)
    return Comparison(
        base=base.cell,
        candidate=candidate.cell,
        ratio=estimate.ratio,
        low=estimate.low,
        high=estimate.high,
        p=estimate.p,
        pairs=estimate.pairs,
        blocks=(len(before), len(after)),
        tolerance=tolerance,
        verdict=verdict,
        why=_why(verdict, estimate, tolerance),
    )


def differences(base: Record, candidate: Record) -> Iterator[str]:
    """Every fact that forbids a comparison, as ``thread count is 1 and 2``."""
    for record in (base, candidate):
        if record.status != "measured":
            yield f"{_name(record)} was not measured ({record.status})"
    pairs: list[tuple[str, Any, Any]] = [
        ("the model", base.cell.model, candidate.cell.model),
        ("the thread count", base.cell.threads, candidate.cell.threads),
        ("the device", base.cell.device, candidate.cell.device),
        ("the input size", _shapes(base), _shapes(candidate)),
        ("the quick mark", base.plan.quick, candidate.plan.quick),
    ]
    for fact in fingerprint.differences(base.device, candidate.device):
        pairs.append((f"the device's {fact}", base.device.get(fact), candidate.device.get(fact)))
    for fact, left, right in pairs:
        if left != right:
            yield f"{fact} is {left} and {right}"


def _name(record: Record) -> str:
    cell = record.cell
    return f"{cell.recipe} as {cell.format} in run {record.run}"


def _shapes(record: Record) -> list[list[int]] | None:
    """The sizes of every input, sorted: formats lay the same input out in different orders."""
    if record.artifact is None:
        return None
    return sorted(sorted(spec.shape) for spec in record.artifact.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Estimate:
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    pairs: int = 0
    problem: str = ""


def _paired(logs: list[float]) -> _Estimate:
    ratio, p = math.exp(statistics.fmean(logs)), stats.sign_flip_p(logs)
    interval = stats.mean_interval(logs)
    if interval is None:
        problem = f"all {len(logs)} pairs of blocks give the same ratio, so its spread is not known"
        return _Estimate(ratio=ratio, p=p, pairs=len(logs), problem=problem)
    low, high = interval
    return _Estimate(ratio=ratio, low=math.exp(low), high=math.exp(high), p=p, pairs=len(logs))


def _unpaired(before: list[float], after: list[float]) -> _Estimate:
    if not before or not after:
        return _Estimate(problem="one of the two has no latency block")
    if min(*before, *after) <= 0:
        return _Estimate(problem="a block's median is 0 ns: the clock is too coarse")
    base, other = [math.log(m) for m in before], [math.log(m) for m in after]
    ratio = math.exp(statistics.fmean(other) - statistics.fmean(base))
    if min(len(base), len(other)) < 2:
        problem = "one block says nothing about the spread between blocks"
        return _Estimate(ratio=ratio, problem=problem)
    p = stats.regrouping_p(base, other)
    interval = stats.difference_interval(base, other)
    if interval is None:
        problem = "the medians do not vary from block to block, so their spread is not known"
        return _Estimate(ratio=ratio, p=p, problem=problem)
    low, high = interval
    return _Estimate(ratio=ratio, low=math.exp(low), high=math.exp(high), p=p)


def _verdict(estimate: _Estimate, tolerance: float) -> Verdict:
    if estimate.low is None or estimate.high is None:
        return "unclear"
    if estimate.low > 1 + tolerance:
        return "worse"
    if estimate.high < 1 / (1 + tolerance):
        return "better"
    if estimate.low >= 1 / (1 + tolerance) and estimate.high <= 1 + tolerance:
        return "same"
    return "unclear"


def _why(verdict: Verdict, estimate: _Estimate, tolerance: float) -> str:
    if estimate.problem:
        return estimate.problem
    interval = f"the 95 % interval of the ratio, {estimate.low:.3f} to {estimate.high:.3f},"
    band = f"{1 / (1 + tolerance):.3f} to {1 + tolerance:.3f}"
    if verdict == "unclear":
        return f"{interval} crosses an edge of what counts as equal, {band}; more blocks make it narrower"
    if verdict == "same":
        return f"{interval} lies inside what counts as equal, {band}"
    side = "above" if verdict == "worse" else "below"
    return f"{interval} lies {side} what counts as equal, {band}"
