"""Try precisions on the machine at hand and keep the fastest that loses no more accuracy than allowed.

A newcomer's trap: fewer bits aren't faster by themselves. int8 of a ViT has been slower than fp16 on a T4 and than fp32 on a
CPU, so nothing is advised that wasn't timed here, in alternation with the others.
"""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shallowvit_bench.errors import BenchError
from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RUNNERS, RunnerOptions
from shallowvit_bench.runners.choosing import FASTER_IN, fastest
from shallowvit_bench.timing import TimingLimits, time_rounds, warm_up

from ..errors import ShallowvitError
from .calibration_inputs import read_calibration_inputs
from .evaluation import check_outputs, outputs_of, read_evaluation
from .quantization import graph_bytes, quantize_graph
from .quantize_records import (
    MAX_ACCURACY_DROP,
    CalibrationMethod,
    PrecisionSearch,
    PrecisionTrial,
    QuantizeConfig,
    TrialStatus,
)
from .records import FLOATS, Precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shallowvit_bench.bundles import BundleInfo
    from shallowvit_bench.feeding import Batch
    from shallowvit_bench.runners import Runner

    from .calibration_inputs import CalibrationInputs
    from .evaluation import EvaluationItems
    from .quantize_records import QuantizedGraph

__all__ = ["CANDIDATES", "Candidate", "SearchConfig", "search_precision"]


@dataclass(frozen=True)
class Candidate:
    """A precision, the float type around it, and how activations are calibrated (int8 and fp8)."""

    precision: Precision
    base: Precision
    calibration: CalibrationMethod = CalibrationMethod.MINMAX

    @property
    def name(self) -> str:
        """Such as ``fp16`` or ``int8-minmax-on-fp16``; also the name of its graph."""
        if self.precision in FLOATS:
            return str(self.precision)
        method = "" if self.precision is Precision.INT4 else f"-{self.calibration}"
        return f"{self.precision}{method}-on-{self.base}"


