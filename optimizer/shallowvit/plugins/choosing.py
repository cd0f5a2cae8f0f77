"""Keep a plugin only where an engine with it is faster than one without, measured on the GPU that is here.

A newcomer's trap: engines are compared whole. A kernel that wins alone may lose beside layers that TensorRT would have fused
into the attention it replaces.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from ..engines.records import Flavour, PluginTiming

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["compare_engines", "time_plugins"]

_SECONDS = 2.0  # of a side


def time_plugins(
    operators: Sequence[str],
    engine_with: Callable[[frozenset[str]], Path],
    compare: Callable[[Path, Path], tuple[float, float]],
) -> tuple[PluginTiming, ...]:
    """Time each operator's plugin: an engine with it alone against one with none.

    Args:
        operators: Each different one.
        engine_with: Builds the engine with those plugins and returns its file.
        compare: Times two engine files, milliseconds each.
    """
    native = engine_with(frozenset())
    return tuple(PluginTiming(one, *compare(native, engine_with(frozenset({one})))) for one in operators)


def compare_engines(flavour: Flavour, batch: Mapping[str, Any], one: Path, other: Path) -> tuple[float, float]:
    """Return the median milliseconds of a run of each engine, timed in alternating rounds on the first GPU.

    Args:
        flavour: Of both.
        batch: An array for each input, by name.
        one: An engine's file.
        other: Another's.

    Raises:
        BenchError: an engine can't be loaded or run here.
    """
    from shallowvit_bench.runners import RunnerOptions
    from shallowvit_bench.runners.tensorrt_engine import open_rtx, open_tensorrt
    from shallowvit_bench.timing import TimingLimits, time_rounds, warm_up

    opened = open_rtx if flavour is Flavour.RTX else open_tensorrt
    options, limits = RunnerOptions(copies=False), TimingLimits(max_seconds=_SECONDS)
    with opened(one, options) as first, opened(other, options) as second:
        jobs = [runner.bind(dict(batch)) for runner in (first, second)]
        for job in jobs:
            warm_up(job, limits)
        timed = time_rounds(jobs, limits)
    medians = [statistics.median(timing.device_ms or timing.samples_ms) for timing in timed]
    return medians[0], medians[1]
