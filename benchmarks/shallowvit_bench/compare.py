"""Measure sides against each other under the same conditions: the stage *bench*.

    sides -> for each batch size: cold start, warm-up, alternating rounds, power -> scenario -> accuracy

A measurement is handed over as soon as it is timed, and again with its accuracy, so that nothing measured is lost. A newcomer's
trap: the first side is the one in question and the second the one to beat; every other side gets its speed-up over the second.
"""

from __future__ import annotations

import re
import statistics
import uuid
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .accuracy import agreement, measure_accuracy
from .cold_start import measure_cold_start
from .conditions import read_conditions, read_load_average
from .cycling import Cycled
from .loadgen import check_scenario, run_scenario
from .measurement import Measurement
from .percentiles import latency_from_samples
from .power_watch import PowerWatch
from .preprocessing import random_input
from .runners.adaptive import AdaptiveRunner
from .steadiness import drift_of, jitter_ms
from .timing import TimingLimits, own_overhead_ms, time_rounds, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .accuracy import Accuracy
    from .config import BenchConfig
    from .datasets import Dataset
    from .feeding import Batch
    from .runners import Bound, Runner
    from .sides import Side
    from .timing import Timed

__all__ = ["Session", "bench", "side_of"]


@dataclass(frozen=True)
class Session:
    """Around a benchmark: what to call its measurements, what is already there, and where they go.

    Args:
        id: Begins every measurement's ``id``.
        known: Measurements of this session from before it was interrupted, by ``id``; they aren't taken again.
        record: Gets a measurement when it is timed, and again with its accuracy.
        predictions: Folder for the outputs that accuracy comes from; None: they aren't kept.
        load_average: Of the machine before anything of this session ran; None: it is read when the benchmark starts, since
            later it would be our own.
        progress: Told what is going on, a line at a time.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    known: Mapping[str, Measurement] = field(default_factory=dict)
    record: Callable[[Measurement], None] = lambda _: None
    predictions: Path | None = None
    load_average: float | None = None
    progress: Callable[[str], None] = lambda _: None


def bench(
    sides: Sequence[Side], config: BenchConfig, datasets: Sequence[Dataset | None] = (), session: Session | None = None
) -> tuple[Measurement, ...]:
    """Measure sides; one that fails gets a measurement with the reason, and the others are still measured.

    Args:
        sides: The side in question first, then the one to beat, then any others.
        config: Batches, limits, threads, power.
        datasets: None, or the same labelled data opened for each side's bundle; a side with None in its place has no accuracy.
        session: See there.

    Returns:
        A measurement per batch and side, in this order.
    """
    session = session or Session()
    if session.load_average is None:
        session = replace(session, load_average=read_load_average())
    for batch in config.batches if config.scenario else ():
        check_scenario(config.scenario or "", batch, config.scenario_seconds)
    with ExitStack() as stack:
        opened = [_Opened(side, config, session, stack) for side in sides]
        watch = stack.enter_context(PowerWatch(config, session.progress))
        found: dict[str, Measurement] = {}
        for number, batch in enumerate(config.batches):
            found |= _at_batch(opened, batch, f"{session.id}-{number}", watch)
            if config.scenario:
                found |= _in_scenario(opened, batch, f"{session.id}-{number}s")
        if datasets:
            found = _with_accuracy(opened, datasets, found)
    return tuple(found.values())


class _Opened:
    """A side, and its model once it was needed."""

    def __init__(self, side: Side, config: BenchConfig, session: Session, stack: ExitStack) -> None:
        self.side, self.config, self.session = side, config, session
        self._stack = stack
        self._runner: Runner | None = None

    def runner(self) -> Runner:
        if self._runner is None:
            self.say("loading")
            self._runner = self._stack.enter_context(self.side.opener())
        return self._runner

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What a step with this side raises for reasons outside of this project's own code."""
        return self.side.failures + (self._runner.errors if self._runner is not None else ())

    def say(self, text: str) -> None:
        self.session.progress(f"{self.side.name}: {text}")


