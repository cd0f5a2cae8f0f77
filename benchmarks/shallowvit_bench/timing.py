"""Time bound batches in alternating rounds: warm up until steady, then A B B A ..., every raw sample kept in order.

A newcomer's trap: after the other side's round its threads still spin on the cores and its data fills the caches, so the first
run of each round isn't timed.
"""

from __future__ import annotations

import gc
import statistics
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .runners import Bound

__all__ = ["Repeated", "Timed", "TimingLimits", "WarmUp", "own_overhead_ms", "repeat_in_windows", "time_rounds", "warm_up"]


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
class Timed:
    """What was taken of one side.

    Args:
        samples_ms: Every run, in the order of time.
        rounds_ms: The median of each round.
        round_runs: How many runs each round has.
        device_ms: Every run by the device's own clock; empty where it has none.
        windows: Start and end of each round's timed runs, seconds of ``time.perf_counter``.
    """

    samples_ms: list[float] = field(default_factory=list)
    rounds_ms: list[float] = field(default_factory=list)
    round_runs: list[int] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    windows: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Repeated:
    """What a side did while its power was sampled: start and end of each window in seconds of ``time.perf_counter``, and runs
    and seconds in all of them.
    """

    windows: list[tuple[float, float]] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0


def warm_up(run: Bound, limits: TimingLimits) -> WarmUp:
    """Run until the median of a window is within the tolerance of the window before it, or a limit is reached."""
    window = limits.warm_up_window
    samples: list[float] = []
    while len(samples) < limits.max_warm_up_runs and sum(samples) < limits.max_warm_up_seconds * 1e3:
        samples.append(_timed_ms(run))
        if len(samples) >= 2 * window:
            before, now = statistics.median(samples[-2 * window : -window]), statistics.median(samples[-window:])
            if abs(now - before) <= limits.warm_up_tolerance * before:
                return WarmUp(len(samples), steady=True)
    return WarmUp(len(samples), steady=False)


def time_rounds(jobs: Sequence[Bound], limits: TimingLimits, progress: Callable[[str], None] = lambda _: None) -> list[Timed]:
    """Time each bound batch in alternating rounds; return what was taken of each, in the order of ``jobs``."""
    taken = [Timed() for _ in jobs]
    slowest_ms = max(_timed_ms(run) for run in jobs)
    most = max(1, min(limits.round_runs, int(limits.round_seconds * 1e3 / slowest_ms)))
    stamps = np.zeros((2, most), np.int64)
    device = np.zeros(most, np.float64)
    turn = 0
    while not any(_is_done(timed, limits) for timed in taken):
        order = list(zip(jobs, taken, strict=True))
        runs = min(most, limits.max_runs - len(taken[0].samples_ms))
        for run, timed in order if turn % 2 == 0 else reversed(order):
            run()
            with _no_collection():
                timed.windows.append(_time_round(run, stamps[:, :runs], device))
            samples = (stamps[1, :runs] - stamps[0, :runs]) / 1e6
            timed.samples_ms += samples.tolist()
            timed.rounds_ms.append(float(np.median(samples)))
            timed.round_runs.append(runs)
            if run.device_ms is not None:
                timed.device_ms += device[:runs].tolist()
        turn += 1
        progress(f"{len(taken[0].samples_ms)} of at most {limits.max_runs} runs a side")
    return taken


def repeat_in_windows(
    jobs: Sequence[Bound], window_s: float, seconds: float, fewest: int, progress: Callable[[str], None] = lambda _: None
) -> list[Repeated]:
    """Run each bound batch again and again in alternating windows of at least ``window_s`` seconds.

    Latency is timed in rounds too short for a power sensor; here runs follow each other for as long as the sensor needs: for
    ``seconds`` of each side in ``fewest`` windows or more. A run longer than a window fills one alone, and a side that has its
    seconds isn't run any more.
    """
    done = [Repeated() for _ in jobs]
    waiting = list(zip(jobs, done, strict=True))
    turn = 0
    while waiting:
        for run, repeated in waiting if turn % 2 == 0 else reversed(waiting):
            run()
            begun = now = perf_counter()
            while now < begun + window_s:
                run()
                repeated.runs += 1
                now = perf_counter()
            repeated.windows.append((begun, now))
            repeated.seconds += now - begun
        turn += 1
        waiting = [(run, repeated) for run, repeated in waiting if turn < fewest or repeated.seconds < seconds]
        progress(f"power: {min(repeated.seconds for repeated in done):.0f} of {seconds:.0f} s a side")
    return done


def own_overhead_ms(runs: int = 2000) -> float:
    """Return the median that this module's loop measures of a run that does nothing, in milliseconds."""
    stamps, device = np.zeros((2, runs), np.int64), np.zeros(runs, np.float64)
    with _no_collection():
        _time_round(_Nothing(), stamps, device)
    return float(np.median(stamps[1] - stamps[0])) / 1e6


class _Nothing:
    """A bound batch that does nothing."""

    device_ms = None

    def __call__(self) -> None:
        return

    def output(self) -> np.ndarray[Any, Any]:
        return np.zeros(0)

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        return {}


def _time_round(run: Bound, stamps: np.ndarray[Any, Any], device: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Fill in the start and end of each run in nanoseconds; nothing of ours is allocated that outlives a run."""
    clock, (starts, ends) = perf_counter_ns, stamps
    by_device = run.device_ms is not None
    begun = perf_counter()
    for index in range(len(starts)):
        starts[index] = clock()
        run()
        ends[index] = clock()
        if by_device:
            device[index] = run.device_ms or 0.0
    return begun, perf_counter()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running within a timed run."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _is_done(timed: Timed, limits: TimingLimits) -> bool:
    return len(timed.samples_ms) >= limits.max_runs or sum(timed.samples_ms) >= limits.max_seconds * 1e3


def _timed_ms(run: Bound) -> float:
    start = perf_counter_ns()
    run()
    return (perf_counter_ns() - start) / 1e6
