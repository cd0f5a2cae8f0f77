"""Measure top-1 accuracy of a loaded bundle on labelled frames, through the same preprocessing as it was trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .errors import BenchError
from .preprocessing import input_from_frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from .bundles import BundleInfo
    from .datasets import Dataset
    from .runners import Runner

__all__ = ["Accuracy", "agreement", "measure_accuracy", "wilson_interval"]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 as a share of ``items`` with its 95 % Wilson interval, and the predictions it came from."""

    data: str
    items: int
    top1: float
    top1_low: float
    top1_high: float
    predictions: tuple[int, ...]
    agreement: float | None = None  # the share of items on which the other side predicts the same


def measure_accuracy(
    runner: Runner, bundle: BundleInfo, dataset: Dataset, batch: int = 8, progress: Callable[[str], None] = lambda _: None
) -> Accuracy:
    """Predict every item of a data set and compare with its labels.

    Raises:
        BenchError: the first output isn't one row of class scores per item.
    """
    predictions: list[int] = []
    for frames in dataset.batches(batch):
        scores = np.asarray(runner.infer(input_from_frames(frames, bundle)))
        if scores.ndim != 2 or len(scores) != len(frames):
            raise BenchError(
                f"measure_accuracy: {bundle.name} gives {list(scores.shape)} for {len(frames)} items, "
                f"expected [{len(frames)}, classes]; only classifiers have a top-1"
            )
        predictions += scores.argmax(axis=1).tolist()
        progress(f"{len(predictions)} of {dataset.count} items")
    correct = int((np.array(predictions) == dataset.labels).sum())
    low, high = wilson_interval(correct, dataset.count)
    return Accuracy(dataset.name, dataset.count, correct / dataset.count, low, high, tuple(predictions))


def agreement(accuracy: Accuracy, other: Accuracy) -> Accuracy:
    """Return ``accuracy`` with the share of predictions that both sides share; both on the same data."""
    same = np.array(accuracy.predictions) == np.array(other.predictions)
    return replace(accuracy, agreement=float(same.mean()))


def wilson_interval(correct: int, items: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a share (95 % by default), which stays sensible near 0 and 1."""
    share, weight = correct / items, z * z / items
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / items + weight / (4 * items))
    return max(0.0, centre - half), min(1.0, centre + half)