def _at_batch(opened: Sequence[_Opened], batch: int, group: str, watch: PowerWatch) -> dict[str, Measurement]:
    """Measure all sides at a batch size, or take what is known: together, since they are compared within rounds."""
    session = opened[0].session
    ids = [f"{group}-{number}" for number in range(len(opened))]
    if set(ids) <= set(session.known):
        return {name: session.known[name] for name in ids}
    attempts = [_Attempt(one, batch) for one in opened]
    for step in (_start_cold, _open_warm):
        for attempt in attempts:
            attempt.run(step)
    _time(attempts, watch)
    _compare(attempts)
    found = {}
    for name, attempt in zip(ids, attempts, strict=True):
        found[name] = attempt.measurement(name)
        session.record(found[name])
    return found


class _Attempt:
    """A side at a batch size being measured: figures come in until something fails."""

    def __init__(self, opened: _Opened, batch: int) -> None:
        self.opened, self.side, self.config, self.size = opened, opened.side, opened.config, batch
        self.conditions = replace(read_conditions(opened.config.threads), load_average=opened.session.load_average)
        self.batch: Batch | None = None
        self.batches: list[Batch] | None = None  # where real ones are timed in turn
        self.bound: Bound | None = None
        self.rounds_ms: list[float] = []
        self.figures: dict[str, Any] = {"backend": opened.side.provider}
        self.reason: str | None = None
        self.on_gpu = False

    def run(self, step: Callable[[_Attempt], None]) -> None:
        """Do one step unless an earlier one failed; remember why it failed."""
        if self.reason is None:
            try:
                step(self)
            except self.opened.failures as err:  # evaluated now: the step may have opened the runner
                self.reason = str(err)

    def measurement(self, name: str) -> Measurement:
        """Return what was measured."""
        bundle, throttled = self.side.bundle, self.figures.get("throttled")
        status, reason = ("ok", None) if self.reason is None else ("failed", self.reason)
        if self.reason is None and throttled:
            status, reason = "invalid", f"throttled while it was timed: {'; '.join(throttled)}"
        return Measurement(
            id=name,
            side=self.side.name,
            status=status,
            reason=reason,
            bundle=bundle.name,
            model_sha256=bundle.model_sha256,
            precision=self.side.precision,
            flops=self.side.flops,
            batch=self.size,
            input_shape=bundle.input.measured_shape,
            input_dtype=bundle.input.dtype,
            conditions=self.conditions,
            provider=self.side.provider,
            provider_trials=self.side.trials,
            **self.figures,
        )


def _start_cold(attempt: _Attempt) -> None:
    attempt.opened.say("loading in a fresh process")
    if attempt.side.inputs is None:
        attempt.batch = random_input(attempt.side.bundle, attempt.size)
    else:
        attempt.batches = attempt.side.inputs(attempt.size)
        attempt.batch = attempt.batches[0]
    cold = measure_cold_start(attempt.side.opener, attempt.batch, attempt.side.failures)
    attempt.figures |= {"load_ms": cold.load_ms, "first_ms": cold.first_ms, "peak_mib": cold.peak_mib}


def _open_warm(attempt: _Attempt) -> None:
    assert attempt.batch is not None
    runner = attempt.opened.runner()
    attempt.opened.say(f"warming up, batch {attempt.size}")
    attempt.bound = runner.bind(attempt.batch) if attempt.batches is None else Cycled(runner, attempt.batches)
    done = warm_up(attempt.bound, TimingLimits())
    facts = runner.facts
    attempt.on_gpu = facts.device != "cpu"
    attempt.figures |= {
        "backend": facts.backend,
        "computed_in": attempt.side.precision if facts.precision == "as the graph" else facts.precision,
        "provider_options": facts.options | ({"version": facts.version} if facts.version else {}),
        "engine_sha256": facts.engine_sha256,
        "copies": facts.copies,
        "cuda_graph": facts.cuda_graph,
        "remarks": facts.remarks,
        "warm_up_runs": done.runs,
        "warm_up_steady": done.steady,
    }


