"""Percentiles of raw latencies, given only where the number of runs supports them.

The rule is that of MLPerf's early stopping: with fewer than ``runs_needed(0.99)`` = 662 runs nobody can say with 99 %
confidence that the slowest runs seen bound the 99th percentile, so it is left out rather than guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Latency", "latency_from_samples", "runs_needed"]

_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Latency:
    """A distribution of latencies in milliseconds. A percentile is None where ``runs`` doesn't support it."""

    runs: int
    min_ms: float
    mean_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


def latency_from_samples(samples_ms: Sequence[float]) -> Latency:
    """Describe raw samples; none is dropped."""
    samples = np.asarray(samples_ms, np.float64)

    def percentile(share: float) -> float | None:
        return float(np.quantile(samples, share)) if len(samples) >= runs_needed(share) else None

    return Latency(
        len(samples), float(samples.min()), float(samples.mean()), percentile(0.5), percentile(0.9), percentile(0.99)
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
