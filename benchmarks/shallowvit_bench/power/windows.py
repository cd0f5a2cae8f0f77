"""Say what happened to the device in the windows of timed runs: what slowed it down, how hot it got, at what clocks.

A newcomer's trap: a reading stands for the time since the one before it, so it belongs to each window which that time touches,
and a short window between two readings isn't without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trace import Reading, Trace, Windows

__all__ = ["max_temperature_c", "mean_clocks_mhz", "throttling"]


def throttling(trace: Trace, windows: Windows) -> tuple[str, ...]:
    """Return what slowed the device down, each as a sentence with the number of rounds; a measurement with any is invalid."""
    rounds: dict[str, set[int]] = {}
    for number, window in enumerate(windows):
        for reading in trace.readings:
            if reading.throttled and _touches(reading, window):
                for text in reading.throttled:
                    rounds.setdefault(text, set()).add(number)
    return tuple(f"{text}, in {len(numbers)} of {len(windows)} rounds" for text, numbers in rounds.items())


def max_temperature_c(trace: Trace, windows: Windows) -> float | None:
    """Return the highest temperature of any zone, or None where none was read."""
    return max((degrees for reading in _within(trace, windows) for degrees in reading.temperatures_c.values()), default=None)


def mean_clocks_mhz(trace: Trace, windows: Windows) -> dict[str, float]:
    """Return the mean clock of each unit."""
    values: dict[str, list[float]] = {}
    for reading in _within(trace, windows):
        for unit, clock in reading.clocks_mhz.items():
            values.setdefault(unit, []).append(clock)
    return {unit: sum(clocks) / len(clocks) for unit, clocks in values.items()}


def _within(trace: Trace, windows: Windows) -> list[Reading]:
    return [reading for reading in trace.readings if any(_touches(reading, window) for window in windows)]


def _touches(reading: Reading, window: tuple[float, float]) -> bool:
    start, end = window
    return reading.since_s <= end and reading.time_s >= start
