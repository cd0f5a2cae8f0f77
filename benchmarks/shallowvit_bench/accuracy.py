"""Measure the accuracy of a loaded bundle on labelled data, through the same preprocessing as it was trained with.

A newcomer's trap: figures are over the items that could be read. The others are listed with their reasons, and more than a few
of them are an error, because a set that lost its hard items makes every model look better.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .datasets import UnreadableError
from .errors import BenchError
from .feeding import batch_beside
from .measurement import Metric
from .metrics import Truth, metrics_from_outputs, predictions_from_outputs, wilson_interval
from .predictions import PredictionsFile
from .preprocessing import input_from_frames

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .bundles import BundleInfo
    from .datasets import Dataset
    from .runners import Runner

__all__ = ["Accuracy", "agreement", "measure_accuracy", "wilson_interval"]


@dataclass(frozen=True)
class Accuracy:
    """Figures over ``items`` of a data set, and the predictions they came from.

    Args:
        data: The data set and the views of an item.
        items: That could be read and count.
        metrics: By name; none where the data has no labels.
        predictions: The class of each item of the data set; -1 for those that couldn't be read or have none.
        unreadable: Name and reason of each item that couldn't be read.
        saved: The file of the outputs.
        remarks: What the user must know, as that a figure needs a package that isn't here.
        agreement: The share of items on which the other side predicts the same.
    """

    data: str
    items: int
    metrics: dict[str, Metric]
    predictions: tuple[int, ...] = field(repr=False)
    unreadable: tuple[tuple[str, str], ...] = ()
    saved: Path | None = None
    remarks: tuple[str, ...] = ()
    agreement: float | None = None


def measure_accuracy(
    runner: Runner,
    bundle: BundleInfo,
    dataset: Dataset,
    batch: int = 8,
    progress: Callable[[str], None] = lambda _: None,
    save: Path | None = None,
    max_unreadable: float = 0.05,
) -> Accuracy:
    """Run every item of a data set and compare with its labels; views of an item are averaged as probabilities.

    Args:
        runner: Runs the bundle's graph.
        bundle: Says how frames become the graph's input.
        dataset: Opened for this bundle.
        batch: Views per inference, at most; fewer where an engine takes fewer.
        progress: Told how far it is, at which speed and how long it will take.
        save: Where outputs are written as they come; a second call with the same file goes on where the first stopped.
        max_unreadable: The share of items that may be unreadable.

    Raises:
        BenchError: the first output isn't one row per item or holds NaN, too many items can't be read, or ``save`` can't be
            written.
    """
    run = _Run(runner, bundle, dataset, progress)
    if save is None:
        run.measure(batch, max_unreadable)
        return _accuracy(run, None)
    facts = runner.facts
    about = {
        "model_sha256": bundle.model_sha256,
        "provider": facts.provider,
        "precision": facts.precision,
        "version": facts.version,
        "engine_sha256": facts.engine_sha256,
    }
    run.file = PredictionsFile(save, about, dataset)
    try:
        if run.file.started_anew:
            run.remarks.append(run.file.started_anew)
            progress(run.file.started_anew)
        run.outputs = dict(run.file.outputs)
        run.measure(batch, max_unreadable)
    finally:
        run.file.close()
    return _accuracy(run, save)


def agreement(accuracy: Accuracy, other: Accuracy) -> Accuracy:
    """Return ``accuracy`` with the share of predictions that both sides share, on what both could read of the same data."""
    ours, theirs = np.array(accuracy.predictions), np.array(other.predictions)
    both = (ours >= 0) & (theirs >= 0)
    return replace(accuracy, agreement=float((ours == theirs)[both].mean()) if both.any() else None)


class _Run:
    """Outputs as they come in, in memory and in the file."""

    def __init__(self, runner: Runner, bundle: BundleInfo, dataset: Dataset, progress: Callable[[str], None]) -> None:
        self.runner, self.bundle, self.dataset, self.progress = runner, bundle, dataset, progress
        self.outputs: dict[int, np.ndarray[Any, Any]] = {}
        self.unreadable: dict[int, str] = {}
        self.remarks: list[str] = []
        self.file: PredictionsFile | None = None
        self._views: dict[int, list[np.ndarray[Any, Any]]] = {}

    def measure(self, batch: int, max_unreadable: float) -> None:
        """Run what isn't done, in full batches."""
        batch = min(batch, max((most for _, most in self._ranges()), default=batch))
        todo = [item for item in range(self.dataset.count) if item not in self.outputs]
        started, before = time.monotonic(), len(self.outputs)
        waiting: list[tuple[int, np.ndarray[Any, Any]]] = []
        for item, found in self.dataset.read(todo):
            if isinstance(found, UnreadableError):
                self._skip(item, found, max_unreadable)
                continue
            waiting += [(item, view) for view in found]
            while len(waiting) >= batch:
                self._infer(waiting[:batch])
                waiting = waiting[batch:]
                self._tell(before, started)
        if waiting:
            self._infer(waiting)
            self._tell(before, started)

    def _infer(self, views: list[tuple[int, np.ndarray[Any, Any]]]) -> None:
        frames = np.stack([view for _item, view in views])
        dtype = np.dtype(self.bundle.input.dtype)
        inputs = frames.astype(dtype, copy=False) if self.dataset.preprocessed else input_from_frames(frames, self.bundle)
        beside = self.dataset.beside_of([item for item, _view in views])
        filled = self._filled(len(inputs))
        main, *others = (np.concatenate([one, np.repeat(one[-1:], filled, axis=0)]) for one in (inputs, *beside.values()))
        fed = batch_beside(main, self.bundle, dict(zip(beside, others, strict=True)))
        scores = np.array(self.runner.infer(fed), np.float32)  # a copy: the next run may overwrite it
        if scores.ndim == 1:
            scores = scores[:, None]
        if scores.ndim != 2 or len(scores) != len(main):
            raise BenchError(
                f"measure_accuracy: {self.bundle.name} gives {list(scores.shape)} for {len(main)} items, "
                f"expected [{len(main)}, classes]; only classifiers have a top-1"
            )
        scores = scores[: len(frames)]
        if np.isnan(scores).any():
            name = self.dataset.items.name(views[int(np.isnan(scores).any(axis=1).argmax())][0])
            raise BenchError(
                f"measure_accuracy: {self.bundle.name} answers with NaN to {name}; run it in a wider precision, or leave the "
                "blocks that overflow in it"
            )
        done = {}
        for (item, _view), row in zip(views, scores, strict=True):
            self._views.setdefault(item, []).append(row)
            if len(self._views[item]) == self.dataset.views:
                done[item] = _average(self._views.pop(item), self.dataset.kind)
        self.outputs |= done
        if self.file is not None and done:
            stamps = [self.dataset.items.stamp(item) for item in done]
            self.file.add(list(done), stamps, np.stack(list(done.values())))

    def _ranges(self) -> tuple[tuple[int, int], ...]:
        """Least and most items of a run: those of an engine's profiles, or the one batch of a graph with a fixed one."""
        fixed = self.bundle.batch
        return self.runner.facts.batches or (((fixed, fixed),) if fixed else ())

    def _filled(self, count: int) -> int:
        """How often the last item is run again where no batch as small is taken: those answers are left out."""
        fitting = [max(least, count) for least, most in self._ranges() if most >= count]
        return min(fitting, default=count) - count

    def _skip(self, item: int, why: UnreadableError, max_unreadable: float) -> None:
        self.unreadable[item] = str(why)
        if self.file is not None:
            self.file.skip(item, str(why))
        allowed = max_unreadable * self.dataset.count
        if len(self.unreadable) > allowed:
            first, reason = next(iter(self.unreadable.items()))
            raise BenchError(
                f"measure_accuracy: {len(self.unreadable)} of {self.dataset.count} items of {self.dataset.name} can't be read "
                f"so far, more than the {max_unreadable:.0%} allowed; the first is {self.dataset.items.name(first)} ({reason})"
            )

    def _tell(self, before: int, started: float) -> None:
        done = len(self.outputs) - before
        text = f"{len(self.outputs):,} of {self.dataset.count:,} items"
        seconds = time.monotonic() - started
        if done and seconds > 0:
            left = (self.dataset.count - len(self.outputs) - len(self.unreadable)) * seconds / done
            text += f", {done / seconds:,.1f} items/s, {_duration(left)} left"
        if self.unreadable:
            text += f", {len(self.unreadable):,} unreadable"
        self.progress(text)


