"""Choose the provider for ``--provider auto``: open all that work here, drop those whose answers are off, time the rest.

A newcomer's trap: a provider that computes in bf16 answers differently by design, so how far off it may be depends on what it
computes in, and the row says which that was.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BenchError
from ..timing import TimingLimits, time_rounds, warm_up
from . import RUNNERS
from .protocol import Bound, Runner, RunnerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ..feeding import Batch

__all__ = ["CANDIDATES", "FASTER_IN", "ProviderChoice", "choose_provider", "fastest", "outputs_refusal", "relative_error"]

# From the most exact to the least: of two that are equally fast, the one further up is kept. Engines come behind them.
CANDIDATES = ("cpu", "openvino", "cuda", "tensorrt-ep", "openvino-bf16")

_REFERENCE = "cpu"
FASTER_IN = 0.9  # of the alternating rounds, to take the place of a more exact side
# Relative error of the whole output (norm of the difference by the norm) against the CPU provider's. Other kernels in fp32
# gave 4e-7 on the demo and 6e-7 on VideoMAE-B, emulated bf16 0.007 to 0.017 on the demo.
_MAX_ERROR = {"bf16": 0.05}
_MAX_ERROR_OTHERWISE = 0.005  # room for graphs in fp16, which the CPU provider computes in fp32
_MIN_SAME_CLASS = 0.95  # of the items; of a small batch all


@dataclass(frozen=True)
class ProviderChoice:
    """What to run with, and every candidate that was tried, for the row.

    Args:
        key: Of ``RUNNERS``.
        options: To open it with.
        trials: One of each candidate: provider, computed_in, median_ms, ratio (how many times faster than the CPU provider),
            error, status (chosen, slower, inaccurate, unsupported), reason and remarks; None where not measured.
    """

    key: str
    options: RunnerOptions
    trials: tuple[dict[str, Any], ...]


def choose_provider(
    path: Path,
    batch: Batch,
    options: RunnerOptions,
    candidates: Sequence[str] = CANDIDATES,
    progress: Callable[[str], None] = lambda _: None,
    limits: TimingLimits | None = None,
    engines: Mapping[str, Callable[[], Runner]] | None = None,
) -> ProviderChoice:
    """Measure providers on a graph and a batch, and return the fastest whose answers agree with the CPU provider's.

    A candidate takes the place of a more exact one if it was faster in at least nine of ten alternating rounds.

    Args:
        path: The graph.
        batch: What it will run on.
        options: For all of them.
        candidates: Keys of ``RUNNERS``, from the most exact to the least; the first must be ``cpu``.
        progress: Told what is going on, a line at a time.
        limits: When timing stops.
        engines: Of the same graph, by flavour, with what opens them; candidates too.

    Raises:
        BenchError: a candidate isn't in ``RUNNERS``, or even the CPU provider can't run the graph.
    """
    if unknown := [key for key in candidates if key not in RUNNERS]:
        raise BenchError(f"choose_provider: unknown provider {unknown[0]!r}; this harness has {', '.join(RUNNERS)}")
    if not candidates or candidates[0] != _REFERENCE:
        raise BenchError(f"choose_provider: the first candidate must be {_REFERENCE}, which the others are compared with")
    limits = limits or TimingLimits(max_runs=120, max_seconds=8.0)
    tries = [_Try(key, partial(RUNNERS[key], path, options)) for key in candidates]
    tries += [_Try(flavour, opener) for flavour, opener in (engines or {}).items()]
    with ExitStack() as stack:
        for one in tries:
            progress(f"{one.key}: loading")
            one.open(batch, stack)
        if tries[0].bound is None:
            raise BenchError(tries[0].reason)
        expected = tries[0].answer
        for one in tries[1:]:
            one.check(expected)
        fit = [one for one in tries if one.bound is not None]
        if len(fit) > 1:
            _time(fit, limits, progress)
    chosen = fit[fastest([one.rounds_ms for one in fit])] if len(fit) > 1 else fit[0]
    return ProviderChoice(chosen.key, options, tuple(one.trial(tries[0], chosen) for one in tries))


def fastest(rounds_ms: Sequence[Sequence[float]]) -> int:
    """Return which side to take, the most exact standing first: a later one where it beat the one so far in 9 of 10 rounds.

    Args:
        rounds_ms: The median of each round in milliseconds, by side; round i of all sides was taken in turn.
    """
    chosen = 0
    for other in range(1, len(rounds_ms)):
        faster = np.array(rounds_ms[other]) < np.array(rounds_ms[chosen])
        if faster.mean() >= FASTER_IN:
            chosen = other
    return chosen


def outputs_refusal(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any], computed_in: str) -> str | None:
    """Return why a provider's answers to the same batch are too far from the CPU provider's, or None.

    Args:
        expected: The CPU provider's.
        found: The other's.
        computed_in: What the other computes in; bf16 may be further off.
    """
    if expected.shape != found.shape:
        return f"its output has the shape {list(found.shape)}, the CPU provider's {list(expected.shape)}"
    if not np.isfinite(found).all() and np.isfinite(expected).all():
        return "its output isn't finite, the CPU provider's is"
    allowed = _MAX_ERROR.get(computed_in, _MAX_ERROR_OTHERWISE)
    error = relative_error(expected, found)
    if error > allowed:
        return f"its output is {error:.2g} off the CPU provider's, above {allowed:g} for {computed_in}"
    same = _same_class(expected, found, allowed)
    if same is not None and same < _MIN_SAME_CLASS:
        return f"it predicts the same class for {same:.0%} of the items, below {_MIN_SAME_CLASS:.0%}"
    return None


def relative_error(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """Return the norm of the difference by the norm of what is expected."""
    wanted = expected.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def _same_class(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any], allowed: float) -> float | None:
    """The share of items with the same best class, of those whose best class leads by more than the allowed error.

    A benchmark's input is random, so that two classes can be level, and which of them wins says nothing.
    """
    if expected.ndim != 2 or expected.shape[1] < 2:
        return None
    second, best = np.partition(expected, -2, axis=1)[:, -2:].T
    decided = best - second > 2**0.5 * allowed * np.linalg.norm(expected, axis=1)
    if not decided.any():
        return None
    return float((expected.argmax(1) == found.argmax(1))[decided].mean())


class _Try:
    """A candidate being tried: figures come in until it can't run or answers wrongly."""

    def __init__(self, key: str, opener: Callable[[], Runner]) -> None:
        self.key, self._opener = key, opener
        self.status: str | None = None
        self.reason = ""
        self.runner: Runner | None = None
        self.bound: Bound | None = None
        self.answer: np.ndarray[Any, Any] = np.zeros(0)
        self.error: float | None = None
        self.samples_ms: list[float] = []
        self.rounds_ms: list[float] = []

    def open(self, batch: Batch, stack: ExitStack) -> None:
        """Load the model, run the batch once and keep the answer."""
        try:
            self.runner = stack.enter_context(self._opener())
            self.bound = self.runner.bind(batch)
            self.bound()
        except BenchError as err:
            self.status, self.reason, self.bound = "unsupported", str(err), None
            return
        self.answer = self.bound.output().copy()

    def check(self, expected: np.ndarray[Any, Any]) -> None:
        """Compare the answer; one that is too far off isn't timed."""
        if self.bound is None or self.runner is None:
            return
        if expected.shape == self.answer.shape:
            self.error = relative_error(expected, self.answer)
        reason = outputs_refusal(expected, self.answer, self.runner.facts.precision)
        if reason is not None:
            self.status, self.reason, self.bound = "inaccurate", reason, None

    def trial(self, reference: _Try, chosen: _Try) -> dict[str, Any]:
        """Return the record."""
        status, reason = self.status or "slower", self.reason
        if self is chosen:
            status, reason = "chosen", "the fastest of those that agree" if self.samples_ms else "the only one that runs here"
        elif self.status is None:
            wins = float((np.array(self.rounds_ms) < np.array(chosen.rounds_ms)).mean())
            reason = f"faster than {chosen.key} in {wins:.0%} of the rounds"
        median = statistics.median(self.samples_ms) if self.samples_ms else None
        return {
            "provider": self.key,
            "computed_in": self.runner.facts.precision if self.runner else None,
            "median_ms": median,
            "ratio": statistics.median(reference.samples_ms) / median if median else None,
            "error": self.error,
            "status": status,
            "reason": reason,
            "remarks": list(self.runner.facts.remarks) if self.runner else [],
        }


def _time(fit: list[_Try], limits: TimingLimits, progress: Callable[[str], None]) -> None:
    """Time all that are still in, in alternating rounds."""
    jobs = [one.bound for one in fit if one.bound is not None]
    progress(f"timing {', '.join(one.key for one in fit)} in alternation")
    for run in jobs:
        warm_up(run, limits)
    for one, timed in zip(fit, time_rounds(jobs, limits, progress), strict=True):
        one.samples_ms, one.rounds_ms = timed.samples_ms, timed.rounds_ms
