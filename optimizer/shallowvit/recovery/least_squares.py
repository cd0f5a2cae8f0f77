"""Ridge regression from sums: what is streamed is added up in float64, nothing of it is kept.

A newcomer's trap: the ridge pulls towards the weights that are there, not towards zero, so with little data little changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["RIDGES", "Fit", "Sums", "fit_ridge"]

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean square of a feature


class Sums:
    """Products of features [tokens, F] with themselves and with targets [tokens, C], added up."""

    def __init__(self, features: int, targets: int) -> None:
        self.gram = torch.zeros(features, features, dtype=torch.float64)
        self.cross = torch.zeros(features, targets, dtype=torch.float64)
        self.square = torch.zeros(targets, dtype=torch.float64)
        self.tokens = 0

    def add(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """Add tokens; both are widened to float64 first."""
        wide, aims = features.double(), targets.double()
        self.gram.addmm_(wide.T, wide)
        self.cross.addmm_(wide.T, aims)
        self.square += (aims * aims).sum(0)
        self.tokens += len(wide)

    def error(self, weights: torch.Tensor) -> float:
        """Return the mean square error of features times ``weights`` [F, C], over tokens and channels."""
        explained = (weights * (self.gram @ weights)).sum() - 2 * (weights * self.cross).sum()
        return max(0.0, float(self.square.sum() + explained) / (self.tokens * len(self.square)))


@dataclass(frozen=True)
class Fit:
    """Weights [F, C] in float64, the ridge they were found with (None: none was better than what was there), and the mean
    square errors of held-out tokens with the old weights and these.
    """

    weights: torch.Tensor
    ridge: float | None
    error_before: float
    error_after: float


def fit_ridge(fitted: Sums, held_out: Sums, start: torch.Tensor, ridges: tuple[float, ...] = RIDGES) -> Fit:
    """Fit weights near ``start`` [F, C] with the ridge that errs least on held-out tokens; ``start`` stays where none helps."""
    before = held_out.error(start)
    best = Fit(start, None, before, before)
    step = fitted.gram.diagonal().mean()
    missing = fitted.cross - fitted.gram @ start
    eye = torch.eye(len(start), dtype=torch.float64)
    for ridge in ridges:
        factor, failed = torch.linalg.cholesky_ex(fitted.gram + ridge * step * eye)
        if int(failed):
            continue  # too small a ridge for features that depend on each other
        weights = start + torch.cholesky_solve(missing, factor)
        after = held_out.error(weights)
        if after < best.error_after:
            best = Fit(weights, ridge, before, after)
    return best