def _time(attempts: Sequence[_Attempt], watch: PowerWatch) -> None:
    """Time all sides that are still in, in alternating rounds, then run them again for as long as a power sensor needs."""
    running = [attempt for attempt in attempts if attempt.reason is None]
    jobs = [attempt.bound for attempt in running if attempt.bound is not None]
    if not jobs:
        return
    config, session = running[0].config, running[0].opened.session
    limits = TimingLimits(max_runs=config.max_runs, max_seconds=config.max_seconds)
    for attempt in running:
        if isinstance(attempt.bound, Cycled):
            attempt.bound.restart()
        _shares(attempt.opened.runner())  # those of the warm-up
    with watch.sampling(gpu=any(attempt.on_gpu for attempt in running)):
        try:
            taken = time_rounds(jobs, limits, session.progress)
            repeated = watch.repeat(jobs, session.progress)
        except tuple({kind for attempt in running for kind in attempt.opened.failures}) as err:
            # whose run it was isn't known, and a device that fails takes all sides with it
            for attempt in running:
                attempt.reason = str(err)
            return
    overhead_ms = own_overhead_ms()
    for attempt in running:
        attempt.figures |= _shares(attempt.opened.runner())
    for attempt, timed, energy in zip(running, taken, repeated, strict=True):
        attempt.rounds_ms = timed.rounds_ms if attempt.batches is None else _round_means_ms(timed)
        attempt.figures |= _latency_figures(timed, attempt.size, overhead_ms)
        watched = watch.figures(timed.windows, energy, attempt.size, on_gpu=attempt.on_gpu)
        remarks = (*attempt.figures["remarks"], *watched.pop("remarks", ()))
        attempt.figures |= watched | {"remarks": remarks}


def _round_means_ms(timed: Timed) -> list[float]:
    ends = np.cumsum(timed.round_runs)[:-1]
    return [float(part.mean()) for part in np.split(np.asarray(timed.samples_ms), ends)]


def _shares(runner: Runner) -> dict[str, Any]:
    """Which depths answered since the last time it was asked, of a runner that has several."""
    shares = runner.take_shares() if isinstance(runner, AdaptiveRunner) else {}
    return {"depth_shares": shares} if shares else {}


def _latency_figures(timed: Timed, batch: int, overhead_ms: float) -> dict[str, Any]:
    latency = latency_from_samples(timed.samples_ms)
    drift = drift_of(timed.samples_ms)
    median = statistics.median(timed.samples_ms)
    return vars(latency) | {
        "samples_ms": tuple(round(sample, 6) for sample in timed.samples_ms),
        "device_p50_ms": statistics.median(timed.device_ms) if timed.device_ms else None,
        "items_per_s": batch * 1e3 / latency.mean_ms,
        "jitter_ms": jitter_ms(timed.samples_ms, timed.round_runs),
        "drift": drift.share,
        "drifted": drift.drifted,
        "overhead": overhead_ms / median,
    }


def _in_scenario(opened: Sequence[_Opened], batch: int, group: str) -> dict[str, Measurement]:
    """Let MLPerf LoadGen time each side alone; each gets a measurement of its own for it."""
    session, found = opened[0].session, {}
    for number, one in enumerate(opened):
        name = f"{group}-{number}"
        if name in session.known:
            found[name] = session.known[name]
            continue
        attempt = _Attempt(one, batch)
        attempt.figures["scenario"] = one.config.scenario
        attempt.batch = random_input(one.side.bundle, batch)
        attempt.run(_open_warm)
        attempt.run(_run_loadgen)
        found[name] = attempt.measurement(name)
        session.record(found[name])
    return found


def _run_loadgen(attempt: _Attempt) -> None:
    assert attempt.bound is not None
    config = attempt.config
    result = run_scenario(attempt.bound, attempt.size, config.scenario or "", config.scenario_seconds, attempt.opened.say)
    attempt.figures["scenario_results"] = asdict(result)
    attempt.figures["remarks"] = (*attempt.figures["remarks"], *result.remarks)


