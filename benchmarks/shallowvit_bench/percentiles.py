"""Percentiles of raw latencies, given only where the number of runs supports them, with 95 % bootstrap intervals.

The rule is that of MLPerf's early stopping: with fewer than ``runs_needed(0.99)`` = 662 runs nobody can say with 99 %
confidence that the slowest runs seen bound the 99th percentile, so it is left out rather than guessed. A newcomer's trap: one
run resembles the next, so an interval that takes runs for independent is too narrow; here whole stretches are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Latency",
    "Resampled",
    "block_length",
    "draw_blocks",
    "interval_tail",
    "latency_from_samples",
    "resample",
    "runs_needed",
]

_CONFIDENCE = 0.99
_SHARES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}
_DRAWS = 1000
_Z95 = 1.959964
_DRAWN_AT_ONCE = 1 << 20  # numbers held while drawing: 8 MiB


@dataclass(frozen=True)
class Latency:
    """A distribution of latencies in milliseconds. A percentile is None where ``runs`` doesn't support it.

    Args:
        intervals_ms: 95 % bootstrap intervals of the mean and of each percentile that is given, by the name of the field; none
            below 11 runs, which support no median either.
    """

    runs: int
    min_ms: float
    mean_ms: float
    std_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    intervals_ms: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Resampled:
    """Figures of samples drawn anew: the mean of each draw, and its quantiles [draws, shares]."""

    means: np.ndarray[Any, Any]
    quantiles: np.ndarray[Any, Any]


def latency_from_samples(samples_ms: Sequence[float]) -> Latency:
    """Describe raw samples in the order of time; none is dropped."""
    samples = np.asarray(samples_ms, np.float64)
    runs = len(samples)
    supported = {name: share for name, share in _SHARES.items() if runs >= runs_needed(share)}
    figures = {name: float(np.quantile(samples, share)) for name, share in supported.items()}
    intervals = {}
    if supported:
        drawn = resample(samples, tuple(supported.values()))
        tail = interval_tail(samples)
        ends = np.quantile(np.column_stack([drawn.means, drawn.quantiles]), (tail, 1 - tail), axis=0)
        intervals = {name: (float(low), float(high)) for name, low, high in zip(("mean_ms", *supported), *ends, strict=True)}
    return Latency(
        runs=runs,
        min_ms=float(samples.min()),
        mean_ms=float(samples.mean()),
        std_ms=float(samples.std(ddof=1)) if runs > 1 else None,
        **{name: figures.get(name) for name in _SHARES},
        intervals_ms=intervals,
    )


@cache
def runs_needed(share: float) -> int:
    """Return the fewest runs that support the percentile ``share`` (0.5, 0.9, 0.99) at 99 % confidence: 11, 64, 662.

    With fewer, seeing at most one run above the true percentile is likelier than 1 %, so the maximum proves nothing.
    """
    runs = 1
    while runs * share ** (runs - 1) * (1 - share) + share**runs > 1 - _CONFIDENCE:
        runs += 1
    return runs


def block_length(samples: np.ndarray[Any, Any]) -> int:
    """Return how many runs in a row are drawn together: the automatic choice of Politis and White (2004, 2009).

    Latencies of neighbouring runs resemble each other (clocks, caches, other work), so n runs say less than n independent
    ones would. The rule takes the lag from which on autocorrelations are within chance, and from them the length that makes
    the error of the mean's variance smallest; it is at least n^(1/3), since a test that finds no dependence in few runs proves
    none, and at most 3 sqrt(n) and a third of the runs.
    """
    runs = len(samples)
    shortest, longest = math.ceil(runs ** (1 / 3)), max(1, math.ceil(min(3 * math.sqrt(runs), runs / 3)))
    centred = samples - samples.mean()
    if runs < 4 or not centred.any():
        return min(shortest, longest)
    quiet = max(5, math.ceil(math.sqrt(math.log10(runs))))  # lags in a row that must be within chance
    lags = min(math.ceil(math.sqrt(runs)) + quiet, runs - 1)
    covariances = np.array([centred[: runs - lag] @ centred[lag:] for lag in range(lags + 1)]) / runs
    notable = np.abs(covariances[1:] / covariances[0]) > 2 * math.sqrt(math.log10(runs) / runs)
    last = next((lag for lag in range(lags) if not notable[lag : lag + quiet].any()), lags)
    used = min(2 * max(last, 1), lags)
    lag = np.arange(1, used + 1)
    weights = np.minimum(1, 2 * (1 - lag / used)) * covariances[1 : used + 1]  # flat to the half, then falling to 0
    spectrum = covariances[0] + 2 * weights.sum()
    slope = 2 * (lag * weights).sum()
    best = (1.5 * slope**2 / spectrum**2 * runs) ** (1 / 3) if spectrum > 0 else longest
    return int(min(max(math.ceil(best), shortest), longest))


def interval_tail(samples: np.ndarray[Any, Any]) -> float:
    """Return the share of draws to leave out at each end for a 95 % interval: 2.5 % of many blocks, less of few.

    Draws vary less than the figure does, the more so the fewer blocks there are: with 2.5 % an interval of 11 runs holds the
    true median 84 % of the time. Student's t in place of the normal's quantile mends that (Hesterberg's expanded percentile
    interval, 2015).
    """
    blocks = max(2.0, len(samples) / block_length(samples))
    freedom = blocks - 1
    # t's quantile from the normal's by Wallace's approximation (1959); scipy isn't on the device
    normal = _Z95 * (8 * freedom + 3) / (8 * freedom + 1)
    t = math.sqrt(freedom * math.expm1(normal**2 / freedom))
    return 0.5 * math.erfc(t * math.sqrt(blocks / freedom / 2))


def draw_blocks(
    samples: np.ndarray[Any, Any], block: int, draws: int = _DRAWS, seed: int = 0
) -> Iterator[np.ndarray[Any, Any]]:
    """Draw the runs anew, as many as there are, in blocks that may start anywhere and go on at the start behind the end.

    Yields:
        Some of the draws [draws, runs], as many as fit into a few megabytes.
    """
    runs = len(samples)
    random = np.random.default_rng(seed)
    unrolled = np.concatenate([samples, samples[:block]])
    step = max(1, _DRAWN_AT_ONCE // runs)
    for done in range(0, draws, step):
        starts = random.integers(runs, size=(min(step, draws - done), -(-runs // block), 1))
        yield unrolled[(starts + np.arange(block)).reshape(len(starts), -1)[:, :runs]]


def resample(samples: np.ndarray[Any, Any], shares: Sequence[float], draws: int = _DRAWS, seed: int = 0) -> Resampled:
    """Describe draws of the runs in blocks of ``block_length``."""
    means, quantiles = [], []
    for drawn in draw_blocks(samples, block_length(samples), draws, seed):
        drawn.sort(axis=1)
        means.append(drawn.mean(axis=1))
        quantiles.append(np.column_stack([_quantile_of_sorted(drawn, share) for share in shares]))
    return Resampled(np.concatenate(means), np.concatenate(quantiles))


def _quantile_of_sorted(drawn: np.ndarray[Any, Any], share: float) -> np.ndarray[Any, Any]:
    """The quantile of each row, as ``np.quantile`` takes it: between two ranks, linearly."""
    rank = share * (drawn.shape[1] - 1)
    below = math.floor(rank)
    low, high = drawn[:, below], drawn[:, math.ceil(rank)]
    found: np.ndarray[Any, Any] = low + (rank - below) * (high - low)
    return found
