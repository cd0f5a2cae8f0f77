"""Draw the scores of a model's blocks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from .records import BlockScores

__all__ = ["check_plot", "plot_scores"]


def check_plot(path: Path, force: bool) -> None:
    """Refuse a plot that can't be written, before the work."""
    if path.suffix not in (".svg", ".png"):
        raise ShallowvitError(f"score: --plot {path}: write a .svg or a .png")
    if path.exists() and not force:
        raise ShallowvitError(f"score: {path} exists; choose another --plot or replace it with --force")
    if not path.parent.is_dir():
        raise ShallowvitError(f"score: no folder {path.parent} to write {path.name} into; create it first")


def plot_scores(scores: BlockScores, path: Path, removed: Collection[int] = ()) -> None:
    """Write a bar chart, a bar a block, those in ``removed`` hatched, with the scores' sampling deviation where it is known."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "shallowvit"  # the same bytes on every run
    from matplotlib import pyplot as plt

    values = [row.score for row in scores.blocks]
    low, high = min(values), max(values)
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for row in scores.blocks:
        gone = row.block in removed
        face = "#d9d9d9" if gone else "#2f6db5"
        axes.bar(row.block, row.score, color=face, hatch="///" if gone else None, edgecolor="#8c8c8c" if gone else face)
        if row.noise:
            axes.errorbar(row.block, row.score, yerr=row.noise, color="#1a1a1a", capsize=2, linewidth=1)
    # scores of like blocks lie close together: the axis starts below the lowest, and says so by its ticks
    margin = (high - low) * 0.15 or 1.0
    axes.set_ylim(low - margin, high + margin)
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in scores.settings.items())
    axes.set_ylabel(f"{scores.criterion} ({scores.unit})")
    axes.set_xlabel("block")
    axes.set_xticks([row.block for row in scores.blocks])
    title = f"{scores.criterion}{f', {settings}' if settings else ''}: higher means keep" + (
        "; hatched goes" if removed else ""
    )
    axes.set_title(title, fontsize="large" if len(title) < 60 else "small")
    axes.spines[["top", "right"]].set_visible(False)
    beside = path.with_name(f".{path.name}.partial{path.suffix}")
    figure.savefig(beside, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    plt.close(figure)
    os.replace(beside, path)
