"""Set criteria against oracles: rank correlations with intervals, depth as the rival, and what is left when depth is given.

Intervals are t intervals over replicates (models where there are several, else the finetuning seeds of the one), on Fisher's
z for correlations. A newcomer's trap: with three replicates such an interval is wide because three are few, not because a
criterion is bad; and over seeds of one model it says nothing of another model.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from .outcomes import ORACLE
from .power import power
from .records import ORACLES, Agreement, Estimated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .outcomes import Findings
    from .records import BlockValues, Power

__all__ = ["analyse", "estimate", "interval_of_correlations", "partial_spearman", "permutation_p", "spearman"]

_CONFIDENCE = 0.95
_EXACT_BLOCKS = 8  # 8! = 40,320 orders are all tried; of more blocks this many are drawn
_DRAWS = 99_999
_SAME = ("reconstruction", "reconstruction loss")  # one measurement under two names, which agrees with itself

Values = np.ndarray[Any, np.dtype[np.float64]]


def analyse(found: Findings) -> tuple[tuple[Agreement, ...], tuple[Power, ...]]:
    """Return how every criterion agrees with every oracle that was measured, and each oracle's power."""
    oracles = [name for name in ORACLES if any(row.name == name for row in found.oracles)]
    criteria = [name for name in found.criteria if name != ORACLE]
    agreements = [
        _agreement(criterion, oracle, _pairs(found, criterion, oracle))
        for oracle in oracles
        for criterion in criteria
        if (criterion, oracle) != _SAME
    ]
    return tuple(agreements), tuple(power(found, oracle) for oracle in oracles)


def spearman(one: Sequence[float] | Values, other: Sequence[float] | Values) -> float | None:
    """Return Spearman's rank correlation, ties sharing their rank; None where one side is constant."""
    return _pearson(stats.rankdata(one), stats.rankdata(other))


def partial_spearman(one: Sequence[float], other: Sequence[float], given: Sequence[float]) -> float | None:
    """Return the rank correlation of two with what both share with a third taken out; None where nothing is left."""
    direct, first, second = spearman(one, other), spearman(one, given), spearman(other, given)
    if direct is None or first is None or second is None:
        return None
    left = (1 - first**2) * (1 - second**2)
    return None if left < 1e-12 else max(-1.0, min(1.0, (direct - first * second) / math.sqrt(left)))


def permutation_p(one: Sequence[float] | Values, other: Sequence[float] | Values) -> float | None:
    """Return how often a random order is as far from no correlation: all orders up to 8 blocks, else 99,999 drawn."""
    found = spearman(one, other)
    if found is None:
        return None
    first, second = (_centred(stats.rankdata(side)) for side in (one, other))
    drawn = second[_orders(len(first))] @ first
    as_far = np.count_nonzero(np.abs(drawn) >= abs(found) - 1e-9)
    exact = len(first) <= _EXACT_BLOCKS
    return as_far / len(drawn) if exact else (as_far + 1) / (len(drawn) + 1)


def estimate(values: Sequence[float]) -> Estimated | None:
    """Return the mean with its t interval."""
    if not values:
        return None
    mean = float(np.mean(values))
    half = _half_width(values)
    return Estimated(mean, None if half is None else mean - half, None if half is None else mean + half, len(values))


def interval_of_correlations(values: Sequence[float], step: float) -> Estimated | None:
    """Return the mean of correlations with its interval, both by Fisher's z.

    Args:
        values: One a replicate, in -1..1.
        step: The least by which two such correlations differ; a perfect one, whose z is infinite, counts as half a step less.
    """
    if not values:
        return None
    most = 1 - step / 2
    z = [math.atanh(max(-most, min(most, value))) for value in values]
    found = estimate(z)
    assert found is not None
    if found.low is None or found.high is None:
        return Estimated(values[0], None, None, 1)
    return Estimated(math.tanh(found.mean), math.tanh(found.low), math.tanh(found.high), len(values))


