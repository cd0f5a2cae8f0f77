"""Watch clocks, temperatures and what the kernel says of throttling: CPUs anywhere, and what a Jetson adds to it.

A newcomer's trap: a counter of events says that something happened since it was read before, not when; and a fan is a cooling
device too, whose state says nothing about clocks.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..probes import read_text
from ..sysfs import gpu_devfreq, hwmon_chips, read_int
from .trace import Reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["HEAT_PERIOD_S", "find_heat"]

HEAT_PERIOD_S = 0.25
_MOST_CLOCKS = 8  # reading one on x86 wakes its core
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower")
_OVER_CURRENT = {  # of Orin and Thor
    "oc1": "the supply's voltage fell too low",
    "oc2": "the average current was too high",
    "oc3": "the current was too high for a moment",
}


def find_heat(root: Path) -> Callable[[], Reading] | None:
    """Return what reads clocks, temperatures and throttling of CPU and board, or None where the system shows none of it.

    Counters are read once here: only what they count from now on is told.
    """
    temperatures, clocks = _temperatures(root), _clocks(root)
    counters, states = _counters(root), _states(root)
    if not (temperatures or clocks or counters or states):
        return None
    last = {path: read_int(path) or 0 for path, _ in counters}

    def look() -> Reading:
        moment = time.perf_counter()
        throttled = [f"{what} ({path.name})" for path, what in counters if _rose(path, last)]
        throttled += [what for path, what in states if (read_int(path) or 0) > 0]
        return Reading(
            time_s=moment,
            since_s=moment,
            temperatures_c=_read_temperatures(temperatures),
            clocks_mhz=_mean_clocks(clocks),
            throttled=tuple(dict.fromkeys(throttled)),
        )

    return look


def _rose(path: Path, last: dict[Path, int]) -> bool:
    now, before = read_int(path), last[path]
    if now is None:
        return False
    last[path] = now
    return now > before


def _read_temperatures(zones: dict[str, Path]) -> dict[str, float]:
    """In degrees; a sensor without power refuses or says -256."""
    read = {name: read_int(path) for name, path in zones.items()}
    return {name: value / 1e3 for name, value in read.items() if value is not None and value > -256_000}


def _mean_clocks(clocks: dict[str, list[tuple[Path, float]]]) -> dict[str, float]:
    means = {}
    for name, parts in clocks.items():
        values = [value * scale for path, scale in parts if (value := read_int(path))]
        if values:
            means[name] = sum(values) / len(values)
    return means


def _temperatures(root: Path) -> dict[str, Path]:
    """Zones by name; PMIC-Die is left out, since it is a constant."""
    found: dict[str, Path] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name = read_text(zone / "type")
        if name and not name.startswith("PMIC"):
            found.setdefault(name.removesuffix("-thermal").removesuffix("-therm"), zone / "temp")
    for chip, folder in hwmon_chips(root):
        if chip in _CPU_SENSORS:
            found.setdefault(chip, folder / "temp1_input")
    return found


def _clocks(root: Path) -> dict[str, list[tuple[Path, float]]]:
    """Files by unit, each with what makes MHz of it."""
    policies = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"), key=lambda path: (len(path.name), path.name))
    step = -(-len(policies) // _MOST_CLOCKS) or 1
    cpu = [(policy / "scaling_cur_freq", 1e-3) for policy in policies[::step]]
    gpu = [(folder / "cur_freq", 1e-6) for folder in gpu_devfreq(root)]
    return {name: files for name, files in (("cpu", cpu), ("gpu", gpu)) if files}


def _counters(root: Path) -> list[tuple[Path, str]]:
    cpus = root / "sys/devices/system/cpu"
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    found = [
        (path, "the CPU was slowed down for its temperature")
        for number in sorted(usable)
        for path in sorted((cpus / f"cpu{number}/thermal_throttle").glob("*_throttle_count"))
    ]
    for _, folder in hwmon_chips(root):
        for path in sorted(folder.glob("oc[0-9]*_event_cnt")):
            why = _OVER_CURRENT.get(path.name.partition("_")[0], "an over-current event")
            if read_int(path.with_name(path.name.replace("event_cnt", "throt_en"))) != 0:
                found.append((path, f"the board was slowed down: {why}"))
    return found


def _states(root: Path) -> list[tuple[Path, str]]:
    """Cooling devices that lower clocks; their state is 0 when they don't."""
    found = []
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name = read_text(device / "type") or ""
        if name.endswith("-throttle-alert") or name.startswith(("cpufreq-", "devfreq-", "Processor")):
            found.append((device / "cur_state", f"clocks were lowered for the temperature ({name})"))
    return found
