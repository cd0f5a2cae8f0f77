"""Read what NVIDIA's ``trtexec`` (and ``tensorrt_rtx``) prints and writes, to compare our figures of an engine with theirs.

Per-layer profiles (``--exportProfile``) are read by the report. A newcomer's trap: TensorRT 11 captures a CUDA graph and leaves
the copies out unless told otherwise, 10 does neither, so their latencies mean different things.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import BenchError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TrtexecReport", "TrtexecRun", "TrtexecTimes", "agreement_with_trtexec", "parse_trtexec", "read_trtexec_times"]

_NUMBER = r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
_PREFIX = re.compile(r"(?:\[[^\]]*\]\s*)*?\[(?P<level>[VIWE])\] ?(?P<text>.*)")
_BANNER = re.compile(r"&&&& (?P<word>PASSED|FAILED|RUNNING)\b.*?\[TensorRT\S* v(?P<version>\d+)\]")
_TIMES = re.compile(r"(min|max|mean|median|percentile\((\d+(?:\.\d+)?)%\)) = " + _NUMBER + " ms")
_SINGLE = re.compile(r"(?P<name>[^:]+): " + _NUMBER + r" (?P<unit>qps|s)\s*")
_SUMMARY = "=== Performance summary ==="
_NAMES = {
    "Latency": "latency",
    "End-to-End Host Latency": "end_to_end",  # 8.0 to 8.2
    "Enqueue Time": "enqueue",
    "H2D Latency": "h2d",
    "GPU Compute Time": "compute",
    "D2H Latency": "d2h",
}


@dataclass(frozen=True)
class TrtexecTimes:
    """A line of the summary, in milliseconds; ``percentiles_ms`` by percent. None: the line lacks it."""

    min_ms: float | None
    max_ms: float | None
    mean_ms: float | None
    median_ms: float | None
    percentiles_ms: dict[float, float]


@dataclass(frozen=True)
class TrtexecReport:
    """What a run printed; None where it didn't.

    Args:
        version: Of TensorRT, as 10.3.0.
        passed: Whether the run ended well; None: its end is missing.
        throughput_qps: In queries, of a whole batch each.
        latency: Copy to the GPU, compute and copy back, where copies are on.
        others: Lines of the same form that this version doesn't know, by their name.
        warnings: Of the summary.
        errors: Of the whole run.
    """

    version: str | None = None
    passed: bool | None = None
    throughput_qps: float | None = None
    walltime_s: float | None = None
    total_compute_s: float | None = None
    latency: TrtexecTimes | None = None
    end_to_end: TrtexecTimes | None = None
    enqueue: TrtexecTimes | None = None
    h2d: TrtexecTimes | None = None
    compute: TrtexecTimes | None = None
    d2h: TrtexecTimes | None = None
    others: dict[str, TrtexecTimes] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrtexecRun:
    """One query of ``--exportTimes``; None: the file lacks it."""

    latency_ms: float | None
    compute_ms: float | None
    h2d_ms: float | None
    d2h_ms: float | None
    enqueue_ms: float | None


def parse_trtexec(text: str) -> TrtexecReport:
    """Read the output of a run; of several summaries the last counts. Lines that say nothing known are passed over."""
    banners = [found for line in text.splitlines() if (found := _BANNER.search(line))]
    last = banners[-1] if banners else None
    lines = [found for line in text.splitlines() if (found := _PREFIX.fullmatch(line.strip()))]
    start = max((place for place, line in enumerate(lines) if line["text"].strip() == _SUMMARY), default=None)
    summary = [] if start is None else lines[start + 1 :]
    times: dict[str, TrtexecTimes] = {}
    singles: dict[str, float] = {}
    for line in summary:
        name, colon, rest = line["text"].partition(":")
        if colon and (figures := _TIMES.findall(rest)):
            times[name.strip()] = _times_from_figures(figures)
        elif single := _SINGLE.fullmatch(line["text"]):
            singles[single["name"].strip()] = float(single[2])
    return TrtexecReport(
        version=_version(last["version"]) if last else None,
        passed={"PASSED": True, "FAILED": False}.get(last["word"]) if last else None,
        throughput_qps=singles.get("Throughput"),
        walltime_s=singles.get("Total Host Walltime"),
        total_compute_s=singles.get("Total GPU Compute Time"),
        **{field_name: times.get(name) for name, field_name in _NAMES.items()},
        others={name: value for name, value in times.items() if name not in _NAMES},
        warnings=_warnings(summary),
        errors=tuple(line["text"].strip() for line in lines if line["level"] == "E"),
    )


def _times_from_figures(found: list[tuple[str, str, str]]) -> TrtexecTimes:
    named = {name: float(number) for name, percent, number in found if not percent}
    percentiles = {float(percent): float(number) for _, percent, number in found if percent}
    return TrtexecTimes(named.get("min"), named.get("max"), named.get("mean"), named.get("median"), percentiles)


def _version(digits: str) -> str:
    """``8601`` is 8.6.1, ``100300`` is 10.3.0: the minor version got a second digit in 10."""
    number = int(digits)
    width = 10 if len(digits) <= 4 else 100
    return f"{number // (100 * width)}.{number // 100 % width}.{number % 100}"


def _warnings(summary: list[re.Match[str]]) -> tuple[str, ...]:
    """Each starts with an asterisk and may go on in further lines."""
    found: list[str] = []
    for line in summary:
        if line["level"] != "W":
            continue
        text = line["text"].strip()
        if text.startswith("*") or not found:
            found.append(text.lstrip("* "))
        else:
            found[-1] += " " + text
    return tuple(found)


def read_trtexec_times(path: Path) -> tuple[TrtexecRun, ...]:
    """Read the runs that ``trtexec --exportTimes=FILE`` wrote, in the order of time.

    Raises:
        BenchError: the file is missing or holds no list of runs.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise BenchError(
            f"read_trtexec_times: {path} can't be read ({err}); write it with: trtexec --exportTimes={path}"
        ) from err
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise BenchError(f"read_trtexec_times: {path} holds no list of runs; write it with: trtexec --exportTimes={path}")
    return tuple(_run_from_entry(entry) for entry in entries)


