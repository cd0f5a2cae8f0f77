"""Write what a search found: ``tune.json`` with everything, ``table.md`` for people, ``front.svg``.

A newcomer's trap: only filled points of the plot were measured on the named data; hollow ones are what the search went by.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ..files import disk_sentences
from ..workers.cells import write_whole
from .records import MODELLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from .records import TunePoint, TuneResult

__all__ = ["plot_front", "table_rows", "table_text", "write_report"]

HEAD = ("point", "blocks", "latency", "an item", "size", "energy", "top-1", "budgets")
_BLUE, _RED, _GREY = "#1d4ed8", "#c2410c", "#9ca3af"


def write_report(result: TuneResult, out: Path) -> None:
    """Write the three files, each whole or not at all."""
    import matplotlib as mpl

    with disk_sentences("tune", out):
        write_whole(out / "tune.json", json.dumps(result.record, indent=1) + "\n")
        write_whole(out / "table.md", table_text(result))
        beside = out / f".front.{os.getpid()}.partial.svg"
        with mpl.rc_context({"svg.hashsalt": "shallowvit"}):
            plot_front(result).savefig(beside, metadata={"Date": None})
        beside.replace(out / "front.svg")


def table_text(result: TuneResult) -> str:
    """Return the page as Markdown: the answer, the measured points, what else was looked at."""
    measured = [point for point in result.points if point.bundle or point.failure]
    searched = [point for point in result.points if point not in measured]
    parts = ["# Tuned\n", f"{result.reason}.\n"]
    parts += [f"**{warning}**\n" for warning in result.warnings]
    work = f"{result.candidates} candidates repaired, {result.trainings} trainings of {result.epochs} epochs together."
    parts += [f"{work} Latency: {result.latency_from}.\n", "## Measured\n", _table(HEAD, table_rows(measured, result))]
    if searched:
        parts += [
            "## Searched\n",
            "Top-1 on the held-out items that judge candidates, repaired in closed form and not trained; costs are modelled.\n",
            _table(HEAD, table_rows(searched, result)),
        ]
    if result.failures:
        parts += ["## Left out\n", "".join(f"- {text}\n" for text in result.failures)]
    return "\n".join(parts)


def table_rows(points: Iterable[TunePoint], result: TuneResult) -> list[list[str]]:
    """Return a row a point, as texts; those on the front are marked."""
    rows = []
    for point in points:
        marks = " (recommended)" if point.name == result.recommended else " (nearest)" if point.name == result.nearest else ""
        marks = marks or (" (front)" if point.name in result.front else "")
        rows.append(
            [
                f"{point.name}{marks}",
                str(point.depth),
                _latency(point),
                "" if point.latency_ms is None else f"{point.item_ms:.3g} ms",
                "" if point.size_bytes is None else f"{point.size_bytes / 1e6:.3g} MB",
                "" if point.energy_mj is None else f"{point.energy_mj:.3g} mJ",
                _accuracy(point),
                point.failure or ("met" if not point.missed else ", ".join(f"misses {one.budget}" for one in point.missed)),
            ]
        )
    return rows


def plot_front(result: TuneResult) -> Figure:
    """Draw top-1 against latency an item."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    measured = [point for point in result.points if point.top1 is not None and point.latency_ms is not None]
    searched = [point for point in result.points if point.top1 is None and point.searched_top1 is not None and point.latency_ms]
    axes.scatter(
        [point.item_ms for point in searched], [100 * (point.searched_top1 or 0) for point in searched],
        s=18, facecolors="none", edgecolors=_GREY, label="searched: repaired, on items held out",
    )  # fmt: skip
    axes.scatter(
        [point.item_ms for point in measured],
        [100 * (point.top1 or 0) for point in measured],
        s=30,
        color=_BLUE,
        label=_label(measured),
    )
    front = sorted((point for point in measured if point.name in result.front), key=lambda point: point.item_ms)
    axes.plot([point.item_ms for point in front], [100 * (point.top1 or 0) for point in front], color=_BLUE, linewidth=1)
    named = next((point for point in measured if point.name in (result.recommended, result.nearest)), None)
    if named is not None:
        what = "recommended" if named.name == result.recommended else "nearest"
        x, y = named.item_ms, 100 * (named.top1 or 0)
        axes.scatter([x], [y], s=110, facecolors="none", edgecolors=_RED, linewidths=1.8, label=f"{what}: {named.name}")
    _draw_budgets(axes, result)
    axes.set_xlabel("latency, ms an item")
    axes.set_ylabel("top-1, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=8)
    return figure


def _label(points: Sequence[TunePoint]) -> str:
    """What the filled points are: their accuracy was measured, their latency not always."""
    modelled = sum(point.latency_source == MODELLED for point in points)
    if not modelled:
        return "measured: the bundles"
    return "the bundles: top-1 measured, latency " + (MODELLED if modelled == len(points) else f"of {modelled} {MODELLED}")


def _draw_budgets(axes: Any, result: TuneResult) -> None:
    budgets: dict[str, float | None] = result.settings["budgets"]
    batches: Sequence[int] = result.settings["batches"]
    if (limit := budgets["max_latency_ms"]) is not None and len(batches) == 1:
        axes.axvline(limit / batches[0], color=_RED, linestyle="--", linewidth=1, label=f"{limit:g} ms")
    floor = budgets["min_accuracy"]
    if budgets["max_drop"] is not None and result.whole_top1 is not None:
        floor = result.whole_top1 - budgets["max_drop"]
    if floor is not None:
        axes.axhline(100 * floor, color=_RED, linestyle=":", linewidth=1, label=f"{floor:.1%}")


def _latency(point: TunePoint) -> str:
    if point.latency_ms is None:
        return ""
    error = "" if point.latency_error is None else f", within {point.latency_error:.0%} where checked"
    return f"{point.latency_ms:.3g} ms" + (f" ({MODELLED}{error})" if point.latency_source == MODELLED else "")


def _accuracy(point: TunePoint) -> str:
    if point.top1 is None:
        return "" if point.searched_top1 is None else f"{point.searched_top1:.1%} (held out)"
    between = f" ({point.top1_interval[0]:.1%} to {point.top1_interval[1]:.1%})" if point.top1_interval else ""
    return f"{point.top1:.1%}{between}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
