"""Measure power, clocks and heat while something runs, and what an inference took of it above idle.

    with open_power(gpu=True) as meter:
        idle_w = idle_power(meter, seconds=3)
        with meter.sampling() as recording:
            ...  # timed rounds, whose windows are kept
        trace = recording.trace()
    energy = energy_of(trace, windows, idle_w, runs, batch)
    slowed = throttling(trace, windows)

A newcomer's trap: ``meter.source`` None means not measured, and ``meter.reason`` has the sentence to show for it.
"""

from .energy import Energy, energy_of, idle_power, min_window_s
from .opening import open_power
from .sampling import PowerMeter
from .trace import Trace
from .windows import max_temperature_c, mean_clocks_mhz, throttling

__all__ = [
    "Energy",
    "PowerMeter",
    "Trace",
    "energy_of",
    "idle_power",
    "max_temperature_c",
    "mean_clocks_mhz",
    "min_window_s",
    "open_power",
    "throttling",
]