def _compare(attempts: Sequence[_Attempt]) -> None:
    """Give each side but the one to beat its speed-up over that one, and its ideal.

    Where inputs differ the mean counts: a median of a mix is the time of the depth that most inputs take.
    """
    if len(attempts) < 2 or attempts[1].reason is not None:
        return
    other = attempts[1]
    if other.figures.get("throttled"):
        for ours in (attempts[0], *attempts[2:]):
            if ours.reason is None:
                ours.figures["remarks"] += (f"no speed-up is given: {other.side.name} was throttled while it was timed",)
        return
    for ours in (attempts[0], *attempts[2:]):
        if ours.reason is not None:
            continue
        middle = statistics.median if ours.batches is None else statistics.fmean
        typical = [middle(attempt.figures["samples_ms"]) for attempt in (ours, other)]
        ratios = np.array(other.rounds_ms) / np.array(ours.rounds_ms)
        low, high = np.quantile(ratios, (0.1, 0.9))
        speedup, ideal = typical[1] / typical[0], other.side.flops / ours.side.flops if ours.side.flops else None
        alike = [(one.side.provider, one.figures["backend"], one.figures["computed_in"]) for one in (ours, other)]
        ours.figures |= {
            "against": other.side.name,
            "speedup": speedup,
            "speedup_low": float(low),
            "speedup_high": float(high),
            "ideal_speedup": ideal,
            # against another runtime or precision the ratio holds both gains, so it's no share of the one from depth
            "share_of_ideal": speedup / ideal if ideal and alike[0] == alike[1] else None,
        }


def _with_accuracy(
    opened: Sequence[_Opened], datasets: Sequence[Dataset | None], found: dict[str, Measurement]
) -> dict[str, Measurement]:
    """Measure each side's accuracy once and write it into its measurements at every batch size."""
    timed = {name: measured for name, measured in found.items() if measured.scenario is None}
    if all(measured.metrics or measured.status == "failed" for measured in timed.values()):
        return found
    figures: list[dict[str, Any]] = []
    accuracies: list[Accuracy | None] = []
    for number, (one, dataset) in enumerate(zip(opened, datasets, strict=True)):
        accuracies.append(None)
        figures.append({})
        mine = [measured for name, measured in timed.items() if side_of(name) == number]
        if dataset is None or all(measured.status == "failed" for measured in mine):
            continue
        try:
            accuracies[number] = accuracy = _predict(one, dataset)
            figures[number] = _accuracy_figures(accuracy) | _shares(one.runner())
        except one.side.failures as err:
            figures[number] = {"status": "failed", "reason": str(err)}
    if len(accuracies) > 1 and (other := accuracies[1]):
        for ours, entries in zip(accuracies, figures, strict=True):
            if ours is not None and ours is not other:
                entries["agreement"] = agreement(ours, other).agreement
    result = dict(found)
    for name, measured in timed.items():
        more = figures[side_of(name)]
        result[name] = replace(
            measured, **more | {"remarks": tuple(dict.fromkeys((*measured.remarks, *more.get("remarks", ()))))}
        )
        opened[0].session.record(result[name])
    return result


def side_of(name: str) -> int:
    """Return the number of the side in a measurement's id."""
    return int(name.rsplit("-", 1)[1])


def _predict(one: _Opened, dataset: Dataset) -> Accuracy:
    if folder := one.session.predictions:
        folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", f"{one.side.name}-{one.side.provider}")
    save = folder / f"{name}.jsonl" if folder else None
    return measure_accuracy(one.runner(), one.side.bundle, dataset, one.config.accuracy_batch, one.say, save=save)


def _unread(found: Accuracy) -> list[str]:
    """Which items couldn't be read; all of them stand in the file of outputs."""
    if not found.unreadable:
        return []
    name, reason = found.unreadable[0]
    return [f"{len(found.unreadable):,} items could not be read and count in no accuracy, the first {name}: {reason}"]


def _accuracy_figures(found: Accuracy) -> dict[str, Any]:
    return {
        "data": found.data,
        "items": found.items,
        "unreadable": len(found.unreadable),
        "metrics": found.metrics,
        "remarks": (*found.remarks, *_unread(found)),
        "predictions": str(found.saved) if found.saved else None,
    }