@dataclass(frozen=True)
class _Pair:
    model: int
    scores: tuple[float, ...]
    oracle: tuple[float, ...]

    @property
    def depth(self) -> list[float]:
        """Last blocks first."""
        return [-float(block) for block in range(len(self.oracle))]


def _pairs(found: Findings, criterion: str, oracle: str) -> list[_Pair]:
    """A pair a replicate; where no seed plays a part in either, a pair a model."""
    scores: dict[int, dict[int | None, BlockValues]] = {}
    for row in found.scores:
        if row.name == criterion:
            scores.setdefault(row.model, {})[row.seed] = row
    pairs = []
    for row in found.oracles:
        if row.name != oracle or row.model not in scores:
            continue
        own = scores[row.model]
        if row.seed is not None:
            own = {seed: values for seed, values in own.items() if seed in (None, row.seed)}
        by_seed = sorted(own.items(), key=lambda item: item[0] or 0)
        pairs += [_Pair(row.model, values.values, row.values) for _, values in by_seed]
    return pairs


def _agreement(criterion: str, oracle: str, pairs: Sequence[_Pair]) -> Agreement:
    blocks = len(pairs[0].oracle) if pairs else 2
    step = 12 / (blocks * (blocks**2 - 1))
    pooled_scores = np.mean([pair.scores for pair in pairs], axis=0) if pairs else np.zeros(blocks)
    pooled_oracle = np.mean([pair.oracle for pair in pairs], axis=0) if pairs else np.zeros(blocks)
    rivals = criterion != "depth"
    over = estimate(_of_units(pairs, _over_depth)) if rivals else None
    return Agreement(
        criterion,
        oracle,
        spearman=interval_of_correlations(_of_units(pairs, lambda p: spearman(p.scores, p.oracle)), step),
        kendall=interval_of_correlations(_of_units(pairs, lambda p: _kendall(p.scores, p.oracle)), 4 / (blocks * (blocks - 1))),
        pooled_spearman=spearman(pooled_scores, pooled_oracle),
        pooled_p=permutation_p(pooled_scores, pooled_oracle),
        over_depth=over and _within(over, 2.0),  # two correlations are at most 2 apart
        given_depth=interval_of_correlations(_of_units(pairs, lambda p: partial_spearman(p.scores, p.oracle, p.depth)), step)
        if rivals
        else None,
    )


def _of_units(pairs: Sequence[_Pair], statistic: Callable[[_Pair], float | None]) -> list[float]:
    """A value a replicate: a mean a model where there are several models, since seeds of one are no independent models."""
    by_model: dict[int, list[float]] = {}
    for pair in pairs:
        value = statistic(pair)
        if value is not None:
            by_model.setdefault(pair.model, []).append(value)
    if len(by_model) == 1:
        return next(iter(by_model.values()))
    return [float(np.mean(values)) for _, values in sorted(by_model.items())]


def _over_depth(pair: _Pair) -> float | None:
    own, depth = spearman(pair.scores, pair.oracle), spearman(pair.depth, pair.oracle)
    return None if own is None or depth is None else own - depth


def _kendall(one: Sequence[float], other: Sequence[float]) -> float | None:
    value = float(stats.kendalltau(one, other).statistic)
    return None if math.isnan(value) else value


def _pearson(one: Values, other: Values) -> float | None:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return max(-1.0, min(1.0, float(_centred(one) @ _centred(other))))


def _centred(values: Values) -> Values:
    """The values less their mean, of norm 1."""
    less = values - values.mean()
    return np.asarray(less / np.linalg.norm(less))


@cache
def _orders(blocks: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    if blocks <= _EXACT_BLOCKS:
        return np.array(list(itertools.permutations(range(blocks))))
    return np.random.default_rng(0).permuted(np.tile(np.arange(blocks), (_DRAWS, 1)), axis=1)


def _within(found: Estimated, most: float) -> Estimated:
    """The same with an interval that doesn't reach where no value can be."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(-most, found.low), high=min(most, found.high))


def _half_width(values: Sequence[float]) -> float | None:
    count = len(values)
    if count < 2:
        return None
    return float(stats.t.ppf(0.5 + _CONFIDENCE / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
