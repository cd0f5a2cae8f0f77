"""Model what a shallower model costs from a few that were measured: a line over its FLOPs, checked on some left out.

A newcomer's trap: the error that is told was seen on few depths, between the least and the greatest that were measured; it
promises nothing beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CostLine", "anchors", "fit_line"]


@dataclass(frozen=True)
class CostLine:
    """``start + slope * x``, what it was fitted on, and the largest relative error on what was left out (None: nothing was)."""

    start: float
    slope: float
    fitted: int
    checked: int
    error: float | None

    def at(self, x: float) -> float:
        """Return the modelled cost."""
        return self.start + self.slope * x


def fit_line(fitted: Sequence[tuple[float, float]], checked: Sequence[tuple[float, float]] = ()) -> CostLine:
    """Fit a line to pairs (FLOPs, cost) by least squares and say how wrong it is on the others.

    A cost that would fall with FLOPs is taken as constant: noise, since no model gets cheaper by computing more.
    """
    x, y = (np.array(values, dtype=np.float64) for values in zip(*fitted, strict=True))
    slope = 0.0
    if np.ptp(x) > 0:
        scale = x.max()  # FLOPs squared beside ones would cost digits
        matrix = np.stack([np.ones_like(x), x / scale], axis=1)
        slope = max(0.0, float(np.linalg.lstsq(matrix, y, rcond=None)[0][1]) / float(scale))
    start = float(np.mean(y - slope * x))
    errors = [abs(start + slope * one - cost) / cost for one, cost in checked]
    return CostLine(start, slope, len(fitted), len(errors), max(errors, default=None))


def anchors(depths: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the depths to measure and fit on (the ends and the middle), and those to check the line on.

    Of three depths or fewer all are fitted on and none is checked.
    """
    ordered = sorted(set(depths))
    if len(ordered) <= 3:
        return tuple(ordered), ()
    middle, last = len(ordered) // 2, len(ordered) - 1
    check = (middle + last) // 2 if last - middle > 1 else middle // 2
    return (ordered[0], ordered[middle], ordered[last]), (ordered[check],)
