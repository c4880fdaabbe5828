"""
Energy per inference from a power sensor's readings, with an uncertainty that holds, or the reason why not.

The window is given by the agent's own marks. Only readings that lie wholly inside it count: the mean of
those times the window's length is unbiased for a steady load, where a trapezoid that is interpolated to the
edges loses up to 0.6 sample periods of the step in power. The uncertainty is that of the Guide to the
Expression of Uncertainty in Measurement (GUM, JCGM 100:2008): independent contributions add in squares, and
the factor for 95 % is Student's t at the effective degrees of freedom (Welch-Satterthwaite, its G.4), but
never below 2.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["instantaneous", "averaging", "counter"]
Scope = Literal["soc_rails", "module", "battery", "package", "dc_in", "wall"]

MIN_READINGS = 10  # inside the window; with fewer the spread of the mean is not known
MAX_GAP_PERIODS = 3.0
CONFIDENCE = 0.95
MIN_FACTOR = 2.0  # the usual coverage factor, 95.45 % of a normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a sensor is. A reading is watts, or joules since some moment for a counter."""

    id: str
    scope: Scope  # what is behind the tap: energies of different scopes are never compared
    kind: Kind
    period_s: float  # between two fresh values; an averaging sensor's value is the mean over that time
    resolution: float  # the smallest step of a reading, W (J for a counter)
    gain_uncertainty: float  # standard, relative: 0.02 is 2 %
    offset_uncertainty_w: float = 0.0  # standard


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of time on the clock of the readings."""

    begin_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """How long it is."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class NoEnergy:
    """Why there is no figure."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """The mean power of a window and what is known of it."""

    watts: float
    noise_w: float  # standard uncertainty of the mean from the readings' scatter
    freedom: float  # degrees of freedom of noise_w
    rounding_w: float  # standard uncertainty from the resolution
    readings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """
    Energy of one window. ``total`` is all that the scope drew; ``active`` is what the load added to idle.

    Uncertainties are half widths at 95 %. *active_j* is None with a reason where it cannot be told from 0.
    """

    source: Source
    inferences: int
    window_s: float
    readings: int
    mean_w: float
    idle_w: float | None
    total_j: float
    total_uncertainty_j: float
    active_j: float | None
    active_uncertainty_j: float | None
    active_reason: str | None

    @property
    def total_j_per_inference(self) -> float:
        """What one inference cost with the device awake for it."""
        return self.total_j / self.inferences

    @property
    def active_j_per_inference(self) -> float | None:
        """What one inference added to the idle device."""
        return None if self.active_j is None else self.active_j / self.inferences


Readings = Sequence[tuple[float, float]]  # (time in s, reading), in time order


def unwrap(readings: Readings, range_j: float) -> list[tuple[float, float]]:
    """A counter's readings without its wraps: each fall is taken as one wrap of *range_j* joules."""
    turns, found, before = 0, [], -math.inf
    for time_s, value in readings:
        turns += value < before
        before = value
        found.append((time_s, value + turns * range_j))
    return found


def measure(
    source: Source,
    readings: Readings,
    load: Window,
    *,
    inferences: int,
    idle: Sequence[Window] = (),
    clock_uncertainty_s: float = 0.0,
) -> Energy | NoEnergy:
    """
    The energy of *load*, during which *inferences* ran back to back, and what it is above *idle*.

    *idle* are windows before and after: their mean is the idle power, their difference its uncertainty.
    *clock_uncertainty_s* bounds the offset between the clock of the readings and that of the windows:
    readings so near to an edge do not count.
    """
    if inferences < 1:
        return NoEnergy("no inference ran in the window")
    if len(readings) > MIN_READINGS and len({value for _, value in readings}) == 1:
        return NoEnergy(f"{source.id} gave {len(readings)} readings that are all equal: it is frozen")
    busy = mean_power(source, readings, load, clock_uncertainty_s)
    if isinstance(busy, NoEnergy):
        return busy
    rest = [mean_power(source, readings, window, clock_uncertainty_s) for window in idle]
    missing = next((part.reason for part in rest if isinstance(part, NoEnergy)), None)
    quiet = [part for part in rest if isinstance(part, Power)]
    time_s = load.length_s
    total = busy.watts * time_s
    parts = [
        (source.gain_uncertainty * total, math.inf),
        (source.offset_uncertainty_w * time_s, math.inf),
        (busy.noise_w * time_s, busy.freedom),
        (busy.rounding_w * time_s, math.inf),
    ]
    active: float | None = None
    active_half: float | None = None
    if missing or not quiet:
        reason = f"idle power is not known: {missing or 'no idle window was measured'}"
        idle_w = None
    else:
        idle_w, idle_parts = _idle(quiet)
        active, active_half, reason = _active(source, busy, idle_w, idle_parts, time_s)
    return Energy(
        source=source,
        inferences=inferences,
        window_s=time_s,
        readings=busy.readings,
        mean_w=busy.watts,
        idle_w=idle_w,
        total_j=total,
        total_uncertainty_j=_expanded(parts),
        active_j=active,
        active_uncertainty_j=active_half,
        active_reason=reason or None,
    )