def _run_from_entry(entry: dict[str, object]) -> TrtexecRun:
    def number(key: str) -> float | None:
        value = entry.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    begun, ended = number("startEnqMs"), number("endEnqMs")
    return TrtexecRun(
        latency_ms=number("latencyMs"),
        compute_ms=number("computeMs"),
        h2d_ms=number("h2dMs"),
        d2h_ms=number("d2hMs"),
        enqueue_ms=None if begun is None or ended is None else ended - begun,
    )


def agreement_with_trtexec(p50_ms: float, report: TrtexecReport, *, copies: bool) -> float:
    """Return by what share our median differs from trtexec's of the same engine; below 0: ours is shorter.

    Args:
        p50_ms: Our median: of whole runs where ``copies``, else without copies.
        report: Of a run of trtexec.
        copies: Whether our figure holds the copies to and from the GPU.

    Raises:
        BenchError: trtexec failed, or its figures hold no copies where ours do.
    """
    if report.passed is False:
        raise BenchError(f"agreement_with_trtexec: trtexec failed: {'; '.join(report.errors[:2]) or 'no error was printed'}")
    times = report.latency if copies else report.compute
    if times is None or not times.median_ms:
        raise BenchError("agreement_with_trtexec: no median in trtexec's output; give the whole output of a run that ended")
    if copies and (report.h2d is None or not report.h2d.max_ms):
        raise BenchError(
            "agreement_with_trtexec: trtexec ran without copies, our figure holds them; run trtexec with "
            "--includeDataTransfers (11) or without --noDataTransfers (10)"
        )
    return p50_ms / times.median_ms - 1
