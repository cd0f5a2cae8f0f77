"""Hold our timing of an engine against that of TensorRT's own command-line tool, turn by turn on the same engine.

A newcomer's trap: what is compared is the compute by the GPU's clock, since whole runs hold other things on each side; the
tool of TensorRT 10 copies by default and replays no CUDA graph, that of 11 the other way round.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RunnerOptions
from shallowvit_bench.runners.opening import engine_of, opener_for
from shallowvit_bench.timing import TimingLimits, time_rounds, warm_up
from shallowvit_bench.trtexec import agreement_with_trtexec, parse_trtexec

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from shallowvit_bench.bundles import BundleInfo

__all__ = ["ToolAgreement", "compare_with_tool", "find_tool"]

# flavour -> where its tool is, best first
_TOOLS = {"tensorrt": ("trtexec", "/usr/src/tensorrt/bin/trtexec"), "rtx": ("tensorrt_rtx",)}
_SECONDS = 3.0
_TURNS = 2
_TIME_LIMIT_S = 120


@dataclass(frozen=True)
class ToolAgreement:
    """Medians of both, in milliseconds by the GPU's clock, over all turns; ``difference`` is ours over the tool's, less 1."""

    tool: str
    version: str | None
    ours_ms: float
    tool_ms: float
    difference: float


def find_tool(flavour: str) -> str | None:
    """Return the path of a flavour's tool, or None where there is none."""
    return next((found for name in _TOOLS[flavour] if (found := shutil.which(name))), None)


def compare_with_tool(info: BundleInfo, flavour: str, tool: str) -> ToolAgreement:
    """Time the engine of a bundle by both, in turns, a batch of 1.

    Raises:
        ShallowvitError: the tool fails, or prints no median.
        BenchError: the engine can't be run.
    """
    engine = info.path / engine_of(info, flavour)["path"]
    ours, theirs, differences = [], [], []
    version = None
    for _ in range(_TURNS):
        text = _run_tool(tool, engine, info)
        report = parse_trtexec(text)
        median_ms = _our_median_ms(info, flavour)
        differences.append(agreement_with_trtexec(median_ms, report, copies=False))
        ours.append(median_ms)
        theirs.append(median_ms / (1 + differences[-1]))
        version = report.version
    medians = statistics.median(ours), statistics.median(theirs)
    return ToolAgreement(tool, version, *medians, statistics.median(differences))


def _run_tool(tool: str, engine: Path, info: BundleInfo) -> str:
    shapes = [f"{one.name}:{'x'.join(map(str, (1, *one.least_shape)))}" for one in info.inputs if one.batch]
    command = [tool, f"--loadEngine={engine}", f"--shapes={','.join(shapes)}", "--useCudaGraph"]
    command += ["--warmUp=500", f"--duration={_SECONDS:g}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as err:
        raise ShallowvitError(f"selfcheck: {tool} took more than {_TIME_LIMIT_S} s; run it yourself on {engine}") from err
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["it printed nothing"]
        raise ShallowvitError(f"selfcheck: {tool} ended with {done.returncode}: {last[0]}; run it yourself on {engine}")
    return done.stdout


def _our_median_ms(info: BundleInfo, flavour: str) -> float:
    with opener_for(info, flavour, RunnerOptions(copies=False))() as runner:
        run = runner.bind(random_input(info, 1))
        limits = TimingLimits(max_runs=100_000, max_seconds=_SECONDS)
        warm_up(run, limits)
        (timed,) = time_rounds([run], limits)
    return statistics.median(timed.device_ms)
