"""A second look at the paper's own numbers: what ranks its blocks as its oracle does, and what depth alone does.

Reads ``benchmarks/published/gardener.json`` (facts from the paper's tables and its released notebooks); ``tables.py`` puts the
result into ``docs/entropy.md``. Blocks are counted from 1 here, as published.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from shallowvit.pruning.selection import runs_text

__all__ = ["first_removed", "published", "published_tables", "spearman_with_drop"]

_ROWS = (
    # what the statistic is called, its field, the sign that makes "higher" mean keep as the paper's own removals have it
    ("weight-number entropy", "entropy", 1),
    ("value entropy", "value_entropy", 1),
    ("L1, mean abs. weight", "l1", 1),
    ("L2", "l2", 1),
    ("variance, deviation", "var_abs", 1),
    ("kurtosis, highest first", "kurtosis", -1),
    ("mutual information, highest first", "mutual_information", -1),
)


def published() -> dict[str, Any]:
    """Return the published facts."""
    facts: dict[str, Any] = json.loads((Path(__file__).parent / "published" / "gardener.json").read_text())
    return facts


def accuracy_drops(facts: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Points of accuracy lost without each block, after finetuning: the paper's oracle."""
    return facts["full_accuracy"] - np.array(facts["accuracy_without_block"])


def spearman_with_drop(values: np.ndarray[Any, Any], facts: dict[str, Any], *, first: bool = True) -> float:
    """Spearman's rank correlation of a score with the oracle, over all blocks or without block 1."""
    chosen = slice(None) if first else slice(1, None)
    return float(stats.spearmanr(np.asarray(values)[chosen], accuracy_drops(facts)[chosen]).statistic)


def first_removed(values: np.ndarray[Any, Any], count: int) -> list[int]:
    """Return the blocks (from 1) with the lowest ``count`` scores."""
    return sorted(int(block) + 1 for block in np.argsort(np.asarray(values), kind="stable")[:count])


def partial_given_depth(values: np.ndarray[Any, Any], facts: dict[str, Any]) -> float:
    """Spearman's partial correlation of a score with the oracle, with depth held fixed."""
    score, drop, depth = (stats.rankdata(each) for each in (values, accuracy_drops(facts), -np.arange(len(values))))
    sd, sp, dp = (np.corrcoef(one, other)[0, 1] for one, other in ((score, drop), (score, depth), (drop, depth)))
    return float((sd - sp * dp) / np.sqrt((1 - sp**2) * (1 - dp**2)))


def permutation_p(values: np.ndarray[Any, Any], facts: dict[str, Any], draws: int = 20_000) -> float:
    """Two-sided p-value of the rank correlation over random orders of the blocks."""
    rng = np.random.default_rng(0)
    score, drop = stats.rankdata(values), stats.rankdata(accuracy_drops(facts))
    found = abs(np.corrcoef(score, drop)[0, 1])
    chance = [abs(np.corrcoef(rng.permutation(score), drop)[0, 1]) for _ in range(draws)]
    return float((1 + sum(each >= found - 1e-12 for each in chance)) / (draws + 1))


def published_tables() -> str:
    """Return the re-analysis as Markdown."""
    facts = published()
    depth = -np.arange(12)
    lines = [_row("depth alone (earlier is higher)", depth, facts)]
    for key, checkpoint in facts["checkpoints"].items():
        lines.append(_row(f"entropy, {checkpoint['name']}{' (the one the paper pruned by)' if key == 'K400_FT' else ''}",
                          checkpoint["entropy"], facts))  # fmt: skip
    pruned_by = facts["checkpoints"]["K400_FT"]
    others = [_row(name, sign * np.array(pruned_by[field]), facts) for name, field, sign in _ROWS if field != "entropy"]
    head = (
        "| score | Spearman | without block 1 | given depth | p | first three to go |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    return (
        "Spearman's rank correlation with the accuracy lost when a block is removed and the rest finetuned (12 blocks; p by "
        "permutation; "
        "*given depth*: the partial correlation with depth held fixed). Blocks from 1, as published.\n\n"
        + head + "".join(lines)
        + "\nThe other statistics of the checkpoint that the paper pruned by, in the direction of its own removals:\n\n"
        + head + "".join(others)
        + "\nThe published sets beside the last k blocks:\n\n" + _sets(facts)
    )  # fmt: skip


def _row(name: str, values: Any, facts: dict[str, Any]) -> str:
    values = np.asarray(values, dtype=float)
    depth_itself = np.array_equal(stats.rankdata(values), stats.rankdata(-np.arange(len(values))))
    given = "" if depth_itself else f"{partial_given_depth(values, facts):+.2f}"
    cells = [
        name,
        f"{spearman_with_drop(values, facts):+.2f}",
        f"{spearman_with_drop(values, facts, first=False):+.2f}",
        given,
        f"{permutation_p(values, facts):.3f}",
        ", ".join(map(str, np.argsort(values, kind="stable")[:3] + 1)),
    ]
    return f"| {' | '.join(cells)} |\n"


def _sets(facts: dict[str, Any]) -> str:
    lines = [
        "| removed | entropy removes | of those, among the last k | accuracy | oracle's set |\n| --- | --- | --- | --- | --- "
        "|\n"
    ]
    for count, row in facts["removed"].items():
        chosen = row["entropy_set"]
        shared = len(set(chosen) & set(range(13 - int(count), 13)))
        lines.append(
            f"| {count} | {runs_text(chosen)} | {shared} of {count} | {row['entropy']:.2f} % | {row['oracle']:.2f} % |\n"
        )
    return "".join(lines)
