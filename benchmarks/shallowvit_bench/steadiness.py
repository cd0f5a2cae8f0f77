"""Tell whether the machine kept its speed during the timed runs: jitter from one run to the next, drift from start to end.

A newcomer's trap: both are about the order of time; on sorted samples jitter is nearly 0 and the spread looks like drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BenchError
from .percentiles import block_length, draw_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Drift", "drift_of", "jitter_ms"]

_FEWEST_RUNS = 12  # thirds of four
_CHANCE = 0.01
_SMALLEST = 0.01  # many runs prove a drift that is too small to matter


@dataclass(frozen=True)
class Drift:
    """How the last third of the runs compares with the first; None below 12 runs.

    Args:
        share: How much slower the last third's median is, as a share of the first's; below 0: faster.
        drifted: Whether that is more than noise, and at least 1 %.
        p_value: How often steady runs with the same noise differ as much.
    """

    share: float | None
    drifted: bool | None
    p_value: float | None


def jitter_ms(samples_ms: Sequence[float], round_runs: Sequence[int] = ()) -> float | None:
    """Return the mean absolute difference of one run to the next, None where no run follows another.

    Args:
        samples_ms: In the order of time.
        round_runs: Runs of each round, between which the other side ran, so no difference is taken across; empty: one round.
    """
    samples = np.asarray(samples_ms, np.float64)
    if round_runs and sum(round_runs) != len(samples):
        raise BenchError(
            f"jitter_ms: the rounds have {sum(round_runs)} runs, there are {len(samples)} samples; give every round's number"
        )
    differences = np.abs(np.diff(samples))
    borders = np.cumsum(round_runs, dtype=np.int64)[:-1] - 1
    within = np.delete(differences, borders) if len(borders) else differences
    return float(within.mean()) if len(within) else None


def drift_of(samples_ms: Sequence[float]) -> Drift:
    """Compare the medians of the last third and the first third of samples in the order of time.

    The samples less what drifts, a line or a step from third to third, whichever leaves less, are the noise; how far apart the
    thirds of steady runs get by chance is seen by drawing that noise anew in blocks, since a slow second slows several runs.
    """
    samples = np.asarray(samples_ms, np.float64)
    if len(samples) < _FEWEST_RUNS:
        return Drift(None, None, None)
    third = len(samples) // 3
    first, last = np.median(samples[:third]), np.median(samples[-third:])
    line = (last - first) * (np.arange(len(samples)) - (third - 1) / 2) / (len(samples) - third)
    steps = np.repeat([first, np.median(samples[third:-third]), last], [third, len(samples) - 2 * third, third])
    noise = min((samples - line, samples - steps), key=lambda rest: float(np.abs(rest - np.median(rest)).mean()))
    block = block_length(noise)
    by_chance = np.concatenate([_difference(drawn, third) for drawn in draw_blocks(noise, block)])
    p_value = _p_value(abs(float(last - first)), float(by_chance.std()), 2 * third / block)
    share = float(last / first) - 1
    return Drift(share, bool(p_value < _CHANCE and abs(share) >= _SMALLEST), p_value)


def _difference(drawn: np.ndarray[Any, Any], third: int) -> np.ndarray[Any, Any]:
    """The last third's median less the first's, of each draw [draws, runs]."""
    found: np.ndarray[Any, Any] = np.median(drawn[:, -third:], axis=1) - np.median(drawn[:, :third], axis=1)
    return found


def _p_value(difference: float, deviation: float, blocks: float) -> float:
    """How often chance alone differs as much: by Student's t, since few blocks know the noise badly."""
    if deviation == 0:
        return 1.0 if difference == 0 else 0.0
    freedom = max(1.0, blocks - 2)
    t = difference / deviation
    normal = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t**2 / freedom))  # Wallace (1959)
    return math.erfc(normal / math.sqrt(2))
