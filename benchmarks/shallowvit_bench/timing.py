"""Time runners in alternating rounds: warm up until steady, then A B B A ..., every raw sample kept in order.

A newcomer's trap: after the other side's round its threads still spin on the cores and its data fills the caches, so the first
run of each round isn't timed.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from .runners import Runner

__all__ = ["TimingLimits", "WarmUp", "time_rounds", "warm_up"]


@dataclass(frozen=True)
class TimingLimits:
    """When to stop. A side's ``max_seconds`` counts its timed runs; when one side is done, all are: rounds stay pairs."""

    max_runs: int = 1000
    max_seconds: float = 20.0
    round_runs: int = 8
    round_seconds: float = 1.0  # a slow model takes fewer runs a round, so that the machine's drift stays within pairs
    warm_up_window: int = 7
    warm_up_tolerance: float = 0.03
    max_warm_up_runs: int = 100
    max_warm_up_seconds: float = 5.0


@dataclass(frozen=True)
class WarmUp:
    """How many runs it took, and whether the running median had become steady by then."""

    runs: int
    steady: bool


@dataclass
class _Clock:
    samples_ms: list[float] = field(default_factory=list)
    rounds_ms: list[float] = field(default_factory=list)  # the median of each round


def warm_up(runner: Runner, batch: np.ndarray[Any, Any], limits: TimingLimits) -> WarmUp:
    """Run until the median of a window is within the tolerance of the window before it, or a limit is reached."""
    window = limits.warm_up_window
    samples: list[float] = []
    while len(samples) < limits.max_warm_up_runs and sum(samples) < limits.max_warm_up_seconds * 1e3:
        samples.append(_timed_ms(runner, batch))
        if len(samples) >= 2 * window:
            before, now = statistics.median(samples[-2 * window : -window]), statistics.median(samples[-window:])
            if abs(now - before) <= limits.warm_up_tolerance * before:
                return WarmUp(len(samples), steady=True)
    return WarmUp(len(samples), steady=False)


def time_rounds(
    jobs: Sequence[tuple[Runner, np.ndarray[Any, Any]]],
    limits: TimingLimits,
    progress: Callable[[str], None] = lambda _: None,
) -> list[tuple[list[float], list[float]]]:
    """Time each (runner, batch) in alternating rounds.

    Returns:
        For each job its samples in milliseconds, in order, and the median of each of its rounds.
    """
    clocks = [_Clock() for _ in jobs]
    slowest_ms = max(_timed_ms(runner, batch) for runner, batch in jobs)
    most = max(1, min(limits.round_runs, int(limits.round_seconds * 1e3 / slowest_ms)))
    turn = 0
    while not any(_is_done(clock, limits) for clock in clocks):
        order = list(zip(jobs, clocks, strict=True))
        runs = min(most, limits.max_runs - len(clocks[0].samples_ms))
        for (runner, batch), clock in order if turn % 2 == 0 else reversed(order):
            runner.infer(batch)
            taken = [_timed_ms(runner, batch) for _ in range(runs)]
            clock.samples_ms += taken
            clock.rounds_ms.append(statistics.median(taken))
        turn += 1
        progress(f"{len(clocks[0].samples_ms)} of at most {limits.max_runs} runs a side")
    return [(clock.samples_ms, clock.rounds_ms) for clock in clocks]


def _is_done(clock: _Clock, limits: TimingLimits) -> bool:
    return len(clock.samples_ms) >= limits.max_runs or sum(clock.samples_ms) >= limits.max_seconds * 1e3


def _timed_ms(runner: Runner, batch: np.ndarray[Any, Any]) -> float:
    start = perf_counter_ns()
    runner.infer(batch)
    return (perf_counter_ns() - start) / 1e6
