"""Say which supply rails of a Jetson add up to its total power.

A newcomer's trap: no board prints a total. One has an input rail that holds the others, another has none and all must be
added, and adding all where there is an input rail counts everything twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .tegrastats import Tegrastats

__all__ = ["rails_of_total", "rails_remark", "total_power_mw"]

_MODULE_INPUT = ("VDD_IN",)
_NANO_INPUT = ("POM_5V_IN",)
_AGX_XAVIER = ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")
# The carrier board is in none of these three. A fourth, VDDQ_VDD2_1V8AO, is printed to root on JetPack 5; it may be fed by
# VIN_SYS_5V0, which nobody settled, so it stays out: 0.3 W of 7 W in the capture, missed or not counted twice.
_AGX_ORIN = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
_THOR = ("VIN",)  # the whole board; the other three rails add up to 13.5 W where it has 19.8 W

# Start of a board's key -> its rails. All must be there.
_OF_BOARD = {
    "jetson-nano": _NANO_INPUT,
    "jetson-tx2": _MODULE_INPUT,
    "jetson-xavier-nx": _MODULE_INPUT,
    "jetson-agx-xavier": _AGX_XAVIER,
    "jetson-orin-nano": _MODULE_INPUT,
    "jetson-orin-nx": _MODULE_INPUT,
    "jetson-agx-orin": _AGX_ORIN,
    "jetson-thor": _THOR,
}
_REMARKS = {
    _AGX_ORIN: "without the carrier board, and without VDDQ_VDD2_1V8AO, which may be fed by VIN_SYS_5V0 and would count twice",
    _AGX_XAVIER: "without the carrier board",
    _MODULE_INPUT: "the module's input, without the carrier board",
    _THOR: "the whole board",
}


def rails_of_total(rails: Iterable[str], board: str | None) -> tuple[str, ...] | None:
    """Return the rails whose sum is the total power, or None where they aren't all there.

    Args:
        rails: Names of those that are measured.
        board: The key of the board. None: its name wasn't known, and the rails themselves tell.
    """
    there = set(rails)
    if board is not None:
        wanted = next((names for start, names in _OF_BOARD.items() if board.startswith(start)), None)
        return wanted if wanted and there.issuperset(wanted) else None
    # an input rail first: it holds the others
    return next(
        (names for names in (_THOR, _NANO_INPUT, _MODULE_INPUT, _AGX_ORIN, _AGX_XAVIER) if there.issuperset(names)), None
    )


def rails_remark(rails: tuple[str, ...]) -> str:
    """Return what the rails of a total are and what they leave out, for the name of the source."""
    text = " + ".join(rails)
    return f"{text}: {_REMARKS[rails]}" if rails in _REMARKS else text


def total_power_mw(record: Tegrastats, board: str | None) -> int | None:
    """Return the power that a board drew at that moment in milliwatts, or None where the line lacks one of its rails."""
    rails = rails_of_total(record.rails, board)
    return sum(record.rails[name].now_mw for name in rails) if rails else None