def _average(views: list[np.ndarray[Any, Any]], kind: str) -> np.ndarray[Any, Any]:
    """The answer to an item: the mean of its views' probabilities, as VideoMAE's test has it; of features the mean."""
    if len(views) == 1:
        return views[0]
    stacked = np.stack(views)
    if kind != "retrieval" and stacked.shape[1] > 1:
        powers = np.exp(stacked - stacked.max(axis=1, keepdims=True))
        stacked = powers / powers.sum(axis=1, keepdims=True)
    return stacked.mean(axis=0)


def _accuracy(run: _Run, save: Path | None) -> Accuracy:
    dataset = run.dataset
    items = np.array(sorted(run.outputs), np.int64)
    if not len(items):
        raise BenchError(f"measure_accuracy: no item of {dataset.name} can be read: {next(iter(run.unreadable.values()))}")
    outputs = np.stack([run.outputs[item] for item in items.tolist()])
    labels, cameras, queries = (
        array if array is None or not len(array) else array[items]
        for array in (dataset.labels, dataset.cameras, dataset.queries)
    )
    assert labels is not None
    truth = Truth(dataset.kind, labels, cameras, queries)
    figures = metrics_from_outputs(outputs, truth)
    predictions = np.full(dataset.count, -1, np.int64)
    found = predictions_from_outputs(outputs, truth)
    # a match in the gallery is named by its number in the data set, so that sides that read different items can be compared
    predictions[items] = np.where(found >= 0, items[found], -1) if dataset.kind == "retrieval" else found
    names = dataset.items.name
    return Accuracy(
        data=dataset.name,
        items=len(items),
        metrics=figures.metrics,
        predictions=tuple(predictions.tolist()),
        unreadable=tuple((names(item), reason) for item, reason in sorted(run.unreadable.items())),
        saved=save,
        remarks=(*run.remarks, *figures.remarks),
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
