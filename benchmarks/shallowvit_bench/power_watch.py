"""Power, clocks and heat around the timed runs of a benchmark: what was drawn above idle, and whether the device slowed down.

A newcomer's trap: no source of power is a result too; its sentence goes into every row, so that a missing figure is never
read as a small one.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from .errors import BenchError
from .power import energy_of, idle_power, max_temperature_c, mean_clocks_mhz, min_window_s, open_power, throttling
from .runners.cuda_driver import first_gpu
from .timing import Repeated, repeat_in_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .config import BenchConfig
    from .power import PowerMeter, Trace
    from .runners import Bound

__all__ = ["PowerWatch"]

_FEWEST_WINDOWS = 3  # of each side, alternating, so that warming up isn't charged to one of them
_OFF = "energy not measured: switched off with --no-power"


class PowerWatch:
    """The sensors of a benchmark, opened when the first side is about to be timed; idle power is taken once, by then.

    Args:
        config: Whether power is sampled, and how long.
        progress: Told what is going on.
    """

    def __init__(self, config: BenchConfig, progress: Callable[[str], None]) -> None:
        self._config, self._progress = config, progress
        self._meter: PowerMeter | None = None
        self._idle_w: float | None = None
        self._trace: Trace | None = None
        self._problem: str | None = None

    def __enter__(self) -> PowerWatch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._meter is not None:
            self._meter.close()

    @contextmanager
    def sampling(self, gpu: bool) -> Iterator[None]:
        """Sample while the sides are timed; models are loaded and at rest when this is entered."""
        if not self._config.power:
            yield
            return
        self._trace = self._problem = None
        with ExitStack() as stack:
            try:
                recording = stack.enter_context(self._opened(gpu).sampling())
            except BenchError as err:  # a sensor that worked before; what is timed is worth as much without it
                self._problem = f"energy not measured: {err}"
                yield
                return
            yield
        self._trace = recording.trace()

    def _opened(self, gpu: bool) -> PowerMeter:
        if self._meter is None:
            used = first_gpu() if gpu else None  # NVML counts all GPUs, also those that CUDA_VISIBLE_DEVICES hides
            self._meter = open_power(gpu=gpu, gpu_bus_id=used.bus_id if used else None)
            if self._meter.source:
                self._progress(f"idle power for {self._config.idle_seconds:g} s")
                self._idle_w = idle_power(self._meter, self._config.idle_seconds)
        return self._meter

    def repeat(self, jobs: Sequence[Bound], progress: Callable[[str], None]) -> list[Repeated]:
        """Run each batch for as long as the source of power needs; no time at all where there is none."""
        if self._meter is None or not self._meter.source or self._problem:
            return [Repeated() for _ in jobs]
        window_s = min_window_s(self._meter)
        return repeat_in_windows(jobs, window_s, self._config.energy_seconds, _FEWEST_WINDOWS, progress)

    def figures(
        self, timed: Sequence[tuple[float, float]], repeated: Repeated, batch: int, *, on_gpu: bool = False
    ) -> dict[str, Any]:
        """Return the figures of a row for the windows in which latency was timed and those in which power was taken.

        A side that runs where the source doesn't measure gets no energy: what a card draws meanwhile isn't its own.
        """
        if self._meter is None or self._trace is None:
            return {"power_reason": self._problem or _OFF}
        windows = [*timed, *repeated.windows]
        found: dict[str, Any] = {
            "throttled": throttling(self._trace, windows),
            "max_temperature_c": max_temperature_c(self._trace, windows),
            "remarks": self._trace.problems,
            "clocks_mhz": {unit: round(clock, 1) for unit, clock in mean_clocks_mhz(self._trace, windows).items()},
        }
        if not self._meter.source:
            return found | {"power_reason": self._meter.reason}
        unit = "gpu" if on_gpu else "cpu"
        if unit not in self._meter.covers:
            where = f"which isn't what this side runs on ({unit.upper()}); measure it in a run of its own"
            return found | {"power_reason": f"energy not measured: the source is {self._meter.source}, {where}"}
        energy = energy_of(self._trace, repeated.windows, self._idle_w, repeated.runs, batch)
        return found | {
            "power_source": energy.source,
            "power_reason": energy.reason,
            "idle_w": energy.idle_w,
            "mean_w": energy.mean_w,
            "peak_w": energy.peak_w,
            "energy_mj": energy.energy_mj,
            "energy_item_mj": energy.energy_item_mj,
        }
