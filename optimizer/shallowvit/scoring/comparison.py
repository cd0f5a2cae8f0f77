"""Put several criteria side by side: each block's place by each, and how well their orders agree.

A newcomer's trap: agreement between criteria isn't evidence that either is right; that takes an oracle (``shallowvit study``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShallowvitError
from .criteria import CRITERIA, Scope, check_criterion
from .records import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .criteria import ScoreConfig
    from .records import BlockScores

__all__ = ["Comparison", "average_ranks", "compare", "parse_criteria", "rank_correlation"]


@dataclass(frozen=True)
class Comparison:
    """Scores by several criteria of the same blocks, with Spearman's rank correlation of each pair [criteria, criteria]."""

    scores: tuple[BlockScores, ...]
    spearman: tuple[tuple[float, ...], ...]
    skipped: tuple[tuple[str, str], ...] = ()  # criteria that could not be applied, and why


def parse_criteria(text: str, first: str) -> tuple[str, ...]:
    """Turn ``all`` or ``depth,l1`` into criteria to compare, ``first`` before them and depth always among them.

    Raises:
        ShallowvitError: an unknown criterion.
    """
    if text == "all":
        # made of others, they say nothing new; the oracle takes hours
        names = [name for name, row in CRITERIA.items() if row.scope is not Scope.COMPOSED and name != "oracle"]
    else:
        names = [name.strip() for name in text.split(",")]
    for name in names:
        check_criterion(name)
    return tuple(dict.fromkeys([first, "depth", *names]))


def compare(
    score_by: Callable[[ScoreConfig], BlockScores], config: ScoreConfig, criteria: Sequence[str], met: Needs
) -> Comparison:
    """Score by several criteria.

    Args:
        score_by: Scores a model or a checkpoint.
        config: The settings of all of them.
        criteria: The first is the one the others are set beside; a criterion that can't be applied to this model is left out
            with its reason, unless it is the first.
        met: What data is at hand; criteria that need more are left out.
    """
    order = list(Needs)
    scores, skipped = [score_by(replace(config, criterion=criteria[0]))], []
    for name in criteria[1:]:
        if order.index(CRITERIA[name].needs) > order.index(met):
            skipped.append((name, f"needs {CRITERIA[name].needs} data"))
            continue
        try:
            scores.append(score_by(replace(config, criterion=name)))
        except ShallowvitError as err:
            skipped.append((name, str(err).removeprefix("score: ")))
    values = [[row.score for row in each.blocks] for each in scores]
    table = tuple(tuple(rank_correlation(one, other) for other in values) for one in values)
    return Comparison(tuple(scores), table, tuple(skipped))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation, NaN where a side doesn't vary or has fewer than two values."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(average_ranks(one), average_ranks(other))[0, 1])


def average_ranks(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return ranks from 0 on, the mean of their ranks for equal values.

    As ``scipy.stats.rankdata`` less one; loading that would cost every ``shallowvit score`` 170 MB of memory.
    """
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: np.ndarray[Any, Any] = (np.cumsum(counts) - (counts + 1) / 2)[places]
    return ranks
