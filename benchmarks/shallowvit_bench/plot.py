"""Draw the latency distributions of a benchmark into a PNG: the share of runs at or below each latency, medians marked."""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING

from .errors import BenchError
from .figures import text_from_ms

if TYPE_CHECKING:
    from pathlib import Path

    from .measurement import Measurement

__all__ = ["draw_latencies"]

_COLOURS = ("#1f6feb", "#d1570a", "#2da44e", "#8250df")
_STYLES = ("solid", "dashed", "dotted", "dashdot")


def draw_latencies(measurements: tuple[Measurement, ...], path: Path) -> bool:
    """Draw the sides that were measured; return False, writing nothing, when none was.

    Raises:
        BenchError: matplotlib is missing or the file can't be written.
    """
    measured = [measurement for measurement in measurements if measurement.samples_ms]
    if not measured:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise BenchError("draw_latencies: matplotlib is not installed here. Run: pip install matplotlib") from err
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    slowest = max(max(measurement.samples_ms) for measurement in measured)
    fastest = min(min(measurement.samples_ms) for measurement in measured)
    if slowest > 8 * fastest:  # a linear axis would press the fast side against the edge
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    sizes = {measurement.batch for measurement in measured}
    for index, measurement in enumerate(measured):
        samples = sorted(measurement.samples_ms)
        colour, style = _COLOURS[index % len(_COLOURS)], _STYLES[index // len(_COLOURS) % len(_STYLES)]
        axes.ecdf(samples, color=colour, linestyle=style, linewidth=2, label=_name(measurement, with_batch=len(sizes) > 1))
        median = statistics.median(samples)
        axes.plot([median], [0.5], "o", color=colour, markersize=7, markeredgecolor="white", zorder=3)
        if len(measured) > len(_COLOURS):  # their numbers would lie on each other
            continue
        at_right = median > 0.5 * slowest
        axes.annotate(
            text_from_ms(median),
            (median, 0.5),
            (-8 if at_right else 8, -14 * (index % len(_COLOURS) + 1)),
            textcoords="offset points",
            ha="right" if at_right else "left",
            color=colour,
            weight="bold",
        )
    axes.set_xlabel(f"latency of a batch{f' of {measured[0].batch}' if len(sizes) == 1 else ''}, ms")
    axes.set_ylabel("share of runs at or below")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper left", ncols=2)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(beside, dpi=130, format="png")
        beside.replace(path)
    except OSError as err:
        raise BenchError(f"draw_latencies: could not write {path} ({err.strerror}); choose another --plot") from err
    finally:
        beside.unlink(missing_ok=True)
    return True


def _name(measurement: Measurement, *, with_batch: bool) -> str:
    """What tells a line from the others."""
    side = f"{measurement.side} on {measurement.machine}" if measurement.machine else measurement.side
    size = [f"batch {measurement.batch}"] if with_batch else []
    return ", ".join([side, measurement.provider or measurement.backend, *size, f"{len(measurement.samples_ms)} runs"])
