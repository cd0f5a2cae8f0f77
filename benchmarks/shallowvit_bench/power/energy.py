"""Turn a trace and the windows of timed runs into energy per inference, above idle.

The mean power of each window is the integral of what was sampled, and the energy is what lies above the idle power. A window
counts where its samples carry it: no stretch without one is longer than a fifth of it, counted at both ends too. A newcomer's
trap: a sensor that averages still shows the time before, so of each window only the part behind its averaging is integrated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .sampling import PowerMeter
    from .trace import Trace, Windows

__all__ = ["Energy", "energy_of", "idle_power", "min_window_s"]

_LONGEST_GAP = 0.2  # share of a window
_LEAST_SAMPLES = 8  # in all windows that count
_LEAST_USED = 0.5  # share of the time of all windows
_PERIODS = 10  # in a window that is long enough with a margin of two


@dataclass(frozen=True)
class Energy:
    """Energy of the runs in some windows; None wasn't measured and ``reason`` says why.

    Args:
        source: The sensor, with what it covers.
        mean_w: Over the windows, idle power included; ``peak_w`` is the highest sample.
        energy_mj: Of an inference (a batch) above idle, in millijoules; ``energy_item_mj`` of an item.
        seconds: Of all windows.
        samples: Of the sensor, in the windows that count; ``windows_used`` is how many of ``windows`` do.
    """

    source: str | None
    reason: str | None
    idle_w: float | None
    mean_w: float | None = None
    peak_w: float | None = None
    energy_mj: float | None = None
    energy_item_mj: float | None = None
    seconds: float = 0.0
    samples: int = 0
    windows: int = 0
    windows_used: int = 0


def energy_of(trace: Trace, windows: Windows, idle_w: float | None, runs: int, batch: int) -> Energy:
    """Return what an inference took above idle.

    Power that isn't above idle is reported as such: there is no energy then, and a negative one is never shown.

    Args:
        trace: Covers all windows.
        windows: Start and end of each round of timed runs, in seconds of ``time.perf_counter``.
        idle_w: From ``idle_power``; None: it wasn't measured, and no energy is given.
        runs: Inferences in all windows together.
        batch: Items of each.
    """
    found = _mean_power(trace, windows)
    facts: dict[str, Any] = {
        "source": trace.source,
        "idle_w": idle_w,
        "mean_w": found.mean_w,
        "peak_w": found.peak_w,
        "seconds": found.seconds,
        "samples": found.samples,
        "windows": len(windows),
        "windows_used": found.used,
    }
    if found.mean_w is None:
        return Energy(reason=f"energy not measured: {found.reason}", **facts)
    if idle_w is None:
        return Energy(reason="energy not measured: the idle power to take off isn't known", **facts)
    net_w = found.mean_w - idle_w
    if net_w <= 0:
        text = f"energy not measured: {found.mean_w:.2f} W with the model running is not above idle, {idle_w:.2f} W"
        return Energy(reason=text, **facts)
    energy_mj = net_w * found.seconds / runs * 1e3
    return Energy(reason=None, energy_mj=energy_mj, energy_item_mj=energy_mj / batch, **facts)


def idle_power(meter: PowerMeter, seconds: float) -> float | None:
    """Wait and return the mean power of that time in watts; None without a source, or where it gave too little.

    Idle is what the model waits in: on a GPU a process that holds it draws more than none, so load the model first.
    """
    if meter.power is None:
        return None
    with meter.sampling() as recording:
        start = time.perf_counter()
        time.sleep(max(seconds + meter.power.averaging_s, min_window_s(meter)))
        end = time.perf_counter()
    return _mean_power(recording.trace(), [(start, end)]).mean_w


def min_window_s(meter: PowerMeter) -> float:
    """Return how long a round of timed runs must last for its energy to count; 0 where there is no source."""
    return meter.power.averaging_s + _PERIODS * meter.power.period_s if meter.power else 0.0


@dataclass(frozen=True)
class _MeanPower:
    """Of the windows that count; ``mean_w`` None: too few do, and ``reason`` says why."""

    mean_w: float | None
    peak_w: float | None
    seconds: float
    samples: int
    used: int
    reason: str | None


def _mean_power(trace: Trace, windows: Windows) -> _MeanPower:
    seconds = float(sum(end - start for start, end in windows))
    if trace.source is None:
        return _MeanPower(None, None, seconds, 0, 0, "the trace has no source of power")
    times, figures = trace.energy() if trace.counts_energy else trace.power()
    settled = [(start + trace.averaging_s, end) for start, end in windows]
    used = [window for window in settled if _is_carried(times, window, edges_only=trace.counts_energy)]
    inside = [(times >= start) & (times <= end) for start, end in used]
    samples = int(sum(mask.sum() for mask in inside))
    used_s = sum(end - start for start, end in used)
    if samples < _LEAST_SAMPLES or used_s < _LEAST_USED * sum(end - start for start, end in settled):
        return _MeanPower(None, None, seconds, samples, len(used), _too_little(trace, times, windows, len(used), samples))
    integrate = _counted if trace.counts_energy else _trapezoid
    mean_w = sum(integrate(times, figures, start, end) for start, end in used) / used_s
    moments, watts = trace.power()
    peak = max((float(watts[(moments >= start) & (moments <= end)].max(initial=0.0)) for start, end in used), default=None)
    return _MeanPower(float(mean_w), peak, seconds, samples, len(used), None)


def _is_carried(times: np.ndarray[Any, Any], window: tuple[float, float], edges_only: bool) -> bool:
    """Whether the samples reach over both ends, and none of the stretches between them is too long for the window.

    What a counter counts between two samples is exact, so of a counter only the stretches over the ends matter.
    """
    start, end = window
    if end <= start or len(times) < 2 or times[0] > start or times[-1] < end:
        return False
    first, last = np.searchsorted(times, start, side="right") - 1, np.searchsorted(times, end, side="left")
    gaps = np.diff(times[first : last + 1])
    if edges_only:
        gaps = gaps[[0, -1]]
    return bool(gaps.max() <= _LONGEST_GAP * (end - start))


def _too_little(trace: Trace, times: np.ndarray[Any, Any], windows: Windows, used: int, samples: int) -> str:
    if trace.problems:
        return "; ".join(trace.problems)
    shortest = min((end - start for start, end in windows), default=0.0)
    period_s = max(trace.period_s, float(np.median(np.diff(times))) if len(times) > 1 else 0.0)  # it may be slower than it says
    needed = trace.averaging_s + _PERIODS * period_s
    return (
        f"{used} of {len(windows)} rounds, the shortest of {shortest:.2f} s, hold enough samples of {trace.source} "
        f"({samples} in all); rounds of {needed:.2g} s would"
    )


def _trapezoid(times: np.ndarray[Any, Any], watts: np.ndarray[Any, Any], start: float, end: float) -> float:
    """Joules from start to end, power drawn as straight lines between samples."""
    within = (times > start) & (times < end)
    moments = np.concatenate(([start], times[within], [end]))
    levels = np.interp(moments, times, watts)
    return float(np.sum((levels[1:] + levels[:-1]) / 2 * np.diff(moments)))


def _counted(times: np.ndarray[Any, Any], joules: np.ndarray[Any, Any], start: float, end: float) -> float:
    """Joules from start to end, the counter drawn as straight lines between samples."""
    at_start, at_end = np.interp((start, end), times, joules)
    return float(at_end - at_start)