def mean_power(
    source: Source, readings: Readings, window: Window, clock_uncertainty_s: float = 0.0
) -> Power | NoEnergy:
    """The mean power in *window* from the readings that lie wholly inside it."""
    lead_s = 0.0 if source.kind == "instantaneous" else source.period_s
    first, last = window.begin_s + clock_uncertainty_s + lead_s, window.end_s - clock_uncertainty_s
    inside = _fresh([r for r in readings if first <= r[0] <= last], source.period_s)
    if len(inside) < MIN_READINGS:
        need_s = (MIN_READINGS + 1) * source.period_s + lead_s + 2 * clock_uncertainty_s
        return NoEnergy(
            f"{source.id} gave {len(inside)} readings in {window.length_s:.3g} s, {MIN_READINGS} are needed: "
            f"measure for {need_s:.2g} s or longer"
        )
    gap_s = max(b[0] - a[0] for a, b in itertools.pairwise(inside))
    if gap_s > MAX_GAP_PERIODS * source.period_s:
        return NoEnergy(
            f"{source.id} was silent for {gap_s:.3g} s in the window, its period is {source.period_s:g} s"
        )
    if source.kind == "counter":
        return _of_counter(source, inside)
    values = [value for _, value in inside]
    spread = statistics.stdev(values)
    freedom = max(1.0, independent(values) - 1)
    coarse = spread < source.resolution / 2  # then averaging does not make the steps finer
    return Power(
        watts=statistics.fmean(values),
        noise_w=spread / math.sqrt(freedom + 1),
        freedom=freedom,
        rounding_w=source.resolution / math.sqrt(12) if coarse else 0.0,
        readings=len(values),
    )


def independent(values: Sequence[float]) -> float:
    """How many independent values *values* are worth: n (1 - r) / (1 + r), r the lag-1 autocorrelation."""
    mean = statistics.fmean(values)
    off = [value - mean for value in values]
    square = math.fsum(v * v for v in off)
    if square == 0:
        return float(len(values))
    lag = math.fsum(a * b for a, b in itertools.pairwise(off)) / square
    lag = min(max(lag, 0.0), 0.99)
    return max(2.0, len(values) * (1 - lag) / (1 + lag))


def _fresh(readings: Readings, period_s: float) -> list[tuple[float, float]]:
    """At most one reading per period: a sensor that is asked more often repeats itself."""
    kept: list[tuple[float, float]] = []
    for reading in readings:
        if not kept or reading[0] - kept[-1][0] >= 0.8 * period_s:
            kept.append(reading)
    return kept


def _of_counter(source: Source, inside: Readings) -> Power:
    """Energy between the first and the last reading; each may be a period old and is rounded."""
    (begin_s, begin_j), (end_s, end_j) = inside[0], inside[-1]
    watts = (end_j - begin_j) / (end_s - begin_s)
    per_edge = math.sqrt(2 / 12) / (end_s - begin_s)
    return Power(
        watts=watts,
        noise_w=watts * source.period_s * per_edge,
        freedom=math.inf,
        rounding_w=source.resolution * per_edge,
        readings=len(inside),
    )


def _idle(quiet: Sequence[Power]) -> tuple[float, list[tuple[float, float]]]:
    """(idle power in W, its uncertainties): the windows' noise, and their range as a rectangle's."""
    values = [power.watts for power in quiet]
    parts = [(power.noise_w / len(quiet), power.freedom) for power in quiet]
    # Rounding is the same for two like windows: it does not average out.
    parts.append((max(power.rounding_w for power in quiet), math.inf))
    parts.append(((max(values) - min(values)) / 2 / math.sqrt(3), math.inf))
    return statistics.fmean(values), parts


def _active(
    source: Source, busy: Power, idle_w: float, idle_parts: list[tuple[float, float]], time_s: float
) -> tuple[float | None, float | None, str]:
    """(J, half width, reason): an offset cancels, a gain error is that of the difference."""
    above_w = busy.watts - idle_w
    if source.kind != "counter" and above_w < 2 * source.resolution:
        return (
            None,
            None,
            (
                f"the load adds {above_w:.3g} W to idle, less than two steps of {source.id} "
                f"({source.resolution:.2g} W each)"
            ),
        )
    parts = [(source.gain_uncertainty * above_w * time_s, math.inf), (busy.noise_w * time_s, busy.freedom)]
    parts.append((busy.rounding_w * time_s, math.inf))
    parts += [(u_w * time_s, freedom) for u_w, freedom in idle_parts]
    active, half = above_w * time_s, _expanded(parts)
    if half >= active:
        return None, None, f"the load adds {active:.3g} ± {half:.3g} J to idle: that cannot be told from 0"
    return active, half, ""


def _expanded(parts: Sequence[tuple[float, float]]) -> float:
    """The half width at 95 % or more of independent (standard uncertainty, degrees of freedom)."""
    from scipy import stats

    square = math.fsum(u * u for u, _ in parts)
    if square == 0:
        return 0.0
    below = math.fsum(u**4 / freedom for u, freedom in parts)
    freedom = square * square / below if below else math.inf
    quantile = (1 + CONFIDENCE) / 2
    factor = MIN_FACTOR if math.isinf(freedom) else stats.t.ppf(quantile, max(freedom, 1.0))
    return max(MIN_FACTOR, float(factor)) * math.sqrt(square)
