"""Count a CPU's energy by RAPL, which Intel and AMD processors show under ``/sys/class/powercap``.

A newcomer's trap: the counters start again at 0 when they are full, after a minute of full load or more; and on most systems
only root may read them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..probes import read_text
from ..sysfs import read_int
from .sampling import PollingSampler, PowerSource, Unavailable
from .trace import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["find_rapl", "rapl_look"]

_NAME = "RAPL"
_PERIOD_S = 0.05  # the counters themselves move every millisecond


def find_rapl(root: Path) -> PowerSource | Unavailable:
    """Return the energy counters of the CPU packages and their memory, or why they can't be read."""
    folder = root / "sys/class/powercap"
    zones = _zones(folder)
    if not zones:
        there = "has no package of a CPU" if folder.is_dir() else "isn't there, as in most virtual machines"
        return Unavailable(_NAME, f"/sys/class/powercap {there}")
    for name, zone in zones:
        try:
            (zone / "energy_uj").read_text()
        except PermissionError:
            shown = Path("/") / (zone / "energy_uj").relative_to(root)
            return Unavailable(_NAME, f"{shown} ({name}) is readable by root only (sudo chmod a+r {shown})")
        except OSError as err:
            return Unavailable(_NAME, f"{name} can't be read ({os.strerror(err.errno or 0)})")
    covers = f"{_NAME} {' + '.join(name for name, _ in zones)}: the processor, without GPU and board"
    return PowerSource(
        covers, lambda source: PollingSampler(_NAME, rapl_look(zones), _PERIOD_S, source), _PERIOD_S, covers=("cpu",)
    )


def rapl_look(zones: list[tuple[str, Path]]) -> Callable[[], Reading]:
    """Return what reads the counters: joules since the first look, over all zones."""
    last: dict[Path, int] = {}
    total_uj = 0

    def look() -> Reading:
        nonlocal total_uj
        for _, zone in zones:
            now = int((zone / "energy_uj").read_text())
            step = now - last.get(zone, now)
            total_uj += step if step >= 0 else step + (read_int(zone / "max_energy_range_uj") or 0)
            last[zone] = now
        moment = time.perf_counter()
        return Reading(moment, moment, joules=total_uj / 1e6)

    return look


def _zones(folder: Path) -> list[tuple[str, Path]]:
    """Packages, and the memory beside them; cores and graphics are within a package, psys holds it."""
    named = [(read_text(zone / "name") or "", zone) for zone in sorted(folder.glob("intel-rapl:*"))]
    return [(name, zone) for name, zone in named if name.startswith("package") or name == "dram"]
