"""Draw a study: scores and oracles a block, agreement of criteria with oracles, accuracy by blocks removed, weights a block.

A newcomer's trap: in the plot of scores a bar's height is the criterion's and its colour the oracle's; a criterion is good
where tall bars are dark.
"""

from __future__ import annotations

import math
import os
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from .outcomes import ORACLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .histograms import Histograms
    from .records import BlockValues, Measured, StudyResult

__all__ = ["plot_accuracy", "plot_agreement", "plot_scores", "plot_weights", "write_plots"]

_LIGHT, _DARK = 0.25, 1.0  # of the colour map: the least important block is still to be seen
_ORACLE_COLOUR, _GREY = "#c2410c", "#c4c4c4"
# what is told apart in the plot of accuracies; the rest is drawn grey
_SHOWN = {
    "entropy": "#1d4ed8",
    "depth": "#15803d",
    "random": "#525252",
    "block-influence": "#a21caf",
    "bypass": "#0e7490",
    "reconstruction": "#ca8a04",
    ORACLE: _ORACLE_COLOUR,
}


def write_plots(result: StudyResult, histograms: Histograms, out: Path) -> None:
    """Write the four plots as SVG; the same bytes for the same result."""
    figures = {
        "scores": plot_scores(result),
        "agreement": plot_agreement(result),
        "accuracy": plot_accuracy(result),
        "weights": plot_weights(histograms, result),
    }
    for name, figure in figures.items():
        beside = out / f".{name}.partial.svg"
        with mpl.rc_context({"svg.hashsalt": "shallowvit"}):
            figure.savefig(beside, metadata={"Date": None})
        os.replace(beside, out / f"{name}.svg")


def plot_scores(result: StudyResult) -> Figure:
    """Draw a panel an oracle and a criterion: its value a block, mean over replicates with their deviation."""
    oracles = [power.oracle for power in result.powers]
    main = oracles[0] if oracles else None
    colours = _colours(result, main)
    agreement = {(row.criterion, row.oracle): row.spearman for row in result.agreements}
    panels: list[tuple[str, list[BlockValues], str]] = [
        (f"oracle: {name}", [row for row in result.oracles if row.name == name], "oracle") for name in oracles
    ]
    for name in result.criteria:
        if name == ORACLE:
            continue
        found = agreement.get((name, main)) if main else None
        beside = f"  ({found.mean:+.2f})" if found else ""
        panels.append((name + beside, [row for row in result.scores if row.name == name], "criterion"))
    figure, grid = _grid(len(panels), height=1.45)
    for axes, (title, rows, kind) in zip(grid, panels, strict=True):
        if rows:
            _bars(axes, rows, colours, from_zero=kind == "oracle")
        axes.set_title(title, fontsize=8, loc="left", color=_ORACLE_COLOUR if kind == "oracle" else "black")
    dark = f"dark: matters by {main}; in brackets Spearman with it" if main else "no oracle was measured"
    figure.suptitle(f"Scores a block, higher means keep ({dark})", fontsize=10)
    figure.supxlabel("block", fontsize=9)
    return figure


