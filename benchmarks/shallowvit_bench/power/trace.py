"""What samplers took, in the order of time: readings of power, temperatures, clocks and what slowed the device down.

A newcomer's trap: a reading holds what one sensor said at one moment, so most of its fields are None; the series of a figure
is made of the readings that have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Reading", "Trace", "Windows", "merge_traces"]

# Start and end of each stretch of time that counts, in seconds of time.perf_counter.
Windows = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Reading:
    """What a sensor said at one moment; what it doesn't tell is None or empty.

    Args:
        time_s: Of ``time.perf_counter``.
        since_s: When the same sensor was read before; what slowed the device down did so between the two.
        watts: Of the source of power.
        joules: Of the source of energy, counted from some moment before.
        temperatures_c: By zone.
        clocks_mhz: By unit.
        throttled: What slowed the device down, each as a sentence.
        ram_mib: In use on the device.
    """

    time_s: float
    since_s: float
    watts: float | None = None
    joules: float | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)
    clocks_mhz: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    ram_mib: float | None = None


@dataclass(frozen=True)
class Trace:
    """Readings in the order of time.

    Args:
        readings: Of every sensor.
        source: Of power or energy, with what it covers; None: there is none.
        period_s: Between two new figures of the source.
        averaging_s: How long the source averages; its figure lags behind by that.
        problems: Sensors that ended before they were stopped, each as a sentence.
    """

    readings: tuple[Reading, ...]
    source: str | None = None
    period_s: float = 0.1
    averaging_s: float = 0.0
    problems: tuple[str, ...] = ()

    @property
    def counts_energy(self) -> bool:
        """Whether the source is a counter of energy and not a meter of power."""
        return any(reading.joules is not None for reading in self.readings)

    def power(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return times in seconds and power in watts; of a counter the mean power up to each time but the first."""
        if self.counts_energy:
            times, joules = self.energy()
            return times[1:], np.diff(joules) / np.diff(times)
        kept = [(reading.time_s, reading.watts) for reading in self.readings if reading.watts is not None]
        return _columns(kept)

    def energy(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return times in seconds and joules of the counter at each change.

        A counter is read more often than it counts on, so a figure read again says nothing of its own time.
        """
        kept: list[tuple[float, float]] = []
        for reading in self.readings:
            if reading.joules is not None and not (kept and kept[-1][1] == reading.joules):
                kept.append((reading.time_s, reading.joules))
        return _columns(kept)


def merge_traces(traces: Sequence[Trace]) -> Trace:
    """Return one trace with the readings of all; the first that has a source is the source."""
    readings = sorted((reading for trace in traces for reading in trace.readings), key=lambda reading: reading.time_s)
    problems = tuple(problem for trace in traces for problem in trace.problems)
    of_power = next((trace for trace in traces if trace.source), Trace(()))
    return Trace(tuple(readings), of_power.source, of_power.period_s, of_power.averaging_s, problems)


def _columns(rows: list[tuple[float, float]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    table = np.array(rows, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
