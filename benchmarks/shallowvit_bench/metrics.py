"""Accuracy figures with 95 % intervals from a model's outputs: classes, one score of two classes, or a ranked gallery.

A newcomer's trap: what classes need is numpy alone and runs on a device. AUC, average precision and retrieval need
scikit-learn: without it they are left out with a remark, and computed at home by ``metrics_from_predictions``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BenchError
from .measurement import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Array = np.ndarray[Any, Any]

__all__ = [
    "NEEDS_SKLEARN",
    "Figures",
    "Truth",
    "metrics_from_outputs",
    "metrics_from_predictions",
    "predictions_from_outputs",
    "wilson_interval",
]

_Z = 1.959964
_DRAWS = 400  # of a bootstrap: its 2.5 % and 97.5 % rest on ten draws each, which is as exact as 95 % needs to be
_RANKS = (1, 5, 10)
NEEDS_SKLEARN = "need scikit-learn, which is not installed here"  # in a remark that no longer holds where it is
_LATER = (
    "{what} " + NEEDS_SKLEARN + ": pip install 'shallowvit[metrics]', or compute them where it is, "
    "from the saved outputs, with shallowvit_bench.metrics.metrics_from_predictions"
)


@dataclass(frozen=True)
class Truth:
    """What outputs [N, ...] are compared with; fields as in ``Dataset``, but of the items that could be read alone."""

    kind: str
    labels: Array
    cameras: Array | None = None
    queries: Array | None = None


@dataclass(frozen=True)
class Figures:
    """Figures by name, and what couldn't be computed here and why."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def metrics_from_outputs(outputs: Array, truth: Truth) -> Figures:
    """Return the figures of a kind.

    Args:
        outputs: Scores [N, classes] give ``top1``, ``top5`` and ``mean_class``, and of two classes ``auc`` and
            ``average_precision`` as well, which are all that a single score [N, 1] gives; features [N, D] give ``map``,
            ``rank1``, ``rank5`` and ``rank10``.
        truth: With a label for each item; without any there are no figures.

    Raises:
        BenchError: the outputs don't have the form, or there is nothing to compare.
    """
    if not len(truth.labels):
        return Figures()
    figures: dict[str, Metric] = {}
    if truth.kind == "classes" and outputs.shape[1] > 1:
        figures = _classes(outputs, truth.labels)
        if outputs.shape[1] > 2 or set(truth.labels.tolist()) != {0, 1}:
            return Figures(figures)
    retrieval = truth.kind == "retrieval"
    if find_spec("sklearn") is None:
        what = "map and rank1" if retrieval else "auc and average_precision"
        return Figures(figures, (_LATER.format(what=what),))
    return Figures(figures | (_retrieval(outputs, truth) if retrieval else _binary(outputs, truth.labels)))


def metrics_from_predictions(path: Path) -> Figures:
    """Return the figures of outputs that ``measure_accuracy`` saved, as brought home from a device.

    Raises:
        BenchError: the file can't be read, or there is nothing to compare.
    """
    from .predictions import read_predictions

    saved = read_predictions(path)
    return metrics_from_outputs(saved.outputs, saved.truth)


def predictions_from_outputs(outputs: Array, truth: Truth) -> Array:
    """Return what is compared between two models: the class of each item; for retrieval, the first match of each query, and -1
    for the gallery; -1 throughout for a single score, which has no class without a threshold.
    """
    if truth.kind == "retrieval":
        found = np.full(len(outputs), -1, np.int64)
        for query, order, _hits in _ranked(outputs, truth):
            found[query] = order[0]
        return found
    if outputs.shape[1] == 1:
        return np.full(len(outputs), -1, np.int64)
    return outputs.argmax(axis=1)


def wilson_interval(correct: float, items: float, z: float = _Z) -> tuple[float, float]:
    """Return the Wilson score interval of a share (95 % by default), which stays sensible near 0 and 1."""
    share, weight = correct / items, z * z / items
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / items + weight / (4 * items))
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(hits: Array) -> Metric:
    correct = int(hits.sum())
    return Metric(correct / len(hits), *wilson_interval(correct, len(hits)))


def _classes(outputs: Array, labels: Array) -> dict[str, Metric]:
    classes = outputs.shape[1]
    if labels.max() >= classes:
        raise BenchError(
            f"metrics_from_outputs: a label is {labels.max()}, the model gives {classes} scores; give labels of its own classes"
        )
    right = outputs.argmax(axis=1) == labels
    figures = {"top1": _share(right)}
    if classes > 5:
        # ties go to the lower class, as argmax's do: a model that says the same for all classes isn't right about any five
        own = np.take_along_axis(outputs, labels[:, None], axis=1)
        before = (outputs > own) | ((outputs == own) & (np.arange(classes) < labels[:, None]))
        figures["top5"] = _share(before.sum(axis=1) < 5)
    figures["mean_class"] = _mean_class(right, labels)
    return figures