# From the most exact to the least: of two that are equally fast, the one further up is kept.
CANDIDATES = (
    *(Candidate(precision, precision) for precision in FLOATS),
    Candidate(Precision.INT8, Precision.FP32),
    Candidate(Precision.INT8, Precision.FP16),
    Candidate(Precision.INT8, Precision.FP16, CalibrationMethod.PERCENTILE),
    Candidate(Precision.FP8, Precision.FP16),
    Candidate(Precision.INT4, Precision.FP32),
    Candidate(Precision.INT4, Precision.FP16),
)


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Args:
        data: What accuracy and agreement are measured on; see ``open_dataset``.
        quantize: Where int8 and fp8 get their calibration inputs from, and what stays float; its precision isn't used.
        max_drop: How much top-1 may fall against fp32, as a share. Without labels: how much may be predicted otherwise.
        backend: A key of ``RUNNERS``: what runs the graphs here.
        threads: For that backend; None: it chooses.
        batch: Items a timed run.
        limits: When timing stops.
        candidates: What to try.
        build: Turns a graph into what the backend loads; without, it loads the graph.
    """

    data: str
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    max_drop: float = MAX_ACCURACY_DROP
    backend: str = "cpu"
    threads: int | None = None
    batch: int = 1
    limits: TimingLimits = field(default_factory=lambda: TimingLimits(max_runs=200, max_seconds=10.0))
    candidates: tuple[Candidate, ...] = CANDIDATES
    build: Callable[[Path], Path] | None = None

    def __post_init__(self) -> None:
        if self.backend not in RUNNERS:
            raise ShallowvitError(f"search: unknown backend {self.backend!r}; choose from {', '.join(RUNNERS)}")
        if not 0 <= self.max_drop < 1:
            raise ShallowvitError(f"search: --max-accuracy-drop {self.max_drop:g} isn't a share from 0 to 1; 0.01 is one point")


def search_precision(
    export: Callable[[Precision, Path], Path],
    info: BundleInfo,
    folder: Path,
    config: SearchConfig,
    progress: Callable[[str], None] = lambda _: None,
) -> PrecisionSearch:
    """Export, quantise, check and time every candidate; keep the fastest within the floor.

    A candidate takes the place of a more exact one if it was faster in at least nine of ten alternating rounds.

    Args:
        export: Writes the graph in a float precision to a path and returns the path.
        info: The graphs' input and preprocessing; see ``info_of_graph``.
        folder: Gets a graph per candidate, called by ``PrecisionTrial.file``.
        config: See ``SearchConfig``.
        progress: Told what is going on, a line at a time.

    Raises:
        ShallowvitError: the data doesn't fit, the backend can't even run fp32, or the model has no classes to compare.
    """
    calibration = read_calibration_inputs(info, config.quantize) if config.quantize.data else None
    items = read_evaluation(info, config.data, calibration)
    floats = _Exports(export, folder)
    expected, _ = outputs_of(floats.path(Precision.FP32), "fp32", items)
    if expected.ndim != 2:
        raise ShallowvitError(
            f"search: {info.name} gives {list(expected.shape[1:])} an item, so there is no top-1 to hold a precision to; "
            "choose one with --precision"
        )
    with ExitStack() as stack:
        tries = [_Try(candidate, config, floats) for candidate in config.candidates]
        for one in tries:
            progress(f"{one.candidate.name}: making the graph, checking its answers")
            one.prepare(calibration, stack)
            one.check(expected, items)
        fit = [one for one in tries if one.runner is not None and one.status is None]
        if not fit:
            raise ShallowvitError(
                "search: no candidate can run here and stay within the floor: "
                + "; ".join(f"{one.candidate.name}: {one.reason}" for one in tries)
            )
        runs = _time(fit, random_input(info, config.batch), config, progress)
    chosen = fit[fastest([one.rounds_ms for one in fit])]
    return PrecisionSearch(
        chosen=chosen.candidate.name,
        backend=config.backend,
        batch=config.batch,
        runs=runs,
        data=items.data,
        max_drop=config.max_drop,
        trials=tuple(one.trial(fit[0], chosen) for one in tries),
    )


class _Exports:
    """The float graphs, each exported when it is first asked for."""

    def __init__(self, export: Callable[[Precision, Path], Path], folder: Path) -> None:
        self._export, self.folder = export, folder
        self._made: dict[Precision, Path] = {}

    def path(self, precision: Precision) -> Path:
        if precision not in self._made:
            self._made[precision] = self._export(precision, self.folder / f"{precision}.onnx")
        return self._made[precision]


class _Try:
    """A candidate being tried: figures come in until it can't run or loses too much."""

    def __init__(self, candidate: Candidate, config: SearchConfig, floats: _Exports) -> None:
        self.candidate, self.config, self.floats = candidate, config, floats
        self.status: TrialStatus | None = None
        self.reason = ""
        self.path: Path | None = None
        self.runner: Runner | None = None
        self.quantized: QuantizedGraph | None = None
        self.check_record: Any = None
        self.samples_ms: list[float] = []
        self.rounds_ms: list[float] = []

    def prepare(self, calibration: CalibrationInputs | None, stack: ExitStack) -> None:
        """Make the graph and load it."""
        own = self.candidate
        needs = own.precision in (Precision.INT8, Precision.FP8)
        if needs and calibration is None:
            self.end(TrialStatus.UNSUPPORTED, "needs calibration inputs; name a data set with --calibration")
            return
        self.path = self.floats.path(own.base)
        if own.precision not in FLOATS:
            config = replace(self.config.quantize, precision=own.precision, calibration=own.calibration)
            out = self.floats.folder / f"{own.name}.onnx"
            inputs = calibration.batches() if needs and calibration else None
            self.quantized = quantize_graph(self.path, out, config, inputs)
            self.path = out
        try:
            loaded = self.config.build(self.path) if self.config.build else self.path
            self.runner = stack.enter_context(RUNNERS[self.config.backend](loaded, RunnerOptions(threads=self.config.threads)))
        except (BenchError, ShallowvitError) as err:
            self.end(TrialStatus.UNSUPPORTED, self._without_folder(err))

    def check(self, expected: np.ndarray[Any, Any], items: EvaluationItems) -> None:
        """Compare with fp32 what the backend itself answers."""
        if self.runner is None:
            return
        runner, own = self.runner, self.candidate
        try:
            found = np.concatenate([runner.infer(batch) for batch in items.batches()])
        except BenchError as err:
            self.end(TrialStatus.UNSUPPORTED, self._without_folder(err))
            return
        try:
            # checked below against the floor, so that the figures of one that fails are kept
            check = check_outputs(expected, found, items, (str(own.precision), str(own.base), self.config.backend), 1.0)
        except ShallowvitError as err:
            self.end(TrialStatus.INACCURATE, str(err))
            return
        self.check_record = replace(check, max_drop=self.config.max_drop)
        assert check.top1_agreement is not None
        lost = check.drop if check.drop is not None else 1 - check.top1_agreement
        if lost > self.config.max_drop + 1e-12:
            what = "top-1" if check.drop is not None else "of the items (at most, there are no labels)"
            self.end(TrialStatus.INACCURATE, f"loses {100 * lost:.2f} points {what}, above {100 * self.config.max_drop:.2f}")

    def end(self, status: TrialStatus, reason: str) -> None:
        self.status, self.reason = status, reason

    def _without_folder(self, err: Exception) -> str:
        """The sentence without the folder, which is of this machine and of this run."""
        return str(err).replace(f"{self.floats.folder}{os.sep}", "")

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    def trial(self, reference: _Try, chosen: _Try) -> PrecisionTrial:
        """Return the record; ratios are against the most exact candidate that runs, which is fp32 unless left out."""
        figures: dict[str, Any] = {}
        if self.samples_ms:
            low, high = np.quantile(_ratios(reference, self), (0.1, 0.9))
            figures = {
                "median_ms": self.median_ms,
                "ratio": reference.median_ms / self.median_ms,
                "ratio_low": float(low),
                "ratio_high": float(high),
            }
        status, reason = self.status or TrialStatus.SLOWER, self.reason
        if self is chosen:
            status, reason = TrialStatus.CHOSEN, f"the fastest within {100 * self.config.max_drop:g} points of fp32"
        elif self.status is None:
            faster = float((_ratios(chosen, self) > 1).mean())
            reason = f"faster than {chosen.candidate.name} in {100 * faster:.0f} % of the rounds, below {100 * FASTER_IN:.0f}"
            if self.config.candidates.index(self.candidate) < self.config.candidates.index(chosen.candidate):
                reason = f"{chosen.candidate.name} was faster in {100 * (1 - faster):.0f} % of the rounds"
        return PrecisionTrial(
            name=self.candidate.name,
            precision=str(self.candidate.precision),
            base=str(self.candidate.base),
            calibration=self.quantized.method if self.quantized else None,
            status=status,
            reason=reason,
            file=self.path.name if self.path else None,
            bytes=graph_bytes(self.path) if self.path else None,
            check=self.check_record,
            quantized=self.quantized,
            **figures,
        )


def _time(fit: list[_Try], batch: Batch, config: SearchConfig, progress: Callable[[str], None]) -> int:
    """Time all that are still in, in alternating rounds; return the runs of each."""
    jobs = [one.runner.bind(batch) for one in fit if one.runner is not None]
    progress(f"timing {len(jobs)} candidates in alternation")
    for run in jobs:
        warm_up(run, config.limits)
    for one, timed in zip(fit, time_rounds(jobs, config.limits, progress), strict=True):
        one.samples_ms, one.rounds_ms = timed.samples_ms, timed.rounds_ms
    return len(fit[0].samples_ms)


def _ratios(reference: _Try, other: _Try) -> np.ndarray[Any, Any]:
    """How many times faster the other was, by round."""
    ratios: np.ndarray[Any, Any] = np.array(reference.rounds_ms) / np.array(other.rounds_ms)
    return ratios
