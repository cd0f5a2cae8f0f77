"""Which depth an input goes to, from the gate's answer and the thresholds: the one rule of calibration and deployment.

Depths are counted from the shallowest. A newcomer's trap: the gate's softmax says which depth is the shallowest that suffices,
so that a depth suffices with the sum of its own probability and those of all shallower ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NEVER", "choose_depths", "first_above", "sufficiency"]

NEVER = 2.0  # a threshold that no probability reaches


def sufficiency(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the probability that each depth but the deepest suffices, float64 [items, depths - 1]."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    found: np.ndarray[Any, Any] = np.cumsum(powers / powers.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    return found


def first_above(scores: np.ndarray[Any, Any], thresholds: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return int64 [items]: the first column that reaches its threshold, else the number of columns.

    NaN reaches none, so that a gate that overflows costs time and no accuracy.
    """
    reached = scores >= np.asarray(thresholds)
    return np.where(reached.any(axis=1), reached.argmax(axis=1), scores.shape[1]).astype(np.int64)


def choose_depths(logits: np.ndarray[Any, Any], thresholds: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return each item's depth, int64 [items], for the gate's logits [items, depths]."""
    return first_above(sufficiency(logits), thresholds)
