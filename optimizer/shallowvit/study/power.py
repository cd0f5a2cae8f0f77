"""Whether an oracle can tell blocks apart: how much of the order it gives is the blocks' and how much is its own noise.

Reliability is the intraclass correlation of the ranks, which is the mean Spearman between two independent measurements of the
same blocks; a criterion that knew the truth would reach about its square root. A newcomer's trap: on raw values one block that
matters far more than all others makes any oracle look reliable, so ranks are compared.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from .records import Power

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .outcomes import Findings
    from .records import BlockValues

__all__ = ["power", "rank_reliability", "reliability_over_items"]

_SPLITS = 200
_WEAK = 0.5


def power(found: Findings, oracle: str) -> Power:
    """Return an oracle's power, from the best source of its noise that there is: finetuning seeds, else items, else its own."""
    rows = [row for row in found.oracles if row.name == oracle]
    models = list(dict.fromkeys(row.model for row in rows))
    by_model = [[row for row in rows if row.model == model] for model in models]
    parts = [_of_model(found, own) for own in by_model]
    spread = _root_mean_square([float(np.std(row.values, ddof=1)) for row in rows])
    noise = _root_mean_square([part[1] for part in parts if part[1] is not None])
    reliabilities = [part[0] for part in parts if part[0] is not None]
    reliability = float(np.mean(reliabilities)) if reliabilities else None
    ceiling = None if reliability is None else math.sqrt(max(0.0, reliability))
    agree = rank_reliability([np.mean([row.values for row in own], axis=0) for own in by_model])
    source = parts[0][2]
    text = _sentence(oracle, spread, noise, source, reliability, agree)
    return Power(oracle, spread, noise, source, reliability, ceiling, agree, text)


def rank_reliability(measurements: Sequence[Any]) -> float | None:
    """Return the mean Spearman between two of the measurements [times, blocks]: the intraclass correlation of their ranks."""
    pairs = list(itertools.combinations(measurements, 2))
    found = [_spearman(one, other) for one, other in pairs]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def reliability_over_items(items: np.ndarray[Any, Any]) -> float | None:
    """Return the reliability of the mean over items [blocks, items]: of random halves, by Spearman and Brown for the whole."""
    rng = np.random.default_rng(0)
    count = items.shape[1]
    if count < 2:
        return None
    found = []
    for _ in range(_SPLITS):
        order = rng.permutation(count)
        value = _spearman(items[:, order[: count // 2]].mean(axis=1), items[:, order[count // 2 :]].mean(axis=1))
        if value is not None:
            found.append(value)
    if not found:
        return None
    half = float(np.mean(found))
    return 2 * half / (1 + half) if half > 0 else half


def _of_model(found: Findings, rows: Sequence[BlockValues]) -> tuple[float | None, float | None, str]:
    """Reliability and noise of one value by the rows of a model, and what they are from."""
    if len(rows) > 1:
        noise = _root_mean_square(list(np.std([row.values for row in rows], axis=0, ddof=1)))
        return rank_reliability([row.values for row in rows]), noise, f"{len(rows)} finetuning seeds"
    row = rows[0]
    items = found.items.get((row.name, row.model, row.seed))
    if items is not None:
        # what all blocks share on an item (it is hard) moves no rank
        apart = items - items.mean(axis=0)
        noise = _root_mean_square(list(np.std(apart, axis=1, ddof=1) / math.sqrt(items.shape[1])))
        beside = "" if row.seed is None else "; one seed, so a finetuning's own noise is not in it"
        return reliability_over_items(items), noise, f"the choice of {items.shape[1]:,} test items{beside}"
    own = [value for value in row.noise if value is not None]
    if len(own) == len(row.values) and own:
        rng = np.random.default_rng(0)
        drawn = np.array(row.values) + rng.standard_normal((2, _SPLITS, len(own))) * own
        known = [value for one, other in zip(*drawn, strict=True) if (value := _spearman(one, other)) is not None]
        return float(np.mean(known)) if known else None, _root_mean_square(own), "the standard error over its batches"
    return None, None, "not known"


def _sentence(
    oracle: str, spread: float | None, noise: float | None, source: str, reliability: float | None, agree: float | None
) -> str:
    if spread is None or noise is None or reliability is None:
        return f"{oracle}: its noise isn't known, so what a perfect criterion could reach isn't either"
    text = (
        f"{oracle}: blocks differ by {spread:.3g} (standard deviation), one value is uncertain by {noise:.2g} ({source}); two "
        f"measurements would rank the blocks alike by {reliability:.2f}, so a perfect criterion would reach a Spearman of "
        f"about {math.sqrt(max(0.0, reliability)):.2f}"
    )
    if reliability < _WEAK:
        text += ", and criteria can hardly be told apart by it"
    if agree is not None:
        text += f"; models agree with each other by {agree:.2f}"
    return text


def _root_mean_square(values: Sequence[float]) -> float | None:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else None


def _spearman(one: Any, other: Any) -> float | None:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(stats.spearmanr(one, other).statistic)
