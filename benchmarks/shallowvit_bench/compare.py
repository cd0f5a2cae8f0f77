"""Measure one side, or two against each other, under the same conditions: the stage *bench*.

    sides -> cold start of each -> warm-up -> alternating rounds -> accuracy -> one Measurement per side

A newcomer's trap: the first side is the one in question and the second the one to beat, so only the first gets a speed-up.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .accuracy import agreement, measure_accuracy
from .cold_start import measure_cold_start
from .conditions import read_conditions
from .errors import BenchError
from .measurement import Measurement
from .percentiles import latency_from_samples
from .preprocessing import random_input
from .runners import RUNNERS, RunnerOptions
from .timing import TimingLimits, time_rounds, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .bundles import BundleInfo
    from .config import BenchConfig
    from .datasets import Dataset
    from .runners import Bound, Runner

__all__ = ["Side", "bench", "side_from_bundle"]


@dataclass(frozen=True)
class Side:
    """One of the things compared. ``opener`` is picklable, since it also runs in a fresh process; ``failures`` are what it
    raises when the user can fix it; ``bundle`` says what the input looks like and what the figures are about.
    """

    name: str
    backend: str
    opener: Callable[[], Runner]
    flops: int
    precision: str
    bundle: BundleInfo
    failures: tuple[type[Exception], ...] = (BenchError,)


def side_from_bundle(bundle: BundleInfo, threads: int | None = None, backend: str = "cpu") -> Side:
    """Return the side that runs a bundle's graph."""
    opener = partial(RUNNERS[backend], bundle.model_path.absolute(), RunnerOptions(threads=threads))
    return Side(bundle.name, backend, opener, bundle.flops_after, bundle.precision, bundle)


def bench(
    sides: Sequence[Side],
    config: BenchConfig,
    datasets: Sequence[Dataset] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Measurement, ...]:
    """Measure one or two sides; a side that fails gets a row with the reason, and the others are still measured.

    Args:
        sides: The side in question first, then the one to beat.
        config: Batch, limits, threads.
        datasets: None, or the same labelled data opened for each side's bundle.
        progress: Told what is going on, a line at a time.
    """
    attempts = [_Attempt(side, config) for side in sides]
    for attempt in attempts:
        progress(f"{attempt.side.name}: loading in a fresh process")
        attempt.run(_start_cold)
    with ExitStack() as stack:
        for attempt in attempts:
            progress(f"{attempt.side.name}: warming up")
            attempt.run(lambda attempt: _open_warm(attempt, stack))
        _time(attempts, config, progress)
        for attempt, dataset in zip(attempts, datasets, strict=bool(datasets)):
            attempt.run(partial(_predict, dataset=dataset, progress=progress))
    if len(attempts) == 2 and all(attempt.reason is None for attempt in attempts):
        _compare(*attempts)
    return tuple(attempt.measurement() for attempt in attempts)


class _Attempt:
    """A side being measured: figures come in until something fails."""

    def __init__(self, side: Side, config: BenchConfig) -> None:
        self.side, self.config = side, config
        self.conditions = read_conditions(config.threads)
        self.limits = TimingLimits(max_runs=config.max_runs, max_seconds=config.max_seconds)
        self.batch: np.ndarray[Any, Any] | None = None
        self.run_once: Bound | None = None
        self.runner: Runner | None = None
        self.rounds_ms: list[float] = []
        self.accuracy: Any = None
        self.figures: dict[str, Any] = {}
        self.reason: str | None = None

    def run(self, step: Callable[[_Attempt], None]) -> None:
        """Do one step unless an earlier one failed; remember why it failed."""
        if self.reason is None:
            try:
                step(self)
            except self.side.failures as err:
                self.reason = str(err)

    def measurement(self) -> Measurement:
        """Return what was measured."""
        bundle = self.side.bundle
        return Measurement(
            side=self.side.name,
            status="ok" if self.reason is None else "failed",
            reason=self.reason,
            backend=self.side.backend,
            bundle=bundle.name,
            model_sha256=bundle.model_sha256,
            precision=self.side.precision,
            flops=self.side.flops,
            batch=self.config.batches[0],
            input_shape=bundle.input.shape,
            input_dtype=bundle.input.dtype,
            conditions=self.conditions,
            **self.figures,
        )


def _start_cold(attempt: _Attempt) -> None:
    attempt.batch = random_input(attempt.side.bundle, attempt.config.batches[0])
    cold = measure_cold_start(attempt.side.opener, attempt.batch, attempt.side.failures)
    attempt.figures |= {"load_ms": cold.load_ms, "first_ms": cold.first_ms, "peak_mib": cold.peak_mib}


def _open_warm(attempt: _Attempt, stack: ExitStack) -> None:
    assert attempt.batch is not None
    attempt.runner = stack.enter_context(attempt.side.opener())
    attempt.run_once = attempt.runner.bind(attempt.batch)
    done = warm_up(attempt.run_once, attempt.limits)
    attempt.figures |= {"warm_up_runs": done.runs, "warm_up_steady": done.steady}


def _time(attempts: list[_Attempt], config: BenchConfig, progress: Callable[[str], None]) -> None:
    """Time all sides that are still in, in alternating rounds."""
    running = [attempt for attempt in attempts if attempt.reason is None]
    jobs = [attempt.run_once for attempt in running if attempt.run_once is not None]
    if not jobs:
        return
    for attempt, timed in zip(running, time_rounds(jobs, running[0].limits, progress), strict=True):
        latency = latency_from_samples(timed.samples_ms)
        attempt.rounds_ms = timed.rounds_ms
        attempt.figures |= vars(latency) | {
            "samples_ms": tuple(round(sample, 6) for sample in timed.samples_ms),
            "items_per_s": config.batches[0] * 1e3 / latency.mean_ms,
        }


def _predict(attempt: _Attempt, dataset: Dataset, progress: Callable[[str], None]) -> None:
    assert attempt.runner is not None
    found = measure_accuracy(
        attempt.runner,
        attempt.side.bundle,
        dataset,
        attempt.config.accuracy_batch,
        lambda text: progress(f"{attempt.side.name}: {text}"),
    )
    attempt.accuracy = found
    attempt.figures |= {
        "data": found.data,
        "items": found.items,
        "unreadable": len(found.unreadable),
        "metrics": found.metrics,
        "predictions": None if found.saved is None else str(found.saved),
    }


def _compare(ours: _Attempt, other: _Attempt) -> None:
    """Give the side in question its speed-up, its ideal, and how often both predict the same."""
    medians = [statistics.median(attempt.figures["samples_ms"]) for attempt in (ours, other)]
    ratios = np.array(other.rounds_ms) / np.array(ours.rounds_ms)
    low, high = np.quantile(ratios, (0.1, 0.9))
    speedup, ideal = medians[1] / medians[0], other.side.flops / ours.side.flops if ours.side.flops else None
    ours.figures |= {
        "against": other.side.name,
        "speedup": speedup,
        "speedup_low": float(low),
        "speedup_high": float(high),
        "ideal_speedup": ideal,
        # against another runtime the ratio holds both gains, so it's no share of the one from depth
        "share_of_ideal": speedup / ideal if ideal and ours.side.backend == other.side.backend else None,
    }
    if ours.accuracy and other.accuracy:
        ours.figures["agreement"] = agreement(ours.accuracy, other.accuracy).agreement