def _mean_class(right: Array, labels: Array) -> Metric:
    """Mean of the classes' shares, over the classes that have items.

    The interval is Wilson's with the number of items that would make a single share as uncertain as this mean: from the spread
    within classes, but no more than if all classes had the same share, since a class of two right items shows no spread. With 2
    to 100 items a class it missed the truth in 3 to 4 % of 2,000 draws; a bootstrap missed it in 5 to 19 %.
    """
    counts = np.bincount(labels)
    present = counts > 0
    items, correct = counts[present], np.bincount(labels, weights=right)[present]
    shares = correct / items
    mean, classes = float(shares.mean()), len(items)
    effective = classes**2 / float((1 / items).sum())
    within = float((shares * (1 - shares) / items).sum()) / classes**2
    if within > 0:
        effective = min(effective, mean * (1 - mean) / within)
    return Metric(mean, *wilson_interval(mean * effective, effective))


def _binary(outputs: Array, labels: Array) -> dict[str, Metric]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    if outputs.shape[1] > 2:
        raise BenchError(f"metrics_from_outputs: binary: needs one or two scores an item, the model gives {outputs.shape[1]}")
    if set(labels.tolist()) != {0, 1}:
        raise BenchError("metrics_from_outputs: binary: needs readable items of both classes, 0 and 1; only one is left")
    scores = (outputs[:, -1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs[:, 0]).astype(np.float64)
    auc = float(roc_auc_score(labels, scores))
    rng = np.random.default_rng(0)
    both = [np.flatnonzero(labels == label) for label in (0, 1)]
    draws = [np.concatenate([rng.choice(part, len(part)) for part in both]) for _ in range(_DRAWS)]
    found = [average_precision_score(labels[draw], scores[draw]) for draw in draws]
    low, high = np.quantile(found, (0.025, 0.975))
    return {
        "auc": Metric(auc, *_delong_interval(scores, labels, auc)),
        "average_precision": Metric(float(average_precision_score(labels, scores)), float(low), float(high)),
    }


def _delong_interval(scores: Array, labels: Array, auc: float) -> tuple[float, float]:
    """DeLong's interval of an AUC, on the logit scale so that it stays within 0 and 1."""
    from scipy.stats import rankdata

    positive, negative = scores[labels == 1], scores[labels == 0]
    ranks = rankdata(np.concatenate([positive, negative]))
    over = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    under = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    if not 0 < auc < 1 or min(len(positive), len(negative)) < 2:
        # no variance is left to see, so as many items as the rarer class has are taken as all right or all wrong
        rarer = min(len(positive), len(negative))
        return wilson_interval(round(auc * rarer), rarer)
    variance = over.var(ddof=1) / len(positive) + under.var(ddof=1) / len(negative)
    centre, half = math.log(auc / (1 - auc)), _Z * math.sqrt(variance) / (auc * (1 - auc))
    return 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))


def _retrieval(features: Array, truth: Truth) -> dict[str, Metric]:
    """Average precision over queries, and the share of queries with a hit among the first ranks, as Market-1501 has it."""
    from sklearn.metrics import average_precision_score

    precisions, first_hits = [], []
    for _query, _order, hits in _ranked(features, truth):
        if hits.any():  # who is on no other camera can't be found
            precisions.append(average_precision_score(hits, -np.arange(len(hits))))
            first_hits.append(int(hits.argmax()))
    if not precisions:
        raise BenchError("metrics_from_outputs: no query has a match on another camera in the gallery; give the whole data set")
    found = np.array(precisions)
    rng = np.random.default_rng(0)
    low, high = np.quantile(found[rng.integers(len(found), size=(_DRAWS, len(found)))].mean(axis=1), (0.025, 0.975))
    ranks = {f"rank{rank}": _share(np.array(first_hits) < rank) for rank in _RANKS}
    return {"map": Metric(float(found.mean()), float(low), float(high)), **ranks}


def _ranked(features: Array, truth: Truth) -> Iterator[tuple[int, Array, Array]]:
    """For each query its number, the gallery from near to far by cosine, and where the person is in it.

    Images of the same person by the same camera are left out, as the protocol says: they'd be found by their background.
    """
    assert truth.cameras is not None
    assert truth.queries is not None
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    gallery = np.flatnonzero(~truth.queries)
    people, cameras = truth.labels[gallery], truth.cameras[gallery]
    for query in np.flatnonzero(truth.queries):
        person = people == truth.labels[query]
        kept = ~(person & (cameras == truth.cameras[query]))
        order = np.argsort(-(unit[gallery[kept]] @ unit[query]), kind="stable")
        if len(order):
            yield int(query), gallery[kept][order], person[kept][order]