def plot_agreement(result: StudyResult) -> Figure:
    """Draw each criterion's Spearman with each oracle and its interval, beside depth's and the best possible."""
    criteria = [name for name in result.criteria if name != ORACLE]
    figure = Figure(figsize=(3 + 2.3 * max(1, len(result.powers)), 1.2 + 0.22 * len(criteria)), layout="constrained")
    columns = figure.subplots(1, max(1, len(result.powers)), sharey=True, squeeze=False)[0]
    places = {name: -number for number, name in enumerate(criteria)}
    for axes, power in zip(columns, result.powers, strict=False):
        rows = [row for row in result.agreements if row.oracle == power.oracle and row.spearman]
        depth = next((row.spearman.mean for row in rows if row.criterion == "depth" and row.spearman), None)
        if power.ceiling is not None and power.ceiling < 1:
            axes.axvspan(power.ceiling, 1.05, color="#f1f1f1", zorder=0)
        axes.axvline(0, color="#8c8c8c", linewidth=0.8)
        if depth is not None:
            axes.axvline(depth, color=_SHOWN["depth"], linewidth=1, linestyle="--")
        for row in rows:
            found = row.spearman
            assert found is not None
            place, colour = places[row.criterion], _SHOWN.get(row.criterion, "#404040")
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.5, alpha=0.6)
            axes.plot([found.mean], [place], "o", color=colour, markersize=4.5)
        axes.set_xlim(-1.05, 1.05)
        axes.set_title(power.oracle, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    columns[0].set_yticks(list(places.values()), list(places), fontsize=8)
    figure.supxlabel("Spearman, mean and 95 % interval; dashed: depth; shaded: more than the oracle's noise allows", fontsize=8)
    return figure


def plot_accuracy(result: StudyResult) -> Figure:
    """Draw accuracy against the share of blocks removed, at once and after finetuning, with deviations over replicates."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    total = len(result.models[0].blocks)
    for axes, figure_name, title in zip(
        panels, ("zero_shot_top1", "finetuned_top1"), ("at once (zero-shot)", "after finetuning"), strict=True
    ):
        shown = [name for name in result.criteria if name in _SHOWN]
        for name in [name for name in result.criteria if name not in _SHOWN] + shown:
            places, means, spreads = _line(result, name, figure_name, total)
            if not places:
                continue
            if name not in _SHOWN:
                axes.plot(places, means, color=_GREY, linewidth=0.8, zorder=1)
                continue
            # beside each other, or the bars of one would hide the next
            moved = [place + 0.006 * (shown.index(name) - len(shown) / 2) for place in places]
            style = "--" if name == ORACLE else "-"
            bars = {"color": _SHOWN[name], "linewidth": 1.5, "elinewidth": 1, "capsize": 2, "markersize": 3}
            axes.errorbar(moved, means, spreads, fmt=f"o{style}", label=name, **bars)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("share of blocks removed")
        axes.set_xticks([0, *(count / total for count in result.counts)])
        axes.set_xticklabels([f"{place:.0%}" for place in axes.get_xticks()], fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    others = [name for name in result.criteria if name not in _SHOWN]
    if others:
        panels[1].plot([], [], color=_GREY, linewidth=0.8, label="all others")
    panels[0].set_ylabel("top-1, %")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def plot_weights(histograms: Histograms, result: StudyResult) -> Figure:
    """Draw how many weights of each block lie where, on a logarithmic scale, with the block's entropy."""
    entropy = next((row.values for row in result.scores if row.name == "entropy" and row.model == 0), None)
    figure, grid = _grid(len(histograms.counts), height=1.5, share=True)
    edges = np.array(histograms.edges)
    for block, (axes, counts) in enumerate(zip(grid, histograms.counts, strict=True)):
        axes.stairs(counts, edges, fill=True, color="#2f6db5")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        beside = f", entropy {entropy[block]:.3f}" if entropy is not None else ""
        axes.set_title(f"block {block}{beside}", fontsize=8, loc="left")
    figure.suptitle(f"Weights of each block of {histograms.source}", fontsize=10)
    figure.supxlabel("weight", fontsize=9)
    figure.supylabel("weights an interval", fontsize=9)
    return figure


def _colours(result: StudyResult, oracle: str | None) -> list[Any]:
    blocks = len(result.models[0].blocks)
    rows = [row.values for row in result.oracles if row.name == oracle]
    values = np.mean(rows, axis=0) if rows else np.zeros(blocks)
    shares = (stats.rankdata(values) - 1) / max(1, blocks - 1)
    return [mpl.colormaps["Oranges"](_LIGHT + (_DARK - _LIGHT) * share) for share in shares]


def _grid(panels: int, height: float, *, share: bool = False) -> tuple[Figure, list[Any]]:
    columns = min(4, panels)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(2.4 * columns, 0.8 + height * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False, sharex=share, sharey=share).flat)
    for axes in grid[panels:]:
        axes.set_visible(False)
    for axes in grid[:panels]:
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid[:panels]


def _bars(axes: Any, rows: Sequence[BlockValues], colours: Sequence[Any], *, from_zero: bool) -> None:
    values = np.array([row.values for row in rows])
    means = values.mean(axis=0)
    spreads = values.std(axis=0, ddof=1) if len(rows) > 1 else None
    low, high = float(means.min()), float(means.max())
    margin = (high - low) * 0.15 or 1.0
    # scores of like blocks lie close together: the axis starts below the lowest, and says so by its ticks
    bottom = 0.0 if from_zero else low - margin
    axes.bar(range(len(means)), means - bottom, bottom=bottom, color=colours, edgecolor="#8c8c8c", linewidth=0.4)
    if spreads is not None:
        axes.errorbar(range(len(means)), means, spreads, fmt="none", ecolor="#525252", elinewidth=0.7)
    axes.axhline(bottom, color="#8c8c8c", linewidth=0.6)
    axes.set_xticks(range(0, len(means), 1 if len(means) <= 12 else math.ceil(len(means) / 12)))


def _line(result: StudyResult, name: str, figure: str, total: int) -> tuple[list[float], list[float], list[float]]:
    """Where, how much and with what deviation; the whole model stands at the start of every line."""
    places, means, spreads = [], [], []
    for count in (0, *result.counts):
        rows = result.whole if count == 0 else [row for row in result.measured if (row.criterion, row.count) == (name, count)]
        values = [100 * value for row in _distinct(rows, figure) if (value := getattr(row, figure)) is not None]
        if values:
            places.append(count / total)
            means.append(mean(values))
            spreads.append(stdev(values) if len(values) > 1 else 0.0)
    return places, means, spreads


def _distinct(rows: Sequence[Measured], figure: str) -> list[Measured]:
    """Without retraining, seeds of a model that name the same blocks are one value."""
    if not figure.startswith("zero_shot"):
        return list(rows)
    return list({(row.model, row.removed): row for row in rows}.values())
