"""Read a Jetson's power sensors (INA3221, and the INA238 of a Thor) from ``/sys``, as tegrastats does itself.

A newcomer's trap: channels without a label or a current are shunt voltages and sums, and adding them counts power twice.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from ..probes import read_text
from ..sysfs import hwmon_chips
from .rails import rails_of_total, rails_remark
from .sampling import PollingSampler, PowerSource, Unavailable
from .trace import Reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["find_ina", "ina_rails"]

_NAME = "INA sensors"
_PERIOD_S = 0.05


def find_ina(root: Path, board: str | None) -> PowerSource | Unavailable:
    """Return the rails that make up a board's total, or why they can't be read.

    Args:
        root: Where ``sys`` is found.
        board: The board's key; None where its name isn't known.
    """
    rails = ina_rails(root)
    names = rails_of_total(rails, board)
    if names is None:
        if not rails:
            return Unavailable(_NAME, "/sys/class/hwmon has no INA3221 or INA238 with names of rails")
        return Unavailable(_NAME, f"only {', '.join(rails)} are there, which don't make up the board's total")
    looks = [rails[name] for name in names]
    try:
        sum(look() for look in looks)
    except (OSError, ValueError) as err:
        return Unavailable(_NAME, f"{', '.join(names)} can't be read ({err})")

    def look() -> Reading:
        moment = time.perf_counter()
        watts = sum(rail() for rail in looks)
        return Reading(moment, moment, watts=watts)

    covers = f"{_NAME} {rails_remark(names)}"
    return PowerSource(covers, lambda source: PollingSampler(_NAME, look, _PERIOD_S, source), _PERIOD_S)


def ina_rails(root: Path) -> dict[str, Callable[[], float]]:
    """Return for each connected rail what reads its watts; JetPack 4 shows them as industrial I/O, later ones as hwmon."""
    rails: dict[str, Callable[[], float]] = {}
    for chip, folder in hwmon_chips(root):
        if chip == "ina3221":
            for label in sorted(folder.glob("in[0-9]*_label")):
                number = re.sub(r"\D", "", label.name)
                volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
                if amperes.exists() and volts.exists():
                    _add(rails, read_text(label), _product(volts, amperes))
        elif chip == "ina238":
            named = (read_text(folder / name) for name in ("power1_label", "in1_label", "label"))
            _add(rails, next(filter(None, named), None), _scaled(folder / "power1_input", 1e-6))
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_[0-9]*")):
        number = re.sub(r"\D", "", label.name)
        _add(rails, read_text(label), _scaled(label.with_name(f"in_power{number}_input"), 1e-3))
    return rails


def _add(rails: dict[str, Callable[[], float]], name: str | None, look: Callable[[], float]) -> None:
    if name and name != "NC" and "shunt" not in name.lower():
        rails.setdefault(name.strip(), look)


def _product(millivolts: Path, milliamperes: Path) -> Callable[[], float]:
    return lambda: int(millivolts.read_text()) * int(milliamperes.read_text()) / 1e6


def _scaled(path: Path, scale: float) -> Callable[[], float]:
    return lambda: int(path.read_text()) * scale
