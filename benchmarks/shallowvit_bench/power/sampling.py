"""Sample sensors in the background while something else runs, and put what they said in one trace.

    with open_power(gpu=True) as meter:  # meter.reason says why there is no power, if there is none
        with meter.sampling() as recording:
            ...
        trace = recording.trace()

A newcomer's trap: sampling begins with the first reading of every sensor and ends with one more, so that what runs inside is
covered at both ends; what is measured must lie inside of the ``with``.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from ..errors import BenchError
from .trace import Reading, Trace, merge_traces

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["PollingSampler", "PowerMeter", "PowerSource", "Recording", "Sampler", "Unavailable"]


class Sampler(Protocol):
    """A sensor that is read in the background: ``start`` once, ``stop`` once."""

    def start(self) -> None:
        """Begin; return when the first reading is there."""

    def stop(self) -> Trace:
        """End with one more reading and return all."""


@dataclass(frozen=True)
class PowerSource:
    """A way to measure power or energy here.

    Args:
        name: The sensor and what it covers.
        open: Makes a sampler of this source, once for each recording.
        period_s: Between two new figures.
        averaging_s: How long a figure of it averages.
        settle_s: How much longer than what is measured it must be read, at both ends, to have a new figure there.
        covers: Which of ``cpu`` and ``gpu`` it measures; of work on the other it knows nothing.
    """

    name: str
    open: Callable[[PowerSource], Sampler]
    period_s: float
    averaging_s: float = 0.0
    settle_s: float = 0.05
    covers: tuple[str, ...] = ("cpu", "gpu")


@dataclass(frozen=True)
class Unavailable:
    """A source that can't be used here, and why."""

    name: str
    reason: str


class PollingSampler:
    """Read a sensor in a thread, at fixed moments; a moment that was missed is left out, not made up for.

    Args:
        name: Of the sensor, for messages; the trace's source where ``look`` gives power or energy.
        look: Reads the sensor. Its ``BenchError``, ``OSError`` or ``ValueError`` ends the sampling and stands in the trace.
        period_s: Between two looks.
        source: What the trace is told of the source of power; None: ``look`` gives no power.
    """

    def __init__(self, name: str, look: Callable[[], Reading], period_s: float, source: PowerSource | None = None) -> None:
        self._name, self._look, self._period_s, self._source = name, look, period_s, source
        self._readings: list[Reading] = []
        self._problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sampling {name}", daemon=True)

    def start(self) -> None:
        """Read once, then begin; return when a new figure has come."""
        self._take()
        self._thread.start()
        self._settle()

    def stop(self) -> Trace:
        """Wait for a new figure, end, and read once more."""
        self._settle()
        self._stop.set()
        self._thread.join()
        self._take()
        problems = (self._problem,) if self._problem else ()
        source = self._source
        if source is None:
            return Trace(tuple(self._readings), problems=problems)
        return Trace(tuple(self._readings), source.name, source.period_s, source.averaging_s, problems)

    def _settle(self) -> None:
        if self._source is not None and self._problem is None:
            time.sleep(self._source.settle_s)

    def _run(self) -> None:
        due = time.perf_counter() + self._period_s
        while self._problem is None and not self._stop.wait(max(0.0, due - time.perf_counter())):
            self._take()
            due = max(due, time.perf_counter() - self._period_s) + self._period_s

    def _take(self) -> None:
        if self._problem is not None:
            return
        try:
            reading = self._look()
        except (BenchError, OSError, ValueError) as err:
            after = f"after {self._readings[-1].time_s - self._readings[0].time_s:.1f} s" if self._readings else "at once"
            self._problem = f"{self._name} could no longer be read {after}: {err}"
            return
        since = self._readings[-1].time_s if self._readings else reading.time_s
        self._readings.append(replace(reading, since_s=since))


class Recording:
    """Samplers that run; made by ``PowerMeter.sampling`` and used as a context."""

    def __init__(self, samplers: tuple[Sampler, ...]) -> None:
        self._samplers = samplers
        self._started: list[Sampler] = []
        self._trace: Trace | None = None

    def __enter__(self) -> Recording:
        try:
            for sampler in self._samplers:
                sampler.start()
                self._started.append(sampler)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        traces = [sampler.stop() for sampler in self._started]
        self._started = []
        self._trace = merge_traces(traces)

    def trace(self) -> Trace:
        """Return what was sampled, when the recording is over."""
        assert self._trace is not None, "the recording is still running"
        return self._trace


class PowerMeter:
    """What can be sampled on this machine; each ``sampling`` is a recording of its own.

    Args:
        power: The source of power; None: there is none, and ``reason`` says why.
        others: Make the samplers of clocks, temperatures and throttling.
        reason: One sentence; None where there is a source.
        close: Frees what the sensors hold.
    """

    def __init__(
        self,
        power: PowerSource | None,
        others: tuple[Callable[[], Sampler], ...] = (),
        reason: str | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.power, self.others, self.reason, self._close = power, others, reason, close

    @property
    def source(self) -> str | None:
        """The name of the source, with what it covers; None: energy can't be measured here."""
        return self.power.name if self.power else None

    @property
    def covers(self) -> tuple[str, ...]:
        """Which of ``cpu`` and ``gpu`` the source measures."""
        return self.power.covers if self.power else ()

    def sampling(self) -> Recording:
        """Return a recording, to be used as a context."""
        made = [self.power.open(self.power)] if self.power else []
        return Recording((*made, *(make() for make in self.others)))

    def close(self) -> None:
        """Free what the sensors hold."""
        self._close()

    def __enter__(self) -> PowerMeter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
